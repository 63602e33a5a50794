"""The decode engine: what it generates is what the model says, whoever else is in the batch."""

import jax
import numpy as np
import pytest
from tiny_models import CASES, VOCAB, random_params

import models
from easylm_jax.decode import Completions, Engine, generate
from models.config import DecoderConfig
from models.errors import UserError

TINY = DecoderConfig(
    "olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=VOCAB, context=128, qk_norm=True
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    model = models.build(TINY)
    return model, random_params(model), Engine(model, slots=4, block=8)


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


whole_logits = jax.jit(models.logits, static_argnums=0)


def fresh_logprobs(model, params, prompt, completion, temperature=1.0):
    """Log-softmax of a whole forward pass, at the positions that predict the completion: float64 [n, V]."""
    row = np.zeros((1, 64), np.int32)  # one shape, so that one program serves all; a causal model does not look ahead
    row[0, : len(prompt) + len(completion)] = [*prompt, *completion]
    logits = np.asarray(whole_logits(model, params, row), np.float64)[0]
    logits = logits[len(prompt) - 1 :][: len(completion)] / temperature
    largest = logits.max(axis=-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))


def check_against_fresh_pass(model, params, prompts, out, *, greedy, temperature=1.0, samples=1):
    for row, length in enumerate(out.lengths):
        completion = out.tokens[row, :length]
        want = fresh_logprobs(model, params, prompts[row // samples], completion, temperature)
        chosen = want[np.arange(length), completion]
        assert np.abs(out.logprobs[row, :length] - chosen).max() <= 1e-4
        if greedy:
            assert (chosen >= want.max(axis=-1) - 1e-5).all()


UNROLLED = (
    "olmo-clipped-tied", "olmo2-grouped-wide-heads", "olmo3", "olmoe", "llama3-grouped-tied", "qwen2-windows",
    "mistral-windows", "gemma2",
)  # fmt: skip
SCANNED = ("olmo3", "olmo3-irregular", "olmo3-grouped-yarn", "olmoe", "qwen2-grouped-tied", "gemma2")


@pytest.mark.parametrize(("name", "unroll"), [(n, True) for n in UNROLLED] + [(n, False) for n in SCANNED])
def test_greedy_follows_the_argmax_of_a_whole_forward_pass(name, unroll):
    """Every family; sliding windows are shorter than what is generated, and prompts shorter and longer than them."""
    model = models.build(CASES[name])
    params = random_params(model)
    prompts = prompts_of(1, 4, 13)
    out = Engine(model, slots=4, block=8, unroll=unroll).generate(params, prompts, max_new_tokens=20, temperature=0)
    assert out.lengths.tolist() == [20] * 3
    check_against_fresh_pass(model, params, prompts, out, greedy=True)


def test_sampled_logprobs_are_those_of_a_fresh_pass_at_the_same_temperature(tiny):
    model, params, engine = tiny
    prompts = prompts_of(5, 17)
    out = engine.generate(params, prompts, max_new_tokens=20, temperature=0.7, samples=3)
    check_against_fresh_pass(model, params, prompts, out, greedy=False, temperature=0.7, samples=3)


def test_scores_are_the_models_own_whatever_the_truncation(tiny):
    model, params, engine = tiny
    prompts = prompts_of(5)
    out = engine.generate(params, prompts, max_new_tokens=12, temperature=1.3, top_k=5, scores=True)
    want = fresh_logprobs(model, params, prompts[0], out.tokens[0])
    chosen = want[np.arange(12), out.tokens[0]]
    assert np.abs(out.logprobs_untruncated[0] - chosen).max() <= 1e-4
    assert np.abs(out.entropy[0] + (np.exp(want) * want).sum(axis=-1)).max() <= 1e-4
    assert (np.abs(out.logprobs[0] - chosen) > 1e-3).any()


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_completion_depends_on_nothing_but_its_prompt_and_numbers(tiny, temperature):
    """Alone, among neighbours, in another bucket, in fewer slots than prompts, in other blocks: the same tokens."""
    model, params, engine = tiny
    prompts = prompts_of(6, 30, 3, 19, 6, 41, 9, 1, 12)
    settings = {"max_new_tokens": 24, "temperature": temperature, "seed": 11}
    alone = [engine.generate(params, [p], numbers=[i], **settings) for i, p in enumerate(prompts)]
    wide = Engine(model, slots=16, block=24)
    wide.least_bucket = 64
    for other in (engine, wide):
        together = other.generate(params, prompts, **settings)
        for i, one in enumerate(alone):
            assert together.tokens[i].tolist() == one.tokens[0].tolist()
            assert np.abs(together.logprobs[i] - one.logprobs[0]).max() <= 1e-5
    assert len({tuple(row) for row in together.tokens.tolist()}) == len(prompts)


def test_rows_are_refilled_as_completions_end_at_different_lengths(tiny):
    """Twenty completions of very different lengths over four slots, each as it is alone."""
    model, params, engine = tiny
    prompts = prompts_of(*range(1, 21))
    settings = {"max_new_tokens": 40, "eos_ids": tuple(range(0, VOCAB, 9)), "seed": 3}
    told = []
    out = engine.generate(params, prompts, progress=lambda *numbers: told.append(numbers), **settings)
    assert out.lengths.min() < 5 and out.lengths.max() > 10
    assert told == sorted(told) and len(set(told)) == len(told) > 5  # finished responses and tokens, after each block
    assert told[-1] == (20, out.lengths.sum())
    for i, prompt in enumerate(prompts):
        one = engine.generate(params, [prompt], numbers=[i], **settings)
        assert one.tokens[0].tolist() == out.tokens[i].tolist()
        assert one.lengths[0] == out.lengths[i]


def test_finished_rows_are_not_decoded_on(tiny, monkeypatch):
    """Steps run are close to the work divided by the slots, not to the longest completion of each group of four."""
    model, params, engine = tiny
    steps = []
    decode = engine._decode

    def counted(*arguments):
        cache, out = decode(*arguments)
        steps.append((arguments[3].token.shape[0], int(out.steps)))
        return cache, out

    monkeypatch.setattr(engine, "_decode", counted)
    eos = tuple(range(0, VOCAB, 9))
    out = engine.generate(params, prompts_of(*[8] * 40, seed=5), max_new_tokens=64, eos_ids=eos)
    groups = sum(out.lengths[i : i + 4].max() for i in range(0, 40, 4))
    run = sum(count for _, count in steps)
    print(f"{run} steps for {out.lengths.sum()} tokens; {groups} if groups of four waited for their longest")
    assert run <= out.lengths.sum() / 4 + out.lengths.max()
    assert run < groups


def test_the_last_rows_move_to_a_smaller_batch(tiny, monkeypatch):
    model, params, _ = tiny
    engine = Engine(model, slots=16, block=8)
    sizes = []
    decode = engine._decode
    monkeypatch.setattr(engine, "_decode", lambda *a: (sizes.append(a[3].token.shape[0]), decode(*a))[1])
    prompts = prompts_of(*[5] * 16, seed=2)
    settings = {"max_new_tokens": 60, "eos_ids": tuple(range(0, VOCAB, 9))}
    out = engine.generate(params, prompts, **settings)
    assert sizes[0] == 16 and sizes[-1] == 4
    alone = engine.generate(params, [prompts[i := int(out.lengths.argmax())]], numbers=[i], **settings)
    assert alone.tokens[0].tolist() == out.tokens[i].tolist()


def test_a_prompt_is_prefilled_once_and_forked_for_its_samples(tiny, monkeypatch):
    model, params, engine = tiny
    prefilled = []
    prefill = engine._prefill
    monkeypatch.setattr(engine, "_prefill", lambda w, t, n: (prefilled.append(int((n > 0).sum())), prefill(w, t, n))[1])
    prompts = prompts_of(7, 11, 7)
    prompts[2] = list(prompts[0])
    out = engine.generate(params, prompts, max_new_tokens=10, samples=6)
    assert sum(prefilled) == 2, "two distinct prompts, eighteen completions, four slots"
    assert len({tuple(row) for row in out.tokens.tolist()}) == 18
    single = engine.generate(params, prompts[1:2], numbers=[1], max_new_tokens=10, samples=6)
    assert single.tokens.tolist() == out.tokens[6:12].tolist()


def test_prompts_of_equal_tokens_and_other_context_are_different_prompts(tiny, monkeypatch):
    """Such as one question about two images."""
    model, params, engine = tiny
    prefilled = []
    prefill = engine._prefill
    monkeypatch.setattr(engine, "_prefill", lambda w, t, n: (prefilled.append(int((n > 0).sum())), prefill(w, t, n))[1])
    (prompt,) = prompts_of(9)
    same = engine.generate(params, [prompt] * 3, max_new_tokens=6)
    assert sum(prefilled) == 1
    apart = engine.generate(params, [prompt] * 3, max_new_tokens=6, contexts=["one image", "another", "one image"])
    assert sum(prefilled) == 1 + 2 and apart.tokens.tolist() == same.tokens.tolist()


def test_parameters_are_swapped_without_compiling_again(tiny):
    model, params, engine = tiny
    prompts = prompts_of(6, 9)
    engine.generate(params, prompts, max_new_tokens=12, temperature=0.9)
    compiled = [f._cache_size() for f in (engine._prepare, engine._prefill, engine._decode)]
    other = random_params(model, seed=1)
    out = engine.generate(other, prompts, max_new_tokens=12, temperature=0.8, seed=5)
    assert [f._cache_size() for f in (engine._prepare, engine._prefill, engine._decode)] == compiled
    check_against_fresh_pass(model, other, prompts, out, greedy=False, temperature=0.8)


def test_lengths_count_the_end_token_and_the_rest_is_padding(tiny):
    model, params, engine = tiny
    prompts = prompts_of(6, 6, 9)
    free = engine.generate(params, prompts, max_new_tokens=16, temperature=0)
    eos = int(free.tokens[1, 4])
    out = engine.generate(params, prompts, max_new_tokens=16, temperature=0, eos_ids=[eos])
    for row in range(3):
        hits = np.flatnonzero(free.tokens[row] == eos)
        want = hits[0] + 1 if len(hits) else 16
        assert out.lengths[row] == want
        assert out.tokens[row, :want].tolist() == free.tokens[row, :want].tolist()
        assert not out.tokens[row, want:].any() and not out.logprobs[row, want:].any()


def test_a_stop_string_ends_a_completion_after_the_token_that_completes_it(tiny):
    model, params, engine = tiny
    alphabet = "".join(chr(ord("A") + i) for i in range(VOCAB))
    detokenize = lambda tokens: "".join(alphabet[t] for t in tokens)  # noqa: E731
    prompts = prompts_of(6, 9)
    free = engine.generate(params, prompts, max_new_tokens=30, seed=4)
    text = detokenize(free.tokens[0])
    stop = text[6:9]  # spans two blocks of eight
    out = engine.generate(params, prompts, max_new_tokens=30, seed=4, stop_strings=["?!", stop], detokenize=detokenize)
    assert out.lengths[0] == text.index(stop) + 3
    assert detokenize(out.tokens[0, : out.lengths[0]]).endswith(stop)
    assert not out.tokens[0, out.lengths[0] :].any() and not out.logprobs[0, out.lengths[0] :].any()
    other = detokenize(free.tokens[1])
    assert out.lengths[1] == (other.index(stop) + 3 if stop in other else 30)


def test_padding_of_the_vocabulary_is_never_drawn():
    model = models.build(TINY.replace(vocab_used=40))
    params = random_params(model)
    params["head"]["kernel"][:, 40:] *= 4  # what is unused is likeliest
    for settings in ({"temperature": 0}, {"temperature": 1.0}, {"top_k": 5}, {"top_p": 0.5}):
        out = generate(model, params, prompts_of(5, 8), max_new_tokens=20, samples=4, slots=8, **settings)
        assert out.tokens.max() < 40
        assert np.isfinite(out.logprobs).all()


def test_generate_answers_as_the_engine_does(tiny):
    model, params, engine = tiny
    prompts = prompts_of(4, 10)
    out = generate(model, params, prompts, max_new_tokens=9, samples=2, seed=7, top_p=0.9)
    assert isinstance(out, Completions)
    tokens, logprobs, lengths = out
    assert tokens.shape == logprobs.shape == (4, 9) and lengths.tolist() == [9] * 4
    assert tokens.dtype == lengths.dtype == np.int32 and logprobs.dtype == np.float32
    again = engine.generate(params, prompts, max_new_tokens=9, samples=2, seed=7, top_p=0.9)
    assert again.tokens.tolist() == tokens.tolist()
    assert generate(model, params, [], max_new_tokens=9).tokens.shape == (0, 9)


def test_sixteen_bit_weights_are_used_in_the_activation_type(tiny):
    model = models.build(TINY, models.Compute(dtype="bfloat16"))
    params = random_params(model)
    prompts = prompts_of(6, 9)
    out = Engine(model, slots=4, block=8).generate(params, prompts, max_new_tokens=12, temperature=0)
    for row in range(2):
        want = fresh_logprobs(model, params, prompts[row], out.tokens[row])
        assert np.abs(out.logprobs[row] - want[np.arange(12), out.tokens[row]]).max() <= 0.15
    weights = Engine(model)._prepare(params)
    assert weights["head"].dtype == weights["embed"]["table"].dtype == "bfloat16"
    assert weights["norm"]["scale"].dtype == "float32"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, VOCAB]]}, "prompt 0 holds a token id outside 0…66"),
        (
            {"prompts": [[1] * 120]},
            "prompt 0 has 120 tokens, which with max_new_tokens=9 exceeds the maximum length of 128",
        ),
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or positive, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 (greedy) or positive, not nan"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"stop_strings": ["x"]}, "stop_strings need `detokenize`"),
        ({"stop_strings": [""], "detokenize": str}, "stop_strings holds an empty string"),
        ({"numbers": [1, 2]}, "2 numbers for 1 prompts"),
    ],
)
def test_what_cannot_be_generated_is_told_in_one_line(tiny, change, says):
    model, params, engine = tiny
    with pytest.raises(UserError) as told:
        engine.generate(params, **{"prompts": [[1, 2]], "max_new_tokens": 9, **change})
    assert says in str(told.value) and "\n" not in str(told.value)
