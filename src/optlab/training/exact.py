"""Products and sums that are the same to the bit, whatever adds them up: any make of CPU, any number of threads."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MANTISSA = 53  # bits of a float64
_EXPONENT = 0x7FF << 52  # where it keeps its exponent
_TERMS, _BITS_LEFT, _BITS_RIGHT = 64, 23, 24  # 2⁶ products of 23 and 24 bits need 6 + 23 + 24 = 53 bits to be added up
COLUMNS = 256  # of a sum in fixed order


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
        24 in its column. Where these are of about the same size, the product is as near to the true one as float32's
        own; in general, each of 64 terms is off by less than 2⁻²² of the product of the two largest.
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
    """The sum of all elements, in an order that depends on their number only.

    Args:
        values: float32 or float64, of any shape.

    Returns:
        Of the same type, shape ().
    """
    flat = values.reshape(-1)
    whole = len(flat) // COLUMNS * COLUMNS
    columns = flat[:whole].view(-1, COLUMNS).sum(0)
    return torch.cat([columns, flat[whole:]]).sum()  # too few for a second thread


def _multiples(x: Tensor, dim: int, bits: int) -> Tensor:
    """float64: each number rounded to `bits` bits, counted from the largest along `dim`.

    What is added to it and taken away again leaves a float64 room for just these multiples of a power of two.
    """
    largest = x.abs().amax(dim, keepdim=True).double()
    power = (largest.view(torch.int64) & _EXPONENT).view(torch.float64)  # of two, and not above the largest
    shift = power.mul_(3.0 * 2.0 ** (_MANTISSA - 1 - bits))
    return x.double().add_(shift).sub_(shift)
