"""Replacements of ATen's CPU kernels whose last bits depend on the make of CPU or on the number of threads.

With oneDNN and ATen limited to AVX2, convolutions, pooling and sums over some of the dimensions round alike on Intel
and AMD; docs/determinism.md has the measurements. Replaced are MKL's matrix products and square roots, and operations
that add up in as many parts as there are threads.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_MANTISSA_BITS = 53  # bits of a float64
_EXPONENT_MASK = 0x7FF << 52  # where it keeps its exponent
# 2⁶ products of 23 and 24 bits need 6 + 23 + 24 = 53 bits to be added up.
_BLOCK_TERMS, _BITS_LEFT, _BITS_RIGHT = 64, 23, 24
SUM_COLUMNS = 256  # of a sum in fixed order


def compute_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product in float64, independent of the order in which terms are added.

    The terms are taken 64 at a time. Both factors are rounded to whole multiples of a power of two, so few bits of them
    that no sum of 64 products needs more than a float64's 53: nothing is rounded while they are added (the idea is that
    of Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication", Numer. Algorithms 59, 2012).
    The sums of 64 are added in their order.

    Args:
        a: shape (m, k), of a floating type.
        b: shape (k, n), likewise.

    Returns:
        float64, shape (m, n). A number of `a` keeps 23 bits, counted from the largest of the 64 in its row, one of `b`
        24 in its column. Where these are of about the same size, the product is as near to the true one as float32's
        own; in general, each of 64 terms is off by less than 2⁻²² of the product of the two largest.
    """
    (m, k), n = a.shape, b.shape[1]
    if not m * k * n:
        return a.new_zeros(m, n, dtype=torch.float64)
    if k % _BLOCK_TERMS and k > _BLOCK_TERMS:
        a, b = F.pad(a, (0, -k % _BLOCK_TERMS)), F.pad(b, (0, 0, 0, -k % _BLOCK_TERMS))
    size = min(k, _BLOCK_TERMS)
    left = a.reshape(m, -1, size).transpose(0, 1)
    right = b.reshape(-1, size, n)
    parts = torch.bmm(_round_to_multiples(left, 2, _BITS_LEFT), _round_to_multiples(right, 1, _BITS_RIGHT))
    return parts[0] if len(parts) == 1 else parts.sum(0)


def compute_sum(values: Tensor) -> Tensor:
    """Return the sum of all elements, in an order that depends on their number only.

    Args:
        values: float32 or float64, of any shape.

    Returns:
        Of the same type, shape ().
    """
    flat = values.reshape(-1)
    whole = len(flat) // SUM_COLUMNS * SUM_COLUMNS
    columns = flat[:whole].view(-1, SUM_COLUMNS).sum(0)
    return torch.cat([columns, flat[whole:]]).sum()  # too few for a second thread


def _round_to_multiples(x: Tensor, dim: int, bits: int) -> Tensor:
    """Round each number to `bits` bits, counted from the largest along `dim`; return float64.

    Adding and subtracting `shift` leaves a float64 only these multiples of a power of two.
    """
    largest = x.abs().amax(dim, keepdim=True).double()
    power = (largest.view(torch.int64) & _EXPONENT_MASK).view(torch.float64)  # of two, and not above the largest
    shift = power.mul_(3.0 * 2.0 ** (_MANTISSA_BITS - 1 - bits))
    return x.double().add_(shift).sub_(shift)


_FLOAT_DTYPES = (torch.float32, torch.float64)
_library: torch.library.Library | None = None


