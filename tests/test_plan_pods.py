"""Many recipes at once, sweeps and nearest settings, with no compiler: who is alike, what is tried, what pages say."""

import dataclasses
from importlib.metadata import PackageNotFoundError
from xml.etree import ElementTree

import jax
import pytest
from test_plan import RECIPE

from easylm_jax.config import (
    DPO,
    Ask,
    Benchmarks,
    Entry,
    Evaluate,
    JudgeModel,
    Recipe,
    Reward,
    Sampling,
    Source,
    Task,
)
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import programs_of
from easylm_jax.plan import dedupe, pods, report, scale, shapes, suggest, sweep, topology
from easylm_jax.plan.report import Planner
from easylm_jax.runtime.mesh import make_mesh
from models.errors import UserError
from models.flops import model_flops_per_token
from models.registry import preset
from recipes.__main__ import FOLDER, name_of, recipe_files
from recipes.durations import DURATIONS

POD = topology.parse("v5e:2x2")
SFT, GRPO = RECIPE.stages
PROGRAM = {"program": "train", "fits": True, "bytes_per_chip": 2**33, "step_seconds": [1.0, 2.0], "mfu": 0.4}


def recipe(*stages, mesh="fsdp=-1", pod="v5e:2x2"):
    return Recipe("tiny", stages, mesh=mesh, pod=pod)


def key(stage, **where):
    return dedupe.key(stage, recipe(SFT, stage) if stage.name != "sft" else recipe(stage, **where), POD)


def test_stages_that_differ_in_constants_alone_are_alike():
    data = dataclasses.replace(SFT.data, sources=(Source("other.jsonl"),), tokenizer="hf:x")
    other = dataclasses.replace(
        SFT, seed=7, steps=None, epochs=2, examples=640, data=data, benchmarks=Benchmarks((Ask("piqa"),)),
        optimizer=dataclasses.replace(SFT.optimizer, lr="3e-5 linear to 0"),
    )  # fmt: skip
    assert key(SFT) == key(other)
    judged = dataclasses.replace(GRPO, reward=Reward(verifier="math"), kl=0.0, name="again")
    assert key(judged) == key(dataclasses.replace(GRPO, clip_low=0.3))
    assert key(dataclasses.replace(GRPO, kl=0.1)) != key(GRPO)  # zero leaves a term out


