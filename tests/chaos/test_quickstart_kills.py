"""The quickstart at a small size, interrupted in each of its stages, ends in the table of the run that never was."""

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import launcher

from easylm_jax.checkpoint.tools import diff

pytestmark = pytest.mark.chaos

SMALL = """
import dataclasses

from recipes.quickstart import recipe as whole

CHANGES = {
    "pretrain": {"steps": 30},
    "sft": {"steps": 12},
    "answers": {"limit": 512, "batch": 64},
    "reward": {"steps": 12, "validation": None, "data": None},
    "dpo-0": {"steps": 12, "data": None},
    "ppo-0": {"steps": 8, "batch": 32, "mini_batch": 16, "validation": None},
    "grpo-0": {"steps": 8, "batch": 16, "mini_batch": 32, "validation": None},
}
stages = []
for stage in whole.stages:
    if stage.name.endswith(("-1", "-2")):
        continue
    changes = dict(CHANGES.get(stage.name, {}))
    if changes.get("data", 1) is None:  # so short a model is never right: the pairs are good answers and bad ones
        source = dataclasses.replace(stage.data.sources[0], path="stage:answers/pairs.jsonl", skip=0)
        changes["data"] = dataclasses.replace(stage.data, sources=(source,))
    if stage.name == "answers":
        changes["reward"] = dataclasses.replace(stage.reward, verifier="verifiers:share_of_digits")
    if stage.name == "table":
        entries = tuple(dataclasses.replace(entry, stages=entry.stages[:1]) for entry in stage.entries)
        changes |= {"entries": entries, "kl_prompts": 32}
        task = dataclasses.replace(stage.tasks[0], limit=64, verifier="verifiers:share_of_digits")
        changes["tasks"] = (task,)
    stages.append(dataclasses.replace(stage, **changes))
recipe = dataclasses.replace(whole, name="small", stages=tuple(stages))
"""
VERIFIER = """
def share_of_digits(response, record):
    return sum(letter.isdigit() for letter in response) / max(1, len(response))
"""
# What each stage is interrupted by, and the sign that it is under way.
INTERRUPTIONS = {
    "pretrain": (signal.SIGKILL, "metrics.jsonl"),
    "sft": (signal.SIGINT, "metrics.jsonl"),
    "answers": (signal.SIGKILL, "parts/000001.jsonl"),
    "reward": (signal.SIGKILL, "metrics.jsonl"),
    "dpo-0": (signal.SIGINT, "metrics.jsonl"),
    "ppo-0": (signal.SIGKILL, "metrics.jsonl"),
    "grpo-0": (signal.SIGINT, "metrics.jsonl"),
    "table": (signal.SIGKILL, "models/sft.json"),
}


def under_way(path: Path):
    return lambda: path.is_file() and path.read_bytes().count(b"\n") >= 2


def rows(root: Path) -> list:
    return json.loads((root / "table.json").read_text())["rows"]


def test_the_quickstart_interrupted_in_every_stage_ends_in_the_same_table(tmp_path):
    (tmp_path / "verifiers.py").write_text(VERIFIER)
    (tmp_path / "small.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{SMALL}")
    recipe, quiet, out = tmp_path / "small.py", tmp_path / "quiet", tmp_path / "interrupted"
    undisturbed = launcher().run("run", recipe, "--out", quiet)
    assert undisturbed.status == 0, undisturbed.err
    interrupted = []
    for stage, (number, sign) in INTERRUPTIONS.items():
        life = launcher().start("run", recipe, "--out", out)
        if life.until(under_way(out / "small" / stage / sign)):
            life.signal(number)
        status = life.wait().status
        assert status in (0, -9, 130), life.err
        interrupted += [stage] if status else []
    print("interrupted in:", ", ".join(interrupted))
    assert len(interrupted) >= 6
    ended = launcher().run("run", recipe, "--out", out)
    assert ended.status == 0, ended.err
    assert rows(out / "small") == rows(quiet / "small")
    for stage in ("pretrain", "sft", "reward", "dpo-0", "ppo-0", "grpo-0"):
        found = diff(out / "small" / stage, quiet / "small" / stage)
        assert found.identical, (stage, found.differ)
    again = launcher().run("run", recipe, "--out", out)
    assert again.status == 0 and "training" not in again.err and "ppo-0: done" in again.err
