"""What is asked of the machine: files, locks, processes, git and DVC, and errors that are one line."""
