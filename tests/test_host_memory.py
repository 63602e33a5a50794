"""Freed memory is kept by the process, so that the next step does not fault its pages in again."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from easylm_jax.runtime.host_memory import keep_freed_memory

kept = keep_freed_memory()
def step():
    # 32 MiB in blocks of 1 MiB: from 4 MiB on NumPy asks for huge pages, of which there are more or fewer at a time.
    blocks = [np.ones(2**18, np.float32) for _ in range(32)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of glibc")
@pytest.mark.parametrize("chosen", [False, True])
def test_later_steps_fault_in_no_pages_unless_the_user_chose_the_allocator(chosen):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    # Its own default threshold is written out for the control, since glibc raises it once large blocks were freed.
    environment = {**clean, **({"MALLOC_MMAP_THRESHOLD_": "131072"} if chosen else {})}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    pages = 10 * 32 * 2**20 // os.sysconf("SC_PAGESIZE")
    if chosen:
        assert output[0] == "False" and int(output[1]) > pages // 2
    else:
        assert output[0] == "True" and int(output[1]) < pages // 50


DISPATCHES = """
import sys
import jax, jax.numpy as jnp
from easylm_jax.runtime.compiler import peak_bytes
from easylm_jax.runtime.host_memory import dispatch_one_at_a_time

if sys.argv[1] == "one":
    dispatch_one_at_a_time()
# Its temporaries are a matrix of 16 MiB, which takes a while to sort.
program = jax.jit(lambda x: jnp.sort(jnp.outer(x, x + 1), axis=1)[:, 0]).lower(jnp.arange(2048.0)).compile()
print(program(jnp.arange(2048.0)).is_ready(), peak_bytes(program, "cpu"))
"""


@pytest.mark.parametrize("how", ["one", "ahead"])
def test_a_program_has_ended_when_it_was_dispatched_so_that_the_next_one_can_use_its_memory(how):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    ready, peak = subprocess.run(
        [sys.executable, "-c", DISPATCHES, how], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert ready == str(how == "one"), "JAX by itself returns before the program has run"
    assert int(peak) >= 2**24, "the peak that is reported holds the temporaries"
