"""What all tests share. JAX is set up here, before anything imports it: eight simulated devices, exact f32 products."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

_DEVICES = "--xla_force_host_platform_device_count=8"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Programs this small run as fast without, and compile in two thirds of the time; `make parity` compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Compiled programs are shared by all test processes and the commands that they start, until the tests end. The first
# process to come here (with pytest-xdist the one that starts the workers) makes the folder; a bound on its size makes
# JAX lock it, so that no process reads what another one is writing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="easylm-tests-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 << 30)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; the test is skipped where it is missing."""
    folder = Path(os.environ.get("EASYLM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder of real data at {folder} (EASYLM_SHARED_DATA names another)")
    return folder


@pytest.fixture
def record_property(record_property):
    """pytest's `record_property`, with NumPy's numbers as Python's: tests in parallel send them between processes."""
    import numpy as np

    return lambda name, value: record_property(name, np.asarray(value).tolist())


@pytest.fixture
def tiny_model_config():
    """A decoder small enough to compile in a second: 2 layers, width 32, grouped heads, 64 tokens."""
    from models.config import DecoderConfig

    return DecoderConfig(
        family="olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=64, vocab=64, context=64, qk_norm=True
    )
