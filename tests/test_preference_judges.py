"""Judges of preference items: scores that nothing else changes, implicit rewards, verdicts in both orders."""

import functools
import importlib.util
import json
import math
import random

import jax
import numpy as np
import pytest
from data_kit import sentencepiece
from preference_kit import MODEL, items, rows, write

import models
from easylm_jax.config.chat_templates import TEMPLATES
from easylm_jax.data import load_tokenizer
from easylm_jax.decode.likelihood import reward_scores
from easylm_jax.evaluate.preferences import analyses, judges, tables
from easylm_jax.evaluate.preferences.items import files_by_language, oddities, read_items
from easylm_jax.evaluate.preferences.languages import LANGUAGES
from easylm_jax.evaluate.preferences.run import judge_bench
from easylm_jax.objectives import score_responses
from models.errors import UserError
from recipes.m_rewardbench import figures, fixtures, human_check, small_data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(sentencepiece(tmp_path_factory.mktemp("vocabulary")))


def noisy(config, seed):
    model = models.build(config)
    params = model.init(jax.random.key(seed))
    return model, jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size + seed), x.shape), params)


@pytest.fixture(scope="module")
def classifier(tokenizer):
    model, params = noisy(MODEL.replace(scalar_head=True), 1)
    return judges.Classifier(model, params, tokenizer, "tulu")


@pytest.fixture(scope="module")
def policies():
    return noisy(MODEL, 2), noisy(MODEL, 3)


def scores(judge, chosen):
    return {(item.id, item.subset): outcome.scores for item, outcome in zip(chosen, judge(chosen), strict=True)}


def test_scores_of_400_pairs_have_the_same_bits_in_any_batch_and_order(classifier):
    pairs = items(400)
    whole = scores(classifier, pairs)
    assert len({value for own in whole.values() for value in own}) > 700
    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert scores(classifier, shuffled) == whole
    for size in (7, 64):
        parts = {}
        for start in range(0, len(pairs), size):
            parts |= scores(classifier, shuffled[start : start + size])
        assert parts == whole, size
    for item in shuffled[:40]:  # alone, so that no prompt is shared
        assert scores(classifier, [item])[item.id, item.subset] == whole[item.id, item.subset]


@pytest.mark.slow
def test_scores_of_400_pairs_have_the_same_bits_one_by_one_and_with_no_prompt_shared(classifier, tokenizer):
    """Every pair alone; then every answer alone, so that nothing is read with it or for it twice."""
    pairs = items(400)
    whole = scores(classifier, pairs)
    for item, own in zip(pairs, judges.encode(pairs, tokenizer, "tulu", 256), strict=True):
        assert scores(classifier, [item])[item.id, item.subset] == whole[item.id, item.subset]
        alone = [reward_scores(classifier.model, classifier.params, [(each.prompt, each.answer)])[0] for each in own]
        assert tuple(map(float, alone)) == whole[item.id, item.subset]
    twice = [(each.prompt, each.answer) for own in judges.encode(pairs, tokenizer, "tulu", 256) for each in own] * 2
    packed = reward_scores(classifier.model, classifier.params, random.Random(1).sample(twice, len(twice)))
    assert sorted(packed.tolist()) == sorted([value for own in whole.values() for value in own] * 2)


def test_scores_are_those_of_a_whole_forward_pass(classifier, tokenizer):
    pairs = items(12)
    run = jax.jit(functools.partial(score_responses, classifier.model))
    encoded = judges.encode(pairs, tokenizer, "tulu", 256)
    got = scores(classifier, pairs)
    for item, own in zip(pairs, encoded, strict=True):
        for side, each in enumerate(own):
            ids = np.zeros((1, 64), np.int32)
            length = len(each.prompt) + len(each.answer)
            ids[0, :length] = [*each.prompt, *each.answer]
            want = float(run(classifier.params, ids, np.array([length]))[0])
            assert abs(got[item.id, item.subset][side] - want) <= 1e-5
            assert each.answer[-1] == tokenizer.eos_id and each.answer.count(tokenizer.eos_id) == 1


def test_swapped_sides_reverse_the_result_and_a_tie_is_wrong(classifier):
    import dataclasses

    pairs = items(30)
    swapped = [dataclasses.replace(item, completions=item.completions[::-1]) for item in pairs]
    results, others = ([outcome.result for outcome in classifier(part)] for part in (pairs, swapped))
    assert [a + b for a, b in zip(results, others, strict=True)] == [1.0] * 30
    equal = [dataclasses.replace(item, completions=(item.completions[0],) * 2) for item in pairs[:3]]
    assert [outcome.result for outcome in classifier(equal)] == [0.0] * 3
    assert oddities(equal)["equal_answers"] == 3


