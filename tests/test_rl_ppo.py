"""PPO does what it says: what is measured, what is updated, how often, and what stays as it was."""

import dataclasses

import jax
import numpy as np
import pytest
import rl_kit
from rl_kit import copies, grpo, loop_of, ppo

from easylm_jax.config import Compute, DataSpec, Reward, Source
from easylm_jax.data.build import stage_cache
from easylm_jax.decode import rollout
from easylm_jax.runtime.monitor.metrics import read_metrics

# With a large epsilon an update is about proportional to its gradient, so that rounding is not blown up to a sign.
SMOOTH = dataclasses.replace(rl_kit.RATE, lr="1.0", eps=1.0)
STAGES = (
    ppo("plain", rollout_epochs=2),
    ppo("compat", rollout_epochs=2, compat="tulu25", kl=0.5),
    ppo("whole", mini_batch=8, optimizer=SMOOTH),
    ppo("halves", mini_batch=8, accumulate=2, optimizer=SMOOTH),
    ppo("adaptive", steps=3, kl_target=0.05, kl=0.2, optimizer=dataclasses.replace(rl_kit.RATE, lr="1e-2")),
    ppo("value-first", steps=3, value_only=2),
    ppo("verified", reward=Reward(verifier="rl_kit:constant", missing_end=None), mini_batch=8, steps=1),
    ppo("half-precision", mini_batch=8, compute=Compute(dtype="bfloat16")),
)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    with rl_kit.devices(1):
        yield


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return rl_kit.experiment(tmp_path_factory.mktemp("ppo"), *STAGES)


def assert_same(before, after):
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_all_moved(before, after):
    """Every leaf has changed."""
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


class Watched:
    """One rollout of a stage: its columns before the updates, the batches of these, and what each update told."""

    def __init__(self, loop, state, number=1):
        self.loop, self.components = loop, []
        rows, batch = loop.batches.rows, loop.batches.batch

        def keep_columns(made, columns, kl):
            self.made, self.columns = made, columns
            self.rows, line = rows(made, columns, kl)
            return self.rows, line

        def keep_parts(part):
            self.components.append(part)
            return batch(part)

        loop.batches.rows, loop.batches.batch = keep_columns, keep_parts
        self.policy = copies(state.params)
        self.state, pending = loop.advance(state, number)
        self.updates = jax.device_get(pending.updates)
        self.line = loop.read(pending)
        loop.batches.rows, loop.batches.batch = rows, batch


@pytest.fixture(scope="module")
def plain(ready):
    loop = loop_of(ready, "plain")
    with rl_kit.begun(loop) as state:
        value = copies(state.value.params)
        frozen = copies((loop.job.reference, loop.job.scorer.params))
        watched = Watched(loop, state)
        yield watched, value, frozen


def test_old_log_probabilities_are_those_of_the_policy_that_wrote_bit_for_bit(plain):
    it, _, _ = plain
    again = it.loop._forward_columns(rollout.columns_of(it.made), it.policy, None)
    np.testing.assert_array_equal(again["old_logprobs"], it.columns["old_logprobs"])
    np.testing.assert_array_equal(again["entropy"], it.columns["entropy"])
    assert it.line["sampler_gap_max"] < 1e-4


def test_the_ratio_is_one_before_the_first_update_and_not_after_it(plain):
    it, _, _ = plain
    first, *later = it.updates
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6) and first["clip_fraction"] == 0
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-10)
    assert all(abs(told["ratio"] - 1) > 1e-5 and told["approx_kl"] > 1e-8 for told in later)


def test_divergence_from_an_identical_reference_is_exactly_zero(plain, ready):
    it, _, _ = plain
    np.testing.assert_array_equal(it.columns["old_logprobs"], it.columns["reference_logprobs"])
    assert it.line["kl"] == it.line["kl_per_token"] == it.line["kl_reward"] == 0
    loop = loop_of(ready, "half-precision")
    with rl_kit.begun(loop) as state:
        low = Watched(loop, state)
    assert low.columns["old_logprobs"].dtype == np.float32
    np.testing.assert_array_equal(low.columns["old_logprobs"], low.columns["reference_logprobs"])
    assert low.line["kl"] == 0


