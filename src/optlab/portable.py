"""Operations whose last bits depend on the CPU's make or on the number of threads, computed so that they do not.

With oneDNN and ATen held to AVX2, convolutions, pooling and sums over some of the dimensions round alike on Intel and
AMD; docs/determinism.md has the measurements. What does not is replaced here, for tensors on the CPU: MKL's matrix
products and square roots, and what adds up in as many parts as there are threads.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_MANTISSA = 53  # bits of a float64
_EXPONENT = 0x7FF << 52  # where it keeps its exponent
_TERMS, _BITS_LEFT, _BITS_RIGHT = 64, 23, 24  # 2⁶ products of 23 and 24 bits need 6 + 23 + 24 = 53 bits to be added up
_COLUMNS = 256  # of a sum in fixed order
_library: torch.library.Library | None = None


def install() -> None:
    """Replace the operations in this process, for good; a second call changes nothing."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch tells that its own kernel is overridden: it is meant to be
        for name, make in _KERNELS.items():
            original = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
            _library.impl(name, make(original), "CPU", with_keyset=True)


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, float64, the same whatever the order in which its terms are added.

    The terms are taken 64 at a time. Both factors are rounded to whole multiples of a power of two, so few bits of them
    that no sum of 64 products needs more than a float64's 53: nothing is rounded while they are added (the idea is that
    of Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication", Numer. Algorithms 59, 2012).
    The sums of 64 are added in their order.

    Args:
        a: shape (m, k), of a floating type.
        b: shape (k, n), likewise.

    Returns:
        float64, shape (m, n). A number of `a` keeps 23 bits, counted from the largest of the 64 in its row, one of `b`
        24 in its column: the product is about as near to the true one as float32's own.
    """
    (m, k), n = a.shape, b.shape[1]
    if not m * k * n:
        return a.new_zeros(m, n, dtype=torch.float64)
    if k % _TERMS and k > _TERMS:
        a, b = F.pad(a, (0, -k % _TERMS)), F.pad(b, (0, 0, 0, -k % _TERMS))
    size = min(k, _TERMS)
    left = a.reshape(m, -1, size).transpose(0, 1)
    right = b.reshape(-1, size, n)
    parts = torch.bmm(_multiples(left, 2, _BITS_LEFT), _multiples(right, 1, _BITS_RIGHT))
    return parts[0] if len(parts) == 1 else parts.sum(0)


def total(values: Tensor) -> Tensor:
    """The sum of all elements, in an order that depends on their number only; shape ()."""
    flat = values.reshape(-1)
    whole = len(flat) // _COLUMNS * _COLUMNS
    columns = flat[:whole].view(-1, _COLUMNS).sum(0)
    return torch.cat([columns, flat[whole:]]).sum()  # too few for a second thread


def _multiples(x: Tensor, dim: int, bits: int) -> Tensor:
    """float64: each number rounded to `bits` bits, counted from the largest along `dim`.

    What is added to it and taken away again leaves a float64 room for just these multiples of a power of two.
    """
    largest = x.abs().amax(dim, keepdim=True).double()
    power = (largest.view(torch.int64) & _EXPONENT).view(torch.float64)  # of two, and not above the largest
    shift = power.mul_(3.0 * 2.0 ** (_MANTISSA - 1 - bits))
    return x.double().add_(shift).sub_(shift)


Kernel = Callable[..., Any]


def _are_floats(*tensors: Tensor) -> bool:
    """Whether all are of one floating type; what torch thinks of anything else is left to it."""
    return tensors[0].is_floating_point() and len({each.dtype for each in tensors}) == 1


def _mm(original: Kernel) -> Kernel:
    def mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return product(a, b).to(a.dtype) if _are_floats(a, b) else original(keys, a, b)

    return mm


def _addmm(original: Kernel) -> Kernel:
    def addmm(keys: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not _are_floats(bias, a, b):
            return original(keys, bias, a, b, beta=beta, alpha=alpha)
        found = product(a, b).mul_(alpha)
        return (found.add_(bias.double() * beta) if beta else found).to(a.dtype)

    return addmm


def _dot(original: Kernel) -> Kernel:
    def dot(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return total(a.double() * b.double()).to(a.dtype) if _are_floats(a, b) else original(keys, a, b)

    return dot


def _sum(original: Kernel) -> Kernel:
    def sum_(keys: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
        # Over some dimensions, every sum has one thread; over all of them, each thread takes a part.
        whole = not dim or len(dim) == x.dim()
        if whole and not keepdim and x.is_floating_point() and x.numel() >= 2 * _COLUMNS:
            return total(x.to(dtype or x.dtype))
        return original(keys, x, dim, keepdim, dtype=dtype)

    return sum_


def _sqrt(original: Kernel) -> Kernel:
    def sqrt(keys: Any, x: Tensor) -> Tensor:
        """The number nearest to the root, which is what IEEE 754 asks for; MKL gives its neighbour now and then."""
        if x.dtype not in (torch.float32, torch.float64):
            return original(keys, x)
        out = torch.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.sqrt(x.detach().numpy(), out=out.numpy())
        return out

    return sqrt


def _sqrt_(original: Kernel) -> Kernel:
    apart = _sqrt(original)

    def sqrt_(keys: Any, x: Tensor) -> Tensor:
        return x.copy_(apart(keys, x)) if x.dtype in (torch.float32, torch.float64) else original(keys, x)

    return sqrt_


def _batch_norm(original: Kernel) -> Kernel:
    def native_batch_norm(keys: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
                          variance: Tensor | None, training: bool, momentum: float, eps: float) -> Any:  # fmt: skip
        if not training:
            return original(keys, x, weight, bias, mean, variance, training, momentum, eps)
        n, dims = x.numel() // x.shape[1], _others(x)
        centre = x.sum(dims).div_(n)
        apart = x - _along(centre, x)
        spread = (apart * apart).sum(dims).div_(n)
        scale = spread.add(eps).sqrt().reciprocal()
        if mean is not None:
            mean.mul_(1 - momentum).add_(centre * momentum)
        if variance is not None:
            variance.mul_(1 - momentum).add_(spread * (momentum * n / max(n - 1, 1)))
        out = apart.mul_(_along(scale if weight is None else scale * weight, x))
        return (out if bias is None else out.add_(_along(bias, x))), centre, scale

    return native_batch_norm


def _batch_norm_backward(original: Kernel) -> Kernel:
    def native_batch_norm_backward(keys: Any, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None,
                                   variance: Tensor | None, centre: Tensor, scale: Tensor, training: bool, eps: float,
                                   wanted: list[bool]) -> Any:  # fmt: skip
        if not training:
            return original(keys, grad, x, weight, mean, variance, centre, scale, training, eps, wanted)
        n, dims = x.numel() // x.shape[1], _others(x)
        normal = (x - _along(centre, x)).mul_(_along(scale, x))
        bias_grad, weight_grad = grad.sum(dims), (grad * normal).sum(dims)
        factor = scale if weight is None else scale * weight
        own = normal.mul_(_along(weight_grad / n, x)).add_(_along(bias_grad / n, x))
        return (grad - own).mul_(_along(factor, x)), weight_grad, bias_grad

    return native_batch_norm_backward


def _others(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """One number for each channel, to be combined with `x`."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))


