"""`python -m optlab`: the `optlab` command."""

from optlab.cli import main

main()