def test_every_update_is_counted_and_every_row_is_seen_once_an_epoch(plain):
    it, _, _ = plain
    stage = it.loop.job.stage
    assert len(it.updates) == stage.updates == 4 == int(it.state.updates) == int(it.state.value.step)
    assert int(it.state.step) == 1
    whole = sorted(row.tobytes() for row in it.rows["tokens"])
    orders = []
    for epoch in (it.components[:2], it.components[2:]):
        rows = [row.tobytes() for part in epoch for row in part["tokens"]]
        assert sorted(rows) == whole and len(set(rows)) == len(rows)
        orders.append(rows)
    assert orders[0] != orders[1] != whole  # shuffled anew


def test_the_reference_and_the_reward_model_stay_as_they_were(plain):
    it, value, frozen = plain
    assert_same(frozen, copies((it.loop.job.reference, it.loop.job.scorer.params)))
    assert_all_moved(value, copies(it.state.value.params))


def test_the_value_model_begins_as_the_reward_model_and_is_read_before_the_token(plain):
    """At a response's last token it says the reward model's score; a token's own value is that of the place before."""
    it, value, frozen = plain
    columns, made = it.columns, it.made
    values = np.asarray(it.loop.values(value, {name: columns[name] for name in
                                               ("tokens", "targets", "segment_ids", "positions")}))  # fmt: skip
    totals = made.prompt_lengths + made.lengths
    np.testing.assert_allclose(values[np.arange(made.rows), totals - 1], made.scores, atol=1e-6)
    first = rl_kit.of_responses(columns["old_values"], made)[:, 0]
    np.testing.assert_allclose(first, values[np.arange(made.rows), made.prompt_lengths - 1], atol=1e-6)
    # Whatever the response: the value before its first token is that of the prompt alone.
    alone = dataclasses.replace(made, lengths=np.zeros_like(made.lengths), responses=made.responses * 0)
    tokens, lengths = rollout.join(alone)
    np.testing.assert_allclose(first, it.loop.job.scorer._score(frozen[1], tokens, lengths), atol=1e-6)


def test_with_compat_tulu25_the_ratio_is_always_one(ready):
    loop = loop_of(ready, "compat")
    with rl_kit.begun(loop) as state:
        it = Watched(loop, state)
    assert len(it.updates) == 4
    for told in it.updates:
        assert told["ratio"] == pytest.approx(1.0, abs=1e-6) and told["clip_fraction"] == 0
        assert told["value_clip_fraction"] == 0 and told["value"] == pytest.approx(told["value"])
    # The parameters move all the same, and the penalty is of the parameters of each update.
    assert all(told["update_norm"] > 0 for told in it.updates if "update_norm" in told)
    diverged = [np.abs((p["old_logprobs"] - p["reference_logprobs"]) * p["mask"]).max() for p in it.components]
    assert diverged[0] == 0 and min(diverged[1:]) > 0
    assert [row.tobytes() for part in it.components[:2] for row in part["tokens"]] == [
        row.tobytes() for row in it.rows["tokens"]
    ]  # in order, as written


def test_micro_batches_change_nothing(ready):
    found = []
    for name in ("whole", "halves"):
        loop = loop_of(ready, name)
        with rl_kit.begun(loop) as state:
            it = Watched(loop, state)
        found.append((it.line, copies((it.state.params, it.state.value.params))))
    (line, whole), (other, halves) = found
    assert abs(line["loss"] - other["loss"]) <= 1e-6 and abs(line["value_total"] - other["value_total"]) <= 1e-6
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(halves), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_adaptive_kl_raises_its_price_above_the_target_and_lowers_it_below(ready):
    ready.run(ready.recipe.stage("adaptive"))
    lines = read_metrics(ready.folder("adaptive"))
    price, observed = [line["kl_coefficient"] for line in lines], [line["kl"] for line in lines]
    assert price[0] == pytest.approx(0.2) and observed[0] == 0
    assert price[1] == pytest.approx(0.2 * 0.98)  # nothing diverged yet
    assert observed[1] > 0.05 * 1.2 and price[2] == pytest.approx(0.2 * 0.98 * 1.02)


