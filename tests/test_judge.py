"""LM judges: their questions, the parsing of replies, and a tiny model as one."""

import dataclasses
import json
from types import SimpleNamespace

import data_kit
import jax
import numpy as np
import pytest
from faulty_server import faulty_server
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_params

import models
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.config import JudgeModel, Reward, Sampling
from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.decode import ScoredCompletions
from easylm_jax.rewards import lm_judge
from easylm_jax.rewards.judge_prompts import TEMPLATES, decision_of, final_answer, judge_questions, score_of
from easylm_jax.rewards.lm_judge import LMJudge
from easylm_jax.runtime.mesh import make_mesh
from models.config import DecoderConfig
from models.errors import UserError

CONFIG = DecoderConfig("olmo2", layers=1, width=32, heads=4, ffn=64, vocab=640, context=1024, qk_norm=True)
ASKED = [{"role": "user", "content": "How many legs has a {spider}?"}]
RUBRIC = {"rubrics": [{"description": "says eight", "weight": 3}, {"description": "is rude", "weight": -1}]}


def record(name):
    return {"ground_truth": json.dumps(RUBRIC) if name == "rubric" else "eight legs %s {}", "dataset": name}


# Questions


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_shows_the_prompt_the_answer_and_the_label_it_judges_by(name):
    questions = judge_questions(name, ASKED, "It has {8} legs.", record(name))
    for question in questions.texts:
        assert ASKED[0]["content"] in question and "It has {8} legs." in question
        assert ("eight legs %s {}" in question) == (TEMPLATES[name].reference is not None and name != "rubric")
        assert ('"SCORE": <number>' in question) != ("Final Decision: <Yes or No>" in question)
    assert judge_questions(None, ASKED, "It has {8} legs.", record(name)).texts == questions.texts


def test_a_rubric_asks_once_for_each_criterion_and_weighs_the_answers():
    questions = judge_questions("rubric", ASKED, "8", {"answer": RUBRIC})
    assert "says eight" in questions.texts[0] and "is rude" in questions.texts[1]

    def said(*scores):
        return questions.score([None if one is None else f'{{"SCORE": {one}}}' for one in scores])

    assert said(2, 0) == pytest.approx(3 / 4)
    assert said(1, 2) == pytest.approx((3 / 2 - 1) / 4)
    assert said(0, 2) == 0.0
    assert said(None, 0) == said(7, 0) == 0.0
    assert questions.unparsed([None, "well"]) == 1 and questions.unparsed(['{"SCORE": 3}', '{"SCORE": 2}']) == 1


def test_conversations_of_several_turns_are_shown_with_their_roles():
    turns = [*ASKED, {"role": "assistant", "content": "six"}, {"role": "user", "content": "sure?"}]
    question = judge_questions("general-quality", turns, "no, eight", {}).texts[0]
    assert question.index("[user]\nHow") < question.index("[assistant]\nsix") < question.index("[user]\nsure?")


def test_the_final_answer_is_what_is_judged():
    assert final_answer("<think><answer>no</answer></think> so <answer> 8 </answer> bye") == "8"
    assert final_answer("<think>six</think> eight") == "eight"
    assert final_answer("<|assistant|> eight <answer>") == "eight"
    assert final_answer("") == ""


def test_what_a_template_needs_is_told():
    with pytest.raises(UserError, match="no judge template 'quality'; there are general-quality"):
        judge_questions("quality", ASKED, "8", {})
    with pytest.raises(KeyError, match="answer"):
        judge_questions("general-quality_ref", ASKED, "8", {})
    assert "=== reference" not in judge_questions("general-factuality", ASKED, "8", {}).texts[0]
    for label in ("x", {}, {"rubrics": []}, {"rubrics": 3}, {"rubrics": [{"weight": 1}]}, "[" * 100_000,
                  {"rubrics": [{"description": "a", "weight": "nan"}]},
                  {"rubrics": [{"description": "a", "weight": 0}]}):  # fmt: skip
        with pytest.raises(UserError, match="rubric needs a label"):
            judge_questions("rubric", ASKED, "8", {"ground_truth": label})


