"""The images are those of the files, the splits are fixed, and an epoch's order is a function of its inputs."""

import hashlib
import shutil

import numpy as np
import pytest
import torch

from optlab.data import cifar10
from optlab.system.errors import DataError

RECORD = 3073  # a label byte, then three planes of 32 rows of 32 pixels


@pytest.fixture(scope="module")
def splits(sample, small_config):
    return cifar10.load(sample, small_config().data, 0)


@pytest.fixture(scope="module")
def small_config(small_config):
    """All images of the sample, in two splits."""
    whole = {"train_size": 400, "validation_size": 100}
    return lambda data=None, **changes: small_config(whole | (data or {}), **changes)


@pytest.fixture
def sample_copy(sample, tmp_path):
    return shutil.copytree(sample, tmp_path / "cifar10_sample")


def train_bytes(folder):
    return b"".join((folder / f"data_batch_{number}.bin").read_bytes() for number in range(1, 6))


def records(split):
    """Each image with its label as bytes, in the order of the planes in the files."""
    planes = split.images.permute(0, 3, 1, 2).reshape(len(split), -1).numpy()
    return [bytes([label]) + row.tobytes() for label, row in zip(split.labels.tolist(), planes, strict=True)]


def test_split_sizes_and_dtypes(splits, sample, small_config):
    test = cifar10.load_test_split(sample, small_config().data)
    assert (len(splits.train), len(splits.validation), len(test)) == (400, 100, 100)
    for split in (splits.train, splits.validation, test):
        assert split.images.dtype == torch.uint8 and split.images.shape == (len(split), 32, 32, 3)
        assert split.labels.dtype == torch.int64 and split.labels.shape == (len(split),)


