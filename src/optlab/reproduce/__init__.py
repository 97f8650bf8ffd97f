"""Reproduction of a past run from its git revision, comparison of the outputs, and releases."""