def install() -> None:
    """Replace the kernels in this process; a second call changes nothing."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that its kernel is overridden
        for name, make in _KERNELS.items():
            original = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
            _library.impl(name, make(original), "CPU", with_keyset=True)


Kernel = Callable[..., Any]


def _is_single_precision(*tensors: Tensor) -> bool:
    """Return whether all have one floating dtype with no more bits than float32."""
    return tensors[0].dtype in (torch.float32, torch.bfloat16, torch.float16) and _has_same_dtype(*tensors)


def _has_same_dtype(*tensors: Tensor) -> bool:
    return len({each.dtype for each in tensors}) == 1


def _can_multiply(a: Tensor, b: Tensor) -> bool:
    """Return whether the shapes fit a matrix product; torch refuses others."""
    return a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]


def _make_mm(original: Kernel) -> Kernel:
    def mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return (
            compute_matmul(a, b).to(a.dtype)
            if _is_single_precision(a, b) and _can_multiply(a, b)
            else original(keys, a, b)
        )

    return mm


def _make_addmm(original: Kernel) -> Kernel:
    def addmm(keys: Any, bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not (_is_single_precision(bias, a, b) and _can_multiply(a, b)):
            return original(keys, bias, a, b, beta=beta, alpha=alpha)
        matmul = compute_matmul(a, b).mul_(alpha)
        return (matmul.add_(bias.double() * beta) if beta else matmul).to(a.dtype)

    return addmm


def _make_dot(original: Kernel) -> Kernel:
    def dot(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        if a.is_floating_point() and _has_same_dtype(a, b) and a.dim() == b.dim() == 1 and len(a) == len(b):
            return compute_sum(a.double() * b.double()).to(a.dtype)
        return original(keys, a, b)

    return dot


def _make_sum(original: Kernel) -> Kernel:
    def sum_(keys: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
        # Where several sums result, each has one thread; where one does, every thread takes a part of it.
        if (
            x.dtype in _FLOAT_DTYPES
            and dtype in (None, *_FLOAT_DTYPES)
            and x.numel() >= 2 * SUM_COLUMNS
            and _is_full_reduction(x, dim)
        ):
            shape = [1] * x.dim() if keepdim else [1 for axis in range(x.dim()) if axis not in _normalize_axes(x, dim)]
            return compute_sum(x.to(dtype or x.dtype)).reshape(shape)
        return original(keys, x, dim, keepdim, dtype=dtype)

    return sum_


def _normalize_axes(x: Tensor, dim: Any) -> list[int]:
    return [axis % x.dim() for axis in dim or range(x.dim())]


def _is_full_reduction(x: Tensor, dim: Any) -> bool:
    """Return whether the sum over these dimensions has one element; False for invalid dimensions."""
    if not x.dim() or not all(-x.dim() <= axis < x.dim() for axis in dim or ()):
        return False
    axes = _normalize_axes(x, dim)
    kept_sizes = [x.shape[axis] for axis in range(x.dim()) if axis not in axes]
    return len(set(axes)) == len(axes) and all(size == 1 for size in kept_sizes)


def _make_sqrt(original: Kernel) -> Kernel:
    def sqrt(keys: Any, x: Tensor) -> Tensor:
        """Return correctly rounded roots, as IEEE 754 asks for; MKL's are sometimes off by one bit."""
        if x.dtype not in _FLOAT_DTYPES:
            return original(keys, x)
        out = torch.empty_like(x)
        with np.errstate(invalid="ignore"):
            np.sqrt(x.detach().numpy(), out=out.numpy())
        return out

    return sqrt


def _make_inplace_sqrt(original: Kernel) -> Kernel:
    out_of_place_sqrt = _make_sqrt(original)

    def sqrt_(keys: Any, x: Tensor) -> Tensor:
        return x.copy_(out_of_place_sqrt(keys, x)) if x.dtype in _FLOAT_DTYPES else original(keys, x)

    return sqrt_


def _make_batch_norm(original: Kernel) -> Kernel:
    def native_batch_norm(keys: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
                          variance: Tensor | None, training: bool, momentum: float, eps: float) -> Any:  # fmt: skip
        if not training:
            return original(keys, x, weight, bias, mean, variance, training, momentum, eps)
        n, dims = x.numel() // x.shape[1], _list_non_channel_dims(x)
        centre = x.sum(dims).div_(n)
        centered = x - _expand_channels(centre, x)
        spread = (centered * centered).sum(dims).div_(n)
        scale = spread.add(eps).sqrt().reciprocal()
        if mean is not None:
            mean.mul_(1 - momentum).add_(centre * momentum)
        if variance is not None:
            variance.mul_(1 - momentum).add_(spread * (momentum * n / max(n - 1, 1)))
        out = centered.mul_(_expand_channels(scale if weight is None else scale * weight, x))
        return (out if bias is None else out.add_(_expand_channels(bias, x))), centre, scale

    return native_batch_norm


def _make_batch_norm_backward(original: Kernel) -> Kernel:
    def native_batch_norm_backward(keys: Any, grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor | None,
                                   variance: Tensor | None, centre: Tensor, scale: Tensor, training: bool, eps: float,
                                   output_mask: list[bool]) -> Any:  # fmt: skip
        if not training:
            return original(keys, grad, x, weight, mean, variance, centre, scale, training, eps, output_mask)
        n, dims = x.numel() // x.shape[1], _list_non_channel_dims(x)
        normalized = (x - _expand_channels(centre, x)).mul_(_expand_channels(scale, x))
        bias_grad, weight_grad = grad.sum(dims), (grad * normalized).sum(dims)
        factor = scale if weight is None else scale * weight
        own = normalized.mul_(_expand_channels(weight_grad / n, x)).add_(_expand_channels(bias_grad / n, x))
        return (grad - own).mul_(_expand_channels(factor, x)), weight_grad, bias_grad

    return native_batch_norm_backward


def _list_non_channel_dims(x: Tensor) -> list[int]:
    """Return all dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _expand_channels(channels: Tensor, x: Tensor) -> Tensor:
    """Reshape one number per channel so that it broadcasts with `x`."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))


