"""Strict and loose scores, the report, verifiers of records, and `easylm check`."""

import json
from collections import Counter

import pytest

from easylm_jax.cli import main
from easylm_jax.rewards import VERIFIERS, call_verifier, text
from easylm_jax.rewards.instructions import scoring, use_nltk_data
from models.errors import UserError

FREQUENCY = {"keyword": "ebb", "frequency": 2.0, "relation": "less than", "N": None}


@pytest.fixture(scope="module")
def nltk_data(shared_data):
    if not (shared_data / "nltk_data").is_dir():
        pytest.skip(f"no NLTK data in {shared_data}")
    use_nltk_data(str(shared_data / "nltk_data"))


def test_loose_variants_are_the_eight():
    assert scoring.loose_variants("*a*\n b \nc*") == [
        "*a*\n b \nc*", "b \nc*", "*a*\n b", "b", "a\n b \nc", "b \nc", "a\n b",
    ]  # fmt: skip
    assert scoring.loose_variants("one") == ["one"]
    assert scoring.loose_variants("*") == ["*"]
    assert scoring.loose_variants(" \n ") == []


def test_each_instruction_may_use_a_variant_of_its_own():
    ids = ["startend:quotation", "punctuation:no_comma", "keywords:existence", "startend:quotation"]
    response = 'Sure, here:\n"ebb"\nI hope, it helps'
    judged = scoring.judge(ids, [{}, None, {"keywords": ["hope"]}, {}], response)
    assert judged.strict == (False, False, True, False)
    assert judged.loose == (True, True, True, True)
    assert judged.ids == tuple(ids)


def test_verdicts_leave_the_arguments_as_they_are():
    kwargs = dict(FREQUENCY)
    assert scoring.judge(["keywords:frequency"], [kwargs], "ebb").strict == (True,)
    assert kwargs == FREQUENCY


@pytest.mark.parametrize("response", [None, "", " \n", 5, ["a"]])
def test_blank_response_follows_nothing_in_either_mode(response):
    judged = scoring.judge(["punctuation:no_comma"], [{}], response)
    assert (judged.strict, judged.loose) == ((False,), (False,))


@pytest.mark.parametrize(
    "ids, kwargs, message",
    [
        (["punctuation:no_comma"], [], "1 instructions with 0 sets of arguments"),
        ("punctuation:no_comma", [{}], "must be lists"),
        (["punctuation:no_coma"], [{}], "no instruction 'punctuation:no_coma'; did you mean 'punctuation:no_comma'"),
        (["punctuation:no_comma"], ["x"], "arguments must be a dict"),
    ],
)
def test_a_prompt_that_cannot_be_judged_is_an_error(ids, kwargs, message):
    with pytest.raises(UserError, match=message):
        scoring.judge(ids, kwargs, "text")


def test_report_counts_prompts_instructions_groups_and_ids():
    made = [
        scoring.Verdict(("a:x", "b:y"), (True, False), (True, True)),
        scoring.Verdict(("a:x",), (True,), (True,)),
        scoring.Verdict(("a:z", "a:z"), (False, False), (False, True)),
    ]
    strict, loose = scoring.report(made, "strict"), scoring.report(made, "loose")
    assert (strict["prompt"], strict["instruction"]) == (1 / 3, 2 / 5)
    assert strict["groups"] == {"a": 0.5, "b": 0.0} and strict["ids"] == {"a:x": 1.0, "a:z": 0.0, "b:y": 0.0}
    assert strict["counts"] == {"a:x": 2, "a:z": 2, "b:y": 1}
    assert (loose["prompt"], loose["instruction"]) == (2 / 3, 4 / 5)
    assert loose["ids"] == {"a:x": 1.0, "a:z": 0.5, "b:y": 1.0}
    assert strict["prompt_interval"][0] <= strict["prompt"] <= strict["prompt_interval"][1]


def test_interval_is_that_of_the_share():
    low, high = scoring.interval([True] * 150 + [False] * 150)
    assert 0.43 < low < 0.46 and 0.54 < high < 0.57  # 1.96 * sqrt(0.25 / 300) = 0.057
    assert scoring.interval([True, True]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "response, answer",
    [
        ("plain ", "plain"),
        ("<think>a, b</think> <answer>c</answer>", "c"),
        ("<|assistant|>a</think>b</think>\nc", "c"),
        ("only thought</think>", ""),
        (None, ""),
    ],
)
def test_answer_is_what_follows_the_reasoning(response, answer):
    assert text.answer_of(response) == answer


INSIDE = {"instruction_id": ["punctuation:no_comma", "keywords:frequency"], "kwargs": [None, FREQUENCY]}


