"""Moderation benchmarks by their columns, baselines, and the stage that puts moderators beside them."""

import json

import numpy as np
import pytest
from data_kit import write_jsonl

from easylm_jax.config.load import load_recipe
from easylm_jax.config.workspace import Workspace
from easylm_jax.evaluate import moderation_sets, moderation_stage
from easylm_jax.evaluate.moderation import counts_of, f1_difference
from easylm_jax.evaluate.moderation_sets import read_set
from easylm_jax.rewards.moderation import FIELDS
from models.errors import UserError
from recipes.wildguard import data, published, small_data

ROW = {
    "prompt": "p", "adversarial": True, "response": "r", "prompt_harm_label": "harmful",
    "response_refusal_label": "refusal", "response_harm_label": "unharmful", "subcategory": "cyberattack",
}  # fmt: skip


def test_the_mixture_is_read_by_its_columns(tmp_path):
    whole = data.conversation(ROW)["messages"]
    assert "Human user:\np\n" in whole[0]["content"] and "AI assistant:\nr\n" in whole[0]["content"]
    assert whole[1]["content"] == "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"
    alone = data.conversation({**ROW, "response": None})["messages"][1]["content"]
    assert alone == "Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A"
    null = data.conversation({**ROW, "response_harm_label": None})["messages"]
    assert null[1]["content"] == alone and "AI assistant:\n\n" in null[0]["content"]
    assert data.conversation({**ROW, "prompt_harm_label": None}) is None
    rows = [ROW, {**ROW, "adversarial": False}, {**ROW, "source": "in_the_wild", "adversarial": False}]
    assert len(list(data.conversations(rows))) == 3
    assert len(list(data.conversations(rows, adversarial=False))) == 2
    assert len(list(data.conversations(rows, adversarial=False, in_the_wild=False))) == 1
    single = data.conversation(ROW, ("prompt_harmfulness",))["messages"][1]["content"]
    assert single.count("N/A") == 2
    path = write_jsonl(tmp_path / "mix.jsonl", rows)
    made = data.write(0, path=str(path))
    assert len(list(made["train.jsonl"])) == 3 and made["balance.jsonl"][0]["adversarial"] == 1
    with pytest.raises(UserError, match="no column prompt_harm_label"):
        list(data.write(0, path=str(write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "x"}])))["train.jsonl"])


def test_benchmarks_have_the_rows_and_positives_of_their_sources(shared_data):
    files = {
        "toxic_chat": ("non_commercial/toxic_chat/toxic_chat_human.jsonl.gz", FIELDS[0], 2853, 362),
        "openai_moderation": ("moderation/openai_moderation/samples_without_S3.jsonl.gz", FIELDS[0], 1595, 437),
        "simple_safety_tests": ("moderation/simple_safety_tests/test_cases.csv", FIELDS[0], 100, 100),
        "jailbreakbench": ("moderation/jailbreakbench/artifacts_pair_jbc.jsonl.gz", FIELDS[2], 545, 209),
        "xstest_completions": ("xstest/xstest_v2_completions_gpt4.csv", FIELDS[1], 450, 220),
        "xstest_prompts": ("xstest/xstest_prompts.csv", FIELDS[0], 450, 200),
    }
    for name, (path, field, count, positives) in files.items():
        rows = read_set(name, str(shared_data / path))
        counts = counts_of(rows, field)
        assert (counts.n, counts.tp + counts.fn) == (count, positives), name
        known = moderation_sets.SETS[name].published.get(field)
        # The 85 rows that the file lacks are all positive, so the paper's numbers follow.
        assert known in (None, (count, positives), (count + 85, positives + 85)), name


def test_training_rows_of_the_small_run_are_none_of_its_tests(shared_data, monkeypatch):
    monkeypatch.setattr(small_data, "DATA", str(shared_data))
    made = small_data.write(1)
    assert len(made["train.jsonl"]) == len(made["rows.jsonl"]) > 4000
    training = {(row["prompt"], row["response"]) for row in made["rows.jsonl"]}
    limit = small_data.LONGEST
    tests = read_set("xstest_completions", str(shared_data / "xstest/xstest_v2_completions_gpt4.csv"))
    tests += read_set("toxic_chat", str(shared_data / "non_commercial/toxic_chat/toxic_chat_human.jsonl.gz"))
    assert not training & {(row["prompt"][:limit], (row.get("response") or "")[:limit] or None) for row in tests}


