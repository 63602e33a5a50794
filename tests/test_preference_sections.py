"""Scores of preference benches equal published and derived values; agreement equals the definition of κ."""

import collections
import gzip
import json
import math
import random

import numpy as np
import pytest

from easylm_jax.evaluate import cohens_kappa, preference_sections
from easylm_jax.evaluate.preferences import agreement, languages, sections
from models.errors import UserError

# The example in RewardBench's README (PKU-Alignment/beaver-7b-v1.0-cost): right answers of each subset.
README = {
    "alpacaeval-easy": (50, 100), "alpacaeval-hard": (67, 95), "alpacaeval-length": (56, 95),
    "donotanswer": (112, 136), "hep-cpp": (103, 164), "hep-go": (104, 164), "hep-java": (116, 164),
    "hep-js": (109, 164), "hep-python": (90, 164), "hep-rust": (106, 164), "llmbar-adver-GPTInst": (36, 92),
    "llmbar-adver-GPTOut": (22, 47), "llmbar-adver-manual": (17, 46), "llmbar-adver-neighbor": (58, 134),
    "llmbar-natural": (52, 100), "math-prm": (132, 447), "mt-bench-easy": (16, 28), "mt-bench-hard": (20, 37),
    "mt-bench-med": (29, 40), "refusals-dangerous": (97, 100), "refusals-offensive": (100, 100),
    "xstest-should-refuse": (154, 154), "xstest-should-respond": (71, 250),
}  # fmt: skip


def pairs(counts=README):
    return [(name, float(i < right)) for name, (right, total) in counts.items() for i in range(total)]


def test_the_sections_of_the_readme():
    scores = preference_sections(pairs(), "rewardbench")
    want = {"Chat": 0.608939, "Chat Hard": 0.449561, "Safety": 0.721622, "Reasoning": 0.466757, "score": 0.561720}
    assert {name: round(value, 6) for name, value in scores.items()} == want


def test_the_weights_are_the_published_sizes():
    sums = [collections.Counter(), collections.Counter()]
    for subset in sections.SUBSETS.values():
        sums[0][subset.section] += subset.rewardbench
        sums[1][subset.section] += subset.m_rewardbench
    assert dict(sums[0]) == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert dict(sums[1]) == {"Chat": 296, "Chat Hard": 407, "Safety": 736, "Reasoning": 1966}


def test_benches_weigh_the_same_results_by_their_own_sizes():
    english, other = (preference_sections(pairs(), bench) for bench in sections.BENCHES)
    assert english["Chat"] != other["Chat"] and math.isclose(english["Chat"], other["Chat"], abs_tol=0.01)
    chat = {"easy": (0.5, 79), "hard": (67 / 95, 76), "length": (56 / 95, 79)}
    total = sum(mean * weight for mean, weight in chat.values()) + 16 / 28 * 24 + 0.725 * 38
    assert math.isclose(other["Chat"], total / 296, rel_tol=1e-12)


def test_missing_sections_are_named_and_not_counted_as_zero():
    scores = preference_sections([("llmbar-natural", 1), ("llmbar-natural", 0.5), ("donotanswer", 0)], "m_rewardbench")
    assert scores == {"Chat Hard": 0.75, "Safety": 0.0, "score": 0.375, "missing": ["Chat", "Reasoning"]}
    empty = preference_sections([], "rewardbench")
    assert math.isnan(empty["score"]) and empty["missing"] == list(sections.SECTIONS)


@pytest.mark.parametrize(
    ("results", "bench", "said"),
    [
        ([("poems", 1.0)], "rewardbench", "poems are no subsets"),
        ([("hep-cpp", 1.5)], "rewardbench", "from 0 to 1"),
        ([("hep-cpp", math.nan)], "rewardbench", "from 0 to 1"),
        ([("hep-cpp", 1.0)], "rewardbench3", "no bench"),
    ],
)
def test_wrong_results_are_one_clear_line(results, bench, said):
    with pytest.raises(UserError, match=said):
        preference_sections(results, bench)


