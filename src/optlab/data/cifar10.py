"""CIFAR-10 in memory: verified files, splits, batches and augmentation.

Batch order and augmentation are functions of (seed, epoch) alone.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from optlab.schema.parameters import NUM_CLASSES, DataConfig
from optlab.system import repository
from optlab.system.errors import DataError

IMAGE_SIZE = 32
RECORD_BYTES = 1 + 3 * IMAGE_SIZE * IMAGE_SIZE  # one label byte, then the planes red, green, blue
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
_SPLIT_SEED = 0  # of the validation images, without `resplit`
_AUGMENTATION_STREAM = 1  # third part of the seed, so that augmentation and order are independent
PADDING = 4  # black pixels on each side of an image before it is cropped
SHIFT = 2  # pixels by which `alternating_flip_crop` moves an image at most, in each direction
_CROP_POSITIONS = 2 * PADDING + 1  # in each direction

# SHA-1 of each file of the binary version. cifar10: as published with MXNet's gluon.data.vision.CIFAR10.
# cifar10_sample: the first ten images of each class of each file, in file order.
DIGESTS = {
    "cifar10": {
        "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
    },
    "cifar10_sample": {
        "data_batch_1.bin": "053bb907d01685b762b8e9c45c47ca1ed061a243",
        "data_batch_2.bin": "948fe31fdbda91d286ad57ad347010a59f8bdb31",
        "data_batch_3.bin": "d54a5d19ea43976dc1dc5caedd0c6b73125d52b0",
        "data_batch_4.bin": "82aee59244b1acb83f920cf0e7114f249f93434e",
        "data_batch_5.bin": "afe7e16a542224e25e0a4bff45366eb5df052d99",
        "test_batch.bin": "62b071365193496dc3983b3c0325b03d0fa1f5e0",
    },
}


@dataclass(frozen=True)
class Split:
    """Images and their labels, in memory.

    Attributes:
        images: uint8, shape (n, 32, 32, 3): height, width, then red, green, blue.
        labels: int64, shape (n,), from 0 to 9 in the order of `parameters.CLASS_NAMES`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """Return the split on a device; all of CIFAR-10 takes 184 MB."""
        return Split(self.images.to(device), self.labels.to(device))

    def mirror(self) -> "Split":
        """Return the split with each image mirrored left to right."""
        return Split(self.images.flip(2), self.labels)


@dataclass(frozen=True)
class Splits:
    """Training and validation split; the validation split can be empty."""

    train: Split
    validation: Split


def load(folder: Path, config: DataConfig, seed: int) -> Splits:
    """Read the training files, verify their digests, and split them.

    Validation images are stratified by class; they depend on the run's seed with `resplit`, else they are fixed.

    Raises:
        DataError: a file is missing or altered.
    """
    names = (TEST_FILE,) if config.train_split == "test" else TRAIN_FILES
    pool = _decode(b"".join(read_verified(folder, config.dataset, name) for name in names))
    generator = np.random.default_rng(seed if config.resplit else _SPLIT_SEED)
    validation, train = _split_stratified(pool.labels.numpy(), generator, config.validation_size, config.train_size)
    return Splits(_select_rows(pool, train), _select_rows(pool, validation))


_forbidden_reason = ""  # why this process must not read the test split


def forbid_test_split(reason: str) -> None:
    """Make `load_test_split` fail in this process, so that tuning and training cannot see the test split."""
    global _forbidden_reason
    _forbidden_reason = reason


def load_test_split(folder: Path, config: DataConfig) -> Split:
    """Read the test split and verify its digest.

    Raises:
        DataError: the file is missing or altered, or this process must not read it.
    """
    if _forbidden_reason:
        raise DataError(f"the test split was asked for, and {_forbidden_reason}")
    return _decode(read_verified(folder, config.dataset, TEST_FILE))


def read_verified(folder: Path, dataset: str, name: str) -> bytes:
    """Return the bytes of one data file after checking its digest.

    Raises:
        DataError: the file is missing or altered, or belongs to another data set.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: run `dvc repro download`") from None
    digest = hashlib.sha1(content).hexdigest()
    for other, digests in DIGESTS.items():
        if other != dataset and digest == digests[name]:
            raise DataError(
                f"{path}: holds {other}, but this pipeline's params.yaml names {dataset}: name it in the params.yaml "
                f"at the top as well, which decides what is downloaded, then run `dvc repro download` there"
            )
    if digest != DIGESTS[dataset][name]:
        raise DataError(
            f"{path}: altered after the download (SHA-1 {digest}, not {DIGESTS[dataset][name]}): "
            f"{repository.suggest_repair(path, content, 'dvc repro download')}"
        )
    return content


def verify_dataset(folder: Path, dataset: str) -> None:
    """Check every file of a data set against its digest; a missing folder passes, because not every pipeline reads it.

    Raises:
        DataError: a file is missing or altered, or belongs to another data set.
    """
    if folder.is_dir():
        for name in DIGESTS[dataset]:
            read_verified(folder, dataset, name)


def main() -> None:
    """Verify the repository's copy of a data set: python -m optlab.data.cifar10 DATASET."""
    verify_dataset(repository.DATA, sys.argv[1])


