"""Damaged and hostile archives of CIFAR-10 and weights files, as bytes."""

import bz2
import functools
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_params import TOP
from safetensors.torch import load, save

from optlab.data import archives
from optlab.data.cifar10 import RECORD_BYTES, TEST_FILE

SAMPLE = TOP / "tests" / "data" / "cifar10-sample.tar.gz"
BOMB_BYTES = 100_000_000
DTYPES = ["F64", "F16", "BF16", "I32", "U32", "I8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "U64", "X", 3]
COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes, functools.partial(gzip.compress, compresslevel=1), functools.partial(lzma.compress, preset=0),
    functools.partial(bz2.compress, compresslevel=1),
]  # fmt: skip


class Touch:
    """Unpickled by the usual means, it creates a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


# ---- damage to the bytes of any file ----


def _truncate(draw: random.Random, content: bytes) -> bytes:
    return content[
        : draw.choice([draw.randrange(len(content)), draw.randrange(200), len(content) - draw.randrange(1, 999)])
    ]


def _flip(draw: random.Random, content: bytes) -> bytes:
    altered, end = bytearray(content), draw.choice([len(content), len(content), 1000, 20])
    for _ in range(draw.choice([1, 1, 5])):
        altered[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(altered)


def _block(draw: random.Random, content: bytes) -> bytes:
    """A block zeroed, duplicated, inserted, taken out, or put elsewhere; whole blocks of a tar file or any bytes."""
    size = draw.choice([1, 512, 4096, draw.randrange(1, 10_000)])
    step = draw.choice([1, 512])
    at, to = (draw.randrange(max(1, len(content) - size)) // step * step for _ in range(2))
    before, block, after = content[:at], content[at : at + size], content[at + size :]
    rest = before + after
    return draw.choice([
        before + bytes(len(block)) + after, before + block * 2 + after, before + draw.randbytes(size) + block + after,
        rest, rest[:to] + block + rest[to:],
    ])  # fmt: skip


DAMAGES = {"truncated": _truncate, "bits flipped": _flip, "a block": _block}


# ---- archives ----


@functools.cache
def _members(version: str) -> tuple[tuple[str, bytes], ...]:
    files = archives.read_archive(SAMPLE)
    if version == "bin":
        return tuple((f"cifar-10-batches-bin/{name}", body) for name, body in files.items())
    tables = {name: np.frombuffer(body, np.uint8).reshape(-1, RECORD_BYTES) for name, body in files.items()}
    batches = {name: {b"labels": table[:, 0].tolist(), b"data": table[:, 1:].copy()} for name, table in tables.items()}
    return tuple((f"cifar-10-batches-py/{Path(name).stem}", pickle.dumps(each, 2)) for name, each in batches.items())


def _tar(members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar file; with another kind, the last member is a link or a device."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, (name, body) in enumerate(members, start=1):
            info = tarfile.TarInfo(name)
            info.type = kind if number == len(members) else tarfile.REGTYPE
            info.size, info.linkname = len(body), "/etc/passwd" if info.type != tarfile.REGTYPE else ""
            archive.addfile(info, io.BytesIO(body))
    return file.getvalue()


@functools.cache
def _archive(version: str, compression: int) -> bytes:
    return COMPRESSIONS[compression](_tar(list(_members(version))))


def _damaged_archive(damage: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random], bytes]:
    def make(draw: random.Random) -> bytes:
        which = draw.choice([None, ("bin", 0), ("bin", 1), ("bin", 2), ("bin", 3), ("py", 0), ("py", 1)])
        return damage(draw, _archive(*which) if which else SAMPLE.read_bytes())

    return make


def _swapped(draw: random.Random) -> bytes:
    """The contents of two files exchanged."""
    members = list(_members(draw.choice(["bin", "py"])))
    one, two = draw.sample(range(len(members)), 2)
    members[one], members[two] = (members[one][0], members[two][1]), (members[two][0], members[one][1])
    return _tar(members)


def _pickled(draw: random.Random) -> bytes:
    """A batch that would run code; nested in the right keys, or alone, or before a good pickle."""
    members = list(_members("py"))
    at = draw.randrange(len(members))
    name, good = members[at]
    hostile = [pickle.dumps(value, draw.choice([0, 2, 4])) for value in ({b"data": Touch(), b"labels": [1]}, Touch())]
    members[at] = name, draw.choice([*hostile, hostile[1][:-1] + b"0" + good])
    return draw.choice(COMPRESSIONS[:2])(_tar(members))


def _outside(draw: random.Random) -> bytes:
    """Names that lead out of the folder, with right or wrong contents: nothing may be written there."""
    prefix = draw.choice(["../", "../../", "../" * 4, f"{Path.cwd()}/", "./../x/../../", "..\\"])
    right = draw.random() < 0.5
    return _tar([(prefix + Path(name).name, body if right else b"outside") for name, body in _members("bin")])


def _link(draw: random.Random) -> bytes:
    kind = draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
    return _tar([*_members("bin")[:-1], (f"cifar-10-batches-bin/{TEST_FILE}", b"")], kind)


@functools.cache
def _bomb_archive(where: str) -> bytes:
    zeros = bytes(BOMB_BYTES)
    return COMPRESSIONS[1](zeros if where == "alone" else _tar([*_members("bin")[:-1], (where, zeros)]))


ARCHIVES: dict[str, Callable[[random.Random], bytes]] = {
    **{name: _damaged_archive(damage) for name, damage in DAMAGES.items()},
    "members swapped": _swapped,
    "hostile pickle": _pickled,
    "names outside": _outside,
    "more bits flipped": _damaged_archive(_flip),
    "link or device": _link,
    "bomb": lambda draw: _bomb_archive(draw.choice([f"cifar-10-batches-bin/{TEST_FILE}", "readme.txt", "alone"])),
    "more blocks": _damaged_archive(_block),
}


# ---- weights ----


def _header(draw: random.Random, content: bytes) -> bytes:
    """The table of the tensors altered: their types, shapes, places, names, or the length of the table itself."""
    length = struct.unpack("<Q", content[:8])[0]
    if draw.random() < 0.2:
        return (
            struct.pack("<Q", draw.choice([0, 1, length - 1, length + 1, length + 8, 1 << 40, (1 << 64) - 1]))
            + content[8:]
        )
    table = json.loads(content[8 : 8 + length])
    tensor = table[draw.choice([name for name in table if name != "__metadata__"])]
    change = draw.choice(["dtype", "shape", "data_offsets", "remove", "metadata"])
    if change == "dtype":
        tensor["dtype"] = draw.choice(DTYPES)
    elif change == "shape":
        tensor["shape"] = draw.choice(
            [[], [0], [-1], [1 << 62, 4], tensor["shape"][::-1], [*tensor["shape"], 1], "x", None]
        )
    elif change == "data_offsets":
        start, end = tensor["data_offsets"]
        tensor["data_offsets"] = draw.choice(
            [[end, start], [start + 4, end + 4], [0, end], [start, 1 << 63], [-1, end], [], [start]]
        )
    elif change == "remove":
        del tensor[draw.choice(list(tensor))]
    else:
        table["__metadata__"] = draw.choice(
            [None, {}, [], {"model": None}, {"model": "trap.touch"}, {"model": "a\nb"}, "zilliax"]
        )
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def _tensors(draw: random.Random, content: bytes) -> bytes:
    """A sound file of other tensors: another type, another shape, one too many or too few."""
    tensors = load(content)
    name = draw.choice(list(tensors))
    kinds = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ]
    tensors[name] = draw.choice(
        [tensors[name].to(kind) for kind in kinds] + [tensors[name][:1].clone(), tensors[name] * 0 + torch.nan]
    )
    if draw.random() < 0.3:
        tensors[draw.choice(["other", "0.weight "])] = tensors.pop(name)
    return save(tensors, metadata={"model": draw.choice(["zilliax", "zilliax", "zilliax", "trap.touch"])})


def _pickle(draw: random.Random, content: bytes) -> bytes:
    """A pickle, or torch's zip file of one, that would run code."""
    file = io.BytesIO()
    torch.save({"0.weight": Touch()}, file)
    return draw.choice(
        [pickle.dumps(Touch()), pickle.dumps({"0.weight": Touch()}), file.getvalue(), gzip.compress(content)]
    )


WEIGHTS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    **DAMAGES, "header": _header, "tensors": _tensors, "pickle": _pickle, "another header": _header,
}  # fmt: skip
