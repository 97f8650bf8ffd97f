"""HTML pages that need no network, from the templates beside this file."""

import functools
from typing import Any

import jinja2

from optlab.schema.parameters import CLASS_NAMES


@functools.cache
def _create_jinja_environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.PackageLoader("optlab.analysis", ""), autoescape=True)


def render_template(template: str, **values: Any) -> bytes:
    """The page, with these values and the names of the classes."""
    return (
        _create_jinja_environment()
        .get_template(f"{template}.html.jinja")
        .render(classes=CLASS_NAMES, **values)
        .encode()
    )


def render_confusion_matrix(run: str, matrix: list[list[int]]) -> bytes:
    """One run's counts of test images: rows are the actual classes, columns the predicted ones."""
    return render_template("matrix", run=run, matrix=matrix)