def test_the_overall_score_of_rewardbench_weighs_prior_sets_by_half():
    parts = {"Chat": 0.9, "Chat Hard": 0.6, "Safety": 0.8, "Reasoning": 0.7}
    assert math.isclose(sections.rewardbench_overall(parts), 0.75)
    prior = {"anthropic_helpful": 0.6, "anthropic_hhh": 0.8, "shp": 0.5, "summarize": 0.7, "mtbench_human": 0.0}
    assert math.isclose(sections.rewardbench_overall(parts, prior), (2 * 3.0 + 0.65) / 9)
    assert math.isclose(sections.rewardbench_overall(parts, {"shp": 0.1}), 0.75)


def test_the_golden_score_of_ties():
    items = [
        ("tied:1", [2.0, 1.5], [0.5, 0.0]), ("ref:1", [3.0], [1.0]),
        ("tied:2", [1.0, 0.2], [0.1]), ("ref:2", [0.4], [0.6]),
    ]  # fmt: skip
    assert round(sections.ties_score(items), 7) == 0.6495666
    assert sections.ties_score(reversed(items)) == sections.ties_score(items)


def test_ties_without_a_spread_use_the_limit():
    equal = [("tied:1", [1.0, 1.0], [0.0]), ("ref:1", [1.0], [0.0])]
    assert math.isclose(sections.ties_score(equal), 1.01)  # 0.3 + 0.3 + 0.2 + 0.2 + 0.01 · tanh(∞)
    nothing = [("tied:1", [1.0, 1.0], [1.0]), ("ref:1", [1.0], [1.0])]
    assert sections.ties_score(nothing) == 0.0  # 0/0 counts as 0


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([("7", [1.0], [0.0])], "ref:<n>"),
        ([("tied:1", [1.0], [0.0])] * 2, "two items"),
        ([("tied:1", [], [0.0])], "no right answer"),
        ([("ref:1", [1.0], [])], "no wrong answer"),
    ],
)
def test_wrong_items_of_ties_are_one_clear_line(items, said):
    with pytest.raises(UserError, match=said):
        sections.ties_score(items)


def test_best_of_four_shares_a_tie():
    assert sections.best_of([3, 1, 2, 0]) == 1 and sections.best_of([1, 3, 2, 0]) == 0
    assert sections.best_of([2, 2, 1, 2]) == 1 / 3 and sections.best_of([0, 0, 0, 0]) == 0.25
    assert sections.best_of([1, 2, 2, 0], correct=2) == 0.5
    assert sum(sections.RB2_DOMAINS.values()) == 1865


def test_the_golden_kappa():
    english, other = "2222220000", "2222010020"
    assert round(cohens_kappa(english, other), 5) == 0.44444
    assert math.isnan(cohens_kappa("222", "222")) and math.isnan(cohens_kappa("", ""))
    assert cohens_kappa("20", "20") == 1 and cohens_kappa("20", "02") == -1
    with pytest.raises(UserError, match="3 labels beside 2"):
        cohens_kappa("222", "22")


def test_kappa_equals_that_of_another_computation():
    generator = np.random.default_rng(3)
    for _ in range(20):
        a, b = generator.integers(0, 3, (2, 57))
        table = np.zeros((3, 3))
        np.add.at(table, (a, b), 1 / 57)
        expected = table.sum(0) @ table.sum(1)
        assert math.isclose(cohens_kappa(a, b), (np.trace(table) - expected) / (1 - expected), abs_tol=1e-12)
        low, high = agreement.kappa_interval(a, b, draws=200)
        assert low <= cohens_kappa(a, b) <= high


def test_correlations_equal_numpys():
    x, y = [3.0, 1.0, 2.0, 2.0, 5.0], [2.0, 0.5, 0.7, 4.0, 4.0]
    assert math.isclose(agreement.pearson(x, y), np.corrcoef(x, y)[0, 1])
    assert math.isclose(agreement.spearman(x, y), np.corrcoef([4, 1, 2.5, 2.5, 5], [3, 1, 2, 4.5, 4.5])[0, 1])
    assert math.isnan(agreement.pearson([1, 1], [0, 1])) and math.isnan(agreement.spearman([1], [1]))


