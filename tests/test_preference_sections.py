"""Scores of preference benches equal published and derived values; agreement equals the definition of κ."""

import collections
import gzip
import itertools
import json
import math
import random

import numpy as np
import pytest

from easylm_jax.cli import main
from easylm_jax.evaluate import cohens_kappa, preference_sections
from easylm_jax.evaluate.preferences import agreement, command, judges, languages, sections
from easylm_jax.rewards.judge_pairs import pair_question
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


def test_kappa_between_real_judges_equals_the_formula(shared_data):
    """All 91 pairs of LLMBar's 14 judges, by their verdicts in each order and by the mean of both."""
    labels = llmbar_labels(shared_data)
    assert len(labels) == 14 and {len(own) for own in labels.values()} == {3 * 419}
    for a, b, part, first, second in llmbar_pairs(labels):
        want = plain_kappa(list(first.values()), [second[key] for key in first])
        assert math.isclose(agreement.kappa_of(first, second), want, abs_tol=1e-12), (a, b, part)
    both = {(a, b): agreement.kappa_of(x, y) for a, b, part, x, y in llmbar_pairs(labels) if part == "both"}
    # The pair that agrees most, and least: one model under two prompts, and the strongest beside the weakest.
    most, least = max(both, key=both.get), min(both, key=both.get)
    assert len(both) == 91
    assert most == (("GPT-4", "CoT"), ("GPT-4", "Vanilla")) and round(both[most], 4) == 0.6509
    assert least == (("Falcon", "CoT"), ("GPT-4", "Vanilla")) and round(both[least], 4) == 0.0106


def test_kappa_between_real_judges_equals_scikit_learns(shared_data):
    metrics = pytest.importorskip("sklearn.metrics")
    for a, b, part, first, second in llmbar_pairs(llmbar_labels(shared_data)):
        want = metrics.cohen_kappa_score(list(first.values()), [second[key] for key in first])
        assert math.isclose(agreement.kappa_of(first, second), want, abs_tol=1e-12), (a, b, part)


def llmbar_pairs(labels):
    """(judge, judge, "winner", "winner_swapped" or "both", labels of the first, labels of the second)."""
    for (a, first), (b, second) in itertools.combinations(labels.items(), 2):
        for part in ("winner", "winner_swapped", "both"):
            yield a, b, part, *({key: own[key] for key in own if key[0] == part} for own in (first, second))


def plain_kappa(x, y):
    """κ from its definition, with a loop over pairs of labels: (p_o − p_e) / (1 − p_e)."""
    n = len(x)
    observed = sum(1 / n for p, q in zip(x, y, strict=True) if p == q)
    expected = sum((x.count(label) / n) * (y.count(label) / n) for label in {*x, *y})
    return (observed - expected) / (1 - expected)


def llmbar_labels(shared_data):
    """By judge, the label of each (order, subset, index): 2 right, 1 no verdict or one in each order, 0 wrong."""
    found = collections.defaultdict(dict)
    for row in read(shared_data / "evaluation/llmbar/judge_results.jsonl.gz"):
        right = {side: 1 if row[side] is None else 2 * (row[side] == str(row["label"]))
                 for side in ("winner", "winner_swapped")}  # fmt: skip
        total = sum(right.values())
        for side, label in (*right.items(), ("both", 2 if total > 2 else 0 if total < 2 else 1)):
            found[row["judge"], row["prompt"]][side, row["subset"], row["index"]] = label
    return found


def test_easylm_eval_prints_kappa_between_two_real_judges(shared_data, tmp_path, monkeypatch, capsys):
    """LLMBar's pairs, judged by what GPT-4 and ChatGPT replied: accuracy, flips and κ as counted here."""
    pairs = read(shared_data / "evaluation/llmbar/llmbar.jsonl")
    verdicts = read(shared_data / "evaluation/llmbar/judge_results.jsonl.gz")
    sides = {(row["subset"], row["index"]): (row["output_1"], row["output_2"]) for row in pairs}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({
        "id": row["index"], "subset": row["subset"], "prompt": row["input"],
        "chosen": row[f"output_{row['label']}"], "rejected": row[f"output_{3 - row['label']}"],
    }) + "\n" for row in pairs))  # fmt: skip

    def replay(name, options):
        replies = {}
        for row in verdicts:
            if f"{row['judge']}, {row['prompt']}" == name:
                texts, input_ = sides[row["subset"], row["index"]], inputs[row["subset"], row["index"]]
                for shown, said in ((texts, row["winner"]), (texts[::-1], row["winner_swapped"])):
                    question = pair_question([{"role": "user", "content": input_}], shown)
                    letter = said and "AB"[shown.index(texts[int(said) - 1])]
                    replies[question[-1]["content"]] = f"[[{letter}]]" if said else "I cannot say."
        return judges.PairJudge(lambda questions: [replies[question[-1]["content"]] for question in questions])

    inputs = {(row["subset"], row["index"]): row["input"] for row in pairs}
    monkeypatch.setattr(command, "judge_of", replay)
    monkeypatch.setattr(command.checkpoint_load, "resolve_model", lambda name: (name, {}, None))

    def run(name, *more):
        options = ("--suite", "rewardbench", "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "runs"))
        status = main.main(["eval", name, *options, *more])
        return status, capsys.readouterr()

    a, b = "GPT-4, CoT", "ChatGPT, CoT"
    assert run(a)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    status, told = run(b, "--beside", str(folder), "--json", str(tmp_path / "b.json"))
    labels = llmbar_labels(shared_data)
    keys = [key for key in labels["GPT-4", "CoT"] if key[0] == "both"]
    x, y = ([labels[judge, "CoT"][key] for key in keys] for judge in ("GPT-4", "ChatGPT"))
    kappa = plain_kappa(x, y)
    equal = sum(p == q for p, q in zip(x, y, strict=True)) / 419
    assert status == 0 and f"| {a} | 419 | {100 * equal:.1f} | {kappa:.3f} | " in told.out
    found = json.loads((tmp_path / "b.json").read_text())["analysis"]
    (beside,) = found["beside"]
    assert math.isclose(beside["kappa"], kappa, abs_tol=1e-12) and beside["low"] < kappa < beside["high"]
    assert math.isclose(beside["languages"]["eng_Latn"], kappa, abs_tol=1e-12)
    own = [row for row in verdicts if (row["judge"], row["prompt"]) == ("ChatGPT", "CoT")]
    rights = [[0.5 if row[side] is None else float(row[side] == str(row["label"])) for side in
               ("winner", "winner_swapped")] for row in own]  # fmt: skip
    scores = found["scores"]["eng_Latn"]
    assert math.isclose(scores["Chat Hard"], np.mean(rights))
    read_ = [row for row in own if row["winner"] and row["winner_swapped"]]
    flips = [row["winner"] != row["winner_swapped"] for row in read_]
    assert math.isclose(scores["flip_rate"], np.mean(flips))
    missing = sum((row["winner"] is None) + (row["winner_swapped"] is None) for row in own)
    assert math.isclose(scores["error_rate"], missing / 838)
    status, told = run(b, "--beside", str(tmp_path))
    assert status == 2 and "holds no results of a judge" in told.err
