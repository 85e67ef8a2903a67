"""How the process keeps memory: batches of megabytes come and go all the time."""

from __future__ import annotations

import ctypes
import gc

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEEP_BYTES = 128 * 2**20
_LARGEST_FROM_HEAP = 32 * 2**20


def keep_freed_memory() -> None:
    """Use freed memory again instead of asking the kernel for cleared pages for each batch.

    One arena: what one thread frees, another can use. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
    mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)


def collect_less_garbage() -> None:
    """Reports make no cycles, and what was loaded stays: walking it again and again is waste."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