def test_wrong_benchmarks_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no moderation benchmark"):
        read_set("poems")
    with pytest.raises(UserError, match="give its file"):
        read_set("jailbreakbench")
    with pytest.raises(UserError, match="has no column toxicity"):
        read_set("toxic_chat", str(write_jsonl(tmp_path / "a.jsonl", [{"user_input": "x"}])))


def test_published_rows_average_as_the_paper_says():
    rows = {(one.method, one.column): one.value for one in published.rows()}
    prompts = [rows["WildGuard 7B", f"{name} prompt_harmfulness"] for name in published.PROMPTS[:5]]
    assert round(100 * float(np.mean(prompts)), 1) == 86.1


def test_differences_are_paired():
    gold = [{"gold_response_refusal": "refusal" if i % 2 else "compliance"} for i in range(40)]
    right = [{**row, "response_refusal": row["gold_response_refusal"]} for row in gold]
    none = [{**row, "response_refusal": "compliance"} for row in gold]
    found = f1_difference(right, none, "response_refusal")
    assert found["difference"] == 1.0 and found["stderr"] == 0.0
    assert f1_difference(right, right, "response_refusal") == {"difference": 0.0, "stderr": 0.0}


RECIPE = """
from easylm_jax.config import *
from easylm_jax.config.moderation import ModerationSet, ModerationTable

recipe = Recipe("moderation", stages=(
    ModerationTable("table", title="T", moderators=("run:nowhere",), baselines=(Source("{folder}/train.jsonl"),),
                    sets=(ModerationSet("rows", "{folder}/test.jsonl"),)),
))
"""


def test_the_stage_writes_scores_items_and_tables(tmp_path, monkeypatch):
    def row(number, kind):
        harmful = number % 3 == 0
        text = f"how to {'build a bomb' if harmful else 'bake bread'} {number} {kind}"
        return {"prompt": text, "gold_prompt_harmfulness": "harmful" if harmful else "unharmful",
                "adversarial": number % 2 == 0}  # fmt: skip

    write_jsonl(tmp_path / "train.jsonl", [row(i, "a") for i in range(60)])
    write_jsonl(tmp_path / "test.jsonl", [row(i, "b") for i in range(30)])
    (tmp_path / "recipe.py").write_text(RECIPE.replace("{folder}", str(tmp_path)))
    recipe = load_recipe(str(tmp_path / "recipe.py"))

    def moderator(rows):
        bombs, field = ["bomb" in one["prompt"] for one in rows], "prompt_harmfulness"
        return [
            {field: "harmful" if bomb else "unharmful", "probabilities": {field: 0.9 if bomb else 0.1}}
            for bomb in bombs
        ]

    monkeypatch.setattr(moderation_stage, "load_moderator", lambda *_, **__: moderator)
    monkeypatch.setattr(moderation_stage, "tf_idf", lambda training, seed: moderation_stage.majority(training))
    done = moderation_stage.moderation_table(recipe.stages[0], Workspace(recipe, tmp_path / "runs"))
    assert done["metrics"]["run:nowhere"] == 1.0 and done["metrics"]["majority"] == 0.0
    folder = tmp_path / "runs/moderation/table"
    found = json.loads((folder / "moderation.json").read_text())
    own = found["scores"]["run:nowhere"]["rows"]["prompt_harmfulness"]
    assert own["f1"] == own["vanilla"]["f1"] == own["adversarial"]["f1"] == 1
    assert abs(own["calibration_error"] - 0.1) < 1e-9
    assert found["differences"][0]["difference"] == 1.0
    assert "| majority | rows | prompt_harmfulness | 0.0 |" in (folder / "tables.md").read_text()
    assert len((folder / "items.jsonl").read_text().splitlines()) == 30


def test_tf_idf_learns_words():
    pytest.importorskip("sklearn")
    training = [{"prompt": f"{'bomb' if i % 2 else 'bread'} number {i % 7}",
                 "gold_prompt_harmfulness": "harmful" if i % 2 else "unharmful"} for i in range(40)]  # fmt: skip
    answers = moderation_stage.tf_idf(training)([{"prompt": "a bomb"}, {"prompt": "some bread"}])
    assert [each["prompt_harmfulness"] for each in answers] == ["harmful", "unharmful"]
