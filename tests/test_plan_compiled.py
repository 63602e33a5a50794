"""Planning with the TPU's compiler: a tiny recipe and each kernel compiled for two generations, verdicts, sweeps.

A process of its own does every plan, so that the compiler is loaded in none that runs other tests.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PODS = ("v5e:2x2", "v5p:2x2x1")
RECIPE = """
from easylm_jax.config import *

model = DecoderConfig("olmo2", layers=2, width=256, heads=2, ffn=512, vocab=512, context=256, qk_norm=True)
rate = OptimizerConfig("1e-4", weight_decay=0.0)
chats = DataSpec((Source("none.jsonl"),), "hf:none", 128, kind="chat", template="tulu", packing="none")
prompts = DataSpec((Source("none.jsonl"),), "hf:none", 64, kind="prompts", template="tulu")
recipe = Recipe("tiny", pod="v5e:2x2", stages=(
    SFT("sft", model=model, data=chats, batch=8, epochs=2, examples=99, optimizer=rate, compute=Compute(dtype="bfloat16")),
    PPO("ppo", init="sft", data=prompts, batch=8, steps=10, optimizer=rate, mini_batch=4, sampling=Sampling(64, slots=8),
        reward=Reward(verifier="gsm8k"), compute=Compute(dtype="bfloat16")),
    MakeData("made", function="none:none"),
))
"""  # noqa: E501 - as a recipe is written
LARGE = """
from easylm_jax.config import *

model = DecoderConfig("olmo2", layers=4, width=4096, heads=32, ffn=11008, vocab=65536, context=4096, qk_norm=True)
chats = DataSpec((Source("none.jsonl"),), "hf:none", 4096, kind="chat", template="tulu", packing="none")
recipe = Recipe("large", stages=(
    SFT("sft", model=model, data=chats, batch=32, steps=10, optimizer=OptimizerConfig("1e-4"),
        compute=Compute(dtype="bfloat16")),
))
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install 'jax[tpu]' (no TPU is needed)"
)


# The tests' own settings, of precision above all, are none of a plan's.
CLEAN = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join([str(REPOSITORY), *sys.path])}


def printed(code, *arguments):
    """The lines that a piece of Python prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def start(tmp_path, text, *options, code="import easylm_jax.__main__"):
    """`easylm plan` of a recipe, begun."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    command = [sys.executable, "-c", code, "plan", str(recipe), "--out", str(tmp_path), *options]
    environment = {**CLEAN, "HOME": str(tmp_path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def plan(tmp_path, text, *options, status=0):
    """What `easylm plan` printed on its two streams."""
    running = start(tmp_path, text, *options)
    out, err = running.communicate(timeout=600)
    assert running.returncode == status, err[-2000:]
    return out, err


@pytest.mark.parametrize("pod", PODS)
def test_every_program_of_a_tiny_recipe_and_its_kernels_are_compiled(pod, tmp_path):
    plan(tmp_path, RECIPE, "--topology", pod, "--json", str(tmp_path / "plan.json"))
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] and found["chips"] == 4
    rows = {(row["stage"], row["program"]): row for row in found["programs"]}
    assert [name for _, name in rows] == ["train", "policy", "value", "score", "values", "prefill", "decode"]
    train = rows["sft", "train"]
    assert 0.9 < train["compiled_flops_ratio"] < 1.5  # the model's own FLOPs, read from the compiled text
    assert train["seconds"]["kernels"] > 0  # attention, forward and backward
    assert {name.startswith("splash") for name in train["kernels"]} == {True}
    assert rows["ppo", "decode"]["seconds"]["kernels"] > 0  # attention over the cache
    assert rows["ppo", "decode"]["runs_per_step"] == 2  # blocks of 32 tokens
    assert 0.9 < rows["ppo", "decode"]["compiled_flops_ratio"] < 1.5  # each as often as the block has tokens
    assert all(0 < row["step_seconds"][0] <= row["step_seconds"][1] for row in rows.values())


def test_a_generation_that_takes_no_kernels_is_planned_without(tmp_path):
    """The compiler refuses bfloat16 products in kernels for v3, as it would on one: a plan with kernels would fail."""
    plan(tmp_path, RECIPE, "--topology", "v3:2x2", "--mesh", "fsdp=4,tp=2", "--json", str(tmp_path / "plan.json"))
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] and found["chips"] == 4
    assert all(row["fits"] and row["step_seconds"][0] > 0 for row in found["programs"])


