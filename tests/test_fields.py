"""Recipes survive JSON, and a command line can change any field of one by its type."""

import dataclasses
import json
from typing import Literal

import pytest

from easylm_jax.config import Checkpoints, DataSpec, OptimizerConfig, Pretrain, Recipe, SkipStep, Source, fields
from models.config import Compute, DecoderConfig, RopeScaling
from models.errors import UserError

MODEL = DecoderConfig(
    family="olmo2", layers=2, width=32, heads=4, ffn=64, vocab=64, context=64, rope_scaling=RopeScaling("yarn", 8.0)
)  # fmt: skip
STAGE = Pretrain(
    "pretrain",
    model=MODEL,
    data=DataSpec(
        (Source("a.jsonl", fields={"user": "q", "assistant": "a"}), Source("b.jsonl")),
        "sp:t", 64, kind="chat", template="tulu", packing="best_fit",
    ),
    batch=4,
    steps=10,
    optimizer=OptimizerConfig("1e-3 linear to 0", skip_step=SkipStep(window=32, min_values=8)),
)  # fmt: skip


def test_a_stage_comes_back_from_json_as_it_was():
    text = json.dumps(fields.encode(STAGE))
    assert fields.decode(Pretrain, json.loads(text)) == STAGE


@dataclasses.dataclass(frozen=True)
class Before:
    steps: int = 3


def test_a_field_that_came_later_changes_no_digest_until_it_is_used():
    after = dataclasses.make_dataclass("Before", [("steps", int, 3), ("more", int | None, fields.added_later(None))])
    assert fields.digest(after()) == fields.digest(Before()) and "more" not in fields.encode(after())
    assert fields.digest(after(more=0)) != fields.digest(Before()) and fields.encode(after(more=0))["more"] == 0
    assert fields.decode(after, fields.encode(after())) == after()
    assert fields.decode(after, fields.encode(after(more=2))) == after(more=2)
    assert fields.override(after(), "more", "5") == after(more=5)


def test_any_changed_field_changes_the_digest():
    same = dataclasses.replace(STAGE)
    assert fields.digest(same) == fields.digest(STAGE)
    for changed in (
        dataclasses.replace(STAGE, seed=1),
        dataclasses.replace(STAGE, optimizer=OptimizerConfig("1e-3 linear to 0")),
        dataclasses.replace(STAGE, model=MODEL.replace(rope_scaling=RopeScaling("yarn", 4.0))),
    ):
        assert fields.digest(changed) != fields.digest(STAGE)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "1e4", 10_000),
        ("batch", "1_024", 1024),
        ("z_loss", "1e-4", 1e-4),
        ("optimizer.lr", "2e-5 linear to 0 warmup 3%", "2e-5 linear to 0 warmup 3%"),
        ("optimizer.clip", "none", None),
        ("optimizer.trainable", "head,attn.q", ("head", "attn.q")),
        ("model.layers", "3", 3),
        ("model.rope_scaling.factor", "4", 4.0),
        ("compute.dtype", "bfloat16", "bfloat16"),
        ("compute.remat", "full", "full"),
        ("data.document_mask", "false", False),
        ("data.sources.1.path", "c.jsonl", "c.jsonl"),
        ("checkpoints.keep_every", "100", 100),
        ("keep_moments", "True", True),
    ],
)
def test_text_is_read_as_the_field_says(path, text, value):
    changed = fields.override(STAGE, path, text)
    for name in path.split("."):
        changed = changed[int(name)] if isinstance(changed, tuple) else getattr(changed, name)
    assert changed == value and type(changed) is type(value)


def test_an_override_leaves_the_original_and_its_other_fields_alone():
    changed = fields.override(STAGE, "data.sources.1.path", "c.jsonl")
    assert STAGE.data.sources[1].path == "b.jsonl"
    assert dataclasses.replace(changed, data=STAGE.data) == STAGE
    assert changed.data.sources[0] == STAGE.data.sources[0]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("stepz", "3", "Pretrain has no field 'stepz'; did you mean 'steps'"),
        ("optimizer.lrr", "3", "OptimizerConfig has no field 'lrr'; did you mean 'optimizer.lr'"),
        ("steps", "many", "steps: 'many' is not a whole number or none"),
        ("steps", "2.5", "'2.5' is not a whole number"),
        ("compute.remat", "some", "is not one of 'none', 'full', 'attention', 'outputs', 'dots'"),
        ("data.document_mask", "maybe", "is not true or false"),
        ("batch.size", "3", "batch is 4 and has no fields"),
        ("data.sources.7.path", "x", "write an index below 2"),
        ("optimizer.lr", "fast", "fast"),
        ("batch", "0", "pretrain.batch: 0 is not a whole number of at least 1"),
        ("batch", "1e30", "pretrain.batch: a number of 100 bits is not a whole number of 64 bits"),
        ("seed", "-1", "pretrain.seed: -1 is not a whole number of at least 0"),
        ("epochs", "nan", "pretrain.epochs: nan is not a number that is finite"),
        ("dropout", "1", "pretrain.dropout: 1.0 is not a number below 1"),
        ("checkpoints.every", "0", "pretrain.checkpoints.every: 0 is not a whole number of at least 1"),
        ("optimizer.clip", "inf", "optimizer.clip: inf is not a number that is finite"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        fields.override(STAGE, path, text)
    assert "\n" not in str(caught.value)


def test_a_field_that_is_gone_is_named_when_an_old_file_is_read():
    data = fields.encode(Checkpoints())
    with pytest.raises(UserError, match="Checkpoints has no field 'evry'; did you mean 'every'"):
        fields.decode(Checkpoints, {**data, "evry": 3})


def test_a_literal_keeps_its_choices():
    @dataclasses.dataclass(frozen=True)
    class Choice:
        kind: Literal["a", "b"] = "a"

    assert fields.override(Choice(), "kind", "b").kind == "b"
    with pytest.raises(UserError):
        fields.override(Choice(), "kind", "c")


def test_a_recipe_refuses_names_that_lead_nowhere():
    with pytest.raises(UserError, match="two stages are called 'pretrain'"):
        Recipe("r", (STAGE, STAGE))
    with pytest.raises(UserError, match="starts from 'sft', which is no stage"):
        Recipe("r", (dataclasses.replace(STAGE, model=None, init="sft"),))
    with pytest.raises(UserError, match="give either model .* or init"):
        dataclasses.replace(STAGE, init="sft")
    assert Compute() == fields.decode(Compute, fields.encode(Compute()))
