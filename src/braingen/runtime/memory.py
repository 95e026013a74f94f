"""Recognise that memory ran out, whichever library noticed it."""

from __future__ import annotations

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