PRODUCT = """
from easylm_jax.plan import topology
topology.configure_compiler_env()
import jax
from easylm_jax.runtime import compiler
from easylm_jax.runtime.mesh import make_mesh
from models.config import Compute

mesh = make_mesh("fsdp=-1", topology.parse("v5p:2x2x2").devices())
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
x, kernel = (jax.ShapeDtypeStruct(shape, "bfloat16", sharding=split) for shape in ((16384, 4096), (4096, 8192)))
for options in (None, compiler.options(mesh, Compute())):
    program = jax.jit(lambda x, kernel: x @ kernel, out_shardings=split, compiler_options=options)
    text = program.lower(x, kernel).compile().as_text()
    print(text.count(" convolution("), text.count(" while("))
"""


def test_a_product_with_a_kernel_that_lies_split_stays_whole():
    """Left alone, the compiler loops over the parts of the kernel and adds up the activations in memory each time."""
    assert printed(PRODUCT) == ["2 1", "1 0"]


EXPERTS = """
from easylm_jax.plan import topology
topology.configure_compiler_env()
import jax
from models.grouped_matmul import grouped_matmul

place = jax.sharding.SingleDeviceSharding(topology.parse("v5p:2x2x1").devices()[0])
shapes = ((4096, 512), (8, 512, 256), (4096, 256))
arrays = [jax.ShapeDtypeStruct(shape, "bfloat16", sharding=place) for shape in shapes]
sizes = jax.ShapeDtypeStruct((8,), "int32", sharding=place)
def run(x, kernels, gradient, sizes):
    y, back = jax.vjp(lambda x, kernels: grouped_matmul(x, kernels, sizes, backend="megablox"), x, kernels)
    return y, *back(gradient)

text = jax.jit(run).lower(*arrays, sizes).compile().as_text()
print(text.count("tpu_custom_call"), text.count(" convolution("))
"""


def test_a_product_with_experts_and_both_its_gradients_are_kernels():
    """None is a convolution over all experts, which `jax.lax.ragged_dot` makes of the gradient of the experts."""
    assert printed(EXPERTS) == ["3 0"]


ROWS = """
from easylm_jax.plan import topology
topology.configure_compiler_env()
import numpy as np
from easylm_jax.runtime import sharding
from easylm_jax.runtime.mesh import make_mesh, reshaped

for pod, text, writes in (("v5p:4x4x4", "fsdp=32,tp=2", "fsdp=-1,tp=4"), ("v5e:4x8", "fsdp=-1", "fsdp=-1,tp=8")):
    mesh = make_mesh(text, topology.parse(pod).devices())
    for shape in (mesh, reshaped(mesh, writes)):
        places = sharding.batch_sharding(shape).devices_indices_map((128,))
        hosts = {device.process_index for device in places}
        own = {host: sharding.local_rows(128, shape, host).tolist() for host in hosts}
        held = {host: set() for host in hosts}
        for device, (rows,) in places.items():
            held[device.process_index] |= set(range(128)[rows])
        print(all(own[host] == sorted(held[host]) for host in hosts), set.union(*held.values()) == set(range(128)),
              sum(rows[-1] - rows[0] >= len(rows) for rows in own.values()))
"""


def test_every_host_of_a_pod_provides_the_rows_of_its_chips():
    """Which are rarely neighbours: the last number counts the hosts whose rows are none."""
    assert printed(ROWS) == [f"True True {apart}" for apart in (16, 16, 8, 0)]


ON_HOST = """
import sys
from pathlib import Path
from easylm_jax.plan import compile_cache, topology
topology.configure_compiler_env()
import jax
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.plan.programs import Program

pod = topology.parse("v5e:2x2")
mesh = make_mesh("fsdp=-1", pod.devices())
here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
there = here.with_memory_kind("pinned_host")
shape = (2**15, 2**20)
x = jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=here)
large = jax.ShapeDtypeStruct(shape, "float32", sharding=there)
step = jax.jit(lambda x, large: (x + 1, large), donate_argnums=(0, 1), out_shardings=(here, there))
program = Program("step", lambda: step.lower(x, large), {}, 0.0, 1.0)
found = compile_cache.compile_for(program, pod, mesh, Path(sys.argv[1]))
print(found.fits, found.peak < 2**24, found.host == 4 * shape[0] * shape[1] // 4)
"""


def test_what_lies_in_the_hosts_memory_takes_none_of_the_devices(tmp_path):
    """32 GiB beside a device of 16."""
    assert printed(ON_HOST, tmp_path) == ["True True True"]


