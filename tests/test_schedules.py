"""Learning-rate schedules: the published runs' values, the grammar, and what is said about text that cannot be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.config.schedule import read_schedule
from easylm_jax.train.schedule import parse_schedule
from models.errors import UserError

OLMO2_1B = dict(total_steps=1_907_359, tokens_per_step=512 * 4096)
OLMO2_7B = dict(total_steps=928_646, tokens_per_step=1024 * 4096)
OLMO2_13B = dict(total_steps=596_057, tokens_per_step=2048 * 4096)
OLMO2_32B = dict(total_steps=721_901, tokens_per_step=2048 * 4096)


def at(text, step, total_steps=100, **kwargs):
    return float(parse_schedule(text, total_steps=total_steps, **kwargs)(step))


@pytest.mark.parametrize(
    ("text", "run", "step", "expected"),
    [
        ("4e-4 cosine to 10% warmup 8388608000 tokens horizon 5e12 tokens", OLMO2_1B, 1_907_359, 7.4487e-5),
        ("3e-4 cosine to 10% warmup 8388608000 tokens horizon 5T tokens", OLMO2_7B, 928_646, 6.1351e-5),
        ("9e-4 cosine to 10% warmup 1000 steps horizon 5T tokens", OLMO2_13B, 596_057, 9e-5),
        ("6e-4 cosine to 10% warmup 2000 steps horizon 6.5T tokens", OLMO2_32B, 721_901, 6.6e-5),
    ],
    ids=["olmo2-1b", "olmo2-7b", "olmo2-13b", "olmo2-32b"],
)
def test_last_rate_of_stage_one_is_the_published_one(text, run, step, expected):
    digits = len(f"{expected:e}".split("e")[0].rstrip("0").replace(".", ""))
    assert float(f"{at(text, step, **run):.{digits - 1}e}") == expected


def test_olmoe_past_its_horizon_stays_exactly_at_the_floor():
    text = "4e-4 cosine to 10% warmup 10485760000 tokens from 10% horizon 5e12 tokens"
    schedule = parse_schedule(text, total_steps=1_200_000, tokens_per_step=1024 * 4096)
    assert schedule(1_200_000) == np.float32(4e-5)
    assert schedule(0) == np.float32(4e-5)
    assert schedule.warmup == 2500
    np.testing.assert_allclose(schedule(1250), (4e-5 + 4e-4) / 2, rtol=1e-6)


def test_olmo3_half_cosine_continues_where_the_cosine_is_half_way():
    text = "3e-4 cosine to 10% warmup 2000 steps horizon 5e12 tokens"
    run = dict(total_steps=1_413_814, tokens_per_step=512 * 8192)
    plain, stretched = parse_schedule(text, **run), parse_schedule(f"{text} half-cosine 7e12 tokens", **run)
    assert int(stretched.half_way) == 597_046
    steps = np.arange(0, 597_046, 9_973)
    assert (np.asarray(stretched(steps)) == np.asarray(plain(steps))).all()
    np.testing.assert_allclose(stretched(597_046), 1.65e-4, rtol=1e-5)
    np.testing.assert_allclose(stretched(597_047), stretched(597_046), rtol=1e-5)
    assert f"{float(stretched(1_413_814)):.2e}" == "3.93e-05"
    np.testing.assert_allclose(stretched(1_668_931), 3e-5, rtol=1e-6)
    assert stretched(1_700_000) == stretched(1_668_931)


def test_stage_two_falls_in_a_straight_line_to_zero():
    schedule = parse_schedule("6.15e-5 linear to 0", total_steps=11_931)
    assert schedule(0) == np.float32(6.15e-5)
    assert schedule(11_931) == schedule(20_000) == 0
    np.testing.assert_allclose(
        schedule(np.arange(0, 11_931, 1000)), 6.15e-5 * (1 - np.arange(0, 11_931, 1000) / 11_931), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("updates", "share", "up", "down"),
    [(60_908 // 32 * 3, "10%", 571, 570), (326_154 // 128 * 2, "3%", 153, 152), (60_908 // 512, "3%", 4, 3)],
    ids=["dpo", "sft", "reward-model"],
)
def test_warmup_share_is_rounded_up_as_in_tulu25_or_down_as_in_tulu3(updates, share, up, down):
    assert parse_schedule(f"1e-5 linear to 0 warmup {share}", total_steps=updates).warmup == up
    assert parse_schedule(f"1e-5 linear to 0 warmup {share} rounded down", total_steps=updates).warmup == down


def test_dpo_run_of_tulu25_has_5709_updates_and_571_of_warmup():
    updates = 60_908 // 32 * 3
    schedule = parse_schedule("5e-7 linear to 0 warmup 10%", total_steps=updates)
    assert (updates, schedule.warmup) == (5_709, 571)
    assert schedule(571) == np.float32(5e-7)
    assert schedule(0) == schedule(5_709) == 0
    np.testing.assert_allclose(schedule(570), 5e-7 * 570 / 571, rtol=1e-6)
    np.testing.assert_allclose(schedule(5_708), 5e-7 / (5_709 - 571), rtol=1e-3)


def test_share_of_whole_updates_is_exact_where_binary_fractions_are_not():
    assert 0.07 * 100 > 7 and 0.29 * 100 < 29  # what plain floats would round to 8 and 28
    assert parse_schedule("1 linear to 0 warmup 7%", total_steps=100).warmup == 7
    assert parse_schedule("1 linear to 0 warmup 29% rounded down", total_steps=100).warmup == 29


def test_final_ratio_of_tulu3_is_a_line_to_that_share_of_the_peak():
    total, warmup, ratio, peak = 1000, 30, 0.1, 5e-6
    stretched = (total - ratio * warmup) / (1 - ratio)
    schedule = parse_schedule("5e-6 linear to 10% warmup 3%", total_steps=total)
    steps = np.array([30, 100, 500, 900, 1000])
    expected = peak * (stretched - steps) / (stretched - warmup)
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-5)


def test_reward_model_and_constant_schedules_of_tulu25():
    assert at("1e-5 linear to 1e-6 warmup 3%", 118, 118) == np.float32(1e-6)
    assert at("1e-5 cosine to 1e-6", 50) == pytest.approx(5.5e-6, rel=1e-6)
    ppo = parse_schedule("1e-6 constant warmup 93 steps", total_steps=927)
    assert ppo(93) == ppo(926) == ppo(10_000) == np.float32(1e-6)
    np.testing.assert_allclose(ppo(31), 1e-6 / 3, rtol=1e-6)


@pytest.mark.parametrize("text", [5e-7, "5e-7", "5e-7 constant", "0.0000005"])
def test_a_number_alone_is_a_constant_rate(text):
    assert at(text, 0) == at(text, 99) == np.float32(5e-7)


def test_an_integer_rate_is_accepted():
    assert at(1, 5) == 1


@pytest.mark.parametrize(
    "text",
    ["3e-4, cosine to 10%, warmup 2K, horizon 1M steps", "3e-4 COSINE to 3e-5 Warmup 2000 horizon 1_000_000 updates"],
)
def test_commas_suffixes_and_capitals_read_the_same(text):
    plain = parse_schedule("3e-4 cosine to 10% warmup 2000 steps horizon 1000000 steps", total_steps=10)
    np.testing.assert_allclose(parse_schedule(text, total_steps=10)(400_000), plain(400_000), rtol=1e-6)


def test_horizon_before_the_end_of_the_run_keeps_the_end_rate():
    schedule = parse_schedule("1e-3 linear to 1e-4 horizon 50%", total_steps=100)
    assert schedule(50) == schedule(99) == np.float32(1e-4)
    np.testing.assert_allclose(schedule(25), 5.5e-4, rtol=1e-6)


def test_schedule_is_traced_with_the_step_and_gives_float32():
    schedule = parse_schedule("1e-3 cosine to 0 warmup 10 steps", total_steps=100)
    rate = jax.jit(schedule)(jnp.int32(55))
    assert rate.dtype == jnp.float32 and rate.shape == ()
    np.testing.assert_allclose(rate, 5e-4, rtol=1e-6)


def test_schedule_agrees_with_double_precision_over_a_whole_run():
    peak, end, warmup, horizon = 3e-4, 3e-5, 2000, 1_192_092.896
    schedule = parse_schedule(f"3e-4 cosine to 10% warmup {warmup} horizon {horizon}", total_steps=1)
    t = np.arange(0, 1_300_000, 7919, dtype=np.float64)
    done = np.clip((t - warmup) / (horizon - warmup), 0, 1)
    expected = np.where(t < warmup, peak * t / warmup, end + (peak - end) * (1 + np.cos(np.pi * done)) / 2)
    np.testing.assert_allclose(schedule(t.astype(np.int32)), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "peak rate is missing"),
        ("fast", "'fast' is not a number"),
        ("-1e-5", "must be finite and not negative"),
        ("nan", "must be finite"),
        ("2e-5 linaer to 0", "'linaer' is not understood"),
        ("2e-5 linear", "must say where it ends"),
        ("2e-5 linear to", "the end rate is missing"),
        ("2e-5 linear to 1", "above the peak"),
        ("2e-5 linear to 0 cosine to 0", "the shape is given twice"),
        ("2e-5 linear to 0 warmup", "the warmup is missing"),
        ("2e-5 linear to 0 warmup 3% warmup 4%", "warmup is given twice"),
        ("2e-5 linear to 0 warmup T tokens", "'' is not a number"),
        ("2e-5 linear to 0 warmup 30 rounded down", "only a warmup in per cent"),
        ("2e-5 linear to 0 half-cosine 100", "half-cosine continues a cosine"),
        ("2e-5 horizon 100", "a constant rate has no horizon"),
    ],
)
def test_text_that_cannot_be_read_says_what_is_accepted(text, why):
    with pytest.raises(UserError) as error:
        read_schedule(text)
    message = str(error.value)
    assert why in message and "2e-5 linear to 0 warmup 3%" in message and "\n" not in message


@pytest.mark.parametrize("value", [None, True, ["1e-5"]])
def test_a_rate_of_the_wrong_type_is_refused(value):
    with pytest.raises(UserError, match="neither a number nor text"):
        read_schedule(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1e-3 linear to 0 warmup 200 steps", "leaves nothing of a horizon of 100 steps"),
        ("1e-3 linear to 0 warmup 1e9 tokens", "does not say how many tokens"),
        ("1e-3 cosine to 0 horizon 100 half-cosine 40", "must lie beyond the horizon"),
    ],
)
def test_schedule_that_does_not_fit_the_run_is_refused(text, why):
    with pytest.raises(UserError, match=why):
        parse_schedule(text, total_steps=100)