def _convolution_backward(original: Kernel) -> Kernel:
    def convolution_backward(keys: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: list[int],
                             padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
                             groups: int, wanted: list[bool]) -> Any:  # fmt: skip
        rest = (bias, stride, padding, dilation, transposed, output_padding, groups)
        first = None
        if wanted[0]:
            # With a stride, oneDNN cuts the work otherwise for more than two threads.
            with _at_most(2 if max(stride) > 1 else torch.get_num_threads()):
                first = original(keys, grad, x, weight, *rest, [True, False, False])[0]
        if not any(wanted[1:]):
            return first, None, None
        if _is_a_product(x, weight, padding, transposed, groups):
            images = x[:, :, :: stride[0], :: stride[1]]
            second = product(_pixels(grad).t(), _pixels(images)).to(weight.dtype).view_as(weight)
            return first, second, grad.sum(_others(grad)) if wanted[2] else None
        with _at_most(4):  # so many share the work by blocks of channels; more, by images as well
            return first, *original(keys, grad, x, weight, *rest, [False, *wanted[1:]])[1:]

    return convolution_backward


def _is_a_product(x: Tensor, weight: Tensor, padding: list[int], transposed: bool, groups: int) -> bool:
    """Whether the convolution is a matrix product for every pixel."""
    return tuple(weight.shape[2:]) == (1, 1) and not any(padding) and not transposed and groups == 1 and x.dim() == 4


def _pixels(images: Tensor) -> Tensor:
    """Shape (n, c, h, w) → (n · h · w, c)."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """As many threads as there are up to a limit: the largest power of two of them, which divides blocks evenly."""
    threads = torch.get_num_threads()
    fewer = 1 << (min(threads, limit).bit_length() - 1)
    if fewer == threads:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_KERNELS: dict[str, Callable[[Kernel], Kernel]] = {
    "mm": _mm,
    "addmm": _addmm,
    "dot": _dot,
    "sum.dim_IntList": _sum,
    "sqrt": _sqrt,
    "sqrt_": _sqrt_,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "convolution_backward": _convolution_backward,
}
