"""The reference of a recipe's fields: all documented, printed by `easylm fields`, and the page is what it prints."""

import dataclasses
from pathlib import Path

import pytest

from easylm_jax import config
from easylm_jax.cli.main import main
from easylm_jax.config import reference

PAGE = Path(__file__).resolve().parent.parent / "docs/fields.md"


def test_the_page_of_fields_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == reference.page(), "write it again: easylm fields --page > docs/fields.md"


@pytest.mark.parametrize("name", reference.classes())
def test_every_field_says_what_it_means(name):
    cls = reference.classes()[name]
    docs = reference.describe(cls)
    assert [doc.name for doc in docs] == [field.name for field in dataclasses.fields(cls)]
    for doc in docs:
        assert len(doc.meaning) > 10 and doc.meaning[-1] in ".)", f"{name}.{doc.name}: write what it means below it"
    assert reference.summary(cls)


def test_every_stage_and_every_class_that_recipes_hold_has_a_reference():
    known = set(reference.classes().values())
    for name in config.__all__:
        cls = getattr(config, name)
        if dataclasses.is_dataclass(cls) and name not in reference._ABSTRACT:
            assert cls in known, name


def test_a_subclass_may_give_a_field_another_meaning():
    def meaning(cls, name):
        return next(doc.meaning for doc in reference.describe(cls) if doc.name == name)

    assert "packed cache" in meaning(config.SFT, "batch") and "Prompts of a step" in meaning(config.GRPO, "batch")
    assert meaning(config.GRPO, "accumulate") == meaning(config.SFT, "accumulate")


def test_fields_prints_types_defaults_and_meanings(capsys):
    assert main(["fields", "GRPO"]) == 0
    shown = capsys.readouterr().out
    assert "  clip_low = 0.2    [number above 0]\n      The ratio counts down to" in shown
    assert "  optimizer (must be given)    [OptimizerConfig]" in shown
    assert '  aggregation = \'token\'    ["token", "sequence", "dr_grpo", "bnpo"]' in shown
    assert "GRPO.optimizer" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    "path, name",
    [
        ("grpo", "GRPO"),
        ("GRPO.optimizer", "OptimizerConfig"),
        ("GRPO.optimizer.skip_step", "SkipStep"),
        ("SFT.data.sources", "Source"),
        ("SFT.data.sources.0", "Source"),
        ("Evaluate.tasks.sampling", "Sampling"),
        ("DPO.model", "DecoderConfig"),
    ],
)
def test_a_path_leads_into_nested_fields(path, name):
    assert reference.find(path).__name__ == name


@pytest.mark.parametrize(
    "path, says",
    [
        ("GPRO", "no part of a recipe is called 'GPRO'; did you mean 'GRPO'?"),
        ("zzzz", "no part of a recipe is called 'zzzz'; there are Recipe, AddVision, Average,"),
        ("GRPO.optimiser", "GRPO has no field 'optimiser'; did you mean 'optimizer'?"),
        ("GRPO.kl", "GRPO.kl has no fields of its own; `easylm fields GRPO` says what it is"),
    ],
)
def test_a_name_that_is_unknown_is_told_in_one_line(path, says, capsys):
    assert main(["fields", path]) == 2
    assert capsys.readouterr().err.startswith(f"easylm: error: {says}")


def test_without_a_name_all_classes_are_listed(capsys):
    assert main(["fields"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(reference.classes())
