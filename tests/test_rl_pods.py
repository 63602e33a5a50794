"""Two processes train while two others sample, one step ahead: the same rollouts as in one process, resumed exactly."""

import json

import numpy as np
import pytest
import rl_kit
from rl_kit import lines
from support import launcher, only_line

from easylm_jax.checkpoint.tools import diff
from easylm_jax.config.load import load_recipe
from easylm_jax.experiment import Experiment
from easylm_jax.runtime.monitor.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 4
COMMON = f"""
    batch=4, samples=2, steps={STEPS}, refill=1, keep_samples=8, kl=0.05, check="rl_kit:share_of_e",
    validation=Validation(prompts(HOME), every=2), checkpoints=Checkpoints(every=1, latest=3),
    optimizer=OptimizerConfig("1e-2", weight_decay=0.0, eps=1e-3),
"""
STAGE = f'grpo("split", asynchronous=1, {{devices}} {COMMON}),'
SYNCHRONOUS = f'grpo("split", {COMMON}),'


def samples(root):
    """The responses to training and held-out prompts, by file; scores and divergences apart."""
    texts, numbers = {}, {}
    for path in sorted((root / "split" / "samples").rglob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        name = str(path.relative_to(root))
        numbers[name] = [[record.pop(key) for key in ("score", "kl") if key in record] for record in records]
        texts[name] = records
    return texts, numbers


def four(recipe, out, *more, **how):
    return launcher().processes(4, "run", recipe, "--out", out, *more, **how)


def succeeded(results):
    assert [result.status for result in results] == [0] * len(results), [result.err[-3000:] for result in results]
    assert not any(result.err for result in results[1:])  # one process speaks


def seconds(root):
    """Of a step, without those that compile."""
    return float(np.mean([line["seconds"] for line in read_metrics(root / "split") if line["step"] > 2]))


def test_two_processes_sample_while_two_train(tmp_path):
    for name in ("alone", "pod", "all"):
        (tmp_path / name).mkdir()
    alone = rl_kit.recipe_file(tmp_path / "alone", STAGE.replace("{devices}", ""))
    pod = rl_kit.recipe_file(tmp_path / "pod", STAGE.replace("{devices}", "rollout_devices=2,"))
    one = Experiment(load_recipe(str(alone)), rl_kit.copy_of_run(tmp_path / "one"))
    with rl_kit.devices(1):
        for stage in one.in_order():
            one.run(stage)
    quiet, killed = (rl_kit.copy_of_run(tmp_path / name) for name in ("quiet", "killed"))
    succeeded(four(pod, quiet, "mesh=fsdp=2"))

    # The same rollouts, by the same parameters.
    (mine, my_numbers), (theirs, their_numbers) = samples(quiet / "rl"), samples(one.root)
    assert mine == theirs and len(mine) == STEPS + 3
    for name in mine:
        np.testing.assert_allclose(my_numbers[name], their_numbers[name], atol=1e-4)
    told, expected = read_metrics(quiet / "rl" / "split"), read_metrics(one.folder("split"))
    assert (
        [line.get("staleness") for line in told] == [line.get("staleness") for line in expected] == [None, 0, 1, 1, 1]
    )
    for mine, theirs in zip(told, expected, strict=True):
        for name in ("score", "loss", "sampler_gap", "weight", "validation_score", "batches_drawn", "kl"):
            assert mine.get(name) == pytest.approx(theirs.get(name), abs=1e-4), (name, mine["step"])

    # A process that samples is killed before it hands over its third rollout; all end, and resume to the same bits.
    at = {3: "easylm_jax.train.rl.trainer:RolloutLoop._sample_ahead:3:SIGKILL"}
    results = four(pod, killed, "mesh=fsdp=2", at=at)
    assert results[3].status == -9 and all(result.status in (75, -6) for result in results[:3]), results
    succeeded(four(pod, killed, "mesh=fsdp=2"))
    found = diff(killed / "rl" / "split", quiet / "rl" / "split")
    assert found.identical, found.differ
    assert lines(killed / "rl" / "split") == lines(quiet / "rl" / "split")
    assert samples(killed / "rl") == samples(quiet / "rl")

    # Beside it, all four do both in turn.
    everywhere = rl_kit.copy_of_run(tmp_path / "everywhere")
    succeeded(four(rl_kit.recipe_file(tmp_path / "all", SYNCHRONOUS), everywhere, "mesh=fsdp=4"))
    waited = [line["wait_seconds"] for line in told if line["step"] > 2]
    print(f"seconds a step: synchronous {seconds(everywhere / 'rl'):.3f}, one step ahead {seconds(quiet / 'rl'):.3f}, "
          f"of which waiting for the rollout {np.mean(waited):.3f}")  # fmt: skip


def test_processes_either_train_or_sample(tmp_path):
    recipe = rl_kit.recipe_file(tmp_path, STAGE.replace("{devices}", "rollout_devices=1,"))
    out = rl_kit.copy_of_run(tmp_path / "runs")
    first, _ = launcher().processes(2, "run", recipe, "--out", out, devices=2)
    assert "it must be the devices of whole processes, a multiple of 2" in only_line(first)
