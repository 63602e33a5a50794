"""Memory of the host where it is also the device: freed memory is kept for the next step, and one step runs at a time.

XLA on CPU allocates its buffers anew in each step. glibc gets large buffers with mmap and unmaps them when they are
freed, so every step faults in fresh pages: 145,000 page faults and 30 % of the CPU time of a step at 5 million
parameters (4 rows of 512 tokens). With the memory kept in one arena, the same step has almost no page faults.

XLA on CPU also allocates the temporaries of a program when it is dispatched, not when it runs. A step that is
dispatched while another one runs, or before the temporaries of that one are freed, takes a second set of them, which
would then be kept. So programs are dispatched one at a time (docs/memory.md has measurements).
"""

from __future__ import annotations

import ctypes
import os
import sys

import jax

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


def dispatch_one_at_a_time() -> None:
    """Makes a program on CPU run when it is dispatched; to be called before JAX makes its devices. Results of programs
    and the other platforms are not affected."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
