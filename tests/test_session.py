"""A session computes only what is new of a prompt, and samples what the engine samples for the whole prompt."""

import numpy as np
import pytest
from tiny_models import CASES, VOCAB, random_params

import models
from easylm_jax.decode import Engine
from easylm_jax.decode.session import Session


def ids(rng, count):
    return rng.integers(1, VOCAB, count).tolist()


def check(engine, params, session, prompts, numbers, **options):
    """The session's replies are the engine's, whose slots are of other prompts."""
    replies = session.generate(prompts, numbers=numbers, **options)
    order = sorted(prompts)
    whole = engine.generate(
        params, [prompts[slot] for slot in order], numbers=[numbers[slot] for slot in order], **options
    )
    for row, slot in enumerate(order):
        length = whole.lengths[row]
        assert replies[slot].tokens == whole.tokens[row, :length].tolist()
        np.testing.assert_allclose(replies[slot].logprobs, whole.logprobs[row, :length], atol=2e-5)
    return replies


def talk(name, unroll, options):
    model = models.build(CASES[name])
    params = random_params(model)
    engine = Engine(model, slots=5, block=4, unroll=unroll)
    session = Session(engine, params, 5)
    rng = np.random.default_rng(0)
    history = {slot: ids(rng, 3 + 5 * slot) for slot in range(4)}
    for turn in range(3):
        numbers = {slot: 10 * slot + turn for slot in history}
        replies = check(engine, params, session, history, numbers, **options)
        for slot, reply in replies.items():
            history[slot] = [*history[slot], *reply.tokens, *ids(rng, 1 + (slot + turn) % 3)]
        if turn == 0:
            history.pop(1)  # a dialogue that rests for a turn
        if turn == 1:
            history[1] = ids(rng, 30)  # another dialogue in its slot, with a long prompt
            history[2] = [*history[2][:-4], *ids(rng, 2)]  # a turn that is taken back
    return session


OTHERS = [("olmo2-grouped-wide-heads", True), ("mistral-windows", True), ("olmoe", False), ("olmo3", False)]


@pytest.mark.parametrize(
    ("name", "unroll"), [("gemma2", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)]
)
def test_replies_are_those_of_whole_prompts(name, unroll):
    talk(name, unroll, {"max_new_tokens": 9, "temperature": 0.8, "eos_ids": (3, 4, 5), "seed": 7})


@pytest.mark.slow
def test_long_extensions_go_in_chunks(monkeypatch):
    from easylm_jax.decode import session

    monkeypatch.setattr(session, "_MOST_SCORES", 1)
    talk("gemma2", True, {"max_new_tokens": 6, "temperature": 0})


def test_stop_strings_cut_a_reply_and_the_next_prompt_goes_on_from_there():
    options = {"stop_strings": ("7",), "detokenize": lambda tokens: " ".join(map(str, tokens))}
    talk("olmo2-grouped-wide-heads", True, {"max_new_tokens": 9, "temperature": 1.0, **options})


def test_only_what_is_new_is_computed():
    model = models.build(CASES["olmo2"])
    session = Session(Engine(model, slots=2, block=4), random_params(model), 2)
    prompt = list(range(1, 31))
    first = session.generate({0: prompt}, numbers={0: 0}, max_new_tokens=4, temperature=0)
    assert session.computed == 29
    session.generate({0: [*prompt, *first[0].tokens, 5, 6]}, numbers={0: 1}, max_new_tokens=4, temperature=0)
    assert session.computed == 29 + 2  # the last sampled token and one of the two; the other is read by the decoder
    session.forget(0)
    session.generate({0: prompt}, numbers={0: 0}, max_new_tokens=1, temperature=0)
    assert session.computed == 31 + 29
