"""Recognise that memory ran out, whichever library noticed it, and give back what is freed."""

from __future__ import annotations

from contextlib import suppress
import ctypes
import gc
import os
import sys

WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "failed to allocate",
)
"""Of torch's allocators for CPU and GPU, cuDNN and the C++ library."""
LARGE_WEIGHTS = 10**9
"""Bytes of a trained model's weights from which memory counts more than the time of asking for it.
"""
OWN_BLOCK = 2**18
"""Bytes from which the C library then asks the system for a block of its own, and returns it when
it is freed.
"""
M_MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``."""
CHOSEN_BY_USER = {"MALLOC_MMAP_THRESHOLD_": "", "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold"}
"""Variables of the environment that set the same, and what they then hold."""


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
    with suppress(OSError, AttributeError):  # another C library than glibc
        _c_library().malloc_trim(0)


def return_large_blocks(size: int) -> None:
    """Let glibc return freed blocks to the system at once, where a large model is trained on a CPU.

    It raises the size from which a block is the system's own to that of freed blocks, up to 32 MB,
    and keeps what is freed below it, between blocks that live: one to two gigabytes where the
    U-Net of full size is fine-tuned (docs/full_size.md). What is kept already is returned too.
    Small models stay with that, since to ask the system for every block takes time.

    Parameters
    ----------
    size : int
        Bytes of the model's weights; nothing is done below :data:`LARGE_WEIGHTS`.
    """
    given = ((os.environ.get(name), part) for name, part in CHOSEN_BY_USER.items())
    if size < LARGE_WEIGHTS or any(value is not None and part in value for value, part in given):
        return
    with suppress(OSError, AttributeError):
        _c_library().mallopt(M_MMAP_THRESHOLD, OWN_BLOCK)
        _c_library().malloc_trim(0)


def _c_library() -> ctypes.CDLL:
    """Glibc, by its name on Linux.

    Raises
    ------
    OSError
        On another system, or with another C library.
    """
    if sys.platform != "linux":
        raise OSError(f"{sys.platform} has no glibc")
    return ctypes.CDLL("libc.so.6")