# Replies


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"REASONING": "fine", "SCORE": 7}', 0.7),
        ('Well.\n```json\n{"REASONING": "score: 3 at first", "SCORE": "8"}\n```', 0.8),
        ('{"SCORE": 2} no: {"score": 9.5}', 0.95),
        ('{"SCORE": 10, "REASONING": "a {brace} and "quotes""}', 1.0),
        ('{"SCORE": 6, "REASONING": "the score: 2 of before"}', 0.6),
        ('{"SCORE": "7/10"}', 0.7),
        ('{"result": {"Score ": 4}}', 0.4),
        ("SCORE: 5", 0.5),
        ("**Score:** 5", 0.5),
        ('<think>{"SCORE": 1}</think>{"SCORE": 3}', 0.3),
        ("{'SCORE': 8}", 0.8),
        ('{"SCORE": 11}', None),
        ('{"SCORE": 0}', None),
        ('{"SCORE": -3}', None),
        ('{"SCORE": true}', None),
        ('{"SCORE": NaN}', None),
        ('{"SCORE": 1e400}', None),
        ('{"SCORE": ', None),
        ("10 of 10", None),
        ("underscore: 7", None),
        ("", None),
        ("[" * 1000 + '{"a":' * 1000, None),
    ],
)
def test_scores_are_read_from_what_models_write(reply, score):
    assert score_of(reply, 1, 10) == score
    quality = judge_questions("general-quality", ASKED, "8", {})
    assert quality.score([reply]) == (score or 0.0) and quality.unparsed([reply]) == (score is None)


@pytest.mark.parametrize(
    ("reply", "decision"),
    [
        ("Final Decision: Yes", 1.0),
        ("so final decision: **No**.", 0.0),
        ("Final Decision: Yes. Wait. Final Decision: No", 0.0),
        ("**Final Decision:** Yes", 1.0),
        ("Final Decision: Yesterday", None),
        ("Yes", None),
        ("<think>Final Decision: Yes</think>", None),
    ],
)
def test_decisions_are_read_from_the_last_line_that_has_one(reply, decision):
    assert decision_of(reply) == decision


PIECES = ['{"SCORE": 3}', '"score":', "score: ", "final decision: ", "yes", "{", "[", '"', " ", "9", "</think>", "```"]
REPLIES = st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(PIECES)).map("".join)


@settings(max_examples=200, deadline=None)
@given(REPLIES)
def test_no_reply_breaks_the_reading(reply):
    for name in TEMPLATES:
        questions = judge_questions(name, ASKED, reply, record(name))
        assert 0.0 <= questions.score([reply] * len(questions.texts)) <= 1.0


