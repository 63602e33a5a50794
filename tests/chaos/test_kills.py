"""One run of four stages, killed at random moments in each of them, ends bit for bit as the run that never was.

The seed of the moments is printed; EASYLM_CHAOS_SEED repeats one.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import RECIPE, launcher, losses, project, rows_read

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.tools import diff
from easylm_jax.runtime.monitor.metrics import FILE_NAME, read_metrics

pytestmark = pytest.mark.chaos

STEPS = {"pretrain": 40, "anneal": 20, "sft": 20, "adapter": 20}
STAGES = """\
    Pretrain("pretrain", model=MODEL, data=DataSpec(TEXT, "stage:tokenizer", 64), batch=8, accumulate=2, steps=40,
             optimizer=RATE, z_loss=1e-4, checkpoints=SAVE,
             validation=Validation(DataSpec(CHATS, "stage:tokenizer", 64, kind="chat", template="tulu"), every=10)),
    Pretrain("anneal", init="pretrain", keep_moments=True, data=DataSpec(TEXT, "stage:tokenizer", 32), batch=8,
             steps=20, optimizer=OptimizerConfig("5e-4 linear to 0"), checkpoints=SAVE, dropout=0.1),
    SFT("sft", init="anneal", data=DataSpec(CHATS, "stage:tokenizer", 64, kind="chat", template="tulu",
        packing="best_fit"), batch=16, accumulate=4, steps=20, optimizer=RATE,
        checkpoints=Checkpoints(latest=2, every=3, keep_every=6, history=4)),
    SFT("adapter", init="sft", lora=LoraConfig(rank=4, alpha=8.0, dropout=0.1), data=DataSpec(CHATS,
        "stage:tokenizer", 64, kind="chat", template="tulu", packing="none"), batch=8, steps=20, optimizer=RATE,
        checkpoints=SAVE),
))
"""


def steps_of(root: Path, stage: str) -> int:
    path = root / stage / FILE_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(root: Path, stage: str) -> bool:
    folder = root / stage / "checkpoints"
    return folder.exists() and any(store.TEMPORARY in path.name for path in folder.iterdir())


def moments(root: Path, rng: random.Random) -> list:
    """What to wait for before each kill, by name; a random delay comes on top."""

    def at_step(stage, share):
        wanted = max(1, round(STEPS[stage] * share))
        return lambda: steps_of(root, stage) >= wanted

    half, late = at_step("pretrain", 0.5), at_step("sft", 0.6)
    return [
        ("building a cache", lambda: any((root.parent / "cache").glob(".building-*"))),
        ("compiling", lambda: (root / "pretrain" / "config.json").exists()),
        ("pretrain", at_step("pretrain", rng.uniform(0.1, 0.4))),
        ("saving", lambda: half() and saving(root, "pretrain")),
        ("anneal", at_step("anneal", rng.uniform(0.1, 0.9))),
        ("sft", at_step("sft", rng.uniform(0.1, 0.5))),
        ("saving sft", lambda: late() and saving(root, "sft")),
        ("adapter", at_step("adapter", rng.uniform(0.1, 0.9))),
        ("its end", lambda: (root / "adapter" / "merged").exists() or (root / "adapter" / "done.json").exists()),
    ]


def test_a_run_killed_at_random_moments_of_every_stage_ends_bit_identical(tmp_path):
    seed = int(os.environ.get("EASYLM_CHAOS_SEED", random.randrange(10**6)))
    print(f"EASYLM_CHAOS_SEED={seed}")
    rng = random.Random(seed)
    text = RECIPE[: RECIPE.index("    Pretrain(")] + STAGES
    recipe = project(tmp_path / "project", text, texts=4000)
    quiet, out = tmp_path / "quiet", tmp_path / "killed"
    undisturbed = launcher().run("run", recipe, "--out", quiet, batches=tmp_path / "quiet.jsonl")
    assert undisturbed.status == 0, undisturbed.err
    root, expected = out / "tiny", quiet / "tiny"
    kills = []
    for name, ready in moments(root, rng):
        # Some lives compile for themselves, so that a kill can also come while they do.
        options = {"jax_enable_compilation_cache": rng.random() < 0.5 and name != "compiling"}
        life = launcher().start("run", recipe, "--out", out, batches=tmp_path / "killed.jsonl", options=options)
        if life.until(ready):
            time.sleep(rng.uniform(0.0, 0.15) if name != "compiling" else rng.uniform(0.0, 2.0))
            life.signal(signal.SIGKILL)
        status = life.wait().status
        assert status in (0, -9), life.err
        kills += [name] if status == -9 else []
        for stage in STEPS:
            for step in store.committed_steps(root / stage / "checkpoints"):
                assert store.damage(root / stage / "checkpoints" / str(step)) == [], (name, stage, step)
    print("killed while:", ", ".join(kills))
    assert len(kills) >= 5
    ended = launcher().run("run", recipe, "--out", out, batches=tmp_path / "killed.jsonl")
    assert ended.status == 0, ended.err
    for stage, steps in STEPS.items():
        found = diff(root / stage, expected / stage)
        assert found.identical, (stage, found.differ)
        assert [line["step"] for line in read_metrics(root / stage)] == list(range(1, steps + 1))
        for metric in ("loss", "grad_norm", "tokens"):
            assert losses(root / stage, metric) == losses(expected / stage, metric), (stage, metric)
    assert diff(root / "adapter" / "merged", expected / "adapter" / "merged").identical
    assert store.committed_steps(root / "sft" / "checkpoints") == store.committed_steps(
        expected / "sft" / "checkpoints"
    )
    history = root / "sft" / "checkpoints" / store.HISTORY
    assert store.committed_steps(history) == [4, 8, 12, 16, 20]
    assert rows_read(tmp_path / "killed.jsonl") == rows_read(tmp_path / "quiet.jsonl")
    held_out = [line for line in read_metrics(root / "pretrain") if "validation_loss" in line]
    expected_held_out = [line for line in read_metrics(expected / "pretrain") if "validation_loss" in line]
    assert [line["validation_loss"] for line in held_out] == [line["validation_loss"] for line in expected_held_out]
    assert len(held_out) == 4
