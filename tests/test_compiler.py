"""What the TPU's compiler is told beside a program, and that a plan tells it the same."""

import jax
import numpy as np
import pytest

from easylm_jax.runtime import compiler
from easylm_jax.runtime.mesh import make_mesh
from models.config import Compute


class _Device:
    def __init__(self, platform, kind):
        self.platform, self.device_kind = platform, kind


class _Mesh:
    def __init__(self, count, platform="tpu", kind="TPU v5"):
        self.devices = np.array([_Device(platform, kind)] * count, dtype=object)
        self.size = count


def test_elsewhere_than_on_a_tpu_the_compiler_is_told_nothing():
    assert compiler.options(make_mesh("dp=-1", jax.devices()), Compute(tile_kib=65536)) is None
    assert compiler.options(_Mesh(8, "gpu", "NVIDIA H100"), Compute()) is None


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v5 lite", "TPU v6 lite"])
def test_parameters_that_lie_split_are_gathered_while_products_run(kind):
    told = compiler.options(_Mesh(8, kind=kind), Compute())
    assert told["xla_enable_async_all_gather"] is True
    assert "xla_tpu_scoped_vmem_limit_kib" not in told


@pytest.mark.parametrize("kind, fused", [("TPU v4", False), ("TPU v5", False), ("TPU v5 lite", True),
                                         ("TPU v6 lite", False)])  # fmt: skip
def test_a_compiler_that_refuses_fused_gathers_is_not_asked_for_them(kind, fused, monkeypatch):
    name = "xla_tpu_enable_async_collective_fusion_fuse_all_gather"
    monkeypatch.setattr(compiler, "_libtpu", lambda: (0, 0, 50))
    assert (name in compiler.options(_Mesh(8, kind=kind), Compute())) is fused
    monkeypatch.setattr(compiler, "_libtpu", lambda: (0, 0, 42))
    assert name in compiler.options(_Mesh(8, kind=kind), Compute())


def test_one_chip_gathers_nothing_and_a_later_one_does_it_by_itself():
    assert compiler.options(_Mesh(1), Compute()) is None
    assert not any("all_gather" in name for name in compiler.options(_Mesh(8, kind="TPU7x"), Compute()))


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v5 lite", "TPU v6 lite", "TPU7x"])
def test_products_are_not_cut_into_a_round_for_each_chip(kind):
    told = compiler.options(_Mesh(8, kind=kind), Compute())
    assert told["xla_jf_spmd_threshold_for_windowed_einsum_mib"] == 2**20


def test_tiles_of_products_may_be_given_more_memory():
    assert compiler.options(_Mesh(1), Compute(tile_kib=65536)) == {"xla_tpu_scoped_vmem_limit_kib": "65536"}
