"""`easylm plan hf:OWNER/MODEL`: the four stages of a model on a pod, without a recipe, and what they cost."""

import dataclasses
import json
import multiprocessing

import pytest

from easylm_jax.cli.main import main
from easylm_jax.config import Recipe
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import programs_of
from easylm_jax.plan import by_name, dedupe, pods, report, shapes, sweep, topology, within
from easylm_jax.plan.cost import Prices, read_prices
from easylm_jax.plan.report import Planner
from easylm_jax.plan.topology import Topology
from easylm_jax.runtime.mesh import BATCH_AXES, parse_mesh

LLAMA, OLMO = "hf:meta-llama/Llama-3.1-8B", "hf:allenai/OLMo-2-1124-7B"
OWN = topology.parse("v5p-64")
PROGRAM = {
    "program": "train", "fits": True, "bytes_per_chip": 2**34, "step_seconds": [1.0, 2.0], "mfu": 0.4, "flops": 1e15,
    "runs_per_step": 1,
}  # fmt: skip


def points(model: str, pod: Topology, *overrides: str, mesh: str | None = None):
    recipe = by_name.recipe_of(model, overrides, pod)
    return recipe, by_name.points(recipe, by_name.STAGES, pod, mesh)


@pytest.mark.parametrize(
    "model, stage, recipe, name",
    [(LLAMA, "sft", "tulu3/sft_8b", "sft"), (LLAMA, "dpo", "tulu3/dpo_8b", "dpo"),
     (LLAMA, "ppo", "tulu3/rlvr_8b", "ppo"), (LLAMA, "grpo", "tulu3/grpo_8b", "grpo"),
     (OLMO, "sft", "olmo2/sft_7b", "sft"), (OLMO, "dpo", "olmo2/dpo_7b", "dpo"), (OLMO, "ppo", "olmo2/rlvr_7b", "ppo")],
)  # fmt: skip
def test_a_model_is_planned_as_the_recipes_of_its_size_are(model, stage, recipe, name):
    """The programs are the same, so what a plan by name says is what the plan of the recipe says."""
    theirs = load_recipe(recipe)
    assert topology.parse(theirs.pod) == OWN
    changed, found = points(model, OWN)
    (point,) = (one for one in found if one.stage.name == stage)
    own = dedupe.key(point.stage, by_name.recipe_at(changed, point), OWN)
    assert own == dedupe.key(theirs.stage(name), theirs, OWN)


@pytest.mark.parametrize("name", ["v5p-16", "v5p-32", "v5p-128", "v5p-256", "v5p-512", "v6e-8", "v5e:16x16"])
@pytest.mark.parametrize("model", [LLAMA, OLMO, "hf:allenai/OLMoE-1B-7B-0125"])
def test_rows_divide_over_pods_of_8_to_256_chips_and_no_chip_has_more_than_on_the_recipes_pod(model, name):
    pod = topology.parse(name)
    recipe, found = points(model, pod)
    assert [point.stage.name for point in found] == list(by_name.STAGES)
    for point in found:
        assert point.refused is None and point.topology == pod
        sizes = parse_mesh(point.mesh, pod.count)
        split = 1
        for axis in BATCH_AXES:
            split *= sizes[axis]
        stage, own = point.stage, recipe.stage(point.stage.name)
        rows, left = divmod(stage.rows_per_update, split * stage.accumulate)
        assert left == 0 and stage.rows_per_update == own.rows_per_update
        assert rows * split <= own.rows_per_update / own.accumulate / OWN.count * pod.count or rows == 1


def test_a_folder_needs_only_its_config_and_rows_stay_within_its_context(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64,
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 512,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    }))  # fmt: skip
    recipe = by_name.recipe_of(f"hf:{tmp_path}", ["sft.batch=64"], OWN)
    sft, dpo, ppo, grpo = recipe.stages
    assert (sft.batch, sft.data.sequence_length, dpo.data.sequence_length) == (64, 1024, 2048)
    assert {shapes.max_length(stage) for stage in (ppo, grpo)} == {1024}
    assert shapes.stage_config(ppo, recipe).width == 64 and recipe.decode_mesh == "fsdp=-1,tp=1"


def planned(found: list[sweep.Point], *_) -> None:
    """In place of compiling: DPO does not fit."""
    for point in found:
        point.programs = [{**PROGRAM, "fits": point.stage.name != "dpo"}]


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(by_name, "run", planned)
    monkeypatch.setattr(Topology, "devices", lambda self: [])
    monkeypatch.setattr(topology, "configure_compiler_env", lambda: None)