whole_logits = jax.jit(models.logits, static_argnums=0)


def float64_logprobs(model, params, prompt, answer):
    ids = np.zeros((1, 96), np.int32)
    ids[0, : len(prompt) + len(answer)] = [*prompt, *answer]
    logits = np.asarray(whole_logits(model, params, ids)[0, : len(prompt) + len(answer)], np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logp[np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), list(answer)]


@pytest.mark.parametrize("template", ["tulu", "olmo", "tulu25", "plain"])
def test_the_implicit_reward_is_that_of_a_float64_reference(template, policies, tokenizer):
    """Templates with and without BOS; every answer has one end token, and no header counts."""
    (model, params), (base_model, base) = policies
    judge = judges.Implicit(
        lambda encoded: judges.answer_logprobs(model, params, encoded),
        lambda encoded: judges.answer_logprobs(base_model, base, encoded), tokenizer, template, 256,
    )  # fmt: skip
    pairs = items(6)
    starts_with_bos = TEMPLATES[template].start != ()
    for own, outcome in zip(judges.encode(pairs, tokenizer, template, 256), judge(pairs), strict=True):
        for each, score in zip(own, outcome.scores, strict=True):
            ours, theirs = (
                float64_logprobs(m, p, each.prompt, each.answer) for m, p in ((model, params), (base_model, base))
            )
            assert abs(score - (ours.sum() - theirs.sum())) <= 1e-5 * max(1, len(each.answer))
            ids = [*each.prompt, *each.answer]
            assert ids.count(tokenizer.eos_id) == 1 and ids[-1] == tokenizer.eos_id
            assert ids.count(tokenizer.bos_id) == int(starts_with_bos)


def test_a_policy_that_is_its_reference_never_wins(policies, tokenizer):
    (model, params), _ = policies
    one = lambda encoded: judges.answer_logprobs(model, params, encoded)  # noqa: E731
    outcomes = judges.Implicit(one, one, tokenizer, "tulu", 256)(items(10))
    assert all(outcome.scores == (0.0, 0.0) and outcome.result == 0 for outcome in outcomes)


def test_reference_free_norms(policies, tokenizer):
    (model, params), _ = policies
    one = lambda encoded: judges.answer_logprobs(model, params, encoded)  # noqa: E731
    pair = items(1)
    (encoded,) = judges.encode(pair, tokenizer, "tulu", 256, keep_tail=False)
    logp = float64_logprobs(model, params, encoded[0].prompt, encoded[0].answer)
    want = {"sum": logp.sum(), "avg": logp.mean(), "norm": -np.linalg.norm(logp)}
    for norm, value in want.items():
        judge = judges.Implicit(one, None, tokenizer, "tulu", 256, norm=norm)
        assert abs(judge(pair)[0].scores[0] - value) <= 1e-4 and norm in judge.kind


def test_long_pairs_lose_the_left_of_their_prompt_and_are_counted(tokenizer):
    pair = items(19)[18:]
    (whole,), (cut,) = (judges.encode(pair, tokenizer, "tulu", limit) for limit in (256, 30))
    for long, short in zip(whole, cut, strict=True):
        assert len(short.prompt) + len(short.answer) <= 30 and short.truncated != (long == short)
        assert short.answer == long.answer[:29] and short.prompt == long.prompt[len(long.prompt) - len(short.prompt) :]
    (left,) = judges.encode(pair, tokenizer, "tulu", 10, compat="mrb")
    assert [*left[0].prompt, *left[0].answer] == [*whole[0].prompt, *whole[0].answer][-10:]


def longer(texts):
    """A judge that prefers the longer answer, whatever the order."""
    replies = []
    for turns in texts:
        user = turns[-1]["content"]
        a, b = (user.split(f"[The Start of Assistant {x}'s Answer]\n")[1].split("\n[The End")[0] for x in "AB")
        replies.append("[[A]]" if len(a) > len(b) else "[[B]]")
    return replies


