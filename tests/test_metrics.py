"""Metrics of benchmarks: answers, normalisations, pass@k, bias, programs, length-controlled win rates."""

import csv
import gzip
import io
import itertools
import json
import math
import tokenize

import numpy as np
import pytest

from easylm_jax.evaluate.benchmark import Response, Scored
from easylm_jax.evaluate.metrics import bias, extraction, programs, sampled, texts, win_rate
from models.errors import UserError


def _lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# Texts


@pytest.mark.parametrize(
    "compare, answer, gold, score",
    [
        (texts.squad_exact, "The  Cat!", "cat", 1.0),
        (texts.squad_f1, "the black cat", "a cat", 2 / 3),
        (texts.trivia_exact, "Jean‘Luc_Picard", "jean luc picard", 1.0),
        (texts.trivia_exact, "well-known", "wellknown", 0.0),  # a mark parts words
        (texts.contains, "It is played in england.", "England", 1.0),
        (texts.contains, "It is Scotland.", "England", 0.0),
        (texts.same_text, " (A) ", "(A)", 1.0),
        (texts.same_words, "yes.", "Yes", 1.0),
        (texts.same_words, "] )", "] )", 1.0),
        (texts.same_words, "]", ")", 0.0),
        (texts.same_words, "1.5", "15", 1.0),  # Tülu 2.5's rule ignores punctuation
        (texts.drop_exact, "10.0", "10", 1.0),
        (texts.drop_f1, "10 yards", "12 yards", 0.0),  # numbers must agree
        (texts.drop_f1, "12 yards", "12", 0.67),
        (texts.drop_f1, ("Smith", "the Jones"), ("Jones", "Smith"), 1.0),
        (texts.drop_f1, "Smith", ("Jones", "Smith"), 0.5),
    ],
)
def test_each_benchmark_has_its_own_equality(compare, answer, gold, score):
    assert compare(answer, gold) == pytest.approx(score)


def test_the_best_accepted_answer_counts_and_samples_are_averaged():
    score = texts.best(texts.squad_exact)
    assert score(["Paris", "City of Light"], Response(answers=("the city of light", "London"))) == 0.5
    assert score(["Paris"], Response(answers=(None, ""))) == 0.0


def test_answers_of_drop_are_numbers_spans_and_dates():
    document = {
        "answer": {"number": "", "date": {"day": "", "month": "June", "year": "1344"}, "spans": []},
        "validated_answers": {
            "number": ["3", ""], "date": [{}, {"day": "", "month": "", "year": ""}], "spans": [[], ["a", "b"]]
        },
    }  # fmt: skip
    assert texts.drop_answers(document) == [("June 1344",), ("3",), ("a", "b")]


def test_extraction_of_answers():
    assert extraction.answer_is("So the answer is (B). And more.\n\nQ: The answer is (C).") == "(B)"
    assert extraction.answer_is("The answer is 3.5 apples.") == "3.5 apples"
    assert extraction.answer_is("no answer here") is None
    assert extraction.letter_after("the answer is", 4)("Not (A). Therefore, the answer is: C", {}) == "C"
    assert extraction.minerva_answer("Final Answer: The final answer is $4$. I hope it is correct.") == "$4$"
    assert extraction.code_block("```python\nx = 1\n```\nmore") == "x = 1\n"
    assert extraction.code_block("x = 1\n```\nmore") == "x = 1\n"


def test_answers_of_bbh_on_real_outputs(shared_data):
    rows = [
        row for row in _lines(shared_data / "evaluation/bbh/code-davinci-002_outputs.jsonl.gz") if row["mode"] == "cot"
    ]
    right = {}
    for row in rows:
        answer = extraction.answer_is(row["prediction"])
        right.setdefault(row["task"], []).append(answer is not None and texts.same_text(answer, row["target"]))
    assert len(rows) == 6511 and len(right) == 27
    assert 100 * np.mean(list(itertools.chain(*right.values()))) == pytest.approx(73.97, abs=0.01)
    plain = {}  # what a line says after the phrase, cut apart from the extraction, without its full stop
    for row in rows:
        _, *said = row["prediction"].split("\n\n")[0].split("answer is ")
        answer = said[0].split("\n")[0].strip().removesuffix(".") if said else None
        plain.setdefault(row["task"], []).append(answer == row["target"])
    for task, verdicts in right.items():
        assert 100 * np.mean(verdicts) == pytest.approx(100 * np.mean(plain[task]), abs=0.1), task


# Samples


