"""Configures glibc to keep freed memory instead of returning it to the kernel after every training step.

XLA on CPU allocates its buffers anew in each step. glibc gets large buffers with mmap and unmaps them when they are
freed, so every step faults in fresh pages: 145,000 page faults and 30 % of the CPU time of a step at 5 million
parameters (4 rows of 512 tokens). With the memory kept in one arena, the same step has almost no page faults.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameter numbers of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Configures the allocator for the rest of the process; best called before JAX starts its threads.

    Returns False if nothing was set: not glibc, or the user has set `MALLOC_…` or `GLIBC_TUNABLES`.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if not sys.platform.startswith("linux") or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return False
    # -1 turns trimming off: the largest threshold that fits an int, 2 GiB, is less than a step of 35M parameters needs.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all([mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings])