@pytest.mark.parametrize("piece", [*PIECES, "score ", '{"a":', "final  decision "])
def test_a_megabyte_is_read(piece):
    reply = piece * (1_000_000 // len(piece))
    assert score_of(reply, 1, 10) in (None, 0.3) and decision_of(reply) in (None, 1.0)


# A model as the judge


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A judge's folder with a vocabulary that knows the templates, and random parameters."""
    folder = tmp_path_factory.mktemp("judge")
    texts = [text for template in TEMPLATES.values() for text in (template.task, template.scale)]
    texts += [*data_kit.corpus(100), *(f'{{"REASONING": "x", "SCORE": {n}}} Final Decision: Yes No' for n in range(11))]
    words = load_tokenizer(f"sp:{train_sentencepiece(texts * 3, 600, folder / 'words', symbols=data_kit.MARKERS)}")
    params = random_params(models.build(CONFIG))
    meta = {"model": dataclasses.asdict(CONFIG), "tokenizer": words.spec, "tokenizer_hash": words.hash,
            "config": {"data": {"tokenizer": words.spec, "template": "tulu"}}}  # fmt: skip
    with Checkpointer(folder / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": params}, meta)
    return SimpleNamespace(folder=folder, words=words, params=params)


@pytest.fixture(scope="module")
def shared(tiny):
    """One judge, so that its programs are compiled once, and in a hurry."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield judge(tiny)
    jax.config.update("jax_disable_most_optimizations", before)


def judge(tiny, template="general-quality", engine=None, **more):
    sampling = Sampling(8, **{"temperature": 0.0, "slots": 4, **more})
    made = LMJudge(
        models.build(CONFIG), tiny.params, tiny.words, template=template, chat_template="tulu", sampling=sampling
    )
    made._engine = engine or made._engine
    return made


def telling(tiny, replies, template="general-quality"):
    """A judge whose model writes these replies."""
    made = judge(tiny, template)
    tokens = [tiny.words.encode(reply) for reply in replies]

    def generate(params, prompts, **_):
        assert len(prompts) == len(replies)
        rows = np.zeros((len(tokens), max(map(len, tokens))), np.int32)
        for row, ids in enumerate(tokens):
            rows[row, : len(ids)] = ids
        none = np.zeros(rows.shape, np.float32)
        return ScoredCompletions(
            rows, none, np.array([len(ids) for ids in tokens]), none, none, np.ones(len(rows), bool)
        )

    made._engine = SimpleNamespace(generate=generate)
    return made


def test_replies_become_scores_and_failures_are_counted(tiny):
    replies = ['{"REASONING": "x", "SCORE": 9}', "well", '{"REASONING": "x", "SCORE": 2}']
    scores, counts = telling(tiny, replies)([ASKED] * 3, ["8", "9", "no"], [{}] * 3)
    np.testing.assert_allclose(scores, [0.9, 0.0, 0.2], rtol=1e-6)
    assert scores.dtype == np.float32
    assert counts == {"judge_questions": 3, "judge_too_long": 0, "judge_unread": 1}


def test_rubrics_and_records_that_name_their_template_are_asked_together(tiny):
    records = [record("rubric"), record("general-web_instruct_general_verifier")]
    replies = ['{"SCORE": 2}', '{"SCORE": 1}', "Final Decision: Yes"]
    scores, counts = telling(tiny, replies, None)([ASKED] * 2, ["8", "8"], records)
    np.testing.assert_allclose(scores, [(3 - 0.5) / 4, 1.0])
    assert counts["judge_questions"] == 3


def test_a_real_model_judges_the_same_every_time_and_its_babble_counts_as_unread(shared):
    ours = shared
    responses = [data_kit.sentence(i, 5) for i in range(6)]
    scores, counts = ours([ASKED] * 6, responses, [{}] * 6)
    assert scores.tolist() == [0.0] * 6
    assert counts == {"judge_questions": 6, "judge_too_long": 0, "judge_unread": 6}
    questions = [judge_questions("general-quality", ASKED, response, {}).texts[0] for response in responses]
    replies = ours._replies(questions, 0)
    assert len(set(replies)) > 1 and all(reply for reply in replies)
    assert ours._replies(questions[::-1], 5)[::-1] == replies  # greedy: neither order nor rollout matters


def test_random_replies_follow_the_seed_and_the_rollout(tiny, shared):
    ours = judge(tiny, engine=shared._engine, temperature=1.0)
    first = ours._replies(["a question"] * 3, 0)
    assert ours._replies(["a question"] * 3, 0) == first
    assert ours._replies(["a question"] * 3, 1) != first


def test_a_question_that_does_not_fit_counts_as_a_failure(shared):
    long = " ".join(data_kit.sentence(i, 40) for i in range(60))
    scores, counts = shared([ASKED] * 2, [long, "8"], [{}] * 2)
    assert scores.tolist() == [0.0, 0.0]
    assert counts == {"judge_questions": 2, "judge_too_long": 1, "judge_unread": 1}
    scores, counts = shared([ASKED], [long], [{}])
    assert scores.tolist() == [0.0] and counts["judge_too_long"] == 1
    assert shared([], [], [])[0].shape == (0,)


def test_a_reply_that_leaves_no_room_is_told(tiny):
    with pytest.raises(UserError, match="leave no room for a question in its context of 1024"):
        LMJudge(models.build(CONFIG), tiny.params, tiny.words, template=None, chat_template="tulu",
                sampling=Sampling(1024))  # fmt: skip


def test_a_recipe_names_its_judge(tiny, shared):
    named = JudgeModel(model=f"run:{tiny.folder}", sampling=Sampling(8, temperature=0.0, slots=4))
    mesh = make_mesh("fsdp=-1", jax.devices()[:1])
    loaded = lm_judge.load(named, mesh)
    loaded._engine = shared._engine  # of the same shape
    scores, counts = loaded([ASKED], ["8"], [{}])
    assert scores.tolist() == [0.0] and counts["judge_unread"] == 1
    questions = judge_questions("general-quality", ASKED, "8", {}).texts
    assert loaded._replies(questions, 0) == shared._replies(questions, 0)
    assert Reward(judge=JudgeModel(model="sft"), verifier="gsm8k + judge").models == (None, "sft")
    for wrong, told in (
        ({"verifier": "judge"}, "name its model in reward.judge"),
        ({"verifier": "gsm8k", "judge": named}, "its score is not used"),
    ):
        with pytest.raises(UserError, match=told):
            Reward(**wrong)
    with pytest.raises(UserError, match="no template 'best'"):
        JudgeModel(model="sft", template="best")


def test_a_judge_behind_a_server_gives_the_scores_of_its_replies():
    """Asked by the one client of servers, with the sampling of the recipe; nothing is loaded or planned for it."""
    replies = {"It has 8": '{"REASONING": "", "SCORE": 9}', "nine": "well"}

    def reply(body):
        return next(text for answer, text in replies.items() if answer in body["messages"][-1]["content"])

    with faulty_server(reply=reply, whole=True) as server:
        named = JudgeModel(
            model=f"{server.url}#m", sampling=Sampling(64, temperature=0.5, top_p=0.9, stop_strings=("\n\n",))
        )
        loaded = lm_judge.load(named, make_mesh("fsdp=-1", jax.devices()[:1]), seed=3)
        scores, counts = loaded([ASKED] * 3, ["It has 8", "nine", "It has 8"], [{}] * 3, step=1)
        again = loaded([ASKED], ["It has 8"], [{}], step=2)[0]
        bodies = [body for _, _, body in server.asked]
    want = judge_questions("general-quality", ASKED, "8", {}).score([replies["It has 8"]])
    assert 0 < want == pytest.approx(scores[0]) and scores.tolist() == [scores[0], 0.0, scores[0]] == [
        *again,
        0,
        *again,
    ]
    assert counts == {"judge_questions": 3, "judge_too_long": 0, "judge_unread": 1}
    assert {body["model"] for body in bodies} == {"m"} and {body["max_tokens"] for body in bodies} == {64}
    assert bodies[0]["temperature"] == 0.5 and bodies[0]["top_p"] == 0.9 and bodies[0]["stop"] == ["\n\n"]
    assert bodies[0]["seed"] == bodies[1]["seed"] != bodies[3]["seed"]
    reward = Reward(judge=named, verifier="judge")
    assert reward.models == (None, None) and reward.model_uses((), 0, "") == ()
    with pytest.raises(UserError, match="name its model behind a #"):
        JudgeModel(model="https://host/v1")
    with pytest.raises(UserError, match="own chat template"):
        JudgeModel(model="https://host/v1#m", chat_template="tulu")


def test_a_server_that_stays_away_ends_the_run_in_one_line():
    made = lm_judge.ServerJudge("http://127.0.0.1:9/v1#m", template=None, sampling=Sampling(8), attempts=1)
    with pytest.raises(UserError, match="nothing listens"):
        made([ASKED], ["8"], [{"dataset": "general-quality"}])
