"""A past run computed again from its git revision, and the verdict; releases."""