@pytest.mark.parametrize(
    "record",
    [
        {"ground_truth": [INSIDE]},
        {"ground_truth": INSIDE},
        {"ground_truth": str([INSIDE])},
        {"ground_truth": json.dumps([INSIDE])},
        {"instruction_id_list": INSIDE["instruction_id"], "kwargs": INSIDE["kwargs"]},
    ],
)
def test_reward_is_the_share_that_the_answer_follows(record):
    judge = VERIFIERS["ifeval"]
    assert call_verifier(judge, "ebb, ebb</think>one ebb", record) == 1.0
    assert call_verifier(judge, "ebb, flow", record) == 0.5
    assert call_verifier(judge, "ebb, ebb", record) == 0.0
    assert call_verifier(judge, "<think>no comma</think>", record) == 0.0


def test_rewards_are_repaired_and_benchmarks_are_comparable():
    record = {"instruction_id_list": ["keywords:palindrome"], "kwargs": [{}]}
    assert VERIFIERS["ifeval"]("I sank", record) == 0.0
    assert VERIFIERS["ifbench"]("I sank", record) == 1.0


@pytest.mark.parametrize(
    "record, message",
    [
        ({"ground_truth": "18"}, "is not a list of a dict with instruction_id and kwargs"),
        ({"ground_truth": "[("}, "is not a list of a dict"),
        ({"ground_truth": []}, "is not a list of a dict"),
        ({"instruction_id_list": [], "kwargs": []}, "0 instructions with 0"),
        ({"instruction_id_list": ["a:b"], "kwargs": []}, "1 instructions with 0"),
        ({"instruction_id_list": ["a:b"], "kwargs": [{}]}, "no instruction 'a:b'"),
        ({"_record": 3, "_source": "x"}, "needs the column 'ground_truth', which record 3 of x does not have"),
    ],
)
def test_record_without_instructions_is_an_error(record, message):
    with pytest.raises(UserError, match=message):
        call_verifier(VERIFIERS["ifeval"], "text", record)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def check(capsys, *arguments):
    status = main.main(["check", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


PROMPTS = [
    {"key": 7, "prompt": "A", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 8, "prompt": "B ", "instruction_id_list": ["startend:quotation"] * 2, "kwargs": [{}, {}]},
    {"key": 9, "prompt": "C", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
]


def test_responses_are_joined_by_the_prompt_and_all_is_accounted_for(capsys, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    rows = [("B", '*"x"*'), ("A", "a, b"), ("A", "a b"), ("Z", "z")]
    responses = write(tmp_path / "responses.jsonl", [{"prompt": p, "response": r} for p, r in rows])
    out = tmp_path / "new" / "out.json"
    status, printed, err = check(capsys, responses, "--prompts", prompts, "--json", out, "--out", tmp_path / "results")
    assert (status, err) == (0, "")
    assert (
        "3 prompts, 4 instructions, version r26; 1 prompts without a response (they fail), 2 responses not" in printed
    )
    result = json.loads(out.read_text())
    assert (result["missing"], result["unused"]) == (1, 2)
    assert (result["strict"]["prompt"], result["loose"]["prompt"]) == (1 / 3, 2 / 3)
    assert [(line["key"], line["strict"], line["loose"]) for line in result["lines"]] == [
        ("7", [True], [True]), ("8", [False, False], [True, True]), ("9", [False], [False]),
    ]  # fmt: skip
    loose = [json.loads(line) for line in (tmp_path / "results" / "loose.jsonl").read_text().splitlines()]
    assert loose[1] == {
        "follow_all_instructions": True,
        "follow_instruction_list": [True, True],
        "instruction_id_list": ["startend:quotation"] * 2,
        "prompt": "B ",
        "response": '*"x"*',
    }
    strict = [json.loads(line) for line in (tmp_path / "results" / "strict.jsonl").read_text().splitlines()]
    assert [row["follow_all_instructions"] for row in strict] == [True, False, False]


def test_a_keyword_that_would_take_for_ever_loses_its_own_check_only(capsys, tmp_path, monkeypatch):
    """Keywords are regular expressions in the published versions, so a file of prompts can hold a hostile one."""
    monkeypatch.setattr("easylm_jax.cli.check.SECONDS", 1.0)
    ids = ["keywords:existence", "punctuation:no_comma", "keywords:existence"]
    kwargs = [{"keywords": ["(a+)+$"]}, {}, {"keywords": ["a{99999999999}"]}]
    row = {"prompt": "A", "instruction_id_list": ids, "kwargs": kwargs, "response": "a" * 60 + "b"}
    status, out, _ = check(capsys, write(tmp_path / "all.jsonl", [row]), "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == 0 and report["stopped"] == 1 and "1 checks took too long and were stopped" in out
    assert report["lines"][0]["strict"] == report["lines"][0]["loose"] == [False, True, False]


def test_lines_that_hold_prompt_and_response_need_no_second_file(capsys, tmp_path):
    rows = [{**PROMPTS[0], "response": "<think>a, b</think>c"}, {**PROMPTS[2], "response": ["no text"]}]
    path, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    assert check(capsys, path, "--answers", "--json", out)[0] == 0
    assert [line["strict"] for line in json.loads(out.read_text())["lines"]] == [[True], [False]]
    assert check(capsys, path, "--json", out)[0] == 0
    assert [line["strict"] for line in json.loads(out.read_text())["lines"]] == [[False], [False]]


def test_a_span_copied_as_asked_is_shown_beside_the_published_score(capsys, tmp_path):
    kwargs = {"prompt_to_repeat": "one two three four", "n_start": 1, "n_end": 2}
    row = {"prompt": "A", "response": "two three", "instruction_id_list": ["repeat:repeat_span"], "kwargs": [kwargs]}
    path, out = write(tmp_path / "rows.jsonl", [row]), tmp_path / "out.json"
    printed = check(capsys, path, "--json", out)[1]
    result = json.loads(out.read_text())
    assert (result["strict"]["prompt"], result["span_as_asked"]) == (0.0, {"strict": 1.0, "loose": 1.0})
    assert "by the span asked for (fixed)" in printed
    assert check(capsys, path, "--version", "fixed", "--json", out)[0] == 0
    fixed = json.loads(out.read_text())
    assert fixed["strict"]["prompt"] == 1.0 and "span_as_asked" not in fixed


@pytest.mark.parametrize(
    "responses, prompts, message",
    [
        ('{"prompt": "A", "response": "x"}', None, "line 1 has no `instruction_id_list`; give the file of prompts"),
        ("", None, "holds no line to score"),
        ("\n{", None, "line 2 is not JSON"),
        ("[1]", None, "line 1 is not an object with a text `prompt`"),
        ('{"prompt": "A"}', PROMPTS, "line 1 has no `response`"),
        ('{"prompt": "D", "response": "x"}', PROMPTS, "no prompt of"),
        ('{"prompt": "A", "response": "x"}', [{**PROMPTS[0], "instruction_id_list": []}], "has no instruction"),
        (
            '{"prompt": "A", "response": "x"}',
            [{**PROMPTS[0], "instruction_id_list": ["punctuation:comma"]}],
            "prompt 7: no instruction 'punctuation:comma'; did you mean 'punctuation:no_comma'?",
        ),
        ('{"prompt": "A", "response": "x"}', [{**PROMPTS[0], "kwargs": [{"N": 1}]}], "prompt 7: instruction punct"),
    ],
)
def test_mistakes_in_the_files_are_one_line(capsys, tmp_path, responses, prompts, message):
    path = tmp_path / "responses.jsonl"
    path.write_text(responses)
    extra = ["--prompts", write(tmp_path / "prompts.jsonl", prompts)] if prompts else []
    status, out, err = check(capsys, path, *extra)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("easylm: error: ") and message in err


def test_files_that_cannot_be_read_or_written_are_told(capsys, tmp_path):
    assert "does not exist; give the path of a file" in check(capsys, tmp_path / "none.jsonl")[2]
    path = write(tmp_path / "rows.jsonl", [{**PROMPTS[0], "response": "a"}])
    assert "is a folder; give the path of a file" in check(capsys, path, "--json", tmp_path)[2]
    assert "does not exist; give the path of a folder" in check(capsys, path, "--nltk-data", tmp_path / "none")[2]


def test_the_whole_test_set_of_ifbench_is_scored(capsys, tmp_path, shared_data, nltk_data):
    prompts = shared_data / "ifbench" / "IFBench_test.jsonl"
    if not prompts.is_file():
        pytest.skip(f"no {prompts}")
    rows = [json.loads(line) for line in prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    made = ["The tide turns. Who sails? Row!", "Sure:\nyes", "Fog 7\n\n* a\n- b", "", rows[3]["prompt"]]
    responses = write(
        tmp_path / "responses.jsonl",
        [{"prompt": row["prompt"], "response": made[place % 5]} for place, row in enumerate(rows)],
    )
    for version in ("r26", "r25", "fixed"):
        out = tmp_path / f"{version}.json"
        options = ("--prompts", prompts, "--json", out, "--version", version, "--nltk-data", shared_data / "nltk_data")
        assert check(capsys, responses, *options)[0] == 0
        result = json.loads(out.read_text())
        assert (result["prompts"], result["instructions"], result["missing"], result["unused"]) == (300, 344, 0, 0)
        assert [line["key"] for line in result["lines"]] == [str(number) for number in range(300)]
        groups = Counter()
        for name, count in result["strict"]["counts"].items():
            groups[name.partition(":")[0]] += count
        assert groups == {
            "format": 98, "words": 89, "count": 65, "ratio": 44, "sentence": 28, "custom": 11, "repeat": 9,
        }  # fmt: skip
        for line in result["lines"]:
            assert len(line["strict"]) == len(line["loose"]) == len(line["instruction_id_list"])
            assert all(loose or not strict for strict, loose in zip(line["strict"], line["loose"], strict=True))
        assert 0 < result["strict"]["prompt"] < result["loose"]["prompt"] < 1