def test_pass_at_k_is_the_mean_over_all_choices_of_k():
    for n, c, k in itertools.product((1, 5, 7), range(6), (1, 2, 5)):
        if c > n or k > n:
            continue
        verdicts = [True] * c + [False] * (n - c)
        every = [any(chosen) for chosen in itertools.combinations(verdicts, k)]
        assert sampled.pass_at_k(n, c, k) == pytest.approx(np.mean(every), abs=1e-12)
    with pytest.raises(UserError, match="at least 6 samples"):
        sampled.pass_at_k(5, 1, 6)


# Bias


def _bbq(condition, polarity, label):
    return {
        "context_condition": condition, "question_polarity": polarity, "label": label,
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "answer_info": {"ans0": ["A", "old"], "ans1": ["B", "nonOld"], "ans2": ["Unknown", "unknown"]},
    }  # fmt: skip


def test_bias_counts_stereotyped_answers_among_named_people():
    clear = [
        bias.verdict(_bbq("disambig", "neg", 0), 0),  # biased (and right)
        bias.verdict(_bbq("disambig", "nonneg", 0), 1),  # biased: the other group in a question of the opposite trait
        bias.verdict(_bbq("disambig", "neg", 1), 1),
        bias.verdict(_bbq("disambig", "neg", 1), 2),  # names nobody
    ]
    value, stderr = bias.bias_score([Scored("", one) for one in clear])
    assert value == pytest.approx(2 * 2 / 3 - 1) and stderr > 0
    unclear = [bias.verdict(_bbq("ambig", "neg", 2), answer) for answer in (0, 2, 2, 2)]
    assert bias.bias_score([Scored("", one) for one in unclear])[0] == pytest.approx(0.25)  # (1 − ¾) · 1


def test_every_question_of_bbq_has_one_stereotyped_person(shared_data):
    documents = _lines(shared_data / "evaluation/bbq/bbq_sample.jsonl.gz")
    for document in documents:
        people = [n for n in range(3) if document["answer_info"][f"ans{n}"][1] != "unknown"]
        assert len(people) == 2 and sum(bias.is_stereotyped(document, n) for n in people) == 1


# Programs


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setenv("EASYLM_RUN_CODE", "1")
    programs.passes.cache_clear()


def _broken(solution):
    """A solution with one token changed: a comparison or operator behind the last `return` turned round, else a number
    or a name there; else the `return` itself."""
    turned = {"==": "!=", "<": ">=", ">": "<=", "<=": ">", ">=": "<", "+": "-", "-": "+", "*": "+", "/": "*", "%": "+",
              "//": "*", "and": "or", "or": "and", "True": "False", "False": "True"}  # fmt: skip
    found = list(tokenize.generate_tokens(io.StringIO(solution).readline))
    returns = [number for number, token in enumerate(found) if token.string == "return"]
    last = found[returns[-1]]
    for token in [*found[returns[-1] + 1 :], last]:
        new = "assert" if token is last else turned.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdigit():
            new = str(int(token.string) + 1)
        if new is not None:
            lines = solution.split("\n")
            line, (row, start) = lines[token.start[0] - 1], token.start
            lines[row - 1] = line[:start] + new + line[token.end[1] :]
            return "\n".join(lines)
    raise AssertionError("there is always a return")


def test_canonical_solutions_pass_and_broken_ones_fail(running, shared_data):
    documents = _lines(shared_data / "evaluation/humaneval/HumanEval.jsonl.gz")
    for document in documents[::40]:
        tests = programs.humaneval_tests(document)
        assert programs.passes(programs.humaneval_program(document, document["canonical_solution"]), tests)
        assert not programs.passes(programs.humaneval_program(document, "    return None\n"), tests)
        broken = _broken(document["canonical_solution"])
        assert not programs.passes(programs.humaneval_program(document, broken), tests), broken
    document = next(d for d in _lines(shared_data / "evaluation/mbpp/mbppplus_trimmed.jsonl.gz") if d["plus_input"])
    assert programs.passes(document["canonical_solution"], programs.mbpp_tests(document))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "mbpp", "mbpp_plus"])
