"""Errors in a training that say nothing of what is trained: the machine has not got what it takes."""

import errno
import re

import torch

from optlab.system import memory
from optlab.system.errors import DISK_ERRORS, one_line

_ERRNOS = (*DISK_ERRORS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# cuBLAS, cuDNN and their like: of a GPU that is full, or gone; torch raises them as a RuntimeError.
_OF_A_GPU = re.compile(r"CU\w+_STATUS_(ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)|CUDA (error|driver)")


def lack(error: BaseException) -> str | None:
    """What an error says of the machine, as the end of a sentence about who has raised it; None if nothing."""
    if isinstance(error, Exception) and (found := memory.lack(error)):
        return found
    of_the_disk = isinstance(error, OSError) and error.errno in _ERRNOS
    of_a_gpu = isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or _OF_A_GPU.search(str(error))
    return f"fails: {type(error).__name__}: {one_line(error)}" if of_the_disk or of_a_gpu else None
