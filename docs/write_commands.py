"""Write docs/commands.md, the help of every command: `python docs/write_commands.py`."""

import re
from pathlib import Path

import click
import typer
from typer.cli import get_docs_for_click

from optlab.cli import app

PAGE = Path(__file__).with_name("commands.md")


def format_commands() -> str:
    """Return the page as Typer writes it, with whole sentences in the list of commands, and links in it."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="optlab", title="Commands").strip() + "\n"

    def complete(match: re.Match[str]) -> str:
        command: click.Command = group.commands[match[1]]
        return f"* [`{match[1]}`](#optlab-{match[1]}): {command.get_short_help_str(limit=1000)}"

    return re.sub(r"^\* `([a-z]+)`: .*$", complete, text, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(format_commands(), encoding="utf-8")
