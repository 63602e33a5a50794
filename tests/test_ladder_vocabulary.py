"""Presets of a scaling ladder take the vocabulary of their tokenizer; released sizes and older runs keep theirs."""

import dataclasses

import data_kit
import jax
import numpy as np
import pytest

import models
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.checkpoint.preflight import check_models
from easylm_jax.config import DataSpec, OptimizerConfig, Pretrain, Recipe, Source, Tokenizer
from easylm_jax.config.workspace import Workspace
from easylm_jax.data import load_tokenizer
from easylm_jax.plan import shapes
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train.state import stage_model
from models import registry


def workspace(folder, model):
    source = (Source(str(data_kit.write_jsonl(folder / "texts.jsonl", [{"text": "a b"}]))),)
    stages = (
        Tokenizer("tokenizer", sources=source, vocab_size=420),
        Pretrain("pretrain", model=model, data=DataSpec(source, "stage:tokenizer", 32), batch=4, steps=2,
                 optimizer=OptimizerConfig("1e-3")),
    )  # fmt: skip
    data_kit.sentencepiece(folder / "runs/small/tokenizer")
    return Workspace(Recipe("small", stages), folder / "runs")


def trained_config(space):
    return stage_model(space.recipe.stage("pretrain"), space, make_mesh("fsdp=1", jax.devices()[:1])).config


def test_a_size_of_the_ladder_takes_its_tokenizers_vocabulary_padded_to_shard_well(tmp_path):
    space = workspace(tmp_path, "olmo2-30m")
    config, preset = trained_config(space), models.preset("olmo2-30m")
    tokenizer = load_tokenizer(f"sp:{tmp_path}/runs/small/tokenizer/tokenizer.model")
    assert (config.vocab, config.vocab_used) == (512, 420) and config.vocab % registry.VOCAB_MULTIPLE == 0
    assert (config.bos_id, config.eos_id, config.pad_id) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    same = {"vocab": 1, "vocab_used": 1, "bos_id": None, "eos_id": None, "pad_id": None}
    assert config.replace(**same) == preset.replace(**same)
    planned = shapes.stage_config(space.recipe.stage("pretrain"), space.recipe)
    assert planned.vocab == 512 and shapes.preset_name(planned) == "olmo2-30m"
    check_models(space.recipe.stages, space)


@pytest.mark.parametrize("model", ["olmo2-1b", models.preset("olmo2-30m")], ids=["released", "a configuration"])
def test_a_released_size_and_a_given_configuration_keep_their_vocabulary(tmp_path, model):
    space = workspace(tmp_path, model)
    assert trained_config(space).vocab == 100352
    assert shapes.stage_config(space.recipe.stage("pretrain"), space.recipe).vocab == 100352


def test_the_familys_own_tokenizer_gives_the_ladder_the_rows_it_always_had():
    dolma = {"bos_id": None, "eos_id": 100257, "pad_id": 100277}
    preset = models.preset("olmo3-190m")
    assert registry.with_vocabulary(preset, 100278, **dolma) == preset


def test_a_run_that_began_with_the_familys_vocabulary_goes_on_with_it(tmp_path):
    space = workspace(tmp_path, "olmo2-14m")
    meta = {"model": dataclasses.asdict(models.preset("olmo2-14m"))}
    with Checkpointer(space.folder("pretrain") / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": np.zeros(3)}, meta)
    assert trained_config(space).vocab == 100352