def test_judges_in_both_orders():
    pairs = items(50)
    right = [float(len(item.completions[0]) > len(item.completions[1])) for item in pairs]
    unequal = [len(item.completions[0]) != len(item.completions[1]) for item in pairs]
    outcomes = judges.PairJudge(longer)(pairs)
    for outcome, want, differs in zip(outcomes, right, unequal, strict=True):
        assert outcome.result == (want if differs else 0.5) and outcome.flipped is not differs
    first = judges.PairJudge(lambda texts: ["[[A]]"] * len(texts))(pairs)
    assert all(outcome.result == 0.5 and outcome.flipped for outcome in first)
    mute = judges.PairJudge(lambda texts: ["well"] * len(texts))(pairs)
    assert all(outcome.result == 0.5 and outcome.errors == 2 and outcome.flipped is None for outcome in mute)
    once = judges.PairJudge(lambda texts: ["[[A]]"] * len(texts), order="random")(pairs)
    assert 10 < sum(outcome.result for outcome in once) < 40 and all(len(o.verdicts) == 1 for o in once)


def test_panels_and_ratings():
    import dataclasses

    pairs = items(20)
    right, wrong = ([judges.Outcome(value)] * 20 for value in (1.0, 0.0))
    assert [o.result for o in judges.panel([right, wrong, right])] == [1.0] * 20
    assert [o.result for o in judges.panel([right, wrong, [judges.Outcome(0.5)] * 20])] == [0.5] * 20
    with pytest.raises(UserError, match="odd number"):
        judges.panel([right, wrong])
    four = [dataclasses.replace(item, completions=(*item.completions, "c", "d"), kind="bon") for item in pairs]
    nines = judges.RatingJudge(lambda texts: ["9"] * len(texts))(four)
    assert [o.result for o in nines] == [0.25] * 20
    mute = judges.RatingJudge(lambda texts: ["?"] * len(texts))(four)
    assert [o.result for o in mute] == [0.25] * 20 and mute[0].errors == 4
    ranked = judges.PairJudge(lambda texts: ["[[A]]"] * len(texts))(four)
    assert 0 < sum(o.result for o in ranked) < 20


def test_the_logit_judge_scores_both_orders(policies, tokenizer):
    (model, params), _ = policies
    judge = judges.LogitJudge(
        models.build(MODEL.replace(context=2048)), params, tokenizer, "tulu"
    )  # fmt: skip
    outcomes = judge(items(3))
    assert all(o.result in (0.0, 0.5, 1.0) and len(o.verdicts) == 2 and math.isfinite(o.scores[0]) for o in outcomes)
    assert judge(items(3)) == outcomes


