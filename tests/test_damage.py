"""Whatever is damaged is told in one line, or skipped for what is whole; nothing else is lost, and nothing raises.

Every file that the project reads back is mutated by `damage_kit`, and the commands that read it are run in this
process. By default a small sample of the mutations is tried, with `-m slow` some 2,000.
"""

import contextlib
import io
import json
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import data_kit
import fake_run
import jax.numpy as jnp
import numpy as np
import pytest
import support
from damage_kit import contents, mutations

import models
from easylm_jax.checkpoint import Checkpointer, Retention, store
from easylm_jax.cli.main import main
from easylm_jax.data import build_cache, load_tokenizer, open_cache
from easylm_jax.evaluate import stage as evaluate_stage
from easylm_jax.runtime.files import write_lines, write_sealed_json
from easylm_jax.runtime.monitor.metrics import MetricsWriter, last_line
from easylm_jax.synthesize import batches, best_of_n, majority_vote
from models.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of sums of huge numbers

SAMPLE, MOST = 25, 300  # mutations of each kind of artefact in a default run, and with `-m slow`
Outcome = tuple[int, str, str]  # exit status, stdout, stderr


def command(*arguments: object) -> Outcome:
    """Runs `easylm ARGUMENTS` in this process; a traceback counts as exit status 99."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except (Exception, SystemExit):
            status = 99
            err.write(traceback.format_exc())
    return status, out.getvalue(), err.getvalue()


def called(function: Callable, *arguments: object) -> Outcome:
    """As `command`, for what only a longer run would call."""
    try:
        return 0, repr(function(*arguments)), ""
    except UserError as error:
        return 2, "", f"easylm: error: {error}\n"
    except Exception:
        return 99, "", traceback.format_exc()


def fault_of(outcome: Outcome, allowed: tuple[int, ...] = (0, 2)) -> str | None:
    """What is wrong with how a command took a damaged file; None if it took it as promised."""
    status, out, err = outcome
    if status not in allowed:
        return f"exit status {status}: {err[-700:]}"
    lines = [line for line in err.splitlines() if line.startswith("easylm: error: ")]
    if "Traceback" in err + out or (status == 2 and len(lines) != 1) or any(len(line) > 1500 for line in lines):
        return f"not one line: {err[-700:]}"
    return None


class World:
    """A folder with artefacts, a file of which is mutated for a moment."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.whole = contents(folder)

    @contextlib.contextmanager
    def damaged(self, path: Path, data: bytes) -> Iterator[None]:
        path.write_bytes(data)
        try:
            yield
        finally:
            path.write_bytes(self.whole[path])

    def lost(self, *without: Path) -> list[Path]:
        """Files that are gone or changed, besides `without`."""
        return [path for path, data in self.whole.items() if path not in without
                and not (path.is_file() and path.read_bytes() == data)]  # fmt: skip


@pytest.fixture(params=[SAMPLE, pytest.param(MOST, marks=pytest.mark.slow)], ids=["a sample", "many"])
def chosen(request, record_property):
    """Chooses cases of the mutations of some files: a seeded sample of so many."""

    def choose(paths, flips: int = 12):
        cases = [(path, name, data) for path in sorted(paths) for name, data in mutations(path, 0, flips)]
        cases = random.Random(len(cases)).sample(cases, min(request.param, len(cases)))
        record_property("cases", len(cases))
        return cases

    return choose


# Checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A stage with the checkpoints 1 and 2, and an undamaged other stage."""
    root = tmp_path_factory.mktemp("checkpoints")
    for stage in ("stage", "other"):
        with Checkpointer(root / stage / "checkpoints", Retention(latest=5)) as checkpointer:
            for step in (1, 2):
                state = {"params": {"w": jnp.full((4, 4), float(step))}}
                checkpointer.save(step, state, {"model": "olmo2-14m", "data": {"fingerprint": "f", "tokens_seen": 3}})
    return World(root)


WANTED = {"params": {"w": np.zeros((4, 4), np.float32)}}
COVERED_BY_NOTHING = (store.ORBAX_METADATA, store.REMOTE_COMMIT)  # times that Orbax writes as it commits


def resumed(folder: Path) -> float:
    with Checkpointer(folder, Retention(latest=5)) as checkpointer:
        state, _ = checkpointer.restore(WANTED)
    return float(state["params"]["w"][0, 0])


