"""Keep freed memory with the process.

glibc hands every large block back to the kernel at each free and asks for it again at the next step; the page faults
cost about as much as the arithmetic of a small model. `mallopt` can be told to keep them: no block is mapped on its
own (M_MMAP_MAX = 0), and the heap's top is not trimmed. Elsewhere than glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

# Parameter numbers from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell the C library's allocator to keep what is freed. Returns whether it listened; safe to call again."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # musl and other libraries have no such call
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    accepted = [
        mallopt(_M_MMAP_MAX, 0),
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),
        mallopt(_M_TOP_PAD, 64 * 2**20),
    ]
    return all(accepted)
