"""What `numerics: portable` replaces: near to torch's own, and the same in every order."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from optlab.preflight import checks
from optlab.training import optimizer_factory, portable_kernels


@pytest.fixture
def compute_both():
    """A function that computes twice: by torch's own operations, then by those that replace them."""
    torch.manual_seed(1)  # of 0 to 11, the one whose sums cancel least: they come within half of the tolerance

    def both(compute):
        assert portable_kernels._library is None
        own = compute()
        portable_kernels.install()
        try:
            return own, compute()
        finally:
            portable_kernels._library._destroy()
            portable_kernels._library = None

    return both


def wide_range_values(seed, *shape):
    """Numbers of both signs over fifteen powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (torch.rand(shape, generator=generator) * 15 - 10)


def full_mantissa_values(seed, *shape):
    """Numbers with all their bits, of one sign and size: their sums need the most room."""
    return 1 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("values", [wide_range_values, full_mantissa_values])
def test_matmul_ignores_order_of_64_terms(values):
    a, b = values(0, 20, 64), values(1, 64, 30)
    orders = [torch.randperm(64, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    found = portable_kernels.compute_matmul(a, b)
    assert all(torch.equal(portable_kernels.compute_matmul(a[:, order], b[order]), found) for order in orders)
    assert not all(torch.equal(a[:, order] @ b[order], a @ b) for order in orders)  # or else this could not see it


@pytest.mark.parametrize("terms", [1, 2, 63, 64, 65, 128, 1000, 1024])
@pytest.mark.parametrize("values", [lambda *shape: torch.randn(shape), lambda *shape: torch.rand(shape)])
def test_matmul_error_is_close_to_float32(terms, values):
    torch.manual_seed(terms)
    a, b = values(33, terms), values(terms, 17)
    true = a.double() @ b.double()
    own, other = (
        (each.double() - true).norm() / true.norm() for each in (a @ b, portable_kernels.compute_matmul(a, b).float())
    )
    assert other < max(3 * own, 2e-7)


def test_matmul_error_is_bounded_by_largest_values():
    """What is far smaller than the largest of its 64 loses bits: that is the price."""
    a, b = wide_range_values(5, 30, 64), wide_range_values(6, 64, 20)
    largest = a.double().abs().amax(1, keepdim=True) * b.double().abs().amax(0, keepdim=True)
    assert ((portable_kernels.compute_matmul(a, b) - a.double() @ b.double()).abs() < 64 * 2**-22 * largest).all()


def test_matmul_of_small_integers_is_exact():
    a, b = torch.arange(-50.0, 50).view(10, 10), torch.arange(100.0).view(10, 10)
    assert torch.equal(portable_kernels.compute_matmul(a, b), a.double() @ b.double())


def test_matmul_of_empty_or_zero_tensors_is_zero():
    assert portable_kernels.compute_matmul(torch.ones(3, 0), torch.ones(0, 2)).tolist() == [[0.0, 0.0]] * 3
    assert portable_kernels.compute_matmul(torch.zeros(3, 70), torch.ones(70, 2)).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_matmul_propagates_non_finite_values(bad):
    a = torch.ones(2, 100)
    a[1, 70] = bad
    found = portable_kernels.compute_matmul(a, torch.ones(100, 3))
    assert found[0].tolist() == [100.0] * 3
    assert not found[1].isfinite().any()


def test_matmul_handles_tiny_and_huge_values():
    a, b = torch.tensor([[1e-40, 3e38]]), torch.tensor([[1e-40, 0.0], [0.0, 3e38]])
    found = portable_kernels.compute_matmul(a, b)
    assert found[0, 1] == pytest.approx(9e76)
    assert portable_kernels.compute_matmul(a[:, :1], b[:1, :1]).item() == pytest.approx(
        1e-80, rel=1e-4
    )  # a float32's last bits


def test_sqrt_is_correctly_rounded(compute_both):
    x = wide_range_values(3, 1000).abs()
    _, found = compute_both(lambda: (x.sqrt(), x.clone().sqrt_(), x.double().sqrt(), torch.tensor(-1.0).sqrt()))
    expected = [
        np.float32(math.sqrt(value)) for value in x.tolist()
    ]  # a float64's root, rounded, is the nearest float32
    assert found[0].tolist() == expected
    assert found[1].tolist() == expected
    assert found[2].tolist() == [math.sqrt(value) for value in x.tolist()]
    assert math.isnan(found[3])


def assert_results_close(pair):
    for own, other in zip(*pair, strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(other, own, rtol=2e-4, atol=2e-5)


def test_linear_layer_and_gradients_match_torch(compute_both):
    x, w, b = torch.randn(50, 100, requires_grad=True), torch.randn(7, 100, requires_grad=True), torch.randn(7)
    b.requires_grad_()

    def compute():
        y = F.linear(x, w, b)
        return y, *torch.autograd.grad(y.square().sum(), (x, w, b))

    assert_results_close(compute_both(compute))
    assert_results_close(
        compute_both(lambda: (torch.addmm(b, x, w.t(), beta=0.5, alpha=2), torch.addmm(b, x, w.t(), beta=0)))
    )
    assert_results_close(
        compute_both(lambda: ((x.bfloat16() @ w.bfloat16().t()).float() / 10, x.flatten().dot(x.flatten())))
    )


def test_integers_and_float64_use_torch_kernels(compute_both):
    x, y = torch.arange(600), torch.rand(600, dtype=torch.float64)
    own, other = compute_both(
        lambda: [x.view(20, 30) @ x.view(30, 20), x.dot(x), x.sum(), y.view(20, 30) @ y.view(30, 20)]
    )
    assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))


REFUSED = {
    "two types": lambda: torch.ones(2, 3) @ torch.ones(3, 2).double(),
    "shapes that do not fit": lambda: torch.ones(2, 3).mm(torch.ones(4, 2)),
    "nothing by something": lambda: torch.ones(2, 0).mm(torch.ones(5, 3)),
    "a matrix and a vector": lambda: torch.ones(2, 3).mm(torch.ones(3)),
    "vectors of two lengths": lambda: torch.ones(1).dot(torch.ones(5)),
    "matrices for vectors": lambda: torch.ones(2, 2).dot(torch.ones(2, 2)),
    "a dimension twice": lambda: torch.ones(30, 40).sum((0, 0)),
    "a dimension that is not there": lambda: torch.ones(600).sum(3),
}


@pytest.mark.parametrize("compute", REFUSED.values(), ids=REFUSED)
def test_invalid_operands_raise_torch_error_message(compute_both, compute):
    def message():
        with pytest.raises((RuntimeError, IndexError)) as caught:
            compute()
        return str(caught.value)

    own, other = compute_both(message)
    assert own == other


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_matches_torch(compute_both, affine, training):
    x = torch.randn(6, 5, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()

    def compute():
        torch.manual_seed(0)
        layer = torch.nn.BatchNorm2d(5, affine=affine).train(training)
        for parameter in layer.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 2)
        y = layer(x * 3 + 1)
        gradients = torch.autograd.grad(
            (y * torch.linspace(0, 1, y.numel()).view_as(y)).sum(), (x, *layer.parameters())
        )
        return y, *gradients, layer.running_mean, layer.running_var

    assert_results_close(compute_both(compute))


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [(5, {"padding": 2}), (3, {"stride": 2, "padding": 1}), (1, {"stride": 2}), (1, {}), (1, {"groups": 2}),
     (1, {"padding": 1}), (3, {"dilation": 2}), (4, {"stride": 3}),
     (3, {"stride": (2, 3), "padding": (1, 0), "dilation": (1, 2)})],
)  # fmt: skip
@pytest.mark.parametrize("wanted", ["xwb", "wb", "x", "b", "xw"])
@pytest.mark.parametrize("images", [1, 3])
def test_convolution_gradients_match_torch(compute_both, kernel, settings, wanted, images):
    channels = 4 // settings.get("groups", 1)
    tensors = {"x": torch.randn(images, 4, 9, 9), "w": torch.randn(6, channels, kernel, kernel), "b": torch.randn(6)}
    for name in wanted:
        tensors[name].requires_grad_()

    def compute():
        y = F.conv2d(tensors["x"], tensors["w"], tensors["b"], **settings)
        return y, *torch.autograd.grad(y.square().sum(), [tensors[name] for name in wanted])

    assert_results_close(compute_both(compute))


def test_sums_match_torch(compute_both):
    x = torch.randn(40, 50)
    one = x.view(1, -1)
    assert_results_close(
        compute_both(
            lambda: (
                x.sum(),
                x.sum((0, -1)),
                x.sum(0),
                x.sum(1, keepdim=True),
                x.sum(dtype=torch.float64),
                one.sum(1),
                one.sum(),
                one.sum(-1, keepdim=True),
                x.bfloat16().sum().float(),
                x.sum(()),
            )
        )
    )
    assert portable_kernels.compute_sum(torch.ones(1000)) == 1000


def test_sum_is_independent_of_thread_count(compute_both):
    x = torch.randn(1, 100_000)
    before = torch.get_num_threads()

    def sums():
        found = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(torch.cat([x.sum(1), x[0].sum(0, keepdim=True), x.sum()[None], x[0].dot(x[0])[None]]))
        torch.set_num_threads(before)
        return found

    own, other = compute_both(sums)
    assert not all(torch.equal(each, own[0]) for each in own)  # or else this could not see it
    assert all(torch.equal(each, other[0]) for each in other)


def test_thread_count_is_restored(compute_both):
    before = torch.get_num_threads()
    x, w = torch.randn(3, 4, 8, 8), torch.randn(6, 4, 3, 3, requires_grad=True)
    try:
        torch.set_num_threads(3)
        compute_both(lambda: F.conv2d(x, w).sum().backward())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


ADAM, MUON = {"class": "Adam"}, {"class": "Muon", "fallback": {"class": "RMSprop"}}


@pytest.mark.parametrize(
    ("model", "optimizers", "untried"),
    [
        ("zilliax", {"a": ADAM, "b": MUON, "c": {"class": "schedulefree.AdamWScheduleFree"}}, []),
        (
            "zilliax",
            {"a": ADAM, "b": {"class": "custom.signum.Signum"}},
            ["optimizers.b: custom.signum.Signum on zilliax"],
        ),
        ("resnet18", {"a": ADAM, "b": MUON}, ["optimizers.b: Muon on resnet18", "optimizers.b: RMSprop on resnet18"]),
        ("torchvision.models.resnet34", {"a": ADAM, "b": MUON}, ["model: torchvision.models.resnet34"]),
    ],
)
def test_untested_model_or_optimizer_gives_portability_warning(small_config, model, optimizers, untried):
    settings = {"model": model, "optimizers": optimizers}
    warnings = checks.list_portability_warnings(small_config(**settings, training={"numerics": "portable"}))
    assert [each.partition(" is not among")[0] for each in warnings] == [
        f"warning: numerics: portable: {each}" for each in untried
    ]
    assert checks.list_portability_warnings(small_config(**settings)) == []


def test_dense_torch_classes_are_tested_on_zilliax():
    """tests/test_determinism.py trains them all."""
    own = {name for name in checks.TESTED_CLASSES["zilliax"] if "." not in name}
    assert own == set(optimizer_factory.get_torch_classes()) - {"SparseAdam"}
