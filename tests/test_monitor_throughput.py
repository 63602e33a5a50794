import itertools

import jax
import pytest

from easylm_jax.runtime.chips import PEAK_FLOPS, device_peak_flops
from easylm_jax.runtime.monitor import Ledger, Throughput, mfu, model_flops_per_token, total_peak_flops
from easylm_jax.runtime.monitor.goodput import BUCKETS
from models.config import DecoderConfig
from models.flops import matmul_parameters, mean_visible_keys

CONFIG = DecoderConfig(
    family="olmo2", layers=4, width=32, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=100, context=64
)


@pytest.mark.parametrize("length, window", [(1, None), (7, None), (64, None), (64, 16), (64, 1), (16, 64)])
def test_visible_keys_match_a_count_of_the_mask(length, window):
    count = sum(1 for query, key in itertools.product(range(length), repeat=2) if 0 <= query - key < (window or length))
    assert mean_visible_keys(length, window) == pytest.approx(count / length)


def test_forward_flops_are_summed_by_hand():
    projections = 32 * 64 + 2 * 32 * 32 + 64 * 32  # q, k and v, o
    parameters = 4 * (projections + 3 * 32 * 48) + 32 * 100  # the head counts, the embedding table does not
    assert matmul_parameters(CONFIG) == parameters
    attention = 4 * (2 * 2 * 4 * 16) * (64 + 1) / 2  # layers · (scores and values) · mean keys
    assert model_flops_per_token(CONFIG, 64) == 2 * parameters + attention


def test_sliding_layers_count_their_window_and_full_layers_all_keys():
    sliding = CONFIG.replace(window=8)
    assert [window for window in sliding.pattern] == [8, 8, 8, None]
    saved = model_flops_per_token(CONFIG, 64) - model_flops_per_token(sliding, 64)
    irregular = model_flops_per_token(sliding.replace(full_attention_layers=(0, 1)), 64)
    assert model_flops_per_token(CONFIG, 64) - irregular == pytest.approx(saved * 2 / 3)
    assert saved == pytest.approx(3 * 4 * 4 * 16 * (mean_visible_keys(64, None) - mean_visible_keys(64, 8)))


def test_tied_head_counts_like_an_untied_one():
    assert model_flops_per_token(CONFIG.replace(tie_embeddings=True), 64) == model_flops_per_token(CONFIG, 64)


def test_mfu_counts_three_passes_and_is_none_without_a_peak():
    assert mfu(1e9, 1000.0, 1e13) == pytest.approx(0.3)
    assert mfu(1e9, 1000.0, 1e13, passes=1) == pytest.approx(0.1)
    assert mfu(1e9, 1000.0, None) is None


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v3", 61.5e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("Radeon", None),
    ],
)
def test_device_kinds_as_jax_names_them_have_their_peak(kind, peak):
    assert device_peak_flops(kind) == peak


def test_peaks_are_flops_not_teraflops():
    assert all(1e13 < peak < 1e16 for peak in PEAK_FLOPS.values())


def test_simulated_cpu_devices_share_one_measured_peak():
    devices = jax.devices("cpu")
    assert len(devices) == 8
    peak = total_peak_flops(devices)
    assert peak == total_peak_flops(devices[:1]) and 1e9 < peak < 1e15


def test_throughput_weighs_steps_by_their_length_and_forgets_old_ones():
    meter = Throughput(window=2, flops_per_token=1e6, peak_flops=3e9)
    assert meter.metrics() == {"tokens_per_second": None, "mfu": None}
    for tokens, seconds in ((1, 1000.0), (100, 1.0), (300, 3.0)):
        meter.update(tokens, seconds)
    assert meter.tokens_per_second == 100
    assert meter.mfu == pytest.approx(0.1)


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def ledger(start=1000.0):
    clock = Clock(start)
    return clock, Ledger(clock=clock, wall=clock)


def spend(clock, book, phase, seconds):
    with book.phase(phase):
        clock.now += seconds


def test_every_second_is_on_exactly_one_clock():
    clock, book = ledger()
    spend(clock, book, "init", 2)
    clock.now += 1
    with book.phase("evaluate"):
        clock.now += 3
        spend(clock, book, "data", 4)
        clock.now += 5
    seconds = book.seconds()
    assert seconds == {**dict.fromkeys(BUCKETS, 0), "init": 2, "other": 1, "evaluate": 8, "data": 4}
    assert sum(seconds.values()) == clock.now - 1000


def test_clocks_survive_a_restart_and_work_after_the_checkpoint_is_lost():
    clock, book = ledger()
    spend(clock, book, "step", 60)
    spend(clock, book, "checkpoint", 10)
    saved = book.state()
    spend(clock, book, "step", 30)  # steps 7 to 9, then a kill
    killed_at = clock.now

    clock.now += 100  # nobody restarts it for a while
    book = Ledger(clock=clock, wall=clock)
    spend(clock, book, "init", 20)
    book.resume(saved, step=6, last_step=9, last_seen=killed_at)
    spend(clock, book, "step", 80)
    assert book.seconds() == {**dict.fromkeys(BUCKETS, 0), "step": 140, "checkpoint": 10, "lost": 30, "init": 20}
    assert book.goodput() == pytest.approx(140 / 200)
    assert (book.restarts, book.steps_redone, book.seconds_down) == (1, 3, 120)  # start-up is downtime for a watcher


def test_clean_stop_loses_nothing():
    clock, book = ledger()
    spend(clock, book, "step", 60)
    last_line_at = clock.now
    clock.now += 5
    saved = book.state()
    book = Ledger(clock=clock, wall=clock)
    book.resume(saved, step=6, last_step=6, last_seen=last_line_at)
    assert book.seconds()["lost"] == 0 and book.steps_redone == 0


def test_second_restart_adds_to_the_first():
    clock, book = ledger()
    state = book.state()
    for _ in range(2):
        clock.now += 7
        book = Ledger(clock=clock, wall=clock)
        book.resume(state, step=1, last_step=3, last_seen=clock.now - 2)
        state = book.state()
    assert (book.restarts, book.steps_redone, book.seconds()["lost"], book.seconds_down) == (2, 4, 10, 4)


def test_unknown_phase_is_refused():
    _, book = ledger()
    with pytest.raises(ValueError, match="coffee"), book.phase("coffee"):
        pass