def test_value_only_rollouts_leave_the_policy_untouched(ready):
    loop = loop_of(ready, "value-first")
    with rl_kit.begun(loop) as state:
        before, value = copies(state.params), copies(state.value.params)
        for number in (1, 2):
            state, pending = loop.advance(state, number)
            line = loop.read(pending)
            assert int(state.updates) == 0 and int(state.value.step) == 2 * number
            assert "ratio" not in line and line["loss"] == line["value_total"]
            loop.check(line, number)
        assert_same(before, copies(state.params))
        assert_all_moved(value, copies(state.value.params))
        state, pending = loop.advance(state, 3)
        line = loop.read(pending)
    assert int(state.updates) == 2 and line["ratio"] == pytest.approx(1, abs=0.1)


def test_a_fractional_verdict_reaches_the_rewards_and_the_value_model_is_fresh_where_nothing_scores(ready):
    loop = loop_of(ready, "verified")
    with rl_kit.begun(loop) as state:
        trunk, value = copies(state.params), copies(state.value.params)
        it = Watched(loop, state)
    assert it.line["score"] == it.line["reward"] == pytest.approx(0.37, abs=1e-7) and it.line["score_std"] < 1e-7
    np.testing.assert_array_equal(it.made.scores, np.full(8, 0.37, np.float32))
    assert set(value) - set(trunk) == {"score"} and set(trunk) - set(value) == {"head"}
    np.testing.assert_array_equal(value["layers"]["mlp"]["up"]["kernel"], trunk["layers"]["mlp"]["up"]["kernel"])
    # The whole return of a response is its score (γ = 1, no divergence, λ-mixed values aside).
    totals = rl_kit.of_responses(it.rows["returns"], it.made)
    assert totals[np.arange(8), it.made.lengths - 1] == pytest.approx(0.37, abs=1e-6)


def test_a_pad_token_that_is_the_end_token_changes_no_column(plain):
    it, _, _ = plain
    job, stage = it.loop.job, it.loop.job.stage
    tokenizer, batch = job.tokenizer, job.loader.batch_at(0)
    found = []
    for pad in (None, tokenizer.eos_id):
        model = dataclasses.replace(it.loop.model, config=it.loop.model.config.replace(pad_id=pad))
        engine = rollout.Engine(model, slots=8)
        # Half of the vocabulary's words end an answer, so that lengths differ.
        ends = (tokenizer.eos_id, *range(3, 60))
        found.append(rollout.sample(engine, it.policy, batch, stage.sampling, samples=1, seed=5, tokenizer=tokenizer,
                                    end_ids=ends))  # fmt: skip
    plain_pad, eos_pad = found
    assert len(set(plain_pad.lengths.tolist())) > 2
    assert (eos_pad.responses == tokenizer.eos_id).sum() > (plain_pad.responses == tokenizer.eos_id).sum()
    ours, theirs = rollout.columns_of(plain_pad), rollout.columns_of(eos_pad)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_array_equal(plain_pad.ended, eos_pad.ended)


def test_answers_end_at_the_token_of_the_template_or_at_the_longest_length(plain):
    it, _, _ = plain
    job, stage = it.loop.job, it.loop.job.stage
    whole = rollout.sample(it.loop.engine, it.policy, job.loader.batch_at(0), stage.sampling, samples=2, seed=1,
                           tokenizer=job.tokenizer, end_ids=())  # fmt: skip
    assert not whole.ended.any() and (whole.lengths == rl_kit.NEW).all()
    end = int(np.bincount(whole.responses[:, 2]).argmax())
    cut = rollout.sample(it.loop.engine, it.policy, job.loader.batch_at(0), stage.sampling, samples=2, seed=1,
                         tokenizer=job.tokenizer, end_ids=(end,))  # fmt: skip
    for row in range(whole.rows):
        at = np.flatnonzero(whole.responses[row] == end)
        length = at[0] + 1 if len(at) else rl_kit.NEW
        assert (cut.lengths[row], cut.ended[row]) == (length, bool(len(at)))
        np.testing.assert_array_equal(cut.tokens_of(row), whole.responses[row, :length])
    assert cut.ended.any()


