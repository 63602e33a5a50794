"""The quickstart's tasks: what the gold check takes, what is held out, and that everything fits the recipe's sizes."""

import itertools

import pytest

from easylm_jax.data import load_tokenizer, train_sentencepiece
from recipes import arithmetic, quickstart


def written(**changes):
    stage = quickstart.recipe.stage("data")
    return arithmetic.write(stage.seed, **{**dict(stage.arguments), **changes})


@pytest.fixture(scope="module")
def files():
    return written(pages=2_000)


@pytest.mark.parametrize("tasks", arithmetic.TASKS)
def test_the_check_takes_the_reference_answer_and_no_bare_one(tasks):
    for problem in itertools.islice(arithmetic.problems(1, held_out=False, tasks=tasks), 400):
        record = {"answer": problem.answer}
        assert arithmetic.check(problem.response, record) == 1
        assert arithmetic.check(problem.answer, record) == arithmetic.check(f"It is {problem.answer}", record) == 0


@pytest.mark.parametrize("tasks", arithmetic.TASKS)
def test_no_held_out_problem_is_trained_on_in_any_wording(tasks):
    kept = {p.key for p in itertools.islice(arithmetic.problems(1, held_out=True, tasks=tasks), 1_000)}
    trained = {p.key for p in itertools.islice(arithmetic.problems(1, held_out=False, tasks=tasks), 10_000)}
    assert not kept & trained


def test_careless_answers_are_given_to_the_second_wording_alone_and_in_the_share_asked_for(files):
    careless = [turn["messages"] for turn in files["sft.jsonl"] if "####" not in turn["messages"][1]["content"]]
    firsts = ("Which is larger", "Sort", "Reverse")
    assert all(turn[1]["content"].startswith("It is ") for turn in careless)
    assert not any(turn[0]["content"].startswith(firsts) for turn in careless)
    seconds = [turn for turn in files["sft.jsonl"] if not turn["messages"][0]["content"].startswith(firsts)]
    share = dict(quickstart.recipe.stage("data").arguments)["careless"]
    assert len(careless) / len(seconds) == pytest.approx(share, abs=0.05)


def test_held_out_prompts_are_different_problems(files):
    asked = [record["messages"][0]["content"] for record in files["prompts_held_out.jsonl"]]
    assert len(set(asked)) == len(asked) == dict(quickstart.recipe.stage("data").arguments)["held_out"]


def test_prompts_and_answers_fit_the_tokens_that_the_recipe_gives_them(files, tmp_path):
    vocabulary = quickstart.recipe.stage("tokenizer").vocab_size
    train_sentencepiece((record["text"] for record in files["vocabulary.jsonl"]), vocabulary, tmp_path)
    tokenizer = load_tokenizer(f"sp:{tmp_path / 'tokenizer.model'}")
    for record in files["sft.jsonl"]:
        question, answer = (turn["content"] for turn in record["messages"])
        assert len(tokenizer.encode(f"<|user|>\n{question}\n<|assistant|>\n")) + 1 <= quickstart.PROMPT
        assert len(tokenizer.encode(answer)) + 1 <= quickstart.ANSWER


def test_all_methods_start_from_one_sft_model_and_see_the_same_problems():
    stages = {stage.name: stage for stage in quickstart.recipe.stages}
    for seed in quickstart.SEEDS:
        assert {stages[f"{method}-{seed}"].init for method in ("dpo", "ppo", "grpo")} == {"sft"}
        assert stages[f"dpo-{seed}"].data.sources == stages["reward"].data.sources
        assert stages[f"ppo-{seed}"].data == stages[f"grpo-{seed}"].data
    trained = [source.path for stage in quickstart.recipe.stages if hasattr(stage, "optimizer")
               for source in stage.data.sources]  # fmt: skip
    assert not any("held_out" in path for path in trained)
