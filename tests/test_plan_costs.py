"""Kernels that declare what they cost, and loops that end with an argument."""

import pytest

from easylm_jax.plan import estimate, hlo, topology

KERNEL = (
    '  %decode_attention.1 = bf16[64,8,128]{2,1,0} custom-call(%p), custom_call_target="tpu_custom_call", '
    "operand_layout_constraints={bf16[4,64,8,2048,128]{4,3,2,1,0}}, "
    'backend_config={"custom_call_config":{"body":"TUzv",'
    '"cost_estimate":{"flops":"1000","transcendentals":"7","bytes_accessed":"819000000","remote_bytes_transferred":"0"}}}'
)
STEP = f"""
HloModule step

%done (d: (s32[], s32[])) -> pred[] {{
  %d = (s32[], s32[]) parameter(0)
  %zero = s32[] constant(0)
  %i = s32[] get-tuple-element(%d), index=0
  %steps = s32[] get-tuple-element(%d), index=1
  ROOT %less = pred[] compare(%i, %steps), direction=LT
}}

%one (b: (s32[], s32[])) -> (s32[], s32[]) {{
  %b = (s32[], s32[]) parameter(0)
{KERNEL}
  %f = f32[8]{{0}} fusion(%b), kind=kLoop, calls=%none, backend_config={{"estimated_cycles":"100"}}
  ROOT %t = (s32[], s32[]) tuple(%b)
}}

ENTRY %main (p: s32[]) -> s32[] {{
  %p = s32[] parameter(0)
  ROOT %loop = (s32[], s32[]) while(%p), condition=%done, body=%one
}}
"""


def test_a_loop_that_ends_with_an_argument_counts_once():
    """A zero in its condition, from which a sum begins, is no number of rounds."""
    costs = hlo.HloProgram(STEP).costs()
    assert costs.cycles == 100 and costs.kernels == ((1000.0, 819e6),)
    assert costs.kernel_runs == (("decode_attention", 1),)


def test_a_kernel_takes_as_long_as_its_bytes_or_its_products():
    pod = topology.parse("v5e:2x2")
    assert estimate.seconds(hlo.HloProgram(STEP).costs(), pod).kernels == pytest.approx(1e-3)
    busy = hlo.HloProgram(STEP.replace('"flops":"1000"', '"flops":"197000000000"')).costs()
    assert busy.kernel_flops == 197e9
    assert estimate.seconds(busy, pod).kernels == pytest.approx(2e-3)  # half of the peak


def test_a_splash_kernel_is_counted_by_its_name_whatever_it_declares():
    text = STEP.replace("%decode_attention.1", "%splash_mha_fwd.1").replace("4,64,8,2048,128", "2,64,128")
    (kernel,) = hlo.HloProgram(text.replace("{4,3,2,1,0}", "{2,1,0}")).costs().kernels
    assert kernel == (2.0 * 2 * 64 * 64 * 128, 0.0)


GATHER = """
%rows (x: f32[64,128], i: s32[1024]) -> bf16[1024,128] {
  %x = f32[64,128] parameter(0)
  %i = s32[1024] parameter(1)
  ROOT %g = bf16[1024,128] gather(%x, %i), offset_dims={1}
}

ENTRY"""


def test_a_gather_of_rows_takes_as_long_as_reading_and_writing_them():
    """The compiler estimates no cycles for it."""
    call = "  %gather_fusion.1 = bf16[1024,128]{1,0} fusion(%p), kind=kCustom, calls=%rows\n  %p = s32[] parameter(0)\n"
    text = STEP.replace("ENTRY", GATHER).replace("  %p = s32[] parameter(0)\n", call)
    assert (0.0, 2.0 * 1024 * 128 * 2) in hlo.HloProgram(text).costs().kernels


@pytest.mark.parametrize(
    "window",
    [
        "window={size=56x16 stride=55x15 lhs_dilate=56x16}",
        "window={size=56x16 pad=55_55x15_15 rhs_reversal=1x1}",
    ],
)
def test_a_batched_product_counts_each_of_its_products_once(window):
    """TPUs have it as a convolution whose window slides over the batch axes: 56 crops of 16 heads in a vision tower."""
    call = (
        "  %p = s32[] parameter(0)\n"
        "  %q = bf16[56,577,16,64]{1,3,2,0} broadcast(%p), dimensions={}\n"
        "  %k = bf16[56,577,16,64]{1,3,2,0} broadcast(%p), dimensions={}\n"
        f"  %s = f32[56,16,577,577]{{2,3,1,0}} convolution(%q, %k), {window}, dim_labels=0b1f_0o1i->01bf\n"
    )
    text = STEP.replace("  %p = s32[] parameter(0)\n", call)
    assert hlo.HloProgram(text).costs().matmul_flops == 2.0 * 56 * 16 * 577 * 577 * 64
