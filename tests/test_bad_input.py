"""What a user can get wrong ends in one clear line and status 2, and nothing already saved is lost."""

import json
import subprocess
from pathlib import Path

import pytest
from support import RECIPE, copy_of_reference, corrupt, launcher, only_line, reference, with_vocabulary, write_jsonl

from easylm_jax.checkpoint import store

# Two more stages behind the finished ones, for what is wrong with a stage that has not begun.
MORE = """\
    SFT("more", init="sft", data=DataSpec(CHATS, "stage:tokenizer", 64, kind="chat", template="tulu",
        packing="best_fit"), batch=16, steps=4, optimizer=RATE),
    Pretrain("small", model=MODEL, data=DataSpec(TEXT, "stage:tokenizer", 64), batch=8, steps=4, optimizer=RATE),
))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A runs folder in which the reference's stages are done; the tests that share it must leave it so."""
    return copy_of_reference(tmp_path_factory.mktemp("finished") / "runs")


def longer_recipe(folder: Path) -> Path:
    text = RECIPE.replace("{folder}", str(reference().recipe.parent))
    path = folder / "recipe.py"
    path.write_text(text.rstrip().removesuffix("))") + MORE)
    return path


def assert_intact(out: Path) -> None:
    """All checkpoints of the finished stages are there and whole."""
    for stage, steps in (("pretrain", [6, 7, 8]), ("sft", [2, 3, 4])):
        checkpoints = out / "tiny" / stage / "checkpoints"
        assert store.committed_steps(checkpoints) == steps
        assert all(store.damage(checkpoints / str(step)) == [] for step in steps)
        assert (out / "tiny" / stage / "done.json").is_file()


def refused(out: Path, *arguments, **how) -> str:
    """The one line of an `easylm run` that must fail and leave the finished stages as they were."""
    line = only_line(launcher().run("run", *arguments, "--out", out, **how))
    assert_intact(out)
    return line


