"""Reward models and preference optimisation as stages of a recipe, from pairs on disk to checkpoints."""

import json

import jax
import numpy as np
import pytest
import rl_kit

from easylm_jax.config import (
    DPO,
    Checkpoints,
    DataSpec,
    DecoderConfig,
    OptimizerConfig,
    Pretrain,
    Recipe,
    RewardModel,
    Source,
    Tokenizer,
    Validation,
)
from easylm_jax.experiment import Experiment
from easylm_jax.runtime.monitor import read_metrics
from easylm_jax.train.reference_logprobs import parameter_fingerprint

MODEL = DecoderConfig(family="olmo2", layers=1, width=32, heads=4, ffn=48, vocab=320, context=64, qk_norm=True)
RATE = OptimizerConfig("1e-2 linear to 0", weight_decay=0.0)


def pair(number):
    """The chosen side counts up, the rejected one down: two tokens tell them apart."""
    ask = [{"role": "user", "content": f"go {number % 7}"}]
    up, down = ({"role": "assistant", "content": text} for text in ("one two three", "three two one"))
    return {"chosen": [*ask, up], "rejected": [*ask, down]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(60)))
    (folder / "text.txt").write_text("one two three four five six seven go up and down\n" * 60)
    text = DataSpec((Source(str(folder / "text.txt"), text_unit="line"),), "stage:tokenizer", 32)

    def pairs(**part):
        source = Source(str(folder / "pairs.jsonl"), **part)
        return DataSpec((source,), "stage:tokenizer", 64, kind="preference", template="tulu", max_pairs_per_row=2)

    train, held_out = pairs(limit=48), Validation(pairs(skip=48))
    common = {
        "data": train,
        "validation": held_out,
        "batch": 8,
        "optimizer": RATE,
        "checkpoints": Checkpoints(every=30),
    }
    stages = (
        Tokenizer("tokenizer", sources=text.sources, vocab_size=300),
        Pretrain("base", model=MODEL, data=text, batch=8, steps=3, optimizer=RATE),
        RewardModel("rm", init="base", steps=30, epochs=30, **common),
        DPO("cached", init="base", steps=12, epochs=30, **common),
        DPO("live", init="base", steps=12, epochs=30, reference="model", **common),
    )
    recipe = Recipe("preference", stages, mesh="fsdp=-1")
    experiment = Experiment(recipe, folder / "runs")
    with rl_kit.devices(2):
        for stage in experiment.in_order():
            experiment.run(stage)
    return experiment


def losses(experiment, stage):
    return [line["loss"] for line in read_metrics(experiment.folder(stage))]


def test_a_reward_model_ranks_held_out_pairs(runs):
    metrics = runs.done(runs.recipe.stage("rm"))["metrics"]
    assert metrics["validation_accuracy"] == 1.0
    assert metrics["validation_loss"] < 0.1


def test_preference_training_starts_at_the_loss_of_a_coin(runs):
    """Policy and reference are the same at first, and a warm-up from 0 is not asked for: step 1 is exactly ln 2."""
    assert losses(runs, "cached")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(runs, "cached")[-1] < 0.3


def test_cached_and_live_references_train_alike(runs):
    np.testing.assert_allclose(losses(runs, "cached"), losses(runs, "live"), rtol=1e-5)


def test_the_fingerprint_of_parameters_sees_any_bit_and_any_swap():
    params = {"a": jax.random.normal(jax.random.key(0), (3, 5)), "b": np.arange(4, dtype=np.float32)}
    same = parameter_fingerprint(params)
    assert parameter_fingerprint(jax.tree.map(np.array, params)) == same
    bumped = {**params, "a": params["a"].at[2, 3].set(np.nextafter(params["a"][2, 3], 9, dtype=np.float32))}
    assert parameter_fingerprint(bumped) != same
    assert parameter_fingerprint({**params, "b": params["b"][::-1]}) != same
    assert parameter_fingerprint({"a": params["b"], "b": params["a"]}) != same
