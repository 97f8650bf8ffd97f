"""What is printed reaches any terminal, and what is written is UTF-8 in any locale."""

import ast
import getpass
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optlab.system import errors

TOP = Path(__file__).resolve().parents[1]
SAID = "52.00 ± 4.97 %, adam − sgd: 1e-3 → 1e-2 × …, ─"
PLAIN = "52.00 +/- 4.97 %, adam - sgd: 1e-3 -> 1e-2 x ..., -"
ENCODINGS = {
    "ascii": PLAIN,
    "iso-8859-1": "52.00 ± 4.97 %, adam - sgd: 1e-3 -> 1e-2 × ..., -",
    "gbk": "52.00 ± 4.97 %, adam - sgd: 1e-3 → 1e-2 × …, ─",
    "utf-8": SAID,
}


@pytest.mark.parametrize(("encoding", "expected"), ENCODINGS.items(), ids=ENCODINGS)
def test_unencodable_characters_are_printed_in_ascii(monkeypatch, encoding, expected):
    """A stage that prints its table would otherwise fail after all trainings; a file's name can be no text at all."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))

    def main():
        print(SAID)
        print("\udcff.png")
        raise errors.RecordError(SAID)

    with pytest.raises(SystemExit):
        errors.run_main(main)
    sys.stdout.flush()
    told = sys.stdout.buffer.getvalue().decode(encoding).splitlines()
    assert told == [expected, "\\udcff.png"]
    assert sys.stderr.buffer.getvalue().decode(encoding) == f"error: {expected}\n"


CLOSED = """
import os, sys
from optlab.system import errors
def main():
    with open("file", "w") as file:  # would be standard error, which libraries write to
        assert file.fileno() > 2
        print("to nobody", file=sys.stderr)
        os.write(2, b"to nobody")
        raise errors.RecordError("to nobody")
errors.run_main(main)
"""


def test_closed_streams_are_replaced_by_dev_null(tmp_path):
    command = f"{sys.executable} -c '{CLOSED}' 2>&- >&- <&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 1
    assert (tmp_path / "file").read_bytes() == b""


def test_user_without_account_gets_uid_name(monkeypatch):
    """DVC asks for it, and fails with a traceback's last line where there is none."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(KeyError):
        getpass.getuser()
    errors.run_main(lambda: None)
    assert getpass.getuser() == f"uid{os.getuid()}"
    monkeypatch.setenv("LOGNAME", "ann")
    errors.run_main(lambda: None)
    assert getpass.getuser() == "ann"


def opens_text(call):
    """Whether a call opens, reads or writes a text file without naming its encoding."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    others = ("os", "Image", "tarfile", "safetensors", "webbrowser")
    if name not in ("open", "read_text", "write_text") or owner in others:
        return False
    texts = [each.value for each in call.args if isinstance(each, ast.Constant)]
    is_binary = name == "open" and any("b" in text for text in texts if isinstance(text, str))
    encodings = {"encoding", *texts} & {"encoding", "utf-8", "locale"} - {"encoding"}
    return not (is_binary or encodings or any(word.arg == "encoding" for word in call.keywords))


def test_text_files_are_opened_with_explicit_encoding():
    """Else it is the locale's, and what one machine has written another one cannot read."""
    found = [
        f"{path.relative_to(TOP)}:{node.lineno}"
        for folder in ("src", "pipeline")
        for path in (TOP / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and opens_text(node)
    ]
    assert found == []
