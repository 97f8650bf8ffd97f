"""HTML pages that need no network, from the templates beside this file."""

import functools
from typing import Any

import jinja2

from optlab.config.parameters import CLASSES


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.PackageLoader("optlab.results", ""), autoescape=True)


def render(template: str, **values: Any) -> bytes:
    """The page, with these values and the names of the classes."""
    return _templates().get_template(f"{template}.html.jinja").render(classes=CLASSES, **values).encode()


def confusion(run: str, matrix: list[list[int]]) -> bytes:
    """One run's counts of test images: rows are the actual classes, columns the predicted ones."""
    return render("matrix", run=run, matrix=matrix)