SEVERAL = """
import dataclasses, sys
from pathlib import Path
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import programs_of
from easylm_jax.plan import pods, topology
from easylm_jax.plan.report import Planner

topology.configure_compiler_env()
recipe = load_recipe(sys.argv[1])
stages = [dataclasses.replace(recipe.stages[0], name=f"sft-{batch}", batch=batch) for batch in (8, 16)]
recipe = dataclasses.replace(recipe, stages=tuple(stages))
made = []
for jobs in (2, 1):
    found = pods.groups([("a/one", recipe)])
    pods.plan(found, Planner(programs_of, Path(sys.argv[2]) / str(jobs), print), jobs)
    made.append([(group.fits, group.programs) for group in found])
print(made[0] == made[1], [group.error or group.fits for group in found])
"""


def test_stages_planned_at_once_come_out_as_one_by_one(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    assert printed(SEVERAL, recipe, tmp_path)[-1] == "True [True, True]"


def test_what_is_wrong_is_one_line_before_anything_is_compiled(tmp_path):
    """A mesh that does not match the chips, a stage that is not there or runs nothing, a field that is misspelt."""
    for options, told in (
        (["--mesh", "fsdp=3"], "mesh 'fsdp=3' needs 3 devices, but there are 4"),
        (["--stage", "sftt"], "recipe tiny has no stage 'sftt'"),
        (["--stage", "made"], "a MakeData runs no program on devices"),
        (["sft.acumulate=2"], "did you mean 'sft.accumulate'"),
        (["--stage", "sft", "--sweep", "chip=8"], "did you mean 'chips'"),
    ):
        out, err = plan(tmp_path, RECIPE, *options, status=2)
        last = err.strip().splitlines()[-1]
        assert not out and last.startswith("easylm: error: ") and told in last, (options, err)


def test_a_sweep_writes_a_section_and_a_figure_and_tells_what_cannot_be(tmp_path):
    page = tmp_path / "scale.md"
    options = ["--stage", "sft", "--sweep", "chips=4..16x2", "--sweep", "mesh=fsdp=-1 tp=16", "--write", str(page)]
    plan(tmp_path, RECIPE, *options, "--json", str(tmp_path / "sweep.json"))
    points = json.loads((tmp_path / "sweep.json").read_text())["points"]
    assert [(point["chips"], point["mesh"], point["fits"]) for point in points] == [
        (4, "fsdp=-1", True), (4, "tp=16", False), (8, "fsdp=-1", True), (8, "tp=16", False), (16, "fsdp=-1", False),
        (16, "tp=16", False),
    ]  # fmt: skip
    assert "16 devices, but there are 4" in points[1]["refused"] and "cannot be split over 16" in points[4]["refused"]
    assert "heads" in points[5]["refused"]
    first = page.read_text()
    assert first.count("\n## ") == 1 and "strong scaling" in first
    assert (tmp_path / first.partition("](scale")[2].partition(")")[0].join(["scale", ""])).is_file()
    plan(tmp_path, RECIPE, *options)
    assert page.read_text() == first  # its own section is replaced, and says the same
    plan(tmp_path, RECIPE, *options, "--scaling", "weak")
    assert page.read_text().count("\n## ") == 2


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_settings_that_do(tmp_path):
    options = ["--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json")]
    _, err = plan(tmp_path, LARGE, *options, status=1)
    assert not json.loads((tmp_path / "plan.json").read_text())["fits"]
    settings = err.partition("sft: fits with ")[2].split("\n")[0].split()
    assert settings, err
    topology = settings[:2] if settings[0] == "--topology" else options[:2]
    plan(tmp_path, LARGE, *[one for one in settings if "=" in one], *topology, *options[2:])
    assert json.loads((tmp_path / "plan.json").read_text())["fits"]


@pytest.mark.slow
def test_two_plans_at_once_both_finish(tmp_path):
    running = [start(tmp_path, RECIPE, "--topology", pod, "--stage", "sft") for pod in PODS]
    for one in running:
        _, err = one.communicate(timeout=600)
        assert one.returncode == 0, err[-2000:]


def test_a_compiler_of_another_version_is_named(tmp_path):
    """One that cannot be loaded stands for it: what is installed and what belongs to this JAX are told in a line."""
    other = tmp_path / "other" / "libtpu"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("def get_library_path():\n    return '/nowhere/libtpu.so'\n")
    code = f"import sys; sys.path.insert(0, {str(other.parent)!r}); import easylm_jax.__main__"
    running = start(tmp_path, RECIPE, "--topology", "v5e:2x2", code=code)
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2 and "installs the libtpu version for this jax" in err.splitlines()[-1], err