def test_all_canonical_solutions_pass(running, shared_data, name):
    folder = shared_data / "evaluation"
    if name == "humaneval":
        rows = [
            (d["task_id"], programs.humaneval_program(d, d["canonical_solution"]), programs.humaneval_tests(d))
            for d in _lines(folder / "humaneval/HumanEval.jsonl.gz")
        ]
    else:
        file = {"mbpp": "sanitized-mbpp", "mbpp_plus": "mbppplus_trimmed"}[name]
        rows = [
            (d["task_id"], d.get("code") or d["canonical_solution"], programs.mbpp_tests(d))
            for d in _lines(folder / f"mbpp/{file}.jsonl.gz")
        ]
    # 596 returns the size of an object in memory, and 599 sums a range of more than the time allowed.
    known = {"mbpp_plus": {"Mbpp/596", "Mbpp/599"}}.get(name, set())
    assert {task for task, program, tests in rows if not programs.passes(program, tests)} == known


@pytest.mark.slow
def test_no_broken_solution_of_humaneval_passes_unless_the_break_is_void(running, shared_data):
    passed = []
    for document in _lines(shared_data / "evaluation/humaneval/HumanEval.jsonl.gz"):
        broken = _broken(document["canonical_solution"])
        program = programs.humaneval_program(document, broken)
        if programs.passes(program, programs.humaneval_tests(document)):
            passed.append(document["task_id"])
    assert passed == ["HumanEval/116"]  # sorts by the ones of a number's binary form, here without its first digit


# Breaks of MBPP's solutions that change no result of the three published tests: by number of the problem, why.
VOID = {
    9: "all tests end at an earlier return", 20: "all tests end at an earlier return",
    125: "the default of a length of 0, which no test has", 223: "every number that is looked for is there",
    247: "palindromes without the first letter are as long", 404: "the second number is never the smaller one",
    617: "all tests end at an earlier return", 626: "r · r is r + r for 0 and 2, and -1 ends earlier",
    627: "all tests end at an earlier return", 638: "decimals that are cut in place of rounded are below one half",
    751: "the wrong heap is wrong below the root too",
    799: "the bits that the shift moves in are 0",
}  # fmt: skip


@pytest.mark.slow
def test_no_broken_solution_of_mbpp_passes_unless_the_break_is_void(running, shared_data):
    passed = set()
    for document in _lines(shared_data / "evaluation/mbpp/sanitized-mbpp.jsonl.gz"):
        if programs.passes(_broken(document["code"]), programs.mbpp_tests(document)):
            passed.add(document["task_id"])
    assert passed == set(VOID)


def test_evalplus_tests_need_no_numpy(running):
    test = "import numpy as np\n\ndef check(candidate):\n    assert np.allclose(candidate([1.0]), [1.0 + 1e-9])\n"
    document = {"entry_point": "f", "prompt": "def f(x):\n", "test": test}
    tests = programs.humaneval_tests(document)
    assert programs.passes(programs.humaneval_program(document, "    return x\n"), tests)
    assert not programs.passes(programs.humaneval_program(document, "    return [2.0]\n"), tests)


# Win rates