def messages(*turns) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BAD_RECORDS = {
    "a broken line": ('{"messages": [', "chats.jsonl:2: broken JSON"),
    "no object": ("[1, 2]", "chats.jsonl:2: not a JSON object"),
    "an empty conversation": ({"messages": []}, "chats.jsonl:2: the conversation is empty"),
    "an unknown role": (
        messages(("usr", "hi"), ("assistant", "yes")),
        "chats.jsonl:2: message 0 has the unknown role 'usr'",
    ),
    "no such column": ({"text": "hi"}, "chats.jsonl:2: no column 'messages'"),
    "content that is no text": (
        messages(("user", 3), ("assistant", "yes")),
        "chats.jsonl:2: content of message 0 is int",
    ),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_named_with_its_file_and_line(name, tmp_path, finished):
    record, says = BAD_RECORDS[name]
    path = write_jsonl(tmp_path / "chats.jsonl", [messages(("user", "hi"), ("assistant", "yes"))] * 3)
    lines = path.read_text().splitlines()
    lines[1] = record if isinstance(record, str) else json.dumps(record)
    path.write_text("\n".join(lines))
    line = refused(finished, longer_recipe(tmp_path), f"more.data.sources.0.path={path}", "--only", "more")
    assert f"{tmp_path}/{says}" in line


def test_a_bad_record_under_a_vocabulary_is_named_too(tmp_path):
    recipe, texts = longer_recipe(tmp_path), tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a fox"}\n{"text": \n')
    result = launcher().run("run", recipe, f"tokenizer.sources.0.path={texts}", "--out", tmp_path / "runs")
    assert f"{texts}:2: broken JSON" in only_line(result)


SETTINGS = {
    "a missing file": (["more.data.sources.0.path=nowhere.jsonl"], "data: no file at nowhere.jsonl"),
    "an over-long example": (["more.data.overlong=error", "more.data.sequence_length=32"], "over sequence_length 32"),
    "a batch larger than the data": (["more.batch=4096"], "a batch of 4096 rows is more than the"),
    "a misspelt field": (["more.bacth=4"], "SFT has no field 'bacth'; did you mean 'more.batch'?"),
    "a misspelt field inside": (["more.optimizer.wieght_decay=0"], "did you mean 'more.optimizer.weight_decay'?"),
    "a misspelt recipe field": (["mehs=dp=1"], "Recipe has no field 'mehs'; did you mean 'mesh'?"),
    "a word for a number": (["more.batch=many"], "batch: 'many' is not a whole number"),
    "half a row": (["more.batch=2.5"], "batch: '2.5' is not a whole number"),
    "no end of rows": (["more.batch=inf"], "batch: 'inf' is not a whole number"),
    "nothing to do": (["more.steps=0"], "more.steps: 0 is not a whole number of at least 1"),
    "no such choice": (["more.data.overlong=cut"], "'cut' is not one of 'truncate', 'drop', 'error'"),
    "no such template": (["more.data.template=tulo"], "tulo"),
    "no such schedule": (["more.optimizer.lr=1e-3 cosinus"], "cosinus"),
    "no such stage in a field": (
        ["mroe.batch=4"],
        "no stage 'mroe' (did you mean 'more.batch'?); it has tokenizer, pretrain",
    ),
    "a stage for a field": (["more=4"], "name a field of the stage, such as more.seed=1"),
    "no value": (["more.batch"], "'more.batch' is not FIELD=VALUE"),
    "devices that are not there": (["mesh=fsdp=3"], "mesh 'fsdp=3' needs 3 devices, but there are 1"),
    "a checkpoint never": (["more.checkpoints.every=0"], "more.checkpoints.every: 0 is not a whole number of at least"),
    "a seed below 0": (["more.seed=-1"], "more.seed: -1 is not a whole number of at least 0"),
    "a seed of too many bits": (
        ["more.seed=4294967296"],
        "more.seed: 4294967296 is not a whole number below 4294967296",
    ),
    "epochs without end": (["more.epochs=inf"], "more.epochs: inf is not a number that is finite"),
    "rows longer than the context": (
        ["more.data.sequence_length=128"],
        "stage more: data.sequence_length needs a context of 128 tokens, but init sft has one of 64",
    ),
    "an init without a model": (
        ["more.init=tokenizer"],
        "stage more: init tokenizer is a Tokenizer stage, which leaves",
    ),
    "an unknown axis": (["mesh=fspd=-1"], "unknown axis 'fspd'; did you mean 'fsdp'?"),
    "a stage that is no start": (["more.init=stf"], "stage more starts from 'stf', which is no stage of it"),
    "a model that is nowhere": (["more.init=hf:/no/such/folder"], "/no/such/folder"),
    "a run that is nowhere": (["more.init=run:/no/such/folder"], "/no/such/folder"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_told_in_one_line(name, tmp_path, finished):
    overrides, says = SETTINGS[name]
    assert says in refused(finished, longer_recipe(tmp_path), *overrides, "--only", "more")
    assert not (finished / "tiny" / "more" / "checkpoints").exists()


def test_rows_that_do_not_divide_over_the_devices(tmp_path, finished):
    line = refused(finished, longer_recipe(tmp_path), "more.batch=12", "--only", "more", devices=8)
    assert "a batch of 12 rows cannot be split over 8 shards of the mesh" in line
    line = refused(finished, longer_recipe(tmp_path), "mesh=tp=8", "--only", "more", devices=8)
    assert "tp=8 cannot split 4 heads; choose a size of tp that divides 4" in line


def test_a_vocabulary_larger_than_the_model_and_an_unknown_model(tmp_path, finished):
    recipe = longer_recipe(tmp_path)
    line = refused(finished, recipe, "small.model=olmo2-8b", "--only", "small")
    assert "unknown model 'olmo2-8b'; did you mean olmo2-" in line
    recipe.write_text(recipe.read_text().replace("vocab=320", "vocab=200"))
    line = refused(finished, recipe, "--only", "small")
    assert "the tokenizer has 300 tokens, the model only 200" in line


def test_a_stage_that_is_not_there_or_not_ready(tmp_path, finished):
    recipe = longer_recipe(tmp_path)
    assert "recipe tiny has no stage 'mor'" in refused(finished, recipe, "--only", "mor")
    line = only_line(launcher().run("run", recipe, "--only", "more", "--out", tmp_path / "new"))
    assert "stage more needs tokenizer, which is not done; run it first" in line


def test_other_settings_over_a_finished_or_a_started_run(tmp_path, finished):
    recipe = longer_recipe(tmp_path)
    line = refused(finished, recipe, "sft.optimizer.lr=1e-4")
    assert "stage sft in" in line and "was run with other settings (optimizer.lr: " in line and "--overwrite" in line
    # Another vocabulary changes what every later stage means.
    assert "vocab_size: 300 -> 310" in refused(finished, recipe, "tokenizer.vocab_size=310")
    assert "needs.tokenizer.vocab_size" in refused(finished, recipe, "tokenizer.vocab_size=310", "--only", "pretrain")


RECIPES = {
    "no recipe": ("x = 1\n", "holds no recipe; it must set `recipe = Recipe(...)`"),
    "not Python": ("recipe = (\n", "recipe.py:1: SyntaxError"),
    "a name that is not there": ("recipe = Recpie()\n", "recipe.py:1: NameError: name 'Recpie' is not defined"),
    "a defect of its own": ("\nx = {}\ny = x['a']\n", "recipe.py:3: KeyError: 'a'"),
    "a misspelt field": (("batch=8, st", "bacth=8, st"), ":12: Pretrain has no field 'bacth'; did you mean 'batch'"),
    "a value of the wrong type": (("batch=8, st", "batch='8', st"), "pretrain.batch: '8' is not a whole number"),
    "a value of the wrong type inside": (("latest=3", "latest=None"), "latest: None is not a whole number"),
    "neither model nor init": (("model=MODEL, ", ""), "stage pretrain: give either model (fresh parameters) or init"),
    "no end": (("batch=8, steps=8", "batch=8"), "stage pretrain: give steps or epochs"),
    "twice the same name": (('SFT("sft"', 'SFT("pretrain"'), "two stages are called 'pretrain'"),
    "a circle": (("model=MODEL, ", 'init="sft", '), "stages need each other in a circle"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_with_a_mistake_is_told_with_its_file(name, tmp_path, finished):
    change, says = RECIPES[name]
    recipe = longer_recipe(tmp_path)
    recipe.write_text(change if isinstance(change, str) else recipe.read_text().replace(*change, 1))
    line = refused(finished, recipe)
    assert says in line
    assert name == "a circle" or str(recipe) in line


def test_no_recipe_at_all(finished, tmp_path):
    assert f"no recipe at {tmp_path}/none.py" in refused(finished, tmp_path / "none.py")


def test_a_cache_is_not_read_with_another_vocabulary(tmp_path, finished):
    texts = write_jsonl(tmp_path / "other.jsonl", [{"text": f"quite another text {i}"} for i in range(50)])
    other = tmp_path / "other" / "tokenizer.model"
    made = launcher().run("data", "tokenizer", texts, "--vocab", 290, "--out", other.parent)
    assert made.status == 0, made.err
    cache = next(finished.glob("cache/*/manifest.json")).parent
    line = only_line(launcher().run("data", "inspect", cache, "--tokenizer", f"sp:{other}"))
    assert "was made with tokenizer" in line and "build it again" in line


def test_damaged_checkpoints_are_named_and_nothing_is_begun_over_them(tmp_path):
    out = copy_of_reference(tmp_path / "runs")
    checkpoints = out / "tiny" / "pretrain" / "checkpoints"
    for step in (6, 7, 8):
        corrupt(checkpoints / str(step))
    verified = launcher().run("checkpoints", "verify", out / "tiny" / "pretrain")
    assert verified.status == 1 and verified.out.count("CRC-32 differs") == 3
    # To start another stage from it.
    recipe = longer_recipe(tmp_path)
    line = only_line(launcher().run("run", recipe, "more.init=pretrain", "--only", "more", "--out", out))
    assert f"{checkpoints}/8 is damaged" in line and "CRC-32 differs" in line
    # To go on with it.
    (out / "tiny" / "pretrain" / "done.json").unlink()
    line = only_line(launcher().run("run", recipe, "--only", "pretrain", "--out", out))
    assert f"every checkpoint in {checkpoints} is damaged" in line
    assert store.committed_steps(checkpoints) == [6, 7, 8]


def test_a_disk_that_fills_up_while_saving_loses_no_earlier_checkpoint(tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    full = launcher().run(*run, at="easylm_jax.checkpoint.store:write_manifest:4:ENOSPC")
    line = only_line(full)
    assert "checkpoint 4 could not be written" in line and "no space left on the disk" in line
    assert "step 3 and earlier ones are intact" in line
    checkpoints = out / "tiny" / "pretrain" / "checkpoints"
    assert store.committed_steps(checkpoints) == [1, 2, 3]
    assert all(store.damage(checkpoints / str(step)) == [] for step in (1, 2, 3))
    assert not list(checkpoints.glob(f"*{store.TEMPORARY}*"))  # its space is given back
    assert launcher().run(*run).status == 0
    same = launcher().run("checkpoints", "diff", out / "tiny" / "pretrain", expected.root / "pretrain")
    assert same.out == "identical\n"


def test_a_disk_that_is_full_when_a_metric_is_written(tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    line = only_line(launcher().run(*run, at="easylm_jax.runtime.monitor.metrics:MetricsWriter.write:4:ENOSPC"))
    assert f"cannot write below {out}: No space left on device" in line
    checkpoints = out / "tiny" / "pretrain" / "checkpoints"
    assert store.committed_steps(checkpoints)[-1] == 3
    assert all(store.damage(checkpoints / str(step)) == [] for step in (1, 2, 3))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, where mounting one is permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_really_full_loses_no_checkpoint_and_the_run_goes_on_once_there_is_room(small_disk):
    expected, out = reference(), with_vocabulary(small_disk / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    full = launcher().run(*run, "pretrain.checkpoints.latest=100")
    # TensorStore and its event loop may print of writes that were under way beside the one that failed.
    (line,) = [line for line in full.err.splitlines() if line.startswith("easylm: error: ")]
    assert full.status == 2 and line.startswith("easylm: error: checkpoint ") and "no space left on the disk" in line
    checkpoints = out / "tiny" / "pretrain" / "checkpoints"
    steps = store.committed_steps(checkpoints)
    assert steps and all(store.damage(checkpoints / str(step)) == [] for step in steps)
    # `latest` is only how many stay, so with fewer of them the same run goes on and fits.
    for step in steps[:-1]:
        store.delete_step(checkpoints / str(step))
    ended = launcher().run(*run, "pretrain.checkpoints.latest=1")
    assert ended.status == 0, ended.err
    same = launcher().run("checkpoints", "diff", out / "tiny" / "pretrain", expected.root / "pretrain")
    assert same.out == "identical\n"
