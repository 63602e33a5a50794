"""Curation with datatrove's executors keeps the rows of one machine, byte by byte."""

import gzip
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from easylm_jax.data.curation import rows
from easylm_jax.data.curation.decontaminate import decontaminate
from easylm_jax.data.curation.dedup import dedup
from easylm_jax.data.curation.filter import filter_rows
from easylm_jax.data.curation.scale import Decisions, on
from models.errors import UserError

RULES = "empty,length(least=5),repeats"
NAMES = "abcdef"  # files of 50 rows: a block each where tasks are other processes, else two of them
EXECUTIONS = ((1, 1), (3, 2), (8, 2))  # tasks, those at once; eight are more than there are blocks
MISSING = "the extra `scale` is not installed"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Files of rows with repeats, near repeats, test rows and short rows among them; and test rows."""
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(0)
    words = [f"word{i}" for i in range(500)]
    tests = [" ".join(rng.choices(words, k=20)) for _ in range(10)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(300)]
    for i in range(0, 300, 10):
        texts[i] = (
            texts[(i + 101) % 300],
            texts[(i + 152) % 300] + " more",
            f"before {rng.choice(tests)} after",
            "too short",
        )[i // 10 % 4]
    for i, name in enumerate(NAMES):
        part = texts[50 * i : 50 * (i + 1)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    (folder / "test.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in tests))
    return folder


def recipe(folder: Path, out: Path, decide=None) -> dict[str, bytes]:
    """Filter, decontamination and deduplication, one after another; what is written."""
    filter_rows([str(folder / "[a-f].jsonl")], out / "1", RULES, decide=decide)
    decontaminate([str(out / "1" / "[a-f].jsonl")], [str(folder / "test.jsonl")], out / "2", decide=decide)
    dedup([str(out / "2" / "[a-f].jsonl")], out / "3", threshold=0.7, decide=decide)
    found = {f"{step}/{name}.jsonl": (out / step / f"{name}.jsonl").read_bytes() for step in "123" for name in NAMES}
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
    counts = [sum(len(found[f"{step}/{name}.jsonl"].splitlines()) for name in NAMES) for step in "123"]
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
    files, out = [str(planted / "[a-f].jsonl")], tmp_path / "1"
    with pytest.raises(UserError, match=r"filter: 4 of 12 blocks have no decisions; run the command again when"):
        filter_rows(files, out, RULES, decide=on(lambda steps: Tasks(steps, 3, leave=[1]), wait=False))
    made = []

    def counted(steps):
        made.append(steps)
        return Tasks(steps, 2)

    filter_rows(files, out, RULES, decide=on(counted))
    filter_rows(files, out, RULES, decide=on(counted))  # finished: nothing is run
    assert len(made) == 1 and isinstance(made[0][0], Decisions)
    assert (out / "a.jsonl").read_bytes() == alone["1/a.jsonl"]


def with_executor(make, logs: Path):
    """A value for `decide` with an executor of datatrove; `make` takes the steps and a folder for logs."""
    numbers = itertools.count()
    return on(lambda steps: make(steps, str(logs / str(next(numbers)))))


@pytest.mark.parametrize("tasks, workers", EXECUTIONS)
def test_datatroves_local_executor_keeps_the_same_rows(planted, alone, tmp_path, tasks, workers):
    executors = pytest.importorskip("datatrove.executor", reason=MISSING)

    def local(steps, logs):
        return executors.LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=logs)

    assert recipe(planted, tmp_path / "local", with_executor(local, tmp_path / "logs")) == alone


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine, with two processors."""
    pytest.importorskip("datatrove.executor", reason=MISSING)
    ray = pytest.importorskip("ray", reason=MISSING)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:placement_group:DeprecationWarning")  # by datatrove, in a thread that then ends
@pytest.mark.parametrize("tasks, workers", EXECUTIONS)
def test_ray_keeps_the_same_rows(planted, alone, tmp_path, ray, tasks, workers):
    executors = pytest.importorskip("datatrove.executor", reason=MISSING)

    def on_ray(steps, logs):
        return executors.RayPipelineExecutor(steps, tasks=tasks, workers=workers, mem_per_cpu_gb=0.5, logging_dir=logs)

    assert recipe(planted, tmp_path / "ray", with_executor(on_ray, tmp_path / "logs")) == alone


class Slurm:
    """Stand-ins for SLURM's commands: `sbatch` queues a script, `run` runs what is queued, array job by array job."""

    def __init__(self, folder: Path):
        self.folder, self.queue = folder / "bin", folder / "queue"
        for made in (self.folder, self.queue):
            made.mkdir()
        self._command("sbatch", f'n=$(ls {self.queue} | wc -l); cp "${{@: -1}}" {self.queue}/$n; echo "job $n"')
        self._command("srun", 'shift 3; exec "$@"')  # -l -n 1
        self._command("scontrol", "echo here")

    def _command(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (self.folder / name).chmod(0o755)

    def run(self) -> None:
        for script in sorted(self.queue.iterdir(), key=lambda path: int(path.name)):
            last = int(re.search(r"--array=0-(\d+)", script.read_text())[1])
            for number in range(last + 1):
                env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "here"}
                subprocess.run(["bash", str(script)], env=env, check=True, capture_output=True)
            script.unlink()


def test_slurm_keeps_the_same_rows_when_the_command_is_run_again_after_its_jobs(planted, alone, tmp_path, monkeypatch):
    executors = pytest.importorskip("datatrove.executor", reason=MISSING)
    slurm = Slurm(tmp_path)
    path = (str(slurm.folder), str(Path(sys.executable).parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(path))

    def command():
        decide = on(
            lambda steps: executors.SlurmPipelineExecutor(
                steps, tasks=3, time="1:00:00", partition="cpu", logging_dir=str(tmp_path / "logs")
            ),
            wait=False,
        )
        return filter_rows([str(planted / "[a-f].jsonl")], tmp_path / "1", RULES, decide=decide)

    with pytest.raises(UserError, match=r"6 of 6 blocks have no decisions; run the command again when the jobs have"):
        command()
    slurm.run()
    command()
    assert all((tmp_path / "1" / f"{name}.jsonl").read_bytes() == alone[f"1/{name}.jsonl"] for name in NAMES)
