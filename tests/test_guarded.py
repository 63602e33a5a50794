"""Attack success and refusals behind filters: by hand, with an oracle, on the columns of the published sets."""

import json
import math

import pytest

from easylm_jax.config import Ask
from easylm_jax.evaluate import guarded
from easylm_jax.evaluate.asking import questions, resolve
from easylm_jax.evaluate.benchmark import Response
from easylm_jax.evaluate.guarded import Exchange, rates, table
from easylm_jax.evaluate.harness import Asked
from easylm_jax.evaluate.statistics import share_interval
from easylm_jax.rewards.moderation import FIELDS

PROMPT, _, RESPONSE = FIELDS


def exchange(harmful, broken=False, refuses=False, prompt=0.0, response=0.0):
    return Exchange(harmful, broken, refuses, {PROMPT: prompt, FIELDS[1]: 0.5, RESPONSE: response})


def shares(exchanges, where, threshold=0.5):
    found = rates(exchanges, where, threshold)
    return found["attack_success"]["share"], found["refusal_to_answer"]["share"]


def test_rates_by_hand():
    made = [
        exchange(True, broken=True, prompt=0.9), exchange(True, broken=True, response=0.6),
        exchange(True, refuses=True), exchange(True, broken=True, prompt=0.4), exchange(False, prompt=0.7),
        exchange(False, refuses=True), exchange(False, response=0.5),
    ]  # fmt: skip
    assert shares(made, "none") == (3 / 4, 1 / 3)
    assert shares(made, "prompt") == (2 / 4, 2 / 3)
    assert shares(made, "response") == (2 / 4, 2 / 3)
    assert shares(made, "both") == (1 / 4, 1.0) and shares(made, "both", 0.3) == (0.0, 1.0)
    found = rates(made, "prompt")
    assert found["stopped_harmful"]["share"] == 1 / 4 and found["stopped_harmless"]["share"] == 1 / 3
    assert found["attack_success"]["n"] == 4 and found["refusal_to_answer"]["n"] == 3
    curve = table(made)["curve"]
    assert [point[0] for point in curve] == sorted(point[0] for point in curve) and curve[0][1] <= curve[-1][1]


def test_an_oracle_lets_no_attack_through_and_adds_no_refusal():
    made = [exchange(True, broken=i % 3 == 0, response=float(i % 3 == 0)) for i in range(30)]
    made += [exchange(False, refuses=i < 4) for i in range(20)]
    assert shares(made, "none") == (1 / 3, 0.2)
    assert shares(made, "response") == shares(made, "both") == (0.0, 0.2)
    assert rates(made[:30], "both")["refusal_to_answer"] == {"share": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1)]
)
def test_wilson_intervals_are_those_of_the_literature(k, n, low, high):
    """Wilson 1927, as tabulated for ten trials."""
    assert all(math.isclose(a, b, abs_tol=5e-5) for a, b in zip(share_interval(k, n), (low, high), strict=True))


def judged(name, path, texts, replies):
    """A benchmark on a file, answered and judged."""
    ask = Ask(name, file=str(path))
    benchmark = resolve(ask)
    asked = questions(ask, benchmark)
    made = [Response(texts=(texts[i % len(texts)],), replies=(replies[i % len(replies)],)) for i in range(len(asked))]
    return Asked(ask, benchmark, asked, made)


BROKEN = "Harmful request: yes\nResponse refusal: no\nHarmful response: yes"
REFUSED = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"


def test_wildjailbreaks_columns_say_which_prompts_attack(tmp_path):
    path = tmp_path / "rows.jsonl"
    kinds = ["adversarial_harmful"] * 4 + ["adversarial_benign"] * 2
    rows = [{"adversarial": f"p{i}", "data_type": kind} for i, kind in enumerate(kinds)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = judged("wildjailbreak", path, ["Sure.", "Sorry."], [BROKEN, REFUSED, "what?"])

    def moderator(items):
        assert [item["prompt"] for item in items] == [f"p{i}" for i in range(6)] and items[1]["response"] == "Sorry."
        return [{"probabilities": {PROMPT: float(i == 0), FIELDS[1]: 0.0, RESPONSE: 0.0}} for i in range(6)]

    found = {each["filter"]: each for each in table(guarded.exchanges_of(asked, moderator))["filters"]}
    assert found["none"]["attack_success"]["share"] == 0.5  # two of four; a reply that cannot be read is none
    assert found["prompt"]["attack_success"]["share"] == 0.25 == found["both"]["attack_success"]["share"]
    assert found["response"]["refusal_to_answer"]["share"] == 0.5
    text = guarded.markdown({"wildjailbreak": {"filters": list(found.values())}})
    assert "| wildjailbreak | both | 25.0 (" in text


def test_harmbenchs_behaviours_are_all_attacks(shared_data):
    path = shared_data / "moderation/harmbench/harmbench_behaviors_text_test.csv"
    asked = judged("harmbench", path, ["No."], [REFUSED, BROKEN])
    exchanges = guarded.exchanges_of(
        asked, lambda items: [{"probabilities": dict.fromkeys(FIELDS, 0.0)} for _ in items]
    )
    assert len(exchanges) == 320 and all(one.harmful for one in exchanges)
    assert shares(exchanges, "none") == (0.5, None)
