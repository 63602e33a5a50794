"""Planning: topologies by name, compiled text read with its loops, programs from shapes, verdicts in one table."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

import models
from easylm_jax.cli.main import main
from easylm_jax.config import GRPO, RL, SFT, DataSpec, OptimizerConfig, Recipe, Reward, Sampling, Source, Train
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import programs_of
from easylm_jax.plan import compile_cache, estimate, hlo, shapes, topology
from easylm_jax.runtime.mesh import make_mesh, parse_mesh
from models.config import DecoderConfig
from models.errors import UserError
from recipes.__main__ import recipe_files

REPOSITORY = Path(__file__).resolve().parent.parent
TO_PLAN = """
from easylm_jax.config import DataSpec, DecoderConfig, OptimizerConfig, Recipe, SFT, Source

model = DecoderConfig("olmo2", layers=2, width=48, heads=6, ffn=64, vocab=320, context=64, qk_norm=True)
data = DataSpec((Source("none.jsonl"),), "hf:none", 64, kind="chat", template="tulu")
recipe = Recipe("r", (SFT("sft", model=model, data=data, batch=8, steps=1, optimizer=OptimizerConfig("1e-3")),))
"""
LOOP = """
HloModule step

%inner (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %e = f32[8]{0} exponential(%p)
}