def test_rows_of_the_model_that_no_token_has_are_never_drawn(plain):
    """The model has 320 rows, the vocabulary 300 tokens: the others have no text."""
    it, _, _ = plain
    job = it.loop.job
    assert it.loop.model.config.vocab == 320 and job.tokenizer.vocab_size == 300
    loud = copies(it.policy)
    loud["head"]["kernel"] *= 0.01  # as good as uniform: about one token in 16 would have none
    sampling = dataclasses.replace(job.stage.sampling, temperature=2.0)
    made = rollout.sample(it.loop.engine, loud, job.loader.batch_at(0), sampling, samples=8, seed=1,
                          tokenizer=job.tokenizer, end_ids=())  # fmt: skip
    assert made.responses.size == 512 and 290 < made.responses.max() < 300
    assert all(isinstance(rollout.text_of(made, row, job.tokenizer), str) for row in range(made.rows))


def test_a_stage_ends_its_answers_as_its_prompts_template_does(ready):
    words = rl_kit.made().tokenizer()
    source = (Source(f"{rl_kit.made().folder}/prompts.jsonl"),)
    for template, ends in (("tulu", {words.eos_id}), ("chatml", {words.eos_id, words.special("<|im_end|>")})):
        spec = DataSpec(source, "stage:tokenizer", 40, kind="prompts", template=template)
        assert set(rollout.end_ids(stage_cache(ready, spec), words)) == ends


def test_the_reward_model_scores_any_number_of_responses_alike(plain):
    """The last group of rows is padded; the results of the padding are discarded."""
    it, _, _ = plain
    scorer, made = it.loop.job.scorer, it.made
    for count in (1, 3, 8):
        part = rollout.select(made, np.arange(count))
        part.scores = np.zeros(count, np.float32)
        scorer(part)
        np.testing.assert_allclose(part.scores, made.scores[:count], atol=1e-6)


def test_the_memory_estimate_equals_the_arrays(ready, tmp_path):
    from easylm_jax.train.rl.memory import memory_of

    loop = loop_of(ready, "plain")
    with rl_kit.begun(loop) as state:
        programs = loop.compiled(loop.batches.abstract(32))
        memory = memory_of(loop.job, loop.abstract, loop.engine, programs, 30)

    def real(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert memory.resident == {
        "policy": real(state.params), "optimizer state": real(state.opt), "value model": real(state.value.params),
        "its optimizer state": real(state.value.opt), "reference": real(loop.job.reference),
        "reward model": real(loop.job.scorer.params),
    }  # fmt: skip
    assert memory.update == {"temporaries": max(p.memory_analysis().temp_size_in_bytes for p in programs.values())}
    weights = loop.engine._prepare(state.params)
    assert memory.generation["weights"] == real(weights)
    cache = loop.engine.new_cache(loop.engine.slots, loop.engine.bucket(30))
    assert memory.generation["cache"] == real(cache)
    assert memory.peak == sum(memory.resident.values()) + max(
        sum(memory.generation.values()), memory.update["temporaries"]
    )


def test_group_policy_optimisation_keeps_what_is_left_out_out_of_the_update(ready, tmp_path):
    """A rollout of equal groups alone, all dropped, moves nothing and breaks nothing."""
    stage = grpo("equal", reward=Reward(verifier="rl_kit:constant", missing_end=None), drop_equal=True, steps=1)
    loop = loop_of(rl_kit.experiment(tmp_path, stage), "equal")
    with rl_kit.begun(loop) as state:
        it = Watched(loop, state)
        assert_same(it.policy, copies(it.state.params))
    assert it.line["kept"] == 0 and it.line["equal_groups"] == 1 and it.line["loss"] == 0 and it.line["skipped"] == 0