def test_languages_are_named_to_the_judge(tmp_path):
    german = items(23, "deu_Latn")
    names = {item.subset: judges.language_names(item, None) for item in german}
    assert names["donotanswer"] == {"source": "German", "target": "German"}
    assert names["hep-go"] == {"source": "German", "target": "English"}
    assert judges.language_names(german[0], "mrb")["target"] == "English"
    assert judges.language_names(items(1)[0], None) == {"source": None, "target": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    for code in ("eng_Latn", *LANGUAGES):
        write(root / f"{code}.jsonl", rows(code, 23))
    write(root / "translation.jsonl", [{**row, "source": "maple-hard/de-en"} for row in rows("deu_Latn", 4)])
    return root


def test_a_perfect_and_a_random_judge_end_to_end_and_the_same_bytes_again(folder, tmp_path):
    class Perfect:
        kind = "oracle"

        def __call__(self, chosen):
            return [judges.Outcome(1.0, (1.0, 0.0)) for _ in chosen]

    class Coin:
        kind = "coin"

        def __call__(self, chosen):
            flips = [random.Random(f"{item.id}{item.language}").random() < 0.5 for item in chosen]
            return [judges.Outcome(float(flip), (float(flip), 0.5)) for flip in flips]

    files = files_by_language(folder)
    assert len(files) == 25

    def run(judge, out):
        return judge_bench(judge, files, out, bench="m_rewardbench", model=judge.kind, settings={"seed": 0})

    perfect = run(Perfect(), tmp_path / "perfect")
    assert perfect["averages"]["m_rewardbench"] == {"score": 1.0, "deviation": 0.0}
    assert perfect["analysis"]["drop"]["deu_Latn"]["score"] == 0 and perfect["analysis"]["kappa_mean"] is None
    coin = run(Coin(), tmp_path / "coin")
    assert abs(coin["averages"]["m_rewardbench"]["score"] - 0.5) < 0.1  # 529 items: ± 0.06 at two standard errors
    assert abs(coin["analysis"]["kappa_mean"]) < 0.2 and len(coin["tasks"]) == 25
    run(Coin(), tmp_path / "again")
    for name in ("scores.json", "tables.md", "heat_map.html", "items.kor_Hang.jsonl"):
        assert (tmp_path / "coin" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    text = (tmp_path / "coin" / "tables.md").read_text()
    assert "| Sino-Tibetan |" in text and "hard/de-en" in text and "0 empty answers, 0 equal answers, 0 prompts" in text
    assert "| language | score | Chat | Chat Hard | Safety | Reasoning | n |" in text
    found = json.loads((tmp_path / "coin" / "scores.json").read_text())
    page = tables.heat_map({"a": found, "b": found})
    assert page.count("<tr>") == 3 and "English against other languages" in page
    judged, text = figures.compare([tmp_path / "perfect", tmp_path / "coin"])
    assert list(judged) == ["oracle", "coin"] and "| coin | coin | " in text and "GPT-4 Turbo" in text
    assert "| oracle, coin | 556 | " in text  # 24 languages of 23 items, and 4 translations
    page = figures.page([tmp_path / "perfect", tmp_path / "coin"], judged)
    titles = ["Change from English", "Agreement of each judge", "Agreement of judges by item", "Resource class",
              "Translation", "Rewards of"]  # fmt: skip
    assert all(f"<h2>{title}" in page for title in titles) and page.count("<svg") >= 7
    assert "Quality of the translation" not in page and "no κ</th>" in page
    with pytest.raises(UserError, match="name each one once"):
        figures.compare([tmp_path / "coin", tmp_path / "again"])
    assert analyses.across_models({"a": 0.5, "b": 0.7}, {"a": 0.4, "b": 0.8})["spearman"] == 1


def test_fixtures_are_in_the_released_schema_and_of_other_documents_than_training(shared_data, monkeypatch):
    monkeypatch.setattr(fixtures, "DATA", str(shared_data))
    made, training = fixtures.rows_by_language(46), small_data.write(0, pairs=60, judgements=12)
    assert set(made) == {"eng_Latn", *LANGUAGES} and all(
        [row["id"] for row in own] == [*range(46)] for own in made.values()
    )
    seen = {text for row in training["pages.jsonl"] for text in row.values()}
    for row in made["deu_Latn"]:
        assert row["prompt"] not in seen and row["chosen"] not in seen and row["chosen"] != row["rejected"]
        reversed_words = sorted(row["chosen"].split()) == sorted(row["rejected"].split())
        assert reversed_words == (row["source"] in fixtures.REVERSED) or len(row["chosen"].split()) < 4
    assert len({row["source"] for row in fixtures.translation_rows(2)}) == 8
    for row, chat in zip(training["pairs.jsonl"], training["judgements.jsonl"], strict=False):
        letter = chat["messages"][-1]["content"][2]
        assert f"Assistant {letter}'s Answer]\n{row['chosen']}\n" in chat["messages"][1]["content"]


def test_a_missing_language_leaves_no_average(folder, tmp_path, classifier):
    files = {code: path for code, path in files_by_language(folder).items() if code in ("eng_Latn", "deu_Latn")}
    results = judge_bench(classifier, files, tmp_path, bench="m_rewardbench", model="rm", settings={})
    assert results["averages"]["m_rewardbench"]["score"] is None
    assert len(results["analysis"]["missing_languages"]) == 22


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"prompt": "a", "chosen": "b"}], "no column rejected; it has prompt, chosen"),
        ([{"chosen": "b", "rejected": "c"}], "no column prompt"),
        ([{"id": 1, "prompt": "a", "chosen": "b", "rejected": "c"}] * 2, "the id '1'"),
        ([{"prompt": 7, "chosen": "b", "rejected": "c"}], "neither a text nor a list of messages"),
        (
            [{side: [{"role": "user", "content": side}, {"role": "assistant", "content": "x"}]
              for side in ("chosen", "rejected")}],
            "prompts of chosen and rejected differ",
        ),
        ([], "no preference pair"),
    ],
)  # fmt: skip
def test_wrong_records_are_one_clear_line(tmp_path, records, said):
    with pytest.raises(UserError, match=said):
        read_items(write(tmp_path / "pairs.jsonl", records))


