"""A setting of the C library's allocator that training wants; imports nothing heavy, as every command calls it."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensor instead of giving it back (glibc only).

    It returns blocks above 32 MiB to the system at once; the next step gets new pages, which the kernel clears one by
    one. With activations of that size this took up to a third of a training step. Whoever sets glibc's own MALLOC_*
    variables is left alone.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
