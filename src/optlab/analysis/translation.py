"""Texts in English and Chinese: an English template is the key of its Chinese translation, as in gettext.

Functions that build sentences call `translate`, which follows `use_language`; English is the default. `build_bilingual`
calls such a function once for each language, for a page that holds both.
"""

import contextlib
import html
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from optlab.analysis.chinese import CHINESE, COUNTED
from optlab.schema.parameters import format_count

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_CODE = re.compile("`([^`]*)`")
_language: ContextVar[Language] = ContextVar("language", default="en")


@dataclass(frozen=True)
class BilingualText:
    """One text in both languages; a template renders it as two elements, of which the page shows one."""

    en: str
    zh: str

    def __html__(self) -> str:
        """Return HTML, as jinja2 and markupsafe look for it; only one element where both are the same.

        What is between backticks becomes an element `code`.
        """
        english, chinese = (_CODE.sub(r"<code>\1</code>", html.escape(each)) for each in (self.en, self.zh))
        if english == chinese:
            return english
        return f'<span class="en" lang="en">{english}</span><span class="zh" lang="zh">{chinese}</span>'


@contextlib.contextmanager
def use_language(language: Language) -> Iterator[None]:
    """Make `translate` return texts in a language, within a `with` statement."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def translate(template: str, **values: object) -> str:
    """Return a template in the current language, with values in place of its {names}.

    Raises:
        KeyError: the template has no Chinese translation, or a value is missing.
    """
    return (template if _language.get() == "en" else CHINESE[template]).format(**values)


def translate_count(count: int, noun: str) -> str:
    """Return a number with its noun in the current language, such as `2 runs`."""
    return format_count(count, noun) if _language.get() == "en" else f"{count} {COUNTED[noun]}"


def join_names(names: Iterable[str]) -> str:
    """Return a list in words, such as `a, b and c`."""
    *first, last = names
    if not first:
        return last
    if _language.get() == "en":
        return f"{', '.join(first)} and {last}"
    return f"{'、'.join(first)}{' 和 ' if last.isascii() else '和'}{last}"


def join_clauses(clauses: Iterable[str]) -> str:
    """Return parts of a sentence in words: as `join_names` in English, separated by commas in Chinese."""
    return join_names(clauses) if _language.get() == "en" else "，".join(clauses)


def join_phrases(phrases: Iterable[str]) -> str:
    """Return phrases separated by commas."""
    return (", " if _language.get() == "en" else "，").join(phrases)


def join_sentences(sentences: Iterable[str]) -> str:
    """Return sentences one after the other."""
    return (" " if _language.get() == "en" else "").join(sentences)


def join_items(items: Iterable[str]) -> str:
    """Return items separated by semicolons."""
    return ("; " if _language.get() == "en" else "；").join(items)


def build_bilingual(build: Callable[[], Any]) -> Any:
    """Return what a function builds, with a `BilingualText` for each string.

    Args:
        build: returns a string, or nested lists, tuples and dictionaries of strings, of one shape in all languages.

    Raises:
        ValueError: the shapes differ.
    """
    built = []
    for language in LANGUAGES:
        with use_language(language):
            built.append(build())
    return _merge(*built)


def translate_both(template: str, **values: object) -> BilingualText:
    """Return a template in both languages; a value may be a `BilingualText`."""
    return BilingualText(
        template.format(**{name: getattr(each, "en", each) for name, each in values.items()}),
        CHINESE[template].format(**{name: getattr(each, "zh", each) for name, each in values.items()}),
    )


def _merge(english: Any, chinese: Any) -> Any:
    if isinstance(english, str):
        return BilingualText(english, chinese)
    if isinstance(english, list | tuple):
        return [_merge(*each) for each in zip(english, chinese, strict=True)]
    if isinstance(english, dict):
        return {key: _merge(value, chinese[key]) for key, value in english.items()}
    return english
