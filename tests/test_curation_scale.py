"""Curation with datatrove's executors keeps the rows of one machine, byte by byte."""

import gzip
import json
import random
from pathlib import Path

import pytest

from easylm_jax.data.curation import rows
from easylm_jax.data.curation.decontaminate import decontaminate
from easylm_jax.data.curation.dedup import dedup
from easylm_jax.data.curation.filter import filter_rows
from easylm_jax.data.curation.scale import Decisions, on
from models.errors import UserError

RULES = "empty,length(least=5),repeats"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two files of rows with repeats, near repeats, test rows and short rows among them; and test rows."""
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(0)
    words = [f"word{i}" for i in range(500)]
    tests = [" ".join(rng.choices(words, k=20)) for _ in range(10)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(300)]
    for i in range(0, 300, 10):
        texts[i] = (texts[i + 1], texts[i + 2] + " more", f"before {rng.choice(tests)} after", "too short")[i // 10 % 4]
    for name, part in (("a", texts[:170]), ("b", texts[170:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (folder / "test.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in tests))
    return folder


def recipe(folder: Path, out: Path, decide=None) -> dict[str, bytes]:
    """Filter, decontamination and deduplication, one after another; what is written."""
    filter_rows([str(folder / "[ab].jsonl")], out / "1", RULES, decide=decide)
    decontaminate([str(out / "1" / "[ab].jsonl")], [str(folder / "test.jsonl")], out / "2", decide=decide)
    dedup([str(out / "2" / "[ab].jsonl")], out / "3", threshold=0.7, decide=decide)
    found = {f"{step}/{name}.jsonl": (out / step / f"{name}.jsonl").read_bytes() for step in "123" for name in "ab"}
    for step in "123":
        removed = gzip.decompress((out / step / "removed.jsonl.gz").read_bytes())
        found[f"{step}/removed"] = removed.replace(str(out).encode(), b"OUT")
    return found


@pytest.fixture(scope="module")
def alone(planted, tmp_path_factory):
    """What one machine keeps; of every kind of plant some rows went."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK_ROWS", 40)
        found = recipe(planted, tmp_path_factory.mktemp("alone"))
    counts = [len(found[f"{step}/a.jsonl"].splitlines()) + len(found[f"{step}/b.jsonl"].splitlines()) for step in "123"]
    assert 300 > counts[0] > counts[1] > counts[2] > 250
    return found


class Tasks:
    """Runs the steps as an executor would, task by task, here."""

    def __init__(self, steps, tasks, leave=()):
        self.steps, self.tasks, self.leave = steps, tasks, leave

    def run(self):
        for rank in range(self.tasks):
            if rank not in self.leave:
                for step in self.steps:
                    step(None, rank=rank, world_size=self.tasks)


def test_tasks_decide_what_one_machine_decides(planted, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 40)
    for tasks in (1, 3, 20):
        assert recipe(planted, tmp_path / str(tasks), on(lambda steps, n=tasks: Tasks(steps, n))) == alone


def test_decisions_that_are_missing_are_said_and_made_by_the_next_run(planted, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ROWS", 40)
    files, out = [str(planted / "[ab].jsonl")], tmp_path / "1"
    with pytest.raises(UserError, match=r"filter: 3 of 9 blocks have no decisions; run the command again when"):
        filter_rows(files, out, RULES, decide=on(lambda steps: Tasks(steps, 3, leave=[1]), wait=False))
    made = []

    def counted(steps):
        made.append(steps)
        return Tasks(steps, 2)

    filter_rows(files, out, RULES, decide=on(counted))
    filter_rows(files, out, RULES, decide=on(counted))  # finished: nothing is run
    assert len(made) == 1 and isinstance(made[0][0], Decisions)
    assert (out / "a.jsonl").read_bytes() == alone["1/a.jsonl"]


def test_datatroves_local_executor_keeps_the_same_rows(planted, tmp_path):
    executors = pytest.importorskip("datatrove.executor", reason="the extra `scale` is not installed")
    whole = recipe(planted, tmp_path / "alone")
    numbers = iter(range(100))

    def local(steps):
        logs = str(tmp_path / f"logs-{next(numbers)}")
        return executors.LocalPipelineExecutor(steps, tasks=3, workers=3, logging_dir=logs)

    assert recipe(planted, tmp_path / "local", on(local)) == whole


@pytest.mark.slow
def test_ray_keeps_the_same_rows(planted, tmp_path):
    executors = pytest.importorskip("datatrove.executor", reason="the extra `scale` is not installed")
    ray = pytest.importorskip("ray", reason="ray is not installed")
    whole = recipe(planted, tmp_path / "alone")
    numbers = iter(range(100))

    def on_ray(steps):
        logs = str(tmp_path / f"logs-{next(numbers)}")
        return executors.RayPipelineExecutor(steps, tasks=3, workers=2, cpus_per_task=1, logging_dir=logs)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert recipe(planted, tmp_path / "ray", on(on_ray)) == whole
    finally:
        ray.shutdown()
