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
from torch import Tensor

from optlab.training.exact import COLUMNS, product, total

_WIDE = (torch.float32, torch.float64)
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


Kernel = Callable[..., Any]


def _are_single(*tensors: Tensor) -> bool:
    """Whether all are of one floating type that keeps no more bits than float32."""
    return tensors[0].dtype in (torch.float32, torch.bfloat16, torch.float16) and _alike(*tensors)


def _alike(*tensors: Tensor) -> bool:
    return len({each.dtype for each in tensors}) == 1


def _fit(a: Tensor, b: Tensor) -> bool:
    """Whether these are the factors of a product; what torch thinks of anything else is left to it."""
    return a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]


def _mm(original: Kernel) -> Kernel:
    def mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return product(a, b).to(a.dtype) if _are_single(a, b) and _fit(a, b) else original(keys, a, b)

    return mm


def _addmm(original: Kernel) -> Kernel:
    def addmm(keys: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not (_are_single(bias, a, b) and _fit(a, b)):
            return original(keys, bias, a, b, beta=beta, alpha=alpha)
        found = product(a, b).mul_(alpha)
        return (found.add_(bias.double() * beta) if beta else found).to(a.dtype)

    return addmm


def _dot(original: Kernel) -> Kernel:
    def dot(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point() and _alike(a, b) and a.dim() == b.dim() == 1 and len(a) == len(b):
            return total(a.double() * b.double()).to(a.dtype)
        return original(keys, a, b)

    return dot


def _sum(original: Kernel) -> Kernel:
    def sum_(keys: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
        # Where several sums result, each has one thread; where one does, every thread takes a part of it.
        if x.dtype in _WIDE and dtype in (None, *_WIDE) and x.numel() >= 2 * COLUMNS and _is_one_sum(x, dim):
            shape = [1] * x.dim() if keepdim else [1 for axis in range(x.dim()) if axis not in _axes(x, dim)]
            return total(x.to(dtype or x.dtype)).reshape(shape)
        return original(keys, x, dim, keepdim, dtype=dtype)

    return sum_


def _axes(x: Tensor, dim: Any) -> list[int]:
    return [axis % x.dim() for axis in dim or range(x.dim())]


def _is_one_sum(x: Tensor, dim: Any) -> bool:
    """Whether the sum over these dimensions has one element; not if torch refuses the dimensions."""
    if not x.dim() or not all(-x.dim() <= axis < x.dim() for axis in dim or ()):
        return False
    axes = _axes(x, dim)
    kept = [x.shape[axis] for axis in range(x.dim()) if axis not in axes]
    return len(set(axes)) == len(axes) and all(size == 1 for size in kept)


def _sqrt(original: Kernel) -> Kernel:
    def sqrt(keys: Any, x: Tensor) -> Tensor:
        """The number nearest to the root, which is what IEEE 754 asks for; MKL gives its neighbour now and then."""
        if x.dtype not in _WIDE:
            return original(keys, x)
        out = torch.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.sqrt(x.detach().numpy(), out=out.numpy())
        return out

    return sqrt


def _sqrt_(original: Kernel) -> Kernel:
    apart = _sqrt(original)

    def sqrt_(keys: Any, x: Tensor) -> Tensor:
        return x.copy_(apart(keys, x)) if x.dtype in _WIDE else original(keys, x)

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


def _slow_convolution(original: Kernel) -> Kernel:
    def _slow_conv2d_forward(keys: Any, x: Tensor, weight: Tensor, kernel_size: Any, bias: Any, stride: Any,
                             padding: Any) -> Tensor:  # fmt: skip
        """What torch takes for one image, or in one thread, is made of MKL's products: oneDNN's always, instead."""
        if x.dtype != torch.float32:
            return original(keys, x, weight, kernel_size, bias, stride, padding)
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, [1, 1], 1)

    return _slow_conv2d_forward


def _convolution_backward(original: Kernel) -> Kernel:
    def convolution_backward(keys: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: list[int],
                             padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
                             groups: int, wanted: list[bool]) -> Any:  # fmt: skip
        def gradients(grad: Tensor, x: Tensor, stride: list[int], wanted: list[bool]) -> Any:
            rest = (bias, stride, padding, dilation, transposed, output_padding, groups)
            return original(keys, grad, x, weight, *rest, wanted)

        if x.dim() != 4 or transposed or groups != 1 or len(stride) != 2 or not len(x):
            return gradients(grad, x, stride, wanted)
        if len(x) == 1:  # torch takes another way for one image: MKL's products
            grad, x = (torch.cat([each, torch.zeros_like(each)]) for each in (grad, x))
            first, *others = convolution_backward(
                keys, grad, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, wanted
            )
            return None if first is None else first[:1], *others
        first = second = third = None
        if tuple(weight.shape[2:]) == (1, 1) and not any(padding):
            if wanted[0]:
                found = product(_pixels(grad), weight.flatten(1)).to(x.dtype)
                first = torch.zeros_like(x)
                _strided(first, stride).copy_(found.view(*grad.shape[:1], *grad.shape[2:], -1).permute(0, 3, 1, 2))
            if wanted[1]:
                second = product(_pixels(grad).t(), _pixels(_strided(x, stride))).to(weight.dtype).view_as(weight)
            return first, second, grad.sum(_others(grad)) if wanted[2] else None
        if wanted[0]:
            first = gradients(*_without_stride(grad, x, weight, stride, padding, dilation), [True, False, False])[0]
        if any(wanted[1:]):
            with _at_most(4):  # so many share the work by blocks of channels; more, by images as well
                _, second, third = gradients(grad, x, stride, [False, *wanted[1:]])
        return first, second, third

    return convolution_backward


def _strided(x: Tensor, stride: list[int]) -> Tensor:
    """The pixels that a 1×1 convolution sees."""
    return x[:, :, :: stride[0], :: stride[1]]


def _without_stride(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int],
                    dilation: list[int]) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
    """The gradient, with zeros between, of the same convolution without a stride.

    How oneDNN cuts up the input's gradient of a strided one depends on the threads and on the size of the cache.
    """
    if max(stride) == 1:
        return grad, x, stride
    height, width = (
        x.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (weight.shape[axis + 2] - 1) for axis in (0, 1)
    )
    spread = grad.new_zeros(*grad.shape[:2], height, width).contiguous(memory_format=torch.channels_last)
    spread[:, :, :: stride[0], :: stride[1]][:, :, : grad.shape[2], : grad.shape[3]] = grad
    return spread, x, [1, 1]


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
    "_slow_conv2d_forward": _slow_convolution,
    "convolution_backward": _convolution_backward,
}