def test_a_missing_language_leaves_no_average():
    scores = {code: 0.5 + i / 100 for i, code in enumerate(languages.LANGUAGES)}
    whole = languages.summarise({**scores, languages.ENGLISH: 0.0})
    assert math.isclose(whole.average, np.mean(list(scores.values())))
    assert math.isclose(whole.deviation, np.std(list(scores.values()), ddof=1)) and whole.missing == ()
    del scores["zho_Hant"]
    less = languages.summarise(scores)
    assert math.isnan(less.average) and less.missing == ("zho_Hant",)


def test_languages_are_grouped_and_both_chinese_merge():
    scores = dict.fromkeys(languages.LANGUAGES, 0.4) | {"zho_Hans": 0.2, "zho_Hant": 0.8}
    assert len(languages.LANGUAGES) == 23 and len({x.family for x in languages.LANGUAGES.values()}) == 8
    assert languages.merged_chinese(scores)["zh"] == 0.5 and len(languages.merged_chinese(scores)) == 22
    assert math.isclose(languages.by_dimension(scores, "family")["Sino-Tibetan"], 0.5)
    assert list(languages.by_dimension(scores, "script"))[0] == "Latn"


def read(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


def test_llmbar_scores_of_length_of_a_perfect_judge_and_of_chance(shared_data):
    rows = read(shared_data / "evaluation/llmbar/llmbar.jsonl")
    sizes = collections.Counter(row["subset"] for row in rows)
    assert len(rows) == 419 and all(sections.SUBSETS[name].rewardbench == n for name, n in sizes.items())

    def scored(judge):
        return preference_sections([(row["subset"], judge(row)) for row in rows], "rewardbench")["Chat Hard"]

    def longer(row):
        a, b = len(row["output_1"]), len(row["output_2"])
        return float((a > b) if row["label"] == 1 else (b > a))

    # The weights are the numbers of rows, so the section is the plain share of right pairs.
    assert scored(lambda row: 1.0) == 1.0
    assert math.isclose(scored(longer), np.mean([longer(row) for row in rows]))
    rng = random.Random(0)
    chance = [scored(lambda row: float(rng.random() < 0.5)) for _ in range(200)]
    assert abs(np.mean(chance) - 0.5) < 4 * 0.5 / 419**0.5 / 200**0.5


def test_llmbar_judges_accuracy_flips_and_kappa(shared_data):
    rows = read(shared_data / "evaluation/llmbar/judge_results.jsonl.gz")
    assert len(rows) == 5866
    judges = collections.defaultdict(dict)
    for row in rows:
        judges[row["judge"], row["prompt"]][row["subset"], row["index"]] = row
    kappas, compared = [], 0
    for (judge, prompt), own in judges.items():
        both = [(row["winner"], row["winner_swapped"], str(row["label"])) for row in own.values()]
        results = {key: ((row["winner"] == str(row["label"])) + (row["winner_swapped"] == str(row["label"]))) / 2
                   for key, row in own.items()}  # fmt: skip
        means = sections.subset_means([(subset, value) for (subset, _), value in results.items()])
        for subset, value in means.items():
            table = np.array([[w == gold, s == gold] for (name, _), (w, s, gold) in zip(own, both, strict=True)
                              if name == subset])  # fmt: skip
            assert math.isclose(value, table.mean()), (judge, prompt, subset)
            compared += 1
        labels = [{key: agreement.label_of(float(row[side] == str(row["label"]))) for key, row in own.items()}
                  for side in ("winner", "winner_swapped")]  # fmt: skip
        flips = np.mean([w != s and (w == gold) != (s == gold) for w, s, gold in both])
        assert math.isclose(agreement.flip_rate(*labels), flips)
        kappas.append(agreement.kappa_of(*labels))
    assert compared >= 14 * 5 and all(-1 <= value <= 1 for value in kappas)
