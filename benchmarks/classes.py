"""Which optimizer classes of a package train here, and what is said of the others.

    python benchmarks/classes.py PACKAGE          # writes benchmarks/CLASSES-PACKAGE.md

Each class is tried by its dotted path with its defaults, then with what the refusal asks for, in a process of its own
with a limit on its memory: two epochs of five steps, on images of the sample.
"""

import argparse
import importlib
import inspect
import json
import multiprocessing
import os
import re
import resource
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from needs import TOP
from ruamel.yaml import YAML

from optlab.data import cifar10, download
from optlab.preflight import checks
from optlab.schema.parameters import Config
from optlab.system.errors import OptlabError, summarize_error
from optlab.training import determinism, loop

MEMORY = 4 << 30  # bytes, of address space, beyond what the process has at its start
PATIENCE_S = 120.0
SAMPLE = "cifar10_sample"

_REMEDY = re.compile(r"`((?:base|fallback|groups): .*?)`")  # in a refusal, as it would stand in params.yaml
_MOST_REMEDIES = 4  # one after the other


def classes(package: str) -> list[str]:
    """The dotted paths of the public optimizer classes of a package, or of a module of one such as `timm.optim`.

    One that it has from another package is that one's.
    """
    module = importlib.import_module(package)
    return [
        f"{package}.{name}"
        for name, cls in sorted(inspect.getmembers(module, inspect.isclass))
        if issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
        and cls.__module__.partition(".")[0] == package.partition(".")[0]
    ]


def configured(entry: dict[str, Any]) -> Config:
    """A training of two epochs of five steps."""
    return Config.model_validate({
        "model": "zilliax", "seeds": [0], "optimizers": {"mine": entry},
        "data": {"dataset": SAMPLE, "train_size": 50, "validation_size": 10},
        "training": {"epochs": 2, "batch_size": 10, "threads": 1},
    })  # fmt: skip


def tried(entry: dict[str, Any], folder: Path) -> str:
    """How the training ends, or the refusal."""
    config = configured(entry)
    device = determinism.configure_torch(config.training)
    try:
        checks.check_config(config)
        outcome = loop.train(config, "mine", 0, cifar10.load(folder, config.data, 0), device)
    except OptlabError as error:
        return str(error)
    except Exception as error:  # a defect of ours: it ought to be a refusal
        return f"CRASH {type(error).__name__}: {summarize_error(error)}"
    return "trains" if outcome.status == "completed" else outcome.status


def attempts(path: str, folder: Path, answer: Any) -> None:
    """Try one class, and what its refusals ask for; the process ends with it."""
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
    entry: dict[str, Any] = {"class": path}
    found = tried(entry, folder)
    for _ in range(_MOST_REMEDIES):
        _, asked, remedies = found.partition(": add ")
        if not asked:
            break
        for remedy in _REMEDY.findall(remedies):
            entry |= YAML(typ="safe").load(f"{{{remedy}}}")
        found = tried(entry, folder)
    answer.send((entry, found))


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def outcome_of(path: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The entry that was tried last, and how it ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=attempts, args=(path, folder, theirs))
    process.start()
    theirs.close()
    try:
        return tuple(ours.recv()) if ours.poll(PATIENCE_S) else ({"class": path}, f"no end within {PATIENCE_S:.0f} s")
    except EOFError:
        process.join()
        return {"class": path}, f"killed (exit status {process.exitcode})"
    finally:
        process.kill()
        process.join()


def report(package: str, rows: list[tuple[dict[str, Any], str]]) -> str:
    """The table in markdown: what was refused first."""
    trained, diverged = (sum(ending == each for _, ending in rows) for each in ("trains", "diverged"))
    lines = [
        f"# The optimizer classes of {package} {version(package.partition('.')[0])}",
        "",
        f"`python benchmarks/classes.py {package}`: {trained} of {len(rows)} train, by their dotted paths with their "
        f"defaults, or with what the refusal asks for; diverged besides: {diverged}.",
        "",
        "| class | besides | ends |",
        "| --- | --- | --- |",
    ]
    for entry, ending in sorted(rows, key=lambda row: row[1] in ("trains", "diverged")):
        more = json.dumps({key: value for key, value in entry.items() if key != "class"}) if len(entry) > 1 else ""
        said = re.sub(r"\(/\S*/", "(", ending.replace("|", "/"))  # no folders of this machine
        lines.append(f"| {entry['class'].removeprefix(f'{package}.')} | {more} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    package, rows = parser.parse_args().package, []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[download.ARCHIVE_ENV_VAR] = str(TOP / "tests" / "data" / "cifar10-sample.tar.gz")
        data = Path(folder) / SAMPLE
        download.ensure_dataset(data, SAMPLE)
        for path in classes(package):
            rows.append(outcome_of(path, data))
            print(f"{path}: {rows[-1][1]}", flush=True)
    (TOP / "benchmarks" / f"CLASSES-{package}.md").write_text(report(package, rows))


if __name__ == "__main__":
    main()