def _make_slow_conv2d(original: Kernel) -> Kernel:
    def _slow_conv2d_forward(keys: Any, x: Tensor, weight: Tensor, kernel_size: Any, bias: Any, stride: Any,
                             padding: Any) -> Tensor:  # fmt: skip
        """Use oneDNN's convolution: torch's for one image, or in one thread, is made of MKL's products."""
        if x.dtype != torch.float32:
            return original(keys, x, weight, kernel_size, bias, stride, padding)
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, [1, 1], 1)

    return _slow_conv2d_forward


def _make_convolution_backward(original: Kernel) -> Kernel:
    def convolution_backward(keys: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: list[int],
                             padding: list[int], dilation: list[int], transposed: bool, output_padding: list[int],
                             groups: int, output_mask: list[bool]) -> Any:  # fmt: skip
        def call_original(grad: Tensor, x: Tensor, stride: list[int], output_mask: list[bool]) -> Any:
            rest = (bias, stride, padding, dilation, transposed, output_padding, groups)
            return original(keys, grad, x, weight, *rest, output_mask)

        if x.dim() != 4 or transposed or groups != 1 or len(stride) != 2 or not len(x):
            return call_original(grad, x, stride, output_mask)
        if len(x) == 1:  # for one image, torch uses MKL's products
            grad, x = (torch.cat([each, torch.zeros_like(each)]) for each in (grad, x))
            grad_input, *others = convolution_backward(
                keys, grad, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups, output_mask
            )
            return None if grad_input is None else grad_input[:1], *others
        grad_input = grad_weight = grad_bias = None
        if tuple(weight.shape[2:]) == (1, 1) and not any(padding):
            if output_mask[0]:
                matmul = compute_matmul(_flatten_pixels(grad), weight.flatten(1)).to(x.dtype)
                grad_input = torch.zeros_like(x)
                _apply_stride(grad_input, stride).copy_(
                    matmul.view(*grad.shape[:1], *grad.shape[2:], -1).permute(0, 3, 1, 2)
                )
            if output_mask[1]:
                grad_weight = (
                    compute_matmul(_flatten_pixels(grad).t(), _flatten_pixels(_apply_stride(x, stride)))
                    .to(weight.dtype)
                    .view_as(weight)
                )
            return grad_input, grad_weight, grad.sum(_list_non_channel_dims(grad)) if output_mask[2] else None
        if output_mask[0]:
            grad_input = call_original(
                *_remove_stride(grad, x, weight, stride, padding, dilation), [True, False, False]
            )[0]
        if any(output_mask[1:]):
            with _limit_threads(4):  # up to four split by blocks of channels; more, by images as well
                _, grad_weight, grad_bias = call_original(grad, x, stride, [False, *output_mask[1:]])
        return grad_input, grad_weight, grad_bias

    return convolution_backward


def _apply_stride(x: Tensor, stride: list[int]) -> Tensor:
    """Return the pixels that a 1×1 convolution uses."""
    return x[:, :, :: stride[0], :: stride[1]]


def _remove_stride(grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int],
                    dilation: list[int]) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
    """Insert zeros into the gradient, so that it is that of the same convolution without a stride.

    How oneDNN splits the input's gradient of a strided one depends on the threads and on the size of the cache.
    """
    if max(stride) == 1:
        return grad, x, stride
    height, width = (
        x.shape[axis + 2] + 2 * padding[axis] - dilation[axis] * (weight.shape[axis + 2] - 1) for axis in (0, 1)
    )
    dilated = grad.new_zeros(*grad.shape[:2], height, width).contiguous(memory_format=torch.channels_last)
    dilated[:, :, :: stride[0], :: stride[1]][:, :, : grad.shape[2], : grad.shape[3]] = grad
    return dilated, x, [1, 1]


def _flatten_pixels(images: Tensor) -> Tensor:
    """Reshape (n, c, h, w) to (n · h · w, c)."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


@contextmanager
def _limit_threads(limit: int) -> Iterator[None]:
    """Limit the threads to a power of two, which divides blocks evenly, of at most `limit`."""
    threads = torch.get_num_threads()
    limited = 1 << (min(threads, limit).bit_length() - 1)
    if limited == threads:
        yield
        return
    torch.set_num_threads(limited)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_KERNELS: dict[str, Callable[[Kernel], Kernel]] = {
    "mm": _make_mm,
    "addmm": _make_addmm,
    "dot": _make_dot,
    "sum.dim_IntList": _make_sum,
    "sqrt": _make_sqrt,
    "sqrt_": _make_inplace_sqrt,
    "native_batch_norm": _make_batch_norm,
    "native_batch_norm_backward": _make_batch_norm_backward,
    "_slow_conv2d_forward": _make_slow_conv2d,
    "convolution_backward": _make_convolution_backward,
}