def test_other_forms_are_read(tmp_path):
    turns = [{"role": "user", "content": "q"}]
    answer = lambda text: [*turns, {"role": "assistant", "content": text}]  # noqa: E731
    made = [
        {"chosen": answer("a"), "rejected": answer("b")},
        {"question": "q", "chosen": "a", "rejected": "b", "subset": "shp"},
        {"prompt": turns, "chosen": "", "rejected": "b <|user|>"},
        {"prompt": "a <|assistant|>\nb", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus", "id": "f1"},
        {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties", "id": "tied:1"},
    ]
    found = read_items(write(tmp_path / "pairs.jsonl", made))
    assert [item.kind for item in found] == ["pair", "pair", "pair", "pair", "bon", "ties"]
    assert found[0].prompt == tuple(turns) and found[0].completions == ("a", "b") and found[1].subset == "shp"
    assert found[5].correct == 2
    assert oddities(found) == {"empty_answers": 1, "equal_answers": 0, "prompts_with_markers": 1}
    with pytest.raises(UserError, match="no file of kor_Hang"):
        files_by_language(write(tmp_path / "x/deu_Latn.jsonl", made).parent, ["kor_Hang"])
    with pytest.raises(UserError, match="no language of M-RewardBench"):
        files_by_language(tmp_path / "empty")


def test_a_language_model_gives_no_reward_scores(policies):
    (model, params), _ = policies
    with pytest.raises(UserError, match="give a reward model"):
        reward_scores(model, params, [([1], [2])])


def test_quality_of_translations_against_accuracy():
    pytest.importorskip("sacrebleu")
    references = {i: f"the quick brown fox number {i} jumps" for i in range(20)}
    translations = {i: text if i % 2 else f"a dog {i}" for i, text in references.items()}
    found = analyses.quality_against_accuracy(translations, references, {i: float(i % 2) for i in range(20)}, bins=2)
    assert found["spearman"] > 0.8 and found["bins"][1]["accuracy"] == 1 and found["bins"][0]["chrf"] < 50


def test_a_poorer_translation_stands_beside_the_better_one(folder, tmp_path):
    """A judge that is wrong where words are missing: the averages of both, and accuracy that follows chrF."""
    poorer = tmp_path / "data"
    for code in LANGUAGES:
        write(poorer / f"{code}.jsonl", fixtures.poorer(rows(code, 23)))
    whole = {item.prompt[-1]["content"] for code in LANGUAGES for item in read_items(folder / f"{code}.jsonl", code)}

    class Reader:
        kind = "oracle"

        def __call__(self, chosen):
            return [judges.Outcome(float(item.prompt[-1]["content"] in whole), (1.0, 0.0)) for item in chosen]

    for name, data in (("better", folder), ("poorer", poorer)):
        judge_bench(Reader(), files_by_language(data), tmp_path / name, bench="m_rewardbench", model="m", settings={})
    judged, _ = figures.compare([tmp_path / "better"])
    page = figures.page([tmp_path / "better"], judged, [tmp_path / "poorer"])
    lost = 100 * (1 - json.loads((tmp_path / "poorer" / "scores.json").read_text())["average"])
    assert f"changes the average by +{lost:.1f} to +{lost:.1f} points." in page and lost > 50
    by_chrf = "Accuracy by quality of the translated prompt" in page
    assert by_chrf == (importlib.util.find_spec("sacrebleu") is not None)
    with pytest.raises(UserError, match="no results of m on the better translation"):
        figures.page([], {}, [tmp_path / "poorer"])


def test_a_human_is_scored_on_a_stratified_sample_in_either_order():
    chosen = items(90)
    labels = {(item.id, item.subset): (0, 1, 2)[number % 3] for number, item in enumerate(chosen)}
    pairs, key = human_check.draw(chosen, labels, 30, 0)
    assert [row["number"] for row in pairs] == [row["number"] for row in key] == list(range(30))
    assert sorted(row["judge"] for row in key) == [0] * 10 + [1] * 10 + [2] * 10
    by_id = {(item.id, item.subset): item for item in chosen}
    for pair, row in zip(pairs, key, strict=True):
        item = by_id[row["id"], row["subset"]]
        assert pair[row["gold"]] == item.completions[0] and "gold" not in pair
    golds = [row["gold"] for row in key]
    assert 5 < golds.count("A") < 25 and (pairs, key) == human_check.draw(chosen, labels, 30, 0)
    perfect = human_check.score(key, [{"number": row["number"], "answer": row["gold"]} for row in key])
    assert (
        perfect["human_gold"] == 1 and perfect["judge_gold"] == 0.5 and perfect["human_judge"] == pytest.approx(1 / 3)
    )
    said = {0: lambda gold: "B" if gold == "A" else "A", 1: lambda gold: "tie", 2: lambda gold: gold}
    alike = human_check.score(
        key, [{"number": row["number"], "answer": said[row["judge"]](row["gold"])} for row in key]
    )
    assert alike["human_judge"] == alike["kappa"] == 1 and alike["human_gold"] == 0.5
    for wrong in ({"number": 99, "answer": "A"}, {"number": 0, "answer": "C"}):
        with pytest.raises(UserError, match="is no answer"):
            human_check.score(key, [wrong])
