"""`easylm eval MODERATOR --suite wildguard`: categories, filters on labelled responses, and a moderator as a judge."""

import csv
import json

import pytest
from data_kit import write_jsonl

from easylm_jax.cli import main
from easylm_jax.evaluate import judges, moderation_command, moderation_report
from easylm_jax.evaluate.moderation import CATEGORIES, GROUP_OF, category_recall
from easylm_jax.evaluate.moderation_sets import read_set
from easylm_jax.rewards.moderation import FIELDS, PROMPT_HARM, REFUSAL, RESPONSE_HARM, VALUES, parse_moderation
from models.errors import UserError


def row(number, category, *, harmful=True, refusal="refusal", harm="unharmful"):
    """A row in the columns of WildGuardTest."""
    return {
        "prompt": f"{number} {category}", "adversarial": number % 2 == 0, "response": "no",
        "prompt_harm_label": "harmful" if harmful else "unharmful", "response_refusal_label": refusal,
        "response_harm_label": harm, "subcategory": category,
    }  # fmt: skip


def mix():
    """Three harmful prompts of each of the 13 categories, one of them answered; two of another one; four harmless."""
    rows = []
    for at, name in enumerate(GROUP_OF):
        rows.append(row(3 * at, name, refusal="compliance", harm="harmful"))
        rows += [row(3 * at + 1, name), row(3 * at + 2, name)]
    rows += [row(100 + i, "others") for i in range(2)]
    return rows + [row(200 + i, "benign", harmful=False, refusal="compliance" if i else "refusal") for i in range(4)]


def moderator(rows):
    """Finds harmful prompts with an even number, and harmful responses to those with a multiple of 6."""
    found = []
    for one in rows:
        number = int(one["prompt"].split()[0])
        shares = {PROMPT_HARM: float(number % 2 == 0 and number < 200), REFUSAL: 0.0,
                  RESPONSE_HARM: float(number % 6 == 0)}  # fmt: skip
        values = {field: VALUES[field][0 if share >= 0.5 else 1] for field, share in shares.items()}
        found.append({**values, "is_parsing_error": False, "probabilities": shares, "truncated": False})
    return found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "wildguard_test.jsonl", mix())
    write_jsonl(tmp_path / "data" / "notes.jsonl", [{"not": "a benchmark"}])
    return tmp_path / "data"


