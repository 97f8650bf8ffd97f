"""What bad input does: mutated params.yaml files, damaged archives of CIFAR-10 and damaged weights files.

    python benchmarks/bad_input.py --seed 0          # prints a table; exit status 1 if anything went wrong

Right is: refused with one line, or accepted with exactly what the file says. Everything else is wrong: a traceback,
another value, another byte, a file in a place where none belongs, code that was run, more than 20 seconds or 4 GB.
"""

import argparse
import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_files
import bad_models
import bad_params
import bad_signatures
import bad_surroundings
import psutil
import pytorch_optimizer
import torch
from ruamel.yaml import YAML

from optlab.config import loader
from optlab.data import download
from optlab.data.cifar10 import DIGESTS
from optlab.orchestration import preflight_cache
from optlab.preflight import checks
from optlab.schema import parameters
from optlab.system import repository
from optlab.system.errors import DataError, OptlabError, WeightsError
from optlab.training import models, weights

LIMIT_S = 20
LIMIT_BYTES = 4_000_000_000  # beyond what this process has when it starts
COLUMNS = ("refused in one line", "accepted, as it says", "other SHA-256", "wrong")
REFUSED, ACCEPTED, NOTICED, WRONG = COLUMNS
MARKER = Path("executed")  # what hostile files would write
DATASET = "cifar10_sample"


class TookTooLongError(BaseException):
    """No `except Exception` of the code under test catches it."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `TookTooLongError` in the main thread after so many seconds."""

    def stop(*_: object) -> None:
        raise TookTooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again every second: one in a destructor is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """Work in a new project folder, with the traps beside its params.yaml; two folders up is still ours."""
    before, path = Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "above" / "project"
        top.mkdir(parents=True)
        os.chdir(top)
        Path(".dvc").mkdir()
        Path(".dvc", "config").touch()
        for name, code in bad_params.TRAPS.items():
            Path(name).write_text(code)
        shutil.copytree(bad_params.TOP / repository.CUSTOM, repository.CUSTOM)
        try:
            yield
        finally:
            os.chdir(before)
            sys.path[:] = path  # a dotted path in params.yaml adds the folder


def outcome(work: Callable[[], str], error: type[OptlabError], start: str) -> str:
    """What `work` says, or `REFUSED` if it raises that error with one line that begins so; else what is wrong."""
    try:
        with limit(LIMIT_S):
            result = work()
    except error as refusal:
        message = str(refusal)
        good = message.startswith(start) and message.splitlines() == [message]
        result = REFUSED if good else f"the message is {message[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as other:  # SystemExit and TookTooLongError as well
        result = f"{type(other).__name__}: {str(other)[:200]}"
    if MARKER.exists():
        MARKER.unlink()
        return "what the file names was called"
    return result


# ---- params.yaml ----


def check_params(content: bytes) -> str:
    """What `optlab check` does, in this process."""
    parameters.PARAMS_FILE.write_bytes(content)

    def work() -> str:
        settings = loader.load()
        for each in preflight_cache.split_config(settings):
            checks.check_config(each)
        said = YAML(typ="safe", pure=True).load(content)
        return (
            ACCEPTED if same(said, settings.model_dump(by_alias=True, exclude_unset=True)) else "not what the file says"
        )

    return outcome(work, OptlabError, "params.yaml")