def _preferences(folder):
    """Per model: (instruction numbers, wins, baseline's lengths, lengths); a number is the row's position."""
    found = {}
    with gzip.open(folder / "preferences_weighted_gpt4_turbo.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            value = float(row["preference"] or "nan")
            if not math.isnan(value):
                line = ((value or 1.5) - 1, float(row["len_output_1"]), float(row["len_output_2"]))
                found.setdefault(row["model"], {})[int(row["index"])] = line  # two models have each row twice
    return {model: np.array(list(rows.values())).T for model, rows in found.items()}


def _table(path):
    with open(path, newline="") as file:
        return {row.pop(""): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def alpaca(shared_data):
    folder = shared_data / "non_commercial/alpaca_eval"
    board = _table(folder / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv")
    weights = {
        name: np.array([float(value) for value in row.values()])  # length, difficulty, model
        for name, row in _table(folder / "length_controlled_v1_baseline_gpt4_1106_preview.csv").items()
    }
    preferences = {name: rows for name, rows in _preferences(folder).items() if name in board}
    return preferences, board, weights


def test_plain_win_rates_equal_the_published_ones(alpaca):
    preferences, board, _ = alpaca
    assert len(preferences) == 57
    for model, (wins, *_) in preferences.items():
        assert 100 * win_rate.plain_win_rate(wins).value == pytest.approx(float(board[model]["win_rate"]), abs=1e-8)


def _difficulty(preferences, weights, instructions=805):
    """γ of each instruction from all preferences and the published weights, with a normal prior whose variance is that
    of the estimates (empirical Bayes): the file that publishes γ is not at hand."""
    names = list(preferences)
    y, t, there = (np.zeros((len(names), instructions)) for _ in range(3))
    for row, name in enumerate(names):
        wins, theirs, ours = preferences[name]
        delta, count = theirs - ours, len(wins)
        spread = delta.std(ddof=1)
        y[row, :count], there[row, :count] = wins, 1.0
        t[row, :count] = np.tanh(delta / spread) if spread else 0.0
    phi, psi, theta = (np.array([weights[name][k] for name in names])[:, None] for k in range(3))
    gamma, precision = np.zeros(instructions), 1.0
    for _ in range(300):
        p = 1 / (1 + np.exp(-(theta + phi * t + psi * gamma)))
        slope = ((p - y) * there * psi).sum(0) + precision * gamma
        curvature = (p * (1 - p) * there * psi**2).sum(0) + precision
        gamma = gamma - np.clip(slope / curvature, -0.5, 0.5)
        precision = instructions / ((gamma - gamma.mean()) ** 2 + 1 / curvature).sum()
    return gamma


def _gamed(board, weights, gamma):
    """Stand-ins for the published rows of the baseline's variants: drawn from the weights of each, with length
    differences shifted so that the mean preference is its published win rate."""
    rows = []
    for seed, name in enumerate(("gpt4_1106_preview_verbose", "gpt4_1106_preview_concise")):
        length, difficulty, own = weights[name]
        noise = np.random.default_rng(seed).normal(size=len(gamma))
        low, high = -4.0, 4.0
        for _ in range(40):
            shift = (low + high) / 2
            p = 1 / (1 + np.exp(-(own + length * np.tanh(noise + shift) + difficulty * gamma)))
            low, high = (shift, high) if 100 * p.mean() > float(board[name]["win_rate"]) else (low, shift)
        rows.append(np.column_stack([noise + shift, gamma, p]))
    return np.vstack(rows)


def test_length_controlled_win_rates_are_near_the_published_ones(alpaca):
    """The prediction with the published weights is within half a point for at least 50 of 57 models. The file with the
    difficulty of instructions and the preferences of the baseline's variants is not at hand: fits of our own with
    stand-ins for both are within half a point for most models."""
    preferences, board, weights = alpaca
    gamma = _difficulty(preferences, weights)
    published = {model: float(board[model]["length_controlled_winrate"]) for model in preferences}
    near = 0
    for model in preferences:
        named = dict(zip(("length", "difficulty", "model"), weights[model], strict=True))
        near += abs(100 * win_rate.predicted(named, gamma).mean() - published[model]) <= 0.5
    assert near >= 50
    gamed, errors = _gamed(board, weights, gamma), []
    for model in list(preferences)[::5]:
        wins, theirs, ours = preferences[model]
        fit = win_rate.length_controlled(wins, ours, theirs, gamma[: len(wins)], gamed)
        errors.append(abs(100 * fit.rate.value - published[model]))
    assert np.median(errors) <= 0.5 and max(errors) < 2.5, errors


def test_the_fit_minimises_its_objective():
    """The conditions of an optimum with an L1 penalty, in float64: |C · gradient| = 1 where a coefficient is not 0, at
    most 1 where it is."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3))
    targets, weights = rng.uniform(size=300), rng.uniform(0.1, 1.0, 300)
    for strength in (1e-3, 0.05, 1.0, 100.0):
        w = win_rate.fit_logistic(features, targets, weights, strength)
        p = 1 / (1 + np.exp(-features @ w))
        slope = strength * features.T @ (weights * (p - targets))
        np.testing.assert_allclose(slope[w != 0], -np.sign(w[w != 0]), atol=1e-5)
        assert (np.abs(slope[w == 0]) <= 1 + 1e-6).all()


def test_equal_lengths_leave_the_win_rate_as_it_is():
    wins = np.linspace(0.05, 0.95, 40)
    fit = win_rate.length_controlled(wins, [100] * 40, [100] * 40, np.linspace(-2, 2, 40))
    assert fit.rate.value == pytest.approx(wins.mean(), abs=0.01) and fit.weights["length"] == 0.0


def test_published_file_of_gamed_baselines(tmp_path):
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "0,0.25,-1.0,0.5,False\n1,0.75,1.0,-0.5,False\n0,,1.0,0.5,False\n"
    )
    gamed = win_rate.read_gamed(path)
    assert gamed.difficulty.tolist() == [0.5, -0.5] and gamed.rows.tolist() == [[-1.0, 0.5, 0.25], [1.0, -0.5, 0.75]]
    path.write_text("index,preference\n0,1\n")
    with pytest.raises(UserError, match="no column std_delta_len"):
        win_rate.read_gamed(path)
