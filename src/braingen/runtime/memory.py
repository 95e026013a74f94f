"""Recognise that memory ran out, whichever library noticed it, and give back what is freed."""

from __future__ import annotations

from contextlib import suppress
import ctypes
import gc
import sys

WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "failed to allocate",
)
"""Of torch's allocators for CPU and GPU, cuDNN and the C++ library."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in WORDS)


def give_back(collect: bool = False) -> None:
    """Return the memory of models that were dropped to the system.

    The allocators keep freed blocks for the next request: glibc's those of up to 32 MB, of which a
    model has hundreds, torch's on a GPU all of them.

    Parameters
    ----------
    collect : bool, optional
        Look for models that only refer to each other first; it takes a quarter of a second.
    """
    if collect:
        gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
