import dataclasses
import json
import os
import shutil

import data_kit
import jax
import numpy as np
import pytest
from tiny_models import random_params

import models
from easylm_jax.checkpoint import load
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.cli import main
from easylm_jax.data import load_tokenizer
from models.config import RopeScaling
from models.errors import UserError


@pytest.fixture
def hf_folder(tmp_path, tiny_model_config):
    """A tiny model as a Hugging Face folder, with its parameters."""
    model = models.build(tiny_model_config)
    params = random_params(model)
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


@pytest.fixture
def chat_stage(tmp_path, tiny_model_config):
    """A stage trained on chats with a vocabulary of its run, by its folder; the vocabulary's recorded path is stale."""
    tokenizer = load_tokenizer(data_kit.sentencepiece(tmp_path / "run/tokenizer"))
    config = tiny_model_config.replace(vocab=424, eos_id=100257, pad_id=100277)  # as in a preset of another vocabulary
    data = {"tokenizer": "stage:tokenizer", "template": "tulu", "add_bos": False}
    meta = {"model": dataclasses.asdict(config), "tokenizer": "sp:/moved/tokenizer.model",
            "tokenizer_hash": tokenizer.hash, "config": {"data": data, "checkpoints": {"latest": 3}}}  # fmt: skip
    params = random_params(models.build(config))
    with Checkpointer(tmp_path / "run/sft/checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(7, {"params": params}, meta)
    return tmp_path / "run/sft", tokenizer


def test_an_export_has_the_tokenizer_the_chat_template_and_the_end_token_of_its_run(tmp_path, chat_stage, capsys):
    stage, tokenizer = chat_stage
    assert easylm(stage, tmp_path / "out") == 0
    assert capsys.readouterr() == (f"wrote {tmp_path / 'out'}\n", "")
    read = lambda name: json.loads((tmp_path / "out" / name).read_text())  # noqa: E731
    ids = {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    assert read("config.json").items() >= ids.items()
    assert read("generation_config.json") == {**ids, "eos_token_id": [tokenizer.eos_id]}
    settings = read("tokenizer_config.json")
    assert settings["eos_token"] == "</s>" and settings["model_max_length"] == 64
    assert "'<|assistant|>\\n' + message['content'] + '</s>'" in settings["chat_template"]
    assert (tmp_path / "out/chat_template.jinja").read_text() == settings["chat_template"]
    assert (tmp_path / "out/tokenizer.model").read_bytes() == tokenizer.path.read_bytes()
    converted = load_tokenizer(f"hf:{tmp_path / 'out'}")
    for text in [*data_kit.corpus(), "  two\n\n lines </s> 日本 "]:
        assert converted.encode(text) == tokenizer.encode(text)
        assert converted.decode(converted.encode(text)) == text


def test_exported_files_have_the_modes_of_the_users_umask(tmp_path, chat_stage):
    before = os.umask(0o027)
    try:
        assert easylm(chat_stage[0], tmp_path / "out") == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o640) and "model.safetensors" in modes
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_the_tokenizer_of_a_hugging_face_folder_comes_back_with_its_model(tmp_path, chat_stage, capsys):
    exported = tmp_path / "exported"
    easylm(chat_stage[0], exported)
    ends = {"eos_token_id": [2, 9], "bos_token_id": 1, "pad_token_id": 0, "temperature": 0.6}
    (exported / "generation_config.json").write_text(json.dumps(ends))
    assert easylm(f"hf:{exported}", tmp_path / "stage") == 0
    assert easylm(tmp_path / "stage", tmp_path / "back") == 0
    assert capsys.readouterr().err == ""
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (exported / name).read_bytes(), name
    assert json.loads((tmp_path / "back/generation_config.json").read_text()) == ends


def test_an_export_without_a_tokenizer_says_what_it_lacks(tmp_path, hf_folder, capsys):
    easylm(hf_folder[0], tmp_path / "stage")
    assert easylm(tmp_path / "stage", tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "weights only, no tokenizer and no end token" in err and "--tokenizer" in err


def test_tokenizer_option_belongs_to_a_hugging_face_folder(tmp_path, hf_folder, capsys):
    source, _ = hf_folder
    assert easylm(source, tmp_path / "stage", "--tokenizer", source) == 2
    assert "--tokenizer" in capsys.readouterr().err
    easylm(source, tmp_path / "stage")
    words = data_kit.hf_tokenizer(tmp_path / "words")
    assert easylm(tmp_path / "stage", tmp_path / "out", "--tokenizer", words) == 2
    assert "the model only 64" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_average_keeps_tokenizer_and_template_and_is_listed(tmp_path, chat_stage, capsys):
    stage, tokenizer = chat_stage
    soup = tmp_path / "elsewhere/soup"
    assert main.main(["checkpoints", "average", str(stage), str(stage / "checkpoints/7"), "--out", str(soup)]) == 0
    _, meta, spec = load.resolve_model(str(soup))
    assert meta["config"]["data"]["template"] == "tulu" and load_tokenizer(spec).hash == tokenizer.hash
    capsys.readouterr()
    assert main.main(["checkpoints", "list", str(soup)]) == 0
    assert "average" in capsys.readouterr().out
    for source in (stage, soup):
        assert easylm(source, tmp_path / source.name) == 0
    for name in ("tokenizer_config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "soup" / name).read_bytes() == (tmp_path / "sft" / name).read_bytes(), name


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
