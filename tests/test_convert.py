import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import models
from easylm_jax.checkpoint import load
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.cli import main
from models.config import RopeScaling
from models.errors import UserError


@pytest.fixture
def hf_folder(tmp_path, tiny_model_config):
    """A tiny model as a Hugging Face folder, with its parameters."""
    model = models.build(tiny_model_config)
    params = model.init(jax.random.key(0))
    models.save_hf(model, params, tmp_path / "hf")
    return tmp_path / "hf", params


def easylm(*arguments):
    return main.main(["convert", *map(str, arguments)])


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_there_and_back_gives_the_same_files(tmp_path, hf_folder, capsys):
    source, params = hf_folder
    assert easylm(source, tmp_path / "stage") == 0
    assert easylm(tmp_path / "stage", tmp_path / "back") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'stage'}\nwrote {tmp_path / 'back'}\n"
    assert weights(tmp_path / "back") == weights(source)
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((source / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / "stage"), dict(params))


def test_one_step_of_a_stage_with_its_config_beside_it(tmp_path, hf_folder, tiny_model_config):
    source, params = hf_folder
    with Checkpointer(tmp_path / "stage/checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(3, {"params": params, "step": np.int32(3)}, {})
        checkpointer.save(4, {"params": jax.tree.map(lambda x: x + 1, params), "step": np.int32(4)}, {})
    (tmp_path / "stage/config.json").write_text(json.dumps({"model": dataclasses.asdict(tiny_model_config)}))
    assert easylm(tmp_path / "stage/checkpoints/3", tmp_path / "three") == 0
    assert easylm(tmp_path / "stage", tmp_path / "latest") == 0
    assert weights(tmp_path / "three") == weights(source) != weights(tmp_path / "latest")


def test_weights_can_be_written_as_bfloat16(tmp_path, hf_folder):
    source, _ = hf_folder
    easylm(source, tmp_path / "stage")
    easylm(tmp_path / "stage", tmp_path / "half", "--dtype", "bfloat16")
    assert len(weights(tmp_path / "half")) < 0.6 * len(weights(source))
    easylm(source, tmp_path / "half-stage", "--dtype", "bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(restore_params(tmp_path / "half-stage"))} == {"bfloat16"}


def test_nothing_that_is_there_is_overwritten_unasked(tmp_path, hf_folder, capsys):
    source, _ = hf_folder
    assert easylm(source, tmp_path / "stage") == 0
    assert easylm(source, tmp_path / "stage") == 2
    assert "--overwrite" in capsys.readouterr().err
    before = weights(source)
    assert easylm(tmp_path / "stage", source) == 2
    assert "is not empty" in capsys.readouterr().err and weights(source) == before
    assert easylm(tmp_path / "stage", source, "--overwrite") == 0
    assert easylm(source, tmp_path / "stage", "--overwrite") == 0


def test_checkpoint_that_does_not_say_its_model_asks_for_one(tmp_path, hf_folder, capsys):
    _, params = hf_folder
    with Checkpointer(tmp_path / "stage/checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": params}, {})
    assert easylm(tmp_path / "stage", tmp_path / "out") == 2
    assert "name a preset with --model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert easylm(tmp_path / "stage", tmp_path / "out", "--model", "olmo2-1") == 2
    assert "olmo2-1b" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["missing", "empty"])
def test_source_that_is_neither_form_is_named(tmp_path, capsys, source):
    (tmp_path / "empty").mkdir()
    assert easylm(tmp_path / source, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and source in err
    assert not (tmp_path / "out").exists()


def test_tokenizer_option_belongs_to_a_hugging_face_folder(tmp_path, hf_folder, capsys):
    source, _ = hf_folder
    assert easylm(source, tmp_path / "stage", "--tokenizer", source) == 2
    assert "--tokenizer" in capsys.readouterr().err
    easylm(source, tmp_path / "stage")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/tokenizer.json").write_text("{}")
    assert easylm(tmp_path / "stage", tmp_path / "out", "--tokenizer", tmp_path / "words") == 0
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"


def test_model_described_in_json_is_read_back(tiny_model_config):
    config = tiny_model_config.replace(rope_scaling=RopeScaling("llama3", 8.0))
    assert load.read_model_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert load.read_model_config("olmo2-1b") == models.preset("olmo2-1b")
    with pytest.raises(UserError, match="unknown fields colour"):
        load.read_model_config({**dataclasses.asdict(config), "colour": 1})


def test_damaged_checkpoint_writes_nothing(tmp_path, hf_folder, capsys):
    source, _ = hf_folder
    easylm(source, tmp_path / "stage")
    shutil.rmtree(tmp_path / "stage/checkpoints/0/state")
    assert easylm(tmp_path / "stage", tmp_path / "out") == 2
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()
