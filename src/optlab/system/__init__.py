"""Files, locks, processes, git, DVC, and one-line errors."""
