"""Boxes of GPUs in plans: their names, and a roofline from the text that the CUDA compiler writes."""

import pytest

from easylm_jax.plan import estimate, gpu, topology
from easylm_jax.runtime import chips as runtime_chips
from models.errors import UserError

# A loop of five rounds: a fused product of 2 · 512 · 4096 · 4096 FLOPs, a gather that is waited for and a sum that is
# not. As the compiler writes it, but for what nothing reads.
TEXT = """
%product (p: bf16[512,4096], w: bf16[4096,4096]) -> bf16[512,4096] {
  %p = bf16[512,4096]{1,0} parameter(0)
  %w = bf16[4096,4096]{1,0} parameter(1)
  ROOT %dot.1 = bf16[512,4096]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%less (c: (s32[], bf16[512,4096])) -> pred[] {
  %c = (s32[], bf16[512,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %fused = pred[] fusion(%i), kind=kLoop, calls=%compare
}

%round (b: (s32[], bf16[512,4096])) -> (s32[], bf16[512,4096]) {
  %b = (s32[], bf16[512,4096]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %x = bf16[512,4096]{1,0} get-tuple-element(%b), index=1
  %gather-start = (bf16[128,4096]{1,0}, bf16[4096,4096]{1,0}) all-gather-start(%x), replica_groups=[1,32]<=[32], dimensions={0}, backend_config={"collective_backend_config":{"is_sync":true}}
  %gather = bf16[4096,4096]{1,0} all-gather-done(%gather-start)
  %y = bf16[512,4096]{1,0} fusion(%x, %gather), kind=kCustom, calls=%product, metadata={op_name="jit(step)/while/body/mlp/dot"}
  ROOT %t = (s32[], bf16[512,4096]{1,0}) tuple(%j, %y)
}

ENTRY %main (a: bf16[512,4096]) -> bf16[512,4096] {
  %a = bf16[512,4096]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], bf16[512,4096]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[512,4096]{1,0}) while(%begin), condition=%less, body=%round, backend_config={"known_trip_count":{"n":"5"}}
  %out = bf16[512,4096]{1,0} get-tuple-element(%loop), index=1
  %sum-start = bf16[512,4096]{1,0} all-reduce-start(%out), replica_groups=[4,8]<=[32], to_apply=%add, backend_config={"collective_backend_config":{"is_sync":false}}
  %sum = bf16[512,4096]{1,0} all-reduce-done(%sum-start)
  ROOT %copy = bf16[512,4096]{0,1} copy(%sum)
}
"""  # noqa: E501 - as the compiler writes it


def test_a_fusion_takes_as_long_as_its_products_or_its_bytes():
    chip = runtime_chips.CHIPS["h100"]
    costs = gpu.GpuProgram(TEXT).roofline(chip)
    flops, small = 2 * 512 * 4096 * 4096, 512 * 4096 * 2
    product = max(flops / (chip.flops * gpu.MATMUL_SHARE), (2 * small + 4096 * 4096 * 2) / chip.bandwidth)
    assert costs.matmul_flops == 5 * flops
    assert costs.cycles == pytest.approx(1e9 * (5 * product + 2 * small / chip.bandwidth), abs=2)
    assert costs.copy_cycles == pytest.approx(1e9 * 2 * small / chip.bandwidth, abs=1)
    assert costs.hottest[0][0] == "jit(step)/mlp/dot"


def test_collectives_between_boxes_go_over_the_network_and_those_that_are_waited_for_are_exposed():
    pod = topology.parse("h100:8*4")
    costs = gpu.GpuProgram(TEXT).roofline(pod.chip)
    gather, total = sorted(costs.collectives, key=lambda one: one.kind)
    assert (gather.kind, gather.group, gather.times, gather.overlapped) == ("all-gather", 32, 5, False)
    assert (total.kind, total.group, total.times, total.overlapped) == ("all-reduce", 8, 1, True)
    spent = estimate.seconds(costs, pod)
    assert spent.exposed == pytest.approx(5 * 31 / 32 * 4096 * 4096 * 2 / 50e9)
    assert spent.hidden == pytest.approx(2 * 7 / 8 * 512 * 4096 * 2 / 450e9)


@pytest.mark.parametrize("text, chips, boxes", [("h100:8", 8, 1), ("h100:8*4", 32, 4), ("h100-1", 1, 1)])
def test_boxes_have_names(text, chips, boxes):
    found = topology.parse(text)
    assert (found.chips, found.count, found.slices, found.chip.platform) == (chips, chips, boxes, "gpu")


@pytest.mark.parametrize("text", ["h100:3", "h100:8x4", "h100:8*0"])
def test_boxes_that_do_not_exist_are_told_in_a_line(text):
    with pytest.raises(UserError, match=r"h100:8\*4|number of slices") as told:
        topology.parse(text)
    assert "\n" not in str(told.value)


def test_a_missing_compiler_is_told_with_what_to_install(monkeypatch):
    def missing(boxes, each):
        raise RuntimeError("Unknown platform\ncuda")

    monkeypatch.setattr(gpu, "devices", missing)
    with pytest.raises(UserError, match=r"pip install 'easylm_jax\[gpu\]'") as told:
        topology.parse("h100:8").devices()
    assert "\n" not in str(told.value)