def test_the_command_prints_a_line_for_each_stage_with_its_cost_and_the_date_of_the_prices(
    no_compiler, capsys, tmp_path
):
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"date": "2031-02-03", "currency": "EUR", "chips": {"v5p": {"on_demand": 2.0}}}))
    file = tmp_path / "plan.json"
    where = ["--chips", "8", "--prices", str(prices), "--json", str(file), "--no-suggestion"]
    assert main(["plan", OLMO, *where]) == 1  # DPO does not fit
    out = capsys.readouterr().out
    assert out.startswith("hf:allenai/OLMo-2-1124-7B (olmo2-7b) on v5p:2x2x2: 8 chips, 95.74 GiB per device\n")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1]}
    steps = 2 * (939_344 // 128)
    euros = report.span(*(steps * s / 3600 * 8 * 2 for s in (1, 2)))
    assert lines["sft"][1] == "yes" and lines["sft"][-1] == euros and lines["dpo"][1] == "no"
    assert f"Prices are of 2031-02-03 ({prices}): EUR 2 per chip and hour on-demand" in out
    value = json.loads(file.read_text())
    assert (value["fits"], value["chips"], value["topology"]) == (False, 8, "v5p:2x2x2")
    assert [stage["fits"] for stage in value["stages"]] == [True, False, True, True]
    sft = value["stages"][0]
    assert sft["money"] == pytest.approx([steps / 3600 * 16, steps / 1800 * 16])
    assert sft["chip_hours"] == pytest.approx([steps / 3600 * 8, steps / 1800 * 8])


def test_without_chips_the_pod_is_the_recipes_and_one_stage_can_be_asked_for(no_compiler, capsys):
    assert main(["plan", LLAMA, "--stage", "sft", "--spot"]) == 0
    out = capsys.readouterr().out
    assert "llama3.1-8b) on v5p:2x4x4: 32 chips" in out and "has no spot price for v5p" in out
    assert not any(line.startswith(("dpo", "ppo")) for line in out.splitlines())


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((LLAMA, "--chips", "3"), "--chips 3: no slice of v5p has so many; the nearest has 4 (4, 8, 16, …, 8192)"),
        ((LLAMA, "--chips", "8", "--topology", "v5p-16"), "give --topology or --chips, not both"),
        ((LLAMA, "--stage", "rm"), "recipe tulu3-every-stage has no stage 'rm'; it has sft, dpo, ppo, grpo"),
        ((LLAMA, "sft.bach=1"), "did you mean 'sft.batch'"),
        (("hf:not a name",), "neither a folder nor a hub name"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, says, no_compiler, capsys):
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


GIB = 2**30
ROW = {
    "stage": "ppo", "program": "policy", "fits": True, "bytes_per_chip": 30 * GIB, "peak_bytes_per_device": 20 * GIB,
    "resident_bytes_per_device": {"value": 10 * GIB}, "flops": 8e14, "runs_per_step": 4, "step_seconds": [8.0, 12.0],
    "mfu": 0.5, "floor_seconds": None, "seconds": {"compute": 2.0, "kernels": 0.5},
}  # fmt: skip
OUTLINE = {
    "stage": "grpo", "program": "policy", "resident_bytes_per_device": {"reference": 5 * GIB}, "flops": 4e14,
    "runs_per_step": 2, "floor_seconds": None,
}  # fmt: skip


def test_of_each_kind_one_program_is_compiled_first_and_what_runs_in_no_step_last():
    outlines = {
        number: [{"program": name, "runs_per_step": name != "reference"} for name in names.split()]
        for number, names in enumerate(("train", "reference train", "score policy prefill decode", "policy decode"))
    }
    tasks = [(number, one["program"]) for number in outlines for one in outlines[number]]
    assert within.ranked(tasks, outlines) == [
        (0, "train"), (2, "score"), (2, "prefill"), (2, "decode"), (1, "train"), (3, "decode"), (2, "policy"),
        (3, "policy"), (1, "reference"),
    ]  # fmt: skip


def test_an_estimate_is_in_proportion_to_the_nearest_program_of_its_kind():
    decode = {**ROW, "program": "decode", "floor_seconds": 4.0}
    half = within.estimated(OUTLINE, [{**ROW, "flops": 1e9}, decode, ROW], OWN)
    assert half["step_seconds"] == [2.0, 3.0] and half["seconds"] == {"compute": 1.0, "kernels": 0.25}
    assert half["bytes_per_chip"] == 25 * GIB and half["fits"] and half["estimated_from"] == "ppo: policy"
    assert not within.estimated({**OUTLINE, "resident_bytes_per_device": {"all": 80 * GIB}}, [ROW], OWN)["fits"]
    # A block of decode steps takes as long as it reads: here three times as long, and it runs half as often.
    read = {**OUTLINE, "program": "judge's decode", "floor_seconds": 6.0}
    assert within.estimated(read, [ROW, decode], OWN)["step_seconds"] == [12.0, 18.0]
    assert within.estimated({**OUTLINE, "program": "prefill"}, [ROW, decode], OWN) is None


def test_what_is_compiled_stands_what_is_not_is_estimated_and_said_and_an_error_refuses_its_stage_alone():
    recipe, found = points(LLAMA, OWN)
    sft, dpo, ppo, grpo = found
    outlines = {
        "train": {**OUTLINE, "program": "train"}, "decode": {**OUTLINE, "program": "decode"}, "policy": OUTLINE,
    }  # fmt: skip
    done = {
        (0, "train"): {**ROW, "stage": "sft", "program": "train"}, (1, "train"): "ValueError: two lines",
        (2, "policy"): ROW,
    }  # fmt: skip
    for number, names in enumerate(("train", "train", "policy decode", "policy")):
        within._fill(found[number], number, [outlines[name] for name in names.split()], done, "late")
    assert sft.fits and "estimated_from" not in sft.programs[0]
    assert dpo.refused == "ValueError: two lines" and not dpo.undecided
    assert ppo.undecided and ppo.refused == "decode is late; the same command goes on"
    assert grpo.fits and grpo.programs[0]["estimated_from"] == "sft: train"
    told = by_name.text(LLAMA, found, recipe, read_prices(), "on_demand")
    lines = {line.split()[0]: line.split() for line in told.splitlines()[3:8]}
    assert (lines["sft"][1], lines["dpo"][1], lines["ppo"][1], lines["grpo"][1]) == ("yes", "no", "?", "~yes")
    assert "dpo: ValueError: two lines" in told
    assert "grpo: ~ was estimated (policy from sft: train); the same command goes on compiling" in told


def test_a_deadline_that_has_passed_leaves_no_process_and_every_stage_undecided(tmp_path):
    recipe, found = points(LLAMA, OWN)
    before = multiprocessing.active_children()
    by_name.run(found[:1], recipe, Planner(programs_of, tmp_path), 1, 0.01)
    assert found[0].undecided and "not compiled in time" in found[0].refused and not found[0].fits
    assert multiprocessing.active_children() == before


def test_the_plan_of_a_recipe_says_what_it_costs():
    recipe, found = points(LLAMA, OWN)
    prices = Prices("file", "2030-01-01", "EUR", {"v5p": {"on_demand": 2.0, "spot": None}})
    compiled = dataclasses.make_dataclass(
        "Compiled", ["fits", "compute", "kernels", "exposed", "hidden", "host", "kernel_runs"]
    )
    row = dataclasses.make_dataclass("Row", ["stage", "program", "compiled", "need", "fits", "step", "mfu"])(
        "sft", type("Program", (), {"name": "train", "runs": 1}),
        compiled(True, 1.0, 0.0, 0.0, 0.0, 0, (("gmm", 48), ("tgmm", 24))), 2**30, True, (1.0, 2.0), 0.5,
    )  # fmt: skip
    steps = 2 * (939_344 // 128)
    money = [steps * s / 3600 * 32 * 2 for s in (1, 2)]
    told = report.text([row], Recipe("r", recipe.stages), OWN, prices)
    assert f"chip-hours, EUR {money[0]:,.3g} to {money[1]:,.3g}" in told and "Prices are of 2030-01-01" in told
    assert "sft: kernels in train: gmm × 48, tgmm × 24" in told
    assert "EUR" not in report.text([row], Recipe("r", recipe.stages), OWN, prices, "spot").splitlines()[-3]
    assert pods.default_jobs() >= 1


def test_the_devices_of_asynchronous_rollouts_are_divided_by_what_each_side_takes():
    programs = [("policy", 4.0), ("value", 2.0), ("score", 1.0), ("values", 1.0), ("reward", 1.0), ("prefill", 2.0),
                ("decode", 8.0), ("judge's decode", 1.0)]  # fmt: skip
    assert report.balance(programs) == (12.0, 8.0)
    ppo, sft = (by_name.recipe_of(LLAMA, [], OWN).stage(name) for name in ("ppo", "sft"))
    (line,) = report.balance_lines(ppo, programs)
    assert "rollouts take 12 s and training 8 s" in line and "with 60 % of the devices for rollouts" in line
    assert report.balance_lines(sft, programs) == []
