"""Addresses and error messages of tracking stores, without the passwords in them."""

import re

from optlab.system.errors import one_line

_LONGEST = 400  # characters of an error that are shown
_SHORTEST = 3  # characters of a password's part that is looked for in a text
_SCHEME = re.compile(r"^[\w+.-]+://")  # also dialect+driver, as SQLAlchemy has it
_URI = re.compile(r"[\w+.-]+://[^\s'\"<>]*")
_HOST = re.compile(r"(\[[^]]*\]|[^/?#:@]*)(:\d*)?([/?#]|$)")


def redact_uri(uri: str) -> str:
    """Return the URI without user, password and query, which may hold a password, too."""
    scheme, _, rest = _split(uri)
    return uri if _is_file(scheme) else scheme + re.split(r"[?#]", rest)[0]


def redact(text: str, uri: str) -> str:
    """Return the text without what is secret in that URI, and without the logins of other URIs in it.

    Of a password that is not encoded, a client may have taken a part for the host's name.
    """
    text = _URI.sub(lambda found: redact_uri(found[0]), text.replace(uri, redact_uri(uri)))
    password = _split(uri)[1].partition(":")[2]
    for part in (password, *re.split(r"[@/?#:]", password)):
        if len(part) >= _SHORTEST:
            text = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", "***", text)
    return text


def describe(error: BaseException, uri: str) -> str:
    """Return the first line of an error, in short and without passwords."""
    text = redact(one_line(error), uri)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} …"


def _is_file(scheme: str) -> bool:
    return scheme.startswith(("sqlite", "file")) or not scheme


def _split(uri: str) -> tuple[str, str, str]:
    """Return scheme, login and rest.

    A password that is not encoded may hold any character, so the login ends at the last `@`, unless it is a web
    address whose host is plain: there, an `@` belongs to the path.
    """
    found = _SCHEME.match(uri)
    scheme, rest = (found[0], uri[found.end() :]) if found else ("", uri)
    if _is_file(scheme) or rest.startswith("/"):
        return scheme, "", rest
    if scheme.startswith("http"):
        if _HOST.match(rest):
            return scheme, "", rest
        standard = re.match(r"[^/?#]*@", rest)
        end = standard.end() if standard else rest.rfind("@") + 1
    else:
        end = rest.rfind("@") + 1
    return scheme, rest[: max(end - 1, 0)], rest[end:]