def same(one: Any, other: Any) -> bool:
    """Are these the same values, of the same types? A whole number may stand for a fraction."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) and (type(one) is type(other) or (type(one), type(other)) == (int, float))


def run_command(content: bytes) -> str:
    """What the command `optlab check` does."""
    parameters.PARAMS_FILE.write_bytes(content)
    command = [Path(sys.executable).parent / "optlab", "check"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DVC"))}
    environment["PYTHONPATH"] = str(bad_params.TOP / "src")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    if MARKER.exists():
        MARKER.unlink()
        return "what the file names was called"
    said = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    if done.returncode == 0 and not said and done.stdout.startswith("params.yaml: "):
        return ACCEPTED
    one_line = len(said) == 1 and said[0].startswith("error: params.yaml")
    return REFUSED if done.returncode == 1 and one_line else f"exit status {done.returncode}: {done.stderr[-200:]!r}"


def params(draw: random.Random, count: int, commands: int) -> Iterator[tuple[str, str, str]]:
    """(row, kind, outcome) of every file, and again of those that the command was run with."""
    asked = set(draw.sample(range(count), commands))
    for number in range(count):
        kind, content = bad_params.make(draw, number)
        result = check_params(content)
        yield "params.yaml", kind, result
        if number in asked:
            again = run_command(content)
            differs = f"the command says {again!r}, the library {result!r}"
            yield "of these, by `optlab check`", kind, again if again == result else differs


def signatures(classes: list[type[torch.optim.Optimizer]]) -> Iterator[tuple[str, str, str]]:
    """(row, kind, outcome) of values of every type for every hyperparameter whose signature is plain."""
    for cls in classes:
        for _, name, value, right in bad_signatures.cases(cls):
            said = bad_signatures.refusal(cls, name, value)
            start = f"params.yaml: optimizers.mine.{name}: {cls.__name__} takes "
            good = said is None if right else (said or "").startswith(start) and len((said or "").splitlines()) == 1
            result = (ACCEPTED if right else REFUSED) if good else f"{value!r}: {said or 'accepted'}"
            yield "a hyperparameter's type", f"{cls.__name__}.{name}", result


def check_model(kind: str) -> str:
    """What the check makes of a model of that kind, in a project whose folder custom/ holds it."""
    source, said = bad_models.MODELS[kind]
    name = "bad_model_" + kind.replace(" ", "_").replace(",", "")
    (repository.CUSTOM / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{source}")
    config = parameters.Config.model_validate({
        "model": f"{name}.net", "seeds": [0], "optimizers": {"sgd": {"class": "SGD", "lr": 0.01}},
        "data": {"dataset": DATASET, "train_size": 400, "validation_size": 100},
        "training": {"epochs": 1, "batch_size": bad_models.BATCH_SIZES.get(kind, 64), "threads": 2},
    })  # fmt: skip
    refusals: list[str] = []

    def work() -> str:
        try:
            checks.check_config(config)
        except OptlabError as error:
            refusals.append(str(error))
            raise
        return ACCEPTED

    result = outcome(work, OptlabError, "params.yaml: model: ")
    if (result == REFUSED and said and said in refusals[0]) or (result == ACCEPTED and said is None):
        return result
    return f"{result}: {refusals}"


def bad_model_outcomes() -> Iterator[tuple[str, str, str]]:
    """(row, kind, outcome) of every model."""
    torch.set_num_threads(2)
    with workplace():
        for kind in bad_models.MODELS:
            yield "a model", kind, check_model(kind)


# ---- archives and weights ----


def check_archive(content: bytes) -> str:
    """What the download makes of this archive, in a folder that holds a file already."""
    archive, folder = Path("archive"), Path("data") / DATASET
    archive.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    own = (folder / "data_batch_1.bin").resolve()
    own.write_bytes(b"the user's own")
    before = contents()

    def work() -> str:
        download.ensure_dataset(folder, DATASET)
        digests = {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        shutil.rmtree(folder)
        return ACCEPTED if digests == DIGESTS[DATASET] else "other bytes than the published ones"

    result = outcome(work, DataError, "archive: ")
    if result == ACCEPTED:
        before.pop(own)
    return result if contents() == before else f"{result}, but files were written, changed or removed"


def contents() -> dict[Path, bytes]:
    """Every file of the project and of the two folders above it, where names such as ../../x lead."""
    return {path.resolve(): path.read_bytes() for path in Path("../..").rglob("*") if path.is_file()}


def check_weights(content: bytes, good: bytes) -> str:
    """What the reader of weights makes of this file."""
    path = Path("weights.safetensors")
    path.write_bytes(content)

    def work() -> str:
        _, digest = weights.load_model(path, "zilliax")
        if digest != hashlib.sha256(content).hexdigest():
            return "the digest is not the file's"
        return ACCEPTED if content == good else NOTICED

    return outcome(work, WeightsError, f"{path}: ")


def files(draw: random.Random, archives: int, weights_files: int) -> Iterator[tuple[str, str, str]]:
    """(row, kind, outcome) of every archive and weights file."""
    os.environ[download.ARCHIVE_ENV_VAR] = "archive"
    for number in range(archives):
        kind = list(bad_files.ARCHIVES)[number % len(bad_files.ARCHIVES)]
        yield "archive", kind, check_archive(bad_files.ARCHIVES[kind](draw))
    weights.save_model(Path("good.safetensors"), models.build("zilliax", seed=0), "zilliax")
    good = Path("good.safetensors").read_bytes()
    for number in range(weights_files):
        kind = list(bad_files.WEIGHTS)[number % len(bad_files.WEIGHTS)]
        yield "weights file", kind, check_weights(bad_files.WEIGHTS[kind](draw, good), good)


def measure(seed: int, mutations: int, commands: int, archives: int, weights_files: int) -> list[tuple[str, str, str]]:
    """(row, kind, outcome) of every case."""
    with workplace():
        found = list(params(random.Random(seed), mutations, commands))
        return found + list(files(random.Random(seed), archives, weights_files))


def table(found: list[tuple[str, str, str]]) -> str:
    """One row for each sort of input."""
    lines = [f"| input | n | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for row in dict.fromkeys(row for row, _, _ in found):
        counts = Counter(result if result in COLUMNS else WRONG for each, _, result in found if each == row)
        lines.append(f"| {row} | {counts.total()} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
    return "\n".join(lines)


def wrong(found: list[tuple[str, str, str]]) -> list[str]:
    """One sentence for each case that went wrong."""
    return [f"{row}, {kind}: {result}" for row, kind, result in found if result not in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=200, help="params.yaml files")
    parser.add_argument("--commands", type=int, default=20, help="how many of these the command is run with as well")
    parser.add_argument("--archives", type=int, default=60)
    parser.add_argument("--weights", type=int, default=40)
    arguments = parser.parse_args()
    most = psutil.Process().memory_info().vms + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    found = measure(arguments.seed, arguments.mutations, arguments.commands, arguments.archives, arguments.weights)
    found += signatures(bad_signatures.classes(torch.optim, pytorch_optimizer))
    found += bad_model_outcomes()
    found += bad_surroundings.measure(ACCEPTED)
    print(table(found))
    print(
        "\nother SHA-256: damage inside the numbers is sound safetensors, but its SHA-256 is not the recorded one "
        "(`weights_sha256`), and the stages refuse it for that."
    )
    for sentence in wrong(found):
        print(sentence, file=sys.stderr)
    sys.exit(bool(wrong(found)))


if __name__ == "__main__":
    main()