def test_all_13_categories_are_printed_with_their_recall(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(moderation_command, "load_moderator", lambda *_, **__: moderator)
    monkeypatch.setattr(moderation_command, "resolve_model", lambda name: (name, {}, None))
    options = ("--suite", "wildguard", "--data", str(folder), "--out", str(tmp_path / "runs"))
    assert main.main(["eval", "small", *options, "--json", str(tmp_path / "found.json")]) == 0
    rows, lines = mix(), [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    lines = [cells for cells in lines if len(cells) > 1 and cells[1] in {*GROUP_OF, "others"}]
    assert len(GROUP_OF) == 13 and [cells[1] for cells in lines] == [*GROUP_OF, "others"]
    for cells, category in zip(lines, GROUP_OF, strict=False):
        numbers = [int(one["prompt"].split()[0]) for one in rows if one["subcategory"] == category]
        prompts = 100 * sum(number % 2 == 0 for number in numbers) / 3
        responses = 100.0 * (numbers[0] % 6 == 0)  # the first of three was answered
        assert cells[0] == GROUP_OF[category] and category in CATEGORIES[cells[0]]
        assert (cells[2], cells[4], cells[5], cells[7]) == (f"{prompts:.1f}", "3", f"{responses:.1f}", "1"), category
    found = json.loads((tmp_path / "found.json").read_text())
    tasks = {task["task"]: task for task in found["tasks"]}
    assert set(tasks) == {f"wildguard_test:{field}" for field in FIELDS}
    even = sum(int(one["prompt"].split()[0]) % 2 == 0 for one in rows if one["prompt_harm_label"] == "harmful")
    assert tasks[f"wildguard_test:{PROMPT_HARM}"]["score"] == pytest.approx(2 * even / (even + 41))
    scores = found["analysis"]["scores"]["small"]["wildguard_test"][PROMPT_HARM]
    assert scores["adversarial"]["recall"] == 1 and scores["vanilla"]["recall"] == 0
    assert found["averages"]["wildguard"][PROMPT_HARM] == {"score": None, "sets": 0}  # WildGuardTest is apart


def test_filters_are_scored_on_labelled_responses(folder):
    rows = read_set("wildguard_test", str(folder / "wildguard_test.jsonl"))
    answers = {"small": moderation_report.answered(moderator, {"wildguard_test": rows})}
    filters = moderation_report.scored("t", answers)["filters"]["small"]["wildguard_test"]["filters"]
    none, prompt, response, both = ({name: one[name]["share"] for name in ("attack_success", "refusal_to_answer")}
                                    for one in filters)  # fmt: skip
    assert none == {"attack_success": 13 / 41, "refusal_to_answer": 1 / 4}
    # Of the 13 answered prompts, 0, 3, … 36, six have odd numbers; the seven even ones are multiples of 6.
    assert prompt["attack_success"] == both["attack_success"] == 6 / 41 and prompt["refusal_to_answer"] == 1 / 4
    assert response["attack_success"] == 6 / 41 and both["refusal_to_answer"] == 1 / 4
    alone = {"m": {"s": [{"prompt": "p", "gold_prompt_harmfulness": "harmful"}]}}
    assert moderation_report.scored("t", alone)["filters"] == {"m": {}}


def test_categories_without_a_row_are_named_and_those_of_other_sets_stand_alone():
    rows = [{"subcategory": "cyberattack", "gold_prompt_harmfulness": "harmful", "prompt_harmfulness": "harmful"}]
    found = category_recall(rows)
    assert list(found) == list(GROUP_OF) and found["cyberattack"][PROMPT_HARM]["recall"] == 1
    assert found["sexual_content"][PROMPT_HARM]["n"] == 0
    assert list(category_recall([{**rows[0], "subcategory": "self-harm"}])) == ["self-harm"]


def test_real_attacks_and_completions_have_both_labels(shared_data):
    path = shared_data / "moderation/jailbreakbench/artifacts_pair_jbc.jsonl.gz"
    attacks = read_set("jailbreakbench_attacks", str(path))
    assert len(attacks) == 545 and all(one[f"gold_{PROMPT_HARM}"] == "harmful" for one in attacks)
    assert sum(one[f"gold_{RESPONSE_HARM}"] == "harmful" for one in attacks) == 209
    path = shared_data / "xstest/xstest_v2_completions_gpt4.csv"
    with open(path, encoding="utf-8", newline="") as file:
        raw = list(csv.DictReader(file))
    exchanges = read_set("xstest_exchanges", str(path))
    harmful = [one for one in exchanges if one[f"gold_{PROMPT_HARM}"] == "harmful"]
    assert (len(exchanges), len(harmful)) == (len(raw), 200)
    assert sum(one[f"gold_{RESPONSE_HARM}"] == "harmful" for one in exchanges) == 1


def test_wrong_folders_are_one_clear_line(tmp_path, capsys):
    for data, said in ((tmp_path / "none", "reads a folder"), (tmp_path, "has no file of a benchmark")):
        assert main.main(["eval", "m", "--suite", "wildguard", "--data", str(data)]) == 2
        assert said in capsys.readouterr().err
    write_jsonl(tmp_path / "toxic_chat.jsonl", [{"user_input": "x", "toxicity": 0}])
    write_jsonl(tmp_path / "toxic_chat.json", [{"user_input": "x", "toxicity": 0}])
    with pytest.raises(UserError, match="several files of toxic_chat"):
        moderation_command.evaluate("m", str(tmp_path), tmp_path)


def test_a_moderator_judges_in_its_own_form(monkeypatch):
    asked = []

    def classify(items):
        asked.extend(items)
        return [
            {PROMPT_HARM: "harmful", REFUSAL: "compliance" if one["response"] else None,
             RESPONSE_HARM: "harmful" if one["response"] else None} for one in items
        ]  # fmt: skip

    monkeypatch.setattr(judges, "load_moderator", lambda name: classify)
    monkeypatch.setattr(judges, "resolve_model", lambda name: (name, {}, None))
    monkeypatch.setattr(judges, "identity", lambda *_: "m")
    judge = judges.judge_of("moderator:runs/m")
    exchanges = [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": ""}]
    broken, empty = map(parse_moderation, judge(exchanges))
    assert asked == exchanges
    assert (broken[RESPONSE_HARM], broken[REFUSAL]) == ("harmful", "compliance") and not broken["is_parsing_error"]
    assert (empty[RESPONSE_HARM], empty[REFUSAL]) == ("unharmful", "compliance")