def compute_digest(dataset: str) -> str:
    """Return the first 32 hex digits of the SHA-256 over the digests of a data set's files."""
    text = "".join(f"{sha1} {name}\n" for name, sha1 in sorted(DIGESTS[dataset].items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def compute_epoch_order(seed: int, epoch: int, size: int, shuffle: bool) -> Tensor:
    """Return the order of the images in an epoch, int64, shape (size,): a function of (seed, epoch) alone."""
    if not shuffle:
        return torch.arange(size)
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(size))


def draw_flips_and_crops(seed: int, epoch: int, size: int) -> Tensor:
    """Draw each image's crop and flip in an epoch: a function of (seed, epoch, image) alone.

    Returns:
        int64, shape (size, 3): the first row and column of the padded image, from 0 to 8, and 1 where it is mirrored.
    """
    drawn = np.random.default_rng([seed, epoch, _AUGMENTATION_STREAM]).integers(2 * _CROP_POSITIONS**2, size=size)
    return torch.from_numpy(np.stack([drawn // 2 // _CROP_POSITIONS, drawn // 2 % _CROP_POSITIONS, drawn % 2], axis=1))


def apply_flip_crop(images: Tensor, flips_crops: Tensor) -> Tensor:
    """Return images padded with black, cropped to the original size, and mirrored left to right or not.

    Args:
        images: uint8, shape (b, 32, 32, 3).
        flips_crops: rows of `draw_flips_and_crops` for these images.
    """
    padded = F.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    rows, columns = _locate_pixels(flips_crops)
    index = torch.arange(len(images), device=images.device)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def draw_alternating_flips_and_shifts(seed: int, epoch: int, size: int) -> Tensor:
    """Draw each image's shift in an epoch, and mirror each in every second epoch: a function of (seed, epoch, image).

    Returns:
        int64, shape (size, 3): the first row and column, from -2 to 2, and 1 where it is mirrored.
    """
    first = np.random.default_rng([seed, 0, _AUGMENTATION_STREAM]).integers(2, size=size)  # epochs count from 1
    shifts = np.random.default_rng([seed, epoch, _AUGMENTATION_STREAM]).integers(-SHIFT, SHIFT + 1, size=(size, 2))
    return torch.from_numpy(np.column_stack([shifts, (first + epoch) % 2]))


def apply_alternating_flip_crop(images: Tensor, flips_shifts: Tensor) -> Tensor:
    """Return images shifted, with their borders reflected, and mirrored left to right or not.

    Args:
        images: uint8, shape (b, 32, 32, 3).
        flips_shifts: rows of `draw_alternating_flips_and_shifts` for these images.
    """
    last = IMAGE_SIZE - 1
    rows, columns = (last - (last - each.abs()).abs() for each in _locate_pixels(flips_shifts))
    index = torch.arange(len(images), device=images.device)
    return images[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _locate_pixels(flips_crops: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of the pixels to take, int64, shape (b, 32) each, from first ones and mirroring."""
    top, left, mirrored = flips_crops[:, :, None].unbind(1)
    along = torch.arange(IMAGE_SIZE, device=flips_crops.device)
    return top + along, left + torch.where(mirrored == 1, along.flip(0), along)


_AUGMENTATIONS = {  # name in params.yaml → how it is drawn for an epoch, and applied to images
    "flip_crop": (draw_flips_and_crops, apply_flip_crop),
    "alternating_flip_crop": (draw_alternating_flips_and_shifts, apply_alternating_flip_crop),
}


def iterate_batches(
    split: Split,
    order: Tensor,
    batch_size: int,
    flips_crops: Tensor | None = None,
    apply: Callable[[Tensor, Tensor], Tensor] = apply_flip_crop,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in that order; the last may be smaller, and an empty order has none.

    Args:
        order: int64 indices into the split.
        flips_crops: drawn for all images of the split; default: no augmentation.
        apply: augmentation that takes images and their rows of `flips_crops`.

    Yields:
        Images as from `convert_to_input`, and labels: int64, shape (b,).
    """
    device = split.labels.device
    for rows in order.to(device).split(batch_size) if len(order) else ():
        images = split.images[rows]
        yield (
            convert_to_input(images if flips_crops is None else apply(images, flips_crops.to(device)[rows])),
            split.labels[rows],
        )


def iterate_epoch_batches(split: Split, config: DataConfig, seed: int, epoch: int, batch_size: int,
                  first_batch: int) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield an epoch's batches of the training split from batch number `first_batch` on; see `iterate_batches`."""
    order = compute_epoch_order(seed, epoch, len(split), config.shuffle)[first_batch * batch_size :]
    if config.augment == "none":
        return iterate_batches(split, order, batch_size)
    draw, apply = _AUGMENTATIONS[config.augment]
    return iterate_batches(split, order, batch_size, draw(seed, epoch, len(split)), apply)


def convert_to_input(images: Tensor) -> Tensor:
    """Scale as torchvision's ToTensor: uint8 (n, 32, 32, 3) → float32 (n, 3, 32, 32) in [0, 1], channels_last."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _decode(content: bytes) -> Split:
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    planes = records[:, 1:].reshape(-1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return Split(
        torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))),
        torch.from_numpy(records[:, 0].astype(np.int64)),
    )


def _split_stratified(labels: np.ndarray, generator: np.random.Generator, *sizes: int) -> list[np.ndarray]:
    """Return disjoint row numbers, in file order, for each size: the same number of every class in each."""
    by_class = [generator.permutation(np.flatnonzero(labels == label)) for label in range(NUM_CLASSES)]
    parts, start = [], 0
    for size in sizes:
        stop = start + size // NUM_CLASSES
        parts.append(np.sort(np.concatenate([rows[start:stop] for rows in by_class])))
        start = stop
    return parts


def _select_rows(split: Split, rows: np.ndarray) -> Split:
    index = torch.from_numpy(rows)
    return Split(split.images[index], split.labels[index])