def test_damaged_checkpoints_are_found_by_verify_and_skipped_on_resume(checkpoints, chosen, tmp_path):
    stage, other = checkpoints.folder / "stage", checkpoints.folder / "other"
    step = stage / "checkpoints" / "2"
    faults = []
    files = [path for path in checkpoints.whole if path.is_relative_to(step) and path.name not in COVERED_BY_NOTHING]
    for path, name, data in chosen(files):
        with checkpoints.damaged(path, data):
            outcomes = {
                "verify": command("checkpoints", "verify", stage),
                "prune": command("checkpoints", "prune", stage, "--latest", 1),
                "list": command("checkpoints", "list", stage),
                "diff": command("checkpoints", "diff", stage, other),
                "average": command("checkpoints", "average", stage, other, "--out", tmp_path / "o"),
                "convert": command("convert", stage, tmp_path / "exported"),
            }  # fmt: skip
            found = {what: fault_of(outcome, (0, 1, 2)) for what, outcome in outcomes.items()}
            found["verify accepts it"] = None if outcomes["verify"][0] == 1 else str(outcomes["verify"])
            found["prune counts it"] = None if outcomes["prune"][0] == 2 else str(outcomes["prune"])
            found["lost"] = str(checkpoints.lost(path)) if checkpoints.lost(path) else None
            copied = tmp_path / "resumed"
            shutil.copytree(stage / "checkpoints", copied)
            outcome = called(resumed, copied)
            found["resume"] = None if outcome[:2] == (0, "1.0") else str(outcome)
            shutil.rmtree(copied)
        faults += [f"{path.relative_to(step)} {name}: {what}: {why}" for what, why in found.items() if why]
    assert faults == []


def test_files_of_a_checkpoint_without_a_checksum_change_nothing(checkpoints, chosen):
    step = checkpoints.folder / "stage" / "checkpoints" / "2"
    faults = []
    for path, name, data in chosen([path for path in checkpoints.whole if path.is_relative_to(step)
                                    and path.name in COVERED_BY_NOTHING], flips=4):  # fmt: skip
        with checkpoints.damaged(path, data):
            outcome = called(resumed, step.parent)
        faults += [f"{path.name} {name}: {outcome}"] if outcome[:2] != (0, "2.0") else []
    assert faults == []


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folders of a finished run, as `report` reads them."""
    return World(fake_run.quickstart(tmp_path_factory.mktemp("runs"), seeds=1, steps=4))


def test_a_report_of_a_damaged_run_is_whole_or_one_line(run, chosen, tmp_path):
    names = ("sft", "ppo-0", "table")
    files = [path for path in run.whole if path.relative_to(run.folder).parts[0] in (*names, "table.json")]
    faults = []
    for path, name, data in chosen(files, flips=4):
        with run.damaged(path, data):
            outcome = command("report", run.folder, "--html", tmp_path / "r.html", "--json", tmp_path / "r.json")
        found = fault_of(outcome) or (f"lost {run.lost()}" if run.lost() else None)
        faults += [f"{path.relative_to(run.folder)} {name}: {found}"] if found else []
    assert faults == []


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A recipe whose stages of data are done."""
    root = tmp_path_factory.mktemp("stages")
    recipe = support.project(root, support.RECIPE, texts=30)
    status, _, err = command("run", recipe, "--out", root / "runs", "--only", "tokenizer")
    assert status == 0, err
    return recipe, World(root / "runs" / "tiny")


def test_a_run_over_damaged_stages_goes_on_or_is_one_line(stages, chosen):
    recipe, world = stages
    faults = []
    files = [path for path in world.whole if path.suffix == ".json"]
    for path, name, data in chosen(files):
        with world.damaged(path, data):
            for more in (("--only", "tokenizer"), ("--list",)):
                found = fault_of(command("run", recipe, "--out", world.folder.parent, *more))
                found = found or (f"lost {world.lost(path)}" if world.lost(path) else None)
                faults += [f"{path.name} {name}: {more}: {found}"] if found else []
            found = fault_of(command("generate", world.folder / "tokenizer", "hello"))
            faults += [f"{path.name} {name}: generate: {found}"] if found else []
    assert faults == []


def test_metrics_that_are_damaged_do_not_end_a_resumed_run(run, chosen, tmp_path):
    faults = []
    for _, name, data in chosen([run.folder / "sft" / "metrics.jsonl"]):
        (tmp_path / "metrics.jsonl").write_bytes(data)
        outcome = called(last_line, tmp_path / "metrics.jsonl")
        faults += [f"{name}: {outcome}"] if outcome[0] != 0 else []

        def written():
            with MetricsWriter(tmp_path, process_index=0) as writer:
                writer.write(77, {"loss": 1.0})
            return last_line(tmp_path / "metrics.jsonl")["step"]

        outcome = called(written)
        faults += [f"{name}: {outcome}"] if outcome[:2] != (0, "77") else []
    assert faults == []


# Data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A cache of texts, one of prompts and the tokenizer of both."""
    root = tmp_path_factory.mktemp("data")
    tokenizer = data_kit.sentencepiece(root)
    source = data_kit.write_jsonl(root / "prompts.jsonl", [{"messages": [data_kit.user(f"word {i}")], "label": str(i)}
                                                           for i in range(6)])  # fmt: skip
    specs = [
        data_kit.text_spec(root, tokenizer),
        data_kit.DataSpec((data_kit.Source(str(source)),), tokenizer, 64, kind="prompts", template="tulu"),
    ]
    caches = [build_cache(spec, root / "cache") for spec in specs]
    return specs, [cache.folder for cache in caches], World(root)


