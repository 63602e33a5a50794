"""The line at the start of a run. No test looks at how long anything takes, only at what is made of it."""

import dataclasses
import math

import pytest

from easylm_jax import experiment
from easylm_jax.config import MakeData, Recipe
from easylm_jax.runtime.monitor import duration


@pytest.mark.parametrize(
    ("length", "seconds", "words"),
    [(12_000, 0.03, "about 6 minutes"), (12_000, 0.06, "about 12 minutes"), (1_000, 0.06, "about 1 minute "),
     (1_000, 0.01, "less than a minute")],
)  # fmt: skip
def test_the_line_is_the_recipes_length_times_the_probe(length, seconds, words):
    line = duration.announcement(length, seconds)
    assert words in line and f"{1000 * seconds:.1f} ms" in line


def test_the_probe_is_a_finite_positive_time():
    seconds = duration.probe()
    assert math.isfinite(seconds) and seconds > 0


WHOLE = Recipe("whole", stages=(MakeData("data", function="recipes.arithmetic:write"),), length=600.0)


@pytest.mark.parametrize("length", [600.0, None])
def test_a_recipe_that_states_its_length_is_announced_and_no_other(length, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duration, "probe", lambda: 0.5)
    experiment.Experiment(dataclasses.replace(WHOLE, length=length), tmp_path).print_estimate()
    assert ("about 5 minutes" in capsys.readouterr().err) == (length is not None)


def test_a_run_that_has_begun_is_not_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duration, "probe", lambda: pytest.fail("nothing is to be measured"))
    begun = experiment.Experiment(WHOLE, tmp_path)
    monkeypatch.setattr(begun, "progress", lambda stage: "done")
    begun.print_estimate()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("overrides", "same"), [([], True), (["sft.seed=1", "data.seed=2"], True), (["pretrain.steps=9"], False)]
)
def test_only_other_seeds_leave_a_recipe_as_long_as_it_says(overrides, same):
    assert experiment._only_seeds_changed(overrides) == same