@pytest.mark.parametrize(("train_size", "validation_size"), [(400, 100), (50, 30), (10, 10)])
def test_split_classes_are_balanced(sample, small_config, train_size, validation_size):
    config = small_config(
        data={"train_size": train_size, "validation_size": validation_size}, training={"batch_size": 10}
    )
    splits = cifar10.load(sample, config.data, 0)
    assert splits.train.labels.bincount(minlength=10).tolist() == [train_size // 10] * 10
    assert splits.validation.labels.bincount(minlength=10).tolist() == [validation_size // 10] * 10


def test_train_and_validation_partition_all_images(sample, splits):
    content = train_bytes(sample)
    pool = [content[start : start + RECORD] for start in range(0, len(content), RECORD)]
    taken = records(splits.train) + records(splits.validation)
    assert len(set(pool)) == 500, "the comparison needs distinct images"
    assert sorted(taken) == sorted(pool)


def test_split_images_keep_file_order(sample, splits):
    content = train_bytes(sample)
    for split in (splits.train, splits.validation):
        places = [content.index(record) for record in records(split)]
        assert places == sorted(places)


def test_test_split_equals_its_file(sample, small_config):
    content = (sample / "test_batch.bin").read_bytes()
    assert b"".join(records(cifar10.load_test_split(sample, small_config().data))) == content


def test_label_and_pixel_match_file_bytes(sample, small_config):
    test = cifar10.load_test_split(sample, small_config().data)
    content = (sample / "test_batch.bin").read_bytes()
    image, row, column = 7, 5, 11
    start = image * RECORD
    assert test.labels[image] == content[start]
    pixel = [content[start + 1 + plane * 1024 + row * 32 + column] for plane in range(3)]
    assert len(set(pixel)) == 3, "a grey pixel could not tell the planes apart"
    assert test.images[image, row, column].tolist() == pixel


def test_split_is_same_in_every_call(sample, small_config, splits):
    np.random.seed(5)
    torch.manual_seed(5)
    again = cifar10.load(sample, small_config(seeds=[8]).data, 0)
    assert records(again.train) == records(splits.train)
    assert records(again.validation) == records(splits.validation)


def test_resplit_gives_each_seed_own_validation_images(sample, small_config, splits):
    config = small_config(data={"resplit": True})
    one, same, other = (cifar10.load(sample, config.data, seed) for seed in (1, 1, 2))
    assert records(one.validation) == records(same.validation)
    assert len({tuple(records(each.validation)) for each in (one, other, splits)}) == 3
    for each in (one, other):
        assert sorted(records(each.train) + records(each.validation)) == sorted(
            records(splits.train) + records(splits.validation)
        )
        assert each.validation.labels.bincount(minlength=10).tolist() == [10] * 10


def test_validation_images_do_not_depend_on_train_size(sample, small_config, splits):
    fewer = cifar10.load(sample, small_config(data={"train_size": 100}).data, 0)
    assert records(fewer.validation) == records(splits.validation)


def test_validation_split_digest_is_unchanged(splits):
    """Another split would make every recorded run incomparable with the next one."""
    digest = hashlib.sha256(b"".join(records(splits.validation))).hexdigest()
    assert digest == "2dd0aa736dd749bc2fca8558e5f2ec375fbd3dd083e77b492e801233919a2ad6"


def test_training_on_test_split_keeps_file_order(sample, small_config):
    config = small_config(data={"train_split": "test", "train_size": 100, "validation_size": 0})
    splits = cifar10.load(sample, config.data, 0)
    assert b"".join(records(splits.train)) == (sample / "test_batch.bin").read_bytes()
    assert len(splits.validation) == 0


def test_batches_are_scaled_like_torchvision(splits):
    from torchvision.transforms.functional import to_tensor

    order = torch.tensor([3, 399, 0, 42, 17])
    found = list(cifar10.iterate_batches(splits.train, order, 2))
    assert [len(labels) for _, labels in found] == [2, 2, 1]
    images = torch.cat([images for images, _ in found])
    expected = torch.stack([to_tensor(splits.train.images[index].numpy()) for index in order])
    assert images.dtype == torch.float32
    assert torch.equal(images, expected)
    assert torch.equal(torch.cat([labels for _, labels in found]), splits.train.labels[order])


def test_batches_are_channels_last(splits):
    images, _ = next(cifar10.iterate_batches(splits.train, torch.arange(4), 4))
    assert images.shape == (4, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_batches_leave_split_unchanged(splits):
    before = splits.train.images.clone()
    list(cifar10.iterate_batches(splits.train, torch.arange(400), 64))
    assert torch.equal(splits.train.images, before)


def test_epoch_order_depends_only_on_seed_and_epoch():
    first = cifar10.compute_epoch_order(3, 1, 400, shuffle=True)
    np.random.rand(7)
    torch.rand(7)
    cifar10.compute_epoch_order(9, 9, 400, shuffle=True)
    assert torch.equal(first, cifar10.compute_epoch_order(3, 1, 400, shuffle=True))


def test_epoch_order_leaves_global_rng_unchanged():
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    cifar10.compute_epoch_order(3, 1, 400, shuffle=True)
    assert torch.equal(torch.rand(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


@pytest.mark.parametrize("size", [1, 10, 400])
def test_epoch_order_is_permutation(size):
    order = cifar10.compute_epoch_order(0, 1, size, shuffle=True)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(size))


def test_epoch_order_differs_by_seed_and_epoch():
    # (1, 2) and (2, 1) are both there: a sum of the two would not tell them apart.
    orders = {
        tuple(cifar10.compute_epoch_order(seed, epoch, 400, shuffle=True).tolist())
        for seed in range(3)
        for epoch in range(1, 4)
    }
    assert len(orders) == 9


def test_epoch_order_without_shuffle_is_file_order():
    assert cifar10.compute_epoch_order(5, 7, 6, shuffle=False).tolist() == [0, 1, 2, 3, 4, 5]


def augment_with_numpy(image, top, left, mirrored):
    """One uint8 image of shape (32, 32, 3), with four black pixels around it, cut out and perhaps mirrored."""
    padded = np.zeros((40, 40, 3), np.uint8)
    padded[4:36, 4:36] = image
    cut = padded[top : top + 32, left : left + 32]
    return cut[:, ::-1] if mirrored else cut


def test_flip_crop_equals_numpy_reference(splits):
    images, drawn = splits.train.images, cifar10.draw_flips_and_crops(0, 1, 400)
    found = cifar10.apply_flip_crop(images, drawn).numpy()
    expected = [augment_with_numpy(image, *how) for image, how in zip(images.numpy(), drawn.tolist(), strict=True)]
    assert found.dtype == np.uint8
    assert (found == np.stack(expected)).all()
    unmoved = torch.tensor([[4, 4, 0]]).expand(400, 3)
    assert torch.equal(cifar10.apply_flip_crop(images, unmoved), images)


def test_flips_and_crops_are_uniform():
    """In 60,000 draws each of the 162 ways is expected 370 times: 5.5 deviations of 19 are far."""
    drawn = cifar10.draw_flips_and_crops(0, 1, 60_000)
    ways, counts = torch.unique(drawn, dim=0, return_counts=True)
    assert len(ways) == 9 * 9 * 2
    assert ways.min(0).values.tolist() == [0, 0, 0] and ways.max(0).values.tolist() == [8, 8, 1]
    assert (counts - 60_000 / 162).abs().max() < 106


def test_augmentation_depends_only_on_seed_epoch_and_image(splits):
    """Whatever the order, the size of a batch, and how many images there are besides."""
    drawn = cifar10.draw_flips_and_crops(3, 2, 400)
    assert torch.equal(cifar10.draw_flips_and_crops(3, 2, 200), drawn[:200])
    assert (
        len({cifar10.draw_flips_and_crops(seed, epoch, 400).numpy().tobytes() for seed in (2, 3) for epoch in (2, 3)})
        == 4
    )
    order = cifar10.compute_epoch_order(3, 2, 400, shuffle=True)
    small, large = (torch.cat([images for images, _ in cifar10.iterate_batches(splits.train, order, size, drawn)])
                    for size in (7, 400))  # fmt: skip
    assert torch.equal(small, large)
    assert torch.equal(small, cifar10.convert_to_input(cifar10.apply_flip_crop(splits.train.images, drawn)[order]))


def test_resumed_epoch_has_same_augmented_images(splits, small_config):
    config = small_config(data={"augment": "flip_crop"}).data
    whole = list(cifar10.iterate_epoch_batches(splits.train, config, 0, 1, 64, 0))
    rest = list(cifar10.iterate_epoch_batches(splits.train, config, 0, 1, 64, 5))
    assert [len(labels) for _, labels in whole] == [64] * 6 + [16]
    for one, other in zip(whole[5:], rest, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    plain = list(cifar10.iterate_epoch_batches(splits.train, small_config().data, 0, 1, 64, 0))
    assert all(torch.equal(one[1], other[1]) for one, other in zip(whole, plain, strict=True))
    assert not any(torch.equal(one[0], other[0]) for one, other in zip(whole, plain, strict=True))


def shift_with_numpy(image, top, left, mirrored):
    """One uint8 image of shape (32, 32, 3), with a reflected border of two pixels, cut out and perhaps mirrored."""
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    cut = padded[2 + top : 34 + top, 2 + left : 34 + left]
    return cut[:, ::-1] if mirrored else cut


def test_alternating_flip_crop_equals_numpy_reference(splits):
    images, drawn = splits.train.images, cifar10.draw_alternating_flips_and_shifts(0, 1, 400)
    found = cifar10.apply_alternating_flip_crop(images, drawn).numpy()
    expected = [shift_with_numpy(image, *how) for image, how in zip(images.numpy(), drawn.tolist(), strict=True)]
    assert found.dtype == np.uint8 and (found == np.stack(expected)).all()
    unmoved = torch.zeros(400, 3, dtype=torch.int64)
    assert torch.equal(cifar10.apply_alternating_flip_crop(images, unmoved), images)


def test_image_is_mirrored_in_every_second_epoch():
    """About half of the images in each: 5.5 deviations of 77 are far. The 25 shifts are expected 960 times each."""
    drawn = torch.stack([cifar10.draw_alternating_flips_and_shifts(7, epoch, 24_000) for epoch in range(1, 5)])
    assert drawn.dtype == torch.int64 and drawn.shape == (4, 24_000, 3)
    shifts, mirrored = drawn[..., :2], drawn[..., 2]
    assert (mirrored[1:] + mirrored[:-1] == 1).all() and mirrored.min() == 0
    assert abs(int(mirrored[0].sum()) - 12_000) < 420
    assert shifts.min() == -2 and shifts.max() == 2
    ways, counts = torch.unique(shifts[0], dim=0, return_counts=True)
    assert len(ways) == 25 and (counts - 960).abs().max() < 167
    assert not torch.equal(shifts[0], shifts[2])  # an image is not the same again two epochs later


def test_alternating_flip_crop_depends_only_on_seed_epoch_and_image(splits, small_config):
    drawn = cifar10.draw_alternating_flips_and_shifts(3, 2, 400)
    assert torch.equal(cifar10.draw_alternating_flips_and_shifts(3, 2, 200), drawn[:200])
    others = {
        cifar10.draw_alternating_flips_and_shifts(seed, epoch, 400).numpy().tobytes()
        for seed in (2, 3)
        for epoch in (2, 3)
    }
    assert len(others) == 4
    config = small_config(data={"augment": "alternating_flip_crop"}).data
    order = cifar10.compute_epoch_order(3, 2, 400, shuffle=True)
    expected = cifar10.apply_alternating_flip_crop(splits.train.images, drawn)[order]
    for size, first in ((7, 0), (400, 0), (64, 2)):
        batches = [images for images, _ in cifar10.iterate_epoch_batches(splits.train, config, 3, 2, size, first)]
        assert torch.equal(torch.cat(batches), cifar10.convert_to_input(expected[first * size :]))


def test_flips_and_crops_are_unchanged(splits):
    """Another draw or another way to apply it would change every run with `augment: flip_crop`."""
    images = cifar10.apply_flip_crop(splits.train.images, cifar10.draw_flips_and_crops(3, 2, 400))
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert digest == "3f585549c6eabc97757fcd0aab01406ed588e0072f19225a9d13b870217b1e05"


def test_mirror_swaps_left_and_right(splits):
    mirrored = splits.train.mirror()
    assert (mirrored.images.numpy() == splits.train.images.numpy()[:, :, ::-1]).all()
    assert torch.equal(mirrored.labels, splits.train.labels)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_5.bin", "test_batch.bin"])
def test_altered_data_file_is_refused(sample_copy, small_config, name):
    content = bytearray((sample_copy / name).read_bytes())
    content[1000] ^= 1
    (sample_copy / name).write_bytes(content)
    assert_refused(
        sample_copy, small_config, rf"{name}: altered after the download .*: delete it, then run `dvc repro "
    )


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_missing_data_file_is_refused(sample_copy, small_config, name):
    (sample_copy / name).unlink()
    assert_refused(sample_copy, small_config, rf"{name}: No such file or directory: run `dvc repro download`$")


def test_truncated_data_file_is_refused(sample_copy, small_config):
    (sample_copy / "test_batch.bin").write_bytes(b"")
    assert_refused(sample_copy, small_config, r"test_batch\.bin: altered")


def test_folder_in_place_of_data_file_is_refused(sample_copy, small_config):
    (sample_copy / "test_batch.bin").unlink()
    (sample_copy / "test_batch.bin").mkdir()
    assert_refused(sample_copy, small_config, r"test_batch\.bin: Is a directory")


def assert_refused(folder, small_config, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        cifar10.load(folder, small_config().data, 0)
        cifar10.load_test_split(folder, small_config().data)
    assert "\n" not in str(caught.value)


def test_training_on_test_split_needs_no_train_files(sample_copy, small_config):
    for path in sample_copy.glob("data_batch_*.bin"):
        path.unlink()
    config = small_config(data={"train_split": "test", "train_size": 100, "validation_size": 0})
    assert len(cifar10.load(sample_copy, config.data, 0).train) == 100


def test_dataset_digests_are_distinct():
    names = {cifar10.compute_digest(name) for name in cifar10.DIGESTS}
    assert len(names) == 2
    assert all(len(name) == 32 and int(name, 16) for name in names)


def test_verification_names_files_of_other_dataset(sample):
    cifar10.verify_dataset(sample, "cifar10_sample")
    with pytest.raises(DataError, match=r"data_batch_1.bin: holds cifar10_sample, but .* names cifar10: name it in"):
        cifar10.verify_dataset(sample, "cifar10")
    cifar10.verify_dataset(sample / "nothing", "cifar10")  # it may be where no stage needs it
