"""The command line: `optlab check`, `add`, `new`, `repro`, `versus`, `show`, `compare`, `ui`, `sync`, and so on."""

from optlab.cli import comparison, reproduction, tracking  # noqa: F401  # each adds its commands
from optlab.cli.shared import app
from optlab.system import errors


def main() -> None:
    """Entry point of the `optlab` command."""
    errors.run_main(app)