@pytest.mark.parametrize(
    "changed",
    [{"batch": 16}, {"accumulate": 2}, {"dropout": 0.1}, {"model": dataclasses.replace(SFT.model, layers=3)},
     {"data": dataclasses.replace(SFT.data, sequence_length=256)},
     {"optimizer": dataclasses.replace(SFT.optimizer, moment_dtype="bfloat16")},
     {"compute": dataclasses.replace(SFT.compute, remat="full")}],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_what_reaches_a_program_tells_stages_apart(changed):
    assert key(SFT) != key(dataclasses.replace(SFT, **changed))


def test_a_table_of_benchmarks_alone_has_nothing_to_plan():
    """The prompts of benchmarks are known only when they are read."""
    table = Evaluate("t", title="t", tasks=(), benchmarks=(Ask("piqa"),), entries=(Entry("sft", ("sft",)),))
    (group,) = pods.groups([("a/one", recipe(SFT, table))])
    assert [stage.name for _, stage in group.members] == ["sft"] and not table.compiles


def test_a_mesh_a_reward_model_and_a_pod_tell_stages_apart():
    assert key(SFT) != key(SFT, mesh="fsdp=2,tp=2")
    assert key(SFT) == key(SFT, mesh="fsdp=4")  # the same once −1 is filled in
    scored = dataclasses.replace(GRPO, reward=Reward(model="hf:allenai/tulu-v2.5-13b-uf-rm"))
    assert key(GRPO) != key(scored)
    split = dataclasses.replace(recipe(SFT, GRPO), decode_mesh="fsdp=-1,tp=2")
    assert dedupe.key(GRPO, split, POD) != key(GRPO) and dedupe.key(SFT, split, POD) == key(SFT)
    assert dedupe.key(SFT, recipe(SFT), POD) != dedupe.key(SFT, recipe(SFT), topology.parse("v5p:2x2x1"))
    cached, whole = (
        DPO("dpo", init="sft", data=dataclasses.replace(SFT.data, kind="preference"), batch=8, steps=1,
            optimizer=SFT.optimizer, reference=kept)
        for kept in ("cached", "model")
    )  # fmt: skip
    assert key(cached) != key(whole)


def test_crops_tell_rows_of_pictures_apart_and_are_no_part_of_other_keys():
    def with_crops(count, vision):
        return dataclasses.replace(SFT, data=dataclasses.replace(SFT.data, row_crops=count, **vision))

    pictures = {"kind": "pictures", "vision": preset("molmo-7b-d").vision, "template": "molmo"}
    assert key(with_crops(8, pictures)) != key(with_crops(16, pictures))
    assert "row_crops" not in dedupe._plain(SFT.data)


def test_a_row_of_pictures_is_counted_with_what_its_crops_take():
    config = preset("molmo-7b-d")
    data = dataclasses.replace(
        SFT.data, kind="pictures", vision=config.vision, template="molmo", sequence_length=6912, row_crops=56
    )
    tokens = model_flops_per_token(config, 6912) * 6912
    seen = shapes.picture_flops(config, data)
    assert shapes.picture_flops(config, SFT.data) == 0
    assert seen == 2 * shapes.picture_flops(config, dataclasses.replace(data, row_crops=28))
    assert 0.1 < seen / tokens < 0.5  # a tower of 0.3 billion parameters beside a decoder of 7.6


def test_every_stage_of_the_papers_recipes_has_a_group_and_figures_share_theirs():
    named = [(name_of(path), load_recipe(str(path))) for path in recipe_files()]
    found = pods.groups(named)
    assert not [group.error for group in found if group.error]
    stages = sum(stage.compiles for _, one in named if one.pod for stage in one.stages)
    assert sum(len(group.members) for group in found) == stages
    assert len(found) < stages / 4
    known = {(name, stage.name) for group in found for name, stage in group.members}
    assert {(one.recipe, one.stage) for one in DURATIONS} <= known


def test_steps_follow_from_epochs_where_the_recipe_says_how_many_examples_there_are():
    data = dataclasses.replace(SFT.data, packing="none")
    whole = dataclasses.replace(SFT, steps=None, epochs=2.5, examples=99, data=data)
    assert report.steps_of(whole) == int(2.5 * (99 // 8))  # as many whole batches as an epoch has
    assert report.steps_of(dataclasses.replace(whole, steps=3)) == 3
    assert report.steps_of(dataclasses.replace(whole, data=SFT.data)) is None  # several examples share a row
    assert report.steps_of(dataclasses.replace(whole, examples=None)) is None


def test_a_page_has_a_row_for_each_group_and_says_what_failed(tmp_path, monkeypatch):
    long = dataclasses.replace(SFT, name="long", steps=3600)
    bad = dataclasses.replace(SFT, name="bad", batch=16)
    found = pods.groups([("a/one", recipe(SFT, long)), ("a/two", recipe(SFT, bad))])
    asked = []

    def planned(stage, *_, **__):
        asked.append(stage.name)
        if stage.name == "bad":
            raise RuntimeError("it\nbroke")
        return [type("Row", (), {"as_json": lambda self: PROGRAM})()]

    monkeypatch.setattr(Planner, "plan", lambda self, *given, **options: planned(*given, **options))
    monkeypatch.setattr(pods.report, "versions", lambda: "a compiler")
    monkeypatch.setattr(topology.Topology, "devices", lambda self: [])
    pods.plan(found, Planner(programs_of, tmp_path))
    assert asked == ["sft", "bad"] and [group.fits for group in found] == [True, False]
    took = pods.PublishedDuration("a/two", "sft", "a week on 8 chips", "a paper")
    page = pods.page(found, [took], "the command")
    assert "10–3,600 | 0.00278–2 | 0.0111–8 | a week on 8 chips | one: sft, long; two: sft <!--" in page
    assert "not planned: RuntimeError: it broke" in page and "1 of the different ones do not fit" in page
    again = pods.groups([("a/one", recipe(SFT, long)), ("a/two", recipe(SFT, bad))])
    pods.plan(again, Planner(programs_of, tmp_path))
    assert asked == ["sft", "bad", "bad"]  # what was planned is kept, what failed is tried again
    assert pods.page(again, [took], "the command") == page
    later = pods.groups([("a/one", recipe(SFT, long)), ("a/two", recipe(SFT, bad))])
    assert pods.keep_rows(later, page, "the page") == later  # nothing is planned, and the page says the same
    assert pods.page(later, [took], "the command") == page and [group.fits for group in later] == [True, False]
    changed = pods.groups([("a/one", recipe(dataclasses.replace(SFT, batch=32)))])
    assert pods.keep_rows(changed, page, "the page") == []
    assert "## Not planned yet\n\n- a/one: sft\n" in pods.page(later, [took], "the command", changed)
    monkeypatch.setattr(pods.report, "versions", lambda: "another compiler")
    with pytest.raises(UserError, match="other versions than another compiler; plan all recipes again"):
        pods.keep_rows(later, page, "the page")


def test_the_page_of_all_recipes_is_of_the_recipes_as_they_are():
    """Every stage has the row of its programs, or is listed as not planned: what changes a recipe's programs makes its
    row anew."""
    recipes = [(name_of(path), load_recipe(str(path))) for path in recipe_files()]
    found = pods.groups(recipes)
    text = (FOLDER.parent / "docs" / "pods.md").read_text()
    try:
        installed = report.versions()
    except PackageNotFoundError:
        pytest.skip("no TPU compiler: pip install 'jax[tpu]' (no TPU is needed)")
    if f"with {installed};" not in text:
        pytest.skip(f"docs/pods.md was planned with other versions than {installed}")
    missing = [group for group in found if f"<!-- {group.key[:12]} -->" not in text]
    listed = text.partition("## Not planned yet\n\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(listed) == sorted(map(pods.not_planned, missing)), "make plan-all PLAN_FLAGS='RECIPE …' plans them"
    assert text.count("<!-- ") == len(found) - len(missing)


def test_stages_planned_in_processes_end_as_they_do_one_by_one(tmp_path):
    """With a compiler they fail for their batch, without one for its absence; and each says so in its own row."""
    bad = [dataclasses.replace(SFT, name=f"sft-{batch}", batch=batch) for batch in (3, 5)]
    ends = []
    for jobs in (1, 2):
        found = pods.groups([("a/one", recipe(*bad))])
        pods.plan(found, Planner(programs_of, tmp_path / str(jobs)), jobs)
        ends.append([group.error for group in found])
    assert ends[0] == ends[1] and len(ends[0]) == 2 and all(ends[0])


def test_a_judge_is_resident_and_has_programs_of_its_own():
    judge = JudgeModel(model="sft", tokenizer="hf:none", chat_template="tulu", sampling=Sampling(32, 0.0, slots=8))
    judged = dataclasses.replace(GRPO, reward=Reward(verifier="judge", judge=judge))
    mesh = make_mesh("fsdp=4", jax.devices()[:4])
    found = {one.name: one for one in programs_of(judged, recipe(SFT, judged), mesh)}
    assert {"judge's prefill", "judge's decode"} < set(found)
    assert (
        found["policy"].resident["judge"] == found["policy"].resident["reference"]
    )  # the same model, in the same type
    assert found["judge's decode"].runs == 16 / 8  # a block holds all 32 tokens


@pytest.mark.parametrize(
    "text, message",
    [("chip=8", "did you mean 'chips'"), ("chips=", "write values after"), ("chips=64..8", "ends before it begins"),
     ("batch=many", "neither a number nor a range"), ("chips=0..8", "neither a number nor a range")],
)  # fmt: skip
def test_sweeps_that_are_misspelt_are_told(text, message):
    with pytest.raises(UserError, match=message):
        sweep.parse([text])


def test_axes_of_a_sweep_multiply_and_ranges_grow_by_their_factor():
    axes = sweep.parse(["chips=8..4096x8", "remat=none full", "mesh=fsdp=-1 fsdp=-1,tp=4"])
    assert axes["chips"] == ["8", "64", "512", "4096"] and axes["mesh"] == ["fsdp=-1", "fsdp=-1,tp=4"]
    assert len(sweep.points(SFT, recipe(SFT), POD, sweep.parse(["remat=none full", "batch=8 16 32"]), "strong")) == 6
    for bad in (["chips=8", "topology=v5e-8"], ["chips=8", "chips=16"]):
        with pytest.raises(UserError):
            sweep.parse(bad)


def test_weak_scaling_keeps_the_rows_of_a_chip_and_strong_scaling_the_batch():
    axes = sweep.parse(["chips=4..16"])
    weak = sweep.points(GRPO, recipe(SFT, GRPO), POD, axes, "weak")
    assert [(p.stage.batch, p.stage.mini_batch, p.stage.sampling.slots) for p in weak] == [
        (4, 8, 16), (8, 16, 32), (16, 32, 64)]  # fmt: skip
    strong = sweep.points(GRPO, recipe(SFT, GRPO), POD, axes, "strong")
    assert [p.mesh for p in strong] == ["fsdp=-1", "fsdp=-1", "fsdp=8,tp=2"] and {p.stage.batch for p in strong} == {4}
    heads = SFT.model.kv_heads
    (more,) = sweep.points(GRPO, recipe(SFT, GRPO), POD, sweep.parse([f"chips={8 * heads * 4}"]), "strong")
    assert more.mesh == f"fsdp=8,tp={heads},cp=4"  # heads are not cut
    fewer = sweep.points(SFT, recipe(SFT), topology.parse("v5e-8"), sweep.parse(["chips=4"]), "strong")
    assert fewer[0].stage.accumulate == 2  # a chip holds no more rows at once than on the pod of the recipe


def test_nearest_settings_go_from_cheap_to_dear(monkeypatch, tmp_path):
    """What fits is told by a stand-in for the compiler: bytes by rows at once, by policy, by type of the moments."""
    tried, limits = [], []

    def planned(stage, inside, place, *_, **__):
        rows = stage.batch // stage.accumulate // place.count
        moments = 0 if stage.optimizer.offload else 2 if stage.optimizer.moment_dtype == "float32" else 1
        need = rows * (1 if stage.compute.remat == "full" else 4) + moments
        tried.append((place.name, inside.mesh, stage.compute.remat, stage.accumulate, stage.optimizer.moment_dtype))
        named = type("Program", (), {"name": "train"})
        return [type("Row", (), {"fits": need <= limits[-1], "program": named})()]

    monkeypatch.setattr(Planner, "plan", lambda self, *given, **options: planned(*given, **options))
    monkeypatch.setattr(Planner, "resident_fits", lambda *_: True)
    monkeypatch.setattr(topology.Topology, "devices", lambda self: jax.devices()[:1] * self.count)
    stage = dataclasses.replace(SFT, batch=16, optimizer=dataclasses.replace(SFT.optimizer, b2=0.999))
    for limit, told in (
        (18, ()), (6, ("sft.compute.remat=full",)), (4, ("sft.compute.remat=full", "sft.accumulate=2")),
        (2, ("sft.compute.remat=full", "sft.accumulate=4", "sft.optimizer.moment_dtype=bfloat16")),
        (1, ("sft.compute.remat=full", "sft.accumulate=4", "sft.optimizer.moment_dtype=bfloat16",
             "sft.optimizer.offload=True")),
        (-1, None),
    ):  # fmt: skip
        limits.append(limit)
        assert suggest.suggest_settings(stage, recipe(stage), POD, Planner(programs_of, tmp_path)) == told
    assert tried[-1][0] == "v5e:16x16"  # as far as pods go


def test_weights_that_are_too_large_to_write_are_split_over_more_devices(monkeypatch, tmp_path):
    def planned(stage, inside, *_, **__):
        split = int((inside.decode_mesh or "tp=1").rpartition("tp=")[2])
        named = type("Program", (), {"name": "weights"})
        return [type("Row", (), {"fits": split >= 4, "program": named})()]

    monkeypatch.setattr(Planner, "plan", lambda self, *given, **options: planned(*given, **options))
    monkeypatch.setattr(Planner, "resident_fits", lambda *_: True)
    monkeypatch.setattr(topology.Topology, "devices", lambda self: jax.devices()[:1] * self.count)
    told = suggest.suggest_settings(GRPO, recipe(SFT, GRPO), POD, Planner(programs_of, tmp_path))
    assert told == ("decode_mesh=fsdp=-1,tp=4",)


def test_kinds_of_stages_that_run_programs_are_all_planned_and_described():
    task = Task("t", GRPO.data, "gsm8k", GRPO.sampling)
    table = Evaluate("table", title="t", tasks=(task,), entries=(Entry("sft", ("sft",)),))
    assert table.compiles and not any(pods.KINDS[kind](table) for kind in ("train", "rl"))
    assert report.described(SFT, recipe(SFT)) == "SFT, olmo2 of width 256; 8 × 128 tokens"
    assert report.described(GRPO, recipe(SFT, GRPO)) == "GRPO, olmo2 of width 256; 4 × 4 responses of 64 + 64 tokens"


def test_a_sweeps_section_is_replaced_and_its_figure_is_valid_xml(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "versions", lambda: "a compiler")
    program = {
        **PROGRAM,
        "flops": 1e12,
        "runs_per_step": 2.0,
        "seconds": {"compute": 0.6, "kernels": 0.1, "exposed_collectives": 0.25, "hidden_collectives": 0.05},
    }
    found = sweep.points(SFT, recipe(SFT), POD, sweep.parse(["chips=4..16x2"]), "weak")
    for point in found[:2]:
        point.programs = [program]
    found[2].refused = "it cannot"
    page = tmp_path / "page.md"
    for command in ("first", "second"):
        scale.write(page, found, recipe(SFT), "weak", command)
    text = page.read_text()
    assert text.count("## ") == 1 and "`second`" in text and "`first`" not in text
    assert "| 8 | v5e:2x4 | fsdp=-1 | 16 | 1 | none | yes | 8.0 of 15.8 | 1–2 | 128 | 1 % | 25 % |" in text
    assert "no: it cannot" in text and "Models generate" not in text
    elsewhere = dataclasses.replace(recipe(SFT, GRPO), decode_mesh="fsdp=-1,tp=2")
    scale.write(page, sweep.points(GRPO, elsewhere, POD, sweep.parse(["chips=4"]), "weak"), elsewhere, "weak", "third")
    assert "Models generate on `fsdp=-1,tp=2`. Written by `third`" in page.read_text()
    (drawn,) = tmp_path.glob("*.svg")
    labels = [node.text for node in ElementTree.parse(drawn).iter() if node.tag.endswith("text")]
    assert {"4", "8", "step time, s", "tokens/s per chip", "GiB per device"} <= set(labels)
    same = scale.figure(found[:1], "one pod")
    assert "network, exposed" in "".join(ElementTree.fromstring(same).itertext())