%cond (c: (u32[], f32[8], f32[16])) -> pred[] {
  %c = (u32[], f32[8], f32[16]) parameter(0)
  %limit = u32[] constant(12)
  %i = u32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (b: (u32[], f32[8], f32[16])) -> (u32[], f32[8], f32[16]) {
  %b = (u32[], f32[8], f32[16]) parameter(0)
  %j = u32[] get-tuple-element(%b), index=0
  %x = f32[8]{0} get-tuple-element(%b), index=1
  %w = f32[16]{0} get-tuple-element(%b), index=2
  %two = u32[] constant(2)
  %next = u32[] add(%j, %two)
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%inner, metadata={op_name="jit(step)/while/body/mlp/exp"}, backend_config={"estimated_cycles":"100"}
  %splash_mha_fwd.1 = bf16[2,64,128]{2,1,0} custom-call(%f), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,8]{1,0}, bf16[2,64,128]{2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}
  %g = f32[16]{0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %t = (u32[], f32[8], f32[16]) tuple(%next, %f, %g)
}

ENTRY %main (a: f32[4,8], k: f32[8,16]) -> f32[4,16] {
  %a = f32[4,8]{1,0} parameter(0)
  %k = f32[8,16]{1,0} parameter(1)
  %zero = (u32[], f32[8], f32[16]) tuple()
  %loop = (u32[], f32[8], f32[16]) while(%zero), condition=%cond, body=%body
  %c = f32[4,8]{0,1} copy(%a), backend_config={"estimated_cycles":"7"}
  %s = (f32[16]{0}, f32[16]{0}) all-reduce-start(%k), replica_groups=[2,4]<=[8], to_apply=%inner
  ROOT %d = f32[4,16]{1,0} dot(%c, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}, backend_config={"estimated_cycles":"50"}
}
"""  # noqa: E501 - as the compiler writes it


def test_a_loop_counts_as_often_as_it_runs():
    """Twelve by steps of two: six rounds, each with a fusion, a kernel and a collective that is waited for."""
    costs = hlo.HloProgram(LOOP).costs()
    assert costs.cycles == 6 * 100 + 7 + 50 and costs.copy_cycles == 7
    assert costs.kernel_flops == 6 * 2 * 2 * 64 * 64 * 128
    assert costs.matmul_flops == 2 * 4 * 16 * 8
    gather, reduce = sorted(costs.collectives, key=lambda it: it.kind)
    assert (gather.kind, gather.bytes, gather.group, gather.times, gather.overlapped) == ("all-gather", 64, 2, 6, False)
    assert (reduce.kind, reduce.bytes, reduce.group, reduce.overlapped) == ("all-reduce", 64, 4, True)
    assert costs.wire_bytes(overlapped=False) == 6 * 32 and costs.wire_bytes(overlapped=True) == 2 * 3 / 4 * 64
    assert costs.hottest[0] == ("jit(step)/mlp/exp", 600)


def test_a_collective_that_another_core_runs_is_overlapped_and_what_follows_it_is_still_read():
    """A computation of the sparse cores ends in a line of its own kind; the program goes on behind it."""
    aside = """
%gathered (g: f32[8]) -> f32[32] {
  %g = f32[8]{0} parameter(0)
  ROOT %wide = f32[32]{0} all-gather(%g), replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %s = ((f32[8], token[]), f32[32]) call-start(%a), async_execution_thread="sparsecore", to_apply=%gathered
  ROOT %done = f32[32]{0} call-done(%s), backend_config={"estimated_cycles":"5"}
}
"""
    costs = hlo.HloProgram(aside).costs()
    assert [(it.kind, it.bytes, it.overlapped) for it in costs.collectives] == [("all-gather", 128, True)]
    assert costs.cycles == 5


def test_a_collective_spread_over_fusions_counts_once():
    """It stands in the fusion that begins it, in those that compute meanwhile and in the one that waits for it."""
    part = "%part{n} (g: f32[8]) -> f32[32] {{\n  %g{n} = f32[8]{{0}} parameter(0)\n  {rest}\n}}\n"
    gather = (
        '%w{n} = f32[32]{{0}} all-gather(%g{n}), replica_groups={{{{0,1,2,3}}}}, frontend_attributes={{chain_id="3"}}'
    )
    mark = 'ROOT %c{n} = f32[32]{{0}} custom-call(%w{n}), custom_call_target="{target}"'
    targets = ("AsyncCollectiveStart", "Compute", "AsyncCollectiveDone")
    parts = [
        part.format(n=n, rest=gather.format(n=n) + "\n  " + mark.format(n=n, target=target))
        for n, target in enumerate(targets)
    ]
    calls = [f"  %f{n} = f32[32]{{0}} fusion(%a), kind=kLoop, calls=%part{n}" for n in range(3)]
    entry = ["ENTRY %main (a: f32[8]) -> f32[32] {", "  %a = f32[8]{0} parameter(0)", *calls, "}"]
    found = hlo.HloProgram("\n".join([*parts, *entry])).costs().collectives
    assert [(it.bytes, it.times, it.overlapped) for it in found] == [(128, 1, True)]


def test_seconds_are_an_interval_of_what_can_and_cannot_be_hidden():
    pod = topology.parse("v5e:2x2")
    spent = estimate.seconds(hlo.HloProgram(LOOP).costs(), pod)
    assert spent.compute == pytest.approx(657 / 1.5e9)
    assert spent.exposed == pytest.approx(192 / (45e9 * 2 * 2)) and spent.low < spent.high
    assert spent.high == pytest.approx(spent.compute + spent.kernels + spent.exposed + spent.hidden)


@pytest.mark.parametrize(
    "text, name, chips, devices",
    [("v5p:4x4x4", "v5p:4x4x4", 64, 64), ("v5p-128", "v5p:4x4x4", 64, 64), ("v5e:16x16*2", "v5e:16x16*2", 512, 512),
     ("v3-256", "v3:8x16", 128, 256), ("v5litepod-16", "v5e:4x4", 16, 16), ("tpu7x:2x2x1", "tpu7x:2x2x1", 4, 8),
     ("v4-8", "v4:2x2x1", 4, 4)],
)  # fmt: skip
def test_topologies_have_two_names(text, name, chips, devices):
    found = topology.parse(text)
    assert (found.name, found.chips, found.count) == (name, chips, devices)


@pytest.mark.parametrize(
    "text, message",
    [("v5x:4x4", "did you mean"), ("v5p:4x4", "torus of 3 dimensions"), ("v5p-100", "the nearest is v5p-128"),
     ("v5e:3x5", "a host has 2x2 chips"), ("v5e:4x4*x", "the number of slices"), ("", "the generations are")],
)  # fmt: skip
def test_unknown_topologies_are_told_with_the_nearest(text, message):
    with pytest.raises(UserError, match=message) as told:
        topology.parse(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "name, layers, width, head",
    [("allenai/OLMo-2-1124-7B-SFT", 32, 4096, False), ("allenai/Llama-3.1-Tulu-3-8B-RM", 32, 4096, True),
     ("allenai/tulu-v2.5-13b-uf-rm", 40, 5120, True), ("Qwen/Qwen2.5-Math-1.5B", 28, 1536, False)],
)  # fmt: skip
def test_published_models_have_shapes_without_a_network(name, layers, width, head):
    config = shapes.published_config(name)
    assert (config.layers, config.width, config.scalar_head) == (layers, width, head)
    assert shapes.published_config("someone/unheard-of") is None


def test_the_compilers_refusal_says_how_much_it_would_need():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (38.37G) exceeds "
        "available HBM (15.75G)."
    )
    assert compile_cache._bytes_needed(message) == int(38.37 * 2**30)
    assert compile_cache._bytes_needed("RESOURCE_EXHAUSTED: something else") is None


MODEL = DecoderConfig("olmo2", layers=2, width=256, heads=2, ffn=512, vocab=512, context=256, qk_norm=True)
CHATS = DataSpec((Source("none.jsonl"),), "hf:none", 128, kind="chat", template="tulu", packing="best_fit")
PROMPTS = DataSpec((Source("none.jsonl"),), "hf:none", 64, kind="prompts", template="tulu")
RATE = OptimizerConfig("1e-4", weight_decay=0.0)
RECIPE = Recipe("tiny", (
    SFT("sft", model=MODEL, data=CHATS, batch=8, steps=10, optimizer=RATE),
    GRPO("grpo", init="sft", data=PROMPTS, batch=4, samples=4, steps=10, optimizer=RATE, mini_batch=8,
         sampling=Sampling(64, slots=16), reward=Reward(verifier="gsm8k")),
))  # fmt: skip


def test_programs_come_from_shapes_alone_and_say_what_is_resident_beside_them():
    mesh = make_mesh("fsdp=4", jax.devices()[:4])
    (train,) = programs_of(RECIPE.stage("sft"), RECIPE, mesh)
    assert (train.name, train.runs, train.resident) == ("train", 1.0, {})
    found = {one.name: one for one in programs_of(RECIPE.stage("grpo"), RECIPE, mesh)}
    assert list(found) == ["policy", "score", "prefill", "decode"]
    assert found["policy"].runs == 2 and found["score"].runs == 2 * 2  # policy and reference, two chunks of 8
    assert set(found["policy"].resident) == {"reference"}
    assert set(found["decode"].resident) == {"policy", "reference"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(models.build(MODEL).abstract_params()))
    assert found["decode"].min_bytes > 0 and found["policy"].min_bytes == 0
    assert parameters <= found["decode"].resident["reference"] < 1.1 * parameters  # four bytes each, on four devices


SMALL = (  # of one CPU
    "quickstart", "real_text", "small", "preferences_small", "small_judge", "ladder", "ladder_clipping", "finetune",
)  # fmt: skip


@pytest.mark.parametrize("path", recipe_files(), ids=lambda path: path.stem)
def test_every_recipe_of_a_papers_size_names_a_pod_over_which_its_batches_divide(path):
    recipe = load_recipe(str(path))
    if path.stem in SMALL:
        assert recipe.pod is None
        return
    pod = topology.parse(recipe.pod)
    sizes = parse_mesh(recipe.mesh, pod.count)
    split = sizes["slice"] * sizes["dp"] * sizes["fsdp"]
    for stage in recipe.stages:
        if isinstance(stage, Train):
            rows = stage.update_rows if isinstance(stage, RL) else stage.batch
            assert rows % (stage.accumulate * split) == 0, (stage.name, rows, stage.accumulate, split)


KERNEL = """
import jax, jax.numpy as jnp
from jax.experimental import pallas
{quiet}
source = '''
def kernel(x, y):
    y[...] = x[...] + 1
def add(x):
    return pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32))(x)
'''
texts = set()
for folder in ("here", "there"):
    made = {{"pallas": pallas, "jax": jax, "jnp": jnp}}
    exec(compile(source, folder + "/kernel.py", "exec"), made)
    traced = jax.jit(made["add"]).trace(jnp.zeros((8, 128)))
    texts.add(traced.lower(lowering_platforms=("tpu",)).as_text())
print(len(texts))
"""


@pytest.mark.parametrize(
    ("quiet", "different"), [("from easylm_jax.plan import topology; topology.configure_compiler_env()", 1), ("", 2)]
)
def test_what_was_planned_is_known_again_from_another_folder(quiet, different):
    """The text of a program decides; a kernel's has places in files in it, unless it is traced without them."""
    command = [sys.executable, "-c", KERNEL.format(quiet=quiet)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == f"{different}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "v9-8"], "--topology 'v9-8': the generations are"),
        (["--topology", "v5p-64", "--mesh", "foo=2"], "--mesh 'foo=2': unknown axis 'foo'"),
        (["--topology", "v5p-64", "--mesh", "fsdp=3"], "--mesh 'fsdp=3' needs 3 devices, but there are 32"),
        (["--topology", "v5p-64", "--sweep", "chips=3..2"], "--sweep 'chips=3..2': the range 3..2 ends before"),
        (
            ["--topology", "v5p-64", "--sweep", "chips=8", "--sweep", "topology=v5p-8"],
            "--sweep: give chips or topology",
        ),
        (
            ["--topology", "v5e:2x4", "sft.batch=6", "--stage", "sft"],
            "stage sft: a batch of 6 rows cannot be split over 8",
        ),
        (["--topology", "v5e:2x4", "sft.batch=6"], "(with sft.batch=N, or another mesh with --mesh)"),
        (["--topology", "v5e:2x4", "--mesh", "tp=8", "--stage", "sft"], "stage sft: mesh: "),
        (["--topology", "v5e:2x4", "--stage", "dpo"], "has no stage 'dpo'; it has sft"),
    ],
)
def test_what_cannot_be_planned_is_told_with_the_options_of_the_command(
    arguments, message, tmp_path, monkeypatch, capsys
):
    """Nothing is compiled, and no compiler is asked for."""
    monkeypatch.setattr(topology, "configure_compiler_env", lambda: None)
    monkeypatch.setattr(topology.Topology, "devices", lambda self: jax.devices()[: self.count])
    recipe = tmp_path / "recipe.py"
    recipe.write_text(TO_PLAN)
    assert main(["plan", str(recipe), *arguments, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("easylm: error: ") and message in told
