"""Terminals of other encodings, and repositories in folders with odd names, for `bad_input.py`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import bad_params

ENCODINGS = ("ascii", "latin-1", "cp1252", "cp437", "gbk", "shift_jis", "koi8-r", "utf-8")
COMMANDS = {"a list": ["add"], "a help page": ["repro", "--help"], "a check": ["check"]}  # each prints more than ASCII
NAMES = (
    "per%cent", "per%2Fcent", "question?", "hash#", "white space", "中文", "größe", "quote'd", 'double"quoted',
    "semi;colon", "$HOME", "at@sign", "[brackets]", "{braces}", "amper&sand", "back\\slash", "-dash", "tilde~",
)  # fmt: skip

_OPTLAB = ["-m", "optlab"]
_STORE = [
    "-c",
    "from optlab.tracking import mlflow_store; print("
    "mlflow_store.get_or_create_experiment(mlflow_store.connect(), 'optlab'))",
]


def measure(
    accepted: str, encodings: tuple[str, ...] = ENCODINGS, names: tuple[str, ...] = NAMES
) -> Iterator[tuple[str, str, str]]:
    """Yield (row, kind, outcome) of every command in every surrounding; the outcome is `accepted` where all is well."""
    with tempfile.TemporaryDirectory() as folder:
        top = _make(Path(folder) / "plain")
        for encoding in encodings:
            for kind, words in COMMANDS.items():
                yield (
                    "an encoding",
                    f"{kind} in {encoding}",
                    _run(top, [*_OPTLAB, *words], PYTHONIOENCODING=encoding) or accepted,
                )
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            top = _make(Path(folder) / name)
            yield "a folder's name", f"a check in {name}", _run(top, [*_OPTLAB, "check"]) or accepted
            said = _run(top, _STORE)
            if not said and not (top / "mlflow.db").is_file():
                said = f"MLflow's database is not in {name}"
            if not said and [each.name for each in Path(folder).iterdir()] != [name]:
                said = f"something was written beside {name}"
            yield "a folder's name", f"MLflow's store in {name}", said or accepted


def _make(top: Path) -> Path:
    """Make a project with this repository's params.yaml and modules."""
    (top / ".dvc").mkdir(parents=True)
    (top / ".dvc" / "config").touch()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(bad_params.TOP / name, top)
    shutil.copytree(bad_params.TOP / "custom", top / "custom")
    return top


def _run(top: Path, words: list[str], **environment: str) -> str:
    """Run Python there, with these words; returns what went wrong, if anything did."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DVC"))}
    own |= {"PYTHONPATH": str(bad_params.TOP / "src")} | environment
    done = subprocess.run([sys.executable, *words], cwd=top, env=own, capture_output=True, timeout=120, check=False)
    if done.returncode or b"Traceback" in done.stderr:
        return f"exit status {done.returncode}: {done.stderr[-200:]!r}"
    return "" if done.stdout else "it printed nothing"