def batches_of(folder: Path) -> int:
    cache = open_cache(folder)
    for _ in cache.in_order(4):
        pass
    if cache.manifest["layout"] == "prompts":
        for number in range(cache.manifest["prompts"]):
            cache.record(number)
    return cache.rows


@pytest.mark.parametrize("kind", ["texts", "prompts"])
def test_damaged_caches_are_found_by_verify_and_one_line_where_they_are_read(kind, data, chosen):
    specs, folders, world = data
    spec, folder = (specs[0], folders[0]) if kind == "texts" else (specs[1], folders[1])
    files = [path for path in world.whole if path.is_relative_to(folder)]
    faults = []
    for path, name, mutated in chosen(files):
        with world.damaged(path, mutated):
            verified = command("data", "stats", folder, "--verify")
            found = {
                "verify": fault_of(verified),
                "verify accepts it": None if verified[0] == 2 else str(verified),
                "stats": fault_of(command("data", "stats", folder)),
                "inspect": fault_of(command("data", "inspect", folder, "--rows", 99)),
                "batches": fault_of(called(batches_of, folder)),
                "build": fault_of(called(build_cache, spec, folder.parent)),
                "lost": str(world.lost(path)) if world.lost(path) else None,
            }
        faults += [f"{path.relative_to(folder)} {name}: {what}: {why}" for what, why in found.items() if why]
    assert faults == []


def test_a_damaged_tokenizer_is_one_line(data, chosen, tmp_path):
    (model,) = (path for path in data[2].whole if path.suffix == ".model")
    folder = Path(data_kit.hf_tokenizer(tmp_path).removeprefix("hf:"))
    folder = folder if folder.is_dir() else folder.parent
    files = [model, *(path for path in folder.iterdir() if path.suffix == ".json" and "tokenizer" in path.name)]
    faults = []
    for path, name, mutated in chosen(files):
        whole = path.read_bytes()
        path.write_bytes(mutated)
        found = fault_of(
            called(lambda at: load_tokenizer(at).encode("a few words"), f"{'sp' if path == model else 'hf'}:{path}")
        )
        faults += [f"{path.name} {name}: {found}"] if found else []
        path.write_bytes(whole)
    assert faults == []


# Models of Hugging Face


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model folder in two shards, with a tokenizer."""
    import jax

    root = tmp_path_factory.mktemp("exported")
    shape = models.DecoderConfig("olmo2", layers=1, width=8, heads=2, ffn=8, vocab=32, context=16, qk_norm=True)
    model = models.build(shape)
    models.save_hf(model, model.init(jax.random.key(0)), root / "model", max_shard_bytes=2000)
    tokens = {"added_tokens": [{"content": "</s>", "id": 3, "special": True}], "model": {"vocab": {"a": 0, "b": 1}}}
    (root / "model" / "tokenizer.json").write_text(json.dumps(tokens))
    return World(root / "model")


def test_a_damaged_model_folder_is_one_line(exported, chosen, tmp_path):
    faults = []
    for path, name, mutated in chosen(exported.whole):
        with exported.damaged(path, mutated):
            found = fault_of(command("convert", exported.folder, tmp_path / "stage"))
            shutil.rmtree(tmp_path / "stage", ignore_errors=True)
            found = found or (f"lost {exported.lost(path)}" if exported.lost(path) else None)
        faults += [f"{path.name} {name}: {found}"] if found else []
    assert faults == []


# Partial results


def summary_of(batch: batches.FinishedBatch) -> dict:
    return majority_vote.summary(majority_vote.read_votes([batch], 2))


def test_damaged_partial_results_are_one_line_or_made_again(chosen, tmp_path):
    messages = [{"role": "user", "content": "what?"}]
    ranked, votes, judged = tmp_path / "best.jsonl", tmp_path / "votes.jsonl", tmp_path / "model.json"
    write_lines(ranked, [{"messages": messages, "answers": ["a", "b"], "scores": [0.5, 1.0]}] * 3)
    write_lines(votes, [{"messages": messages, "columns": {"answer": "a"}, "samples": 2, "code_share": 0.5,
                         "answers": [["a", 2, True]]}] * 3)  # fmt: skip
    task = {"scores": [1.0, 0.0], "also": {"pass@2": [1.0, 1.0]}, "length": 3.0, "ended": 1.0}
    write_sealed_json(judged, {"model": "sft", "key": "k", "tasks": {"t": task}, "kl": [0.1, 0.2]})
    whole = {path: path.read_bytes() for path in (ranked, votes, judged)}
    (tmp_path / "out").mkdir()
    faults = []
    for path, name, data in chosen(whole):
        path.write_bytes(data)
        if path == judged:
            outcome = called(evaluate_stage._read_results, path)
            found = None if outcome[:2] == (0, "None") else str(outcome)
        elif path == ranked:
            found = fault_of(called(best_of_n._write_files, tmp_path / "out", [batches.FinishedBatch(path, 3)], 1))
        else:
            found = fault_of(called(summary_of, batches.FinishedBatch(path, 3)))
        faults += [f"{path.name} {name}: {found}"] if found else []
        path.write_bytes(whole[path])
    assert faults == []
