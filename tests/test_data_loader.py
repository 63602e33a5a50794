"""`batch_at(step)` is a pure function of (cache, seed, step), the same for any number of hosts."""

import dataclasses

import numpy as np
import pytest
from data_kit import chat_spec, corpus, sentencepiece, text_spec, write_jsonl

from easylm_jax.data import DataSpec, Loader, Source, build_cache, open_cache
from easylm_jax.data.loader import permutation
from models.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loader")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return sentencepiece(folder)


@pytest.fixture(scope="module")
def cache(folder, tokenizer):
    return build_cache(text_spec(folder, tokenizer), folder / "text")


def mixture(folder, tokenizer, weights=(0.7, 0.2, 0.1), temperature=None):
    """Three sources of 60, 30 and 10 one-row documents."""
    sources = []
    for index, (count, weight) in enumerate(zip((60, 30, 10), weights, strict=True)):
        texts = [{"text": text} for text in corpus(100)[index::3][:count] * 3]
        path = write_jsonl(folder / f"mix{index}.jsonl", texts[:count])
        sources.append(Source(str(path), weight))
    spec = DataSpec(tuple(sources), tokenizer, 512, packing="none", temperature=temperature)
    return build_cache(spec, folder / "mix")


@pytest.fixture(scope="module")
def mixed(folder, tokenizer):
    return mixture(folder, tokenizer)


def source_of(cache, row):
    return cache.documents(int(row))[0].source


@pytest.mark.parametrize("which", ["cache", "mixed"])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_one_global_batch(which, hosts, request):
    found = request.getfixturevalue(which)
    reference = Loader(found, 8, seed=3)
    for step in (0, 1, 5, 1000):
        whole = reference.batch_at(step)
        share = 8 // hosts
        parts = [
            Loader(open_cache(found.folder), 8, seed=3).batch_at(step, slice(h * share, (h + 1) * share))
            for h in range(hosts)
        ]
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_one_epoch_is_every_row_once_and_the_next_is_in_another_order(cache):
    loader = Loader(cache, 1, seed=0)
    assert loader.steps_per_epoch == cache.rows
    epochs = [[int(loader.rows_at(e * cache.rows + i)[0]) for i in range(cache.rows)] for e in range(3)]
    assert all(sorted(epoch) == list(range(cache.rows)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_order_depends_on_seed_and_cache_and_not_on_history(cache, folder, tokenizer):
    straight = [Loader(cache, 4, seed=1).rows_at(step).tolist() for step in range(12)]
    one = Loader(cache, 4, seed=1)
    backwards = [one.rows_at(step).tolist() for step in reversed(range(12))][::-1]
    assert straight == backwards
    assert straight != [Loader(cache, 4, seed=2).rows_at(step).tolist() for step in range(12)]
    other = build_cache(dataclasses.replace(text_spec(folder, tokenizer), seed=5), folder / "other")
    assert other.rows == cache.rows
    assert straight != [Loader(other, 4, seed=1).rows_at(step).tolist() for step in range(12)]


@pytest.mark.parametrize("which", ["cache", "mixed"])
def test_a_far_step_reads_its_own_rows_alone(which, request, monkeypatch):
    found = request.getfixturevalue(which)
    read, orders = [], []
    original, make = type(found).read, Loader._make_order
    monkeypatch.setattr(type(found), "read", lambda self, rows: read.append(len(rows)) or original(self, rows))
    monkeypatch.setattr(Loader, "_make_order", lambda self, *where: orders.append(where) or make(self, *where))
    Loader(found, 8, seed=0).batch_at(10**6)
    assert read == [8]
    assert len(orders) <= 2 * len(found.manifest["parts"])  # the epoch at hand, and one more where it just turned


def test_doubling_the_batch_joins_neighbouring_batches(cache):
    small, large = Loader(cache, 2, seed=0), Loader(cache, 4, seed=0)
    for step in range(large.steps_per_epoch):
        joined = np.concatenate([small.rows_at(2 * step), small.rows_at(2 * step + 1)])
        np.testing.assert_array_equal(large.rows_at(step), joined)


def test_without_drop_last_epochs_run_on_in_one_stream(cache):
    loader = Loader(cache, 7, seed=0, drop_last=False)
    stream = np.concatenate([loader.rows_at(step) for step in range(3 * cache.rows // 7 + 1)])
    for epoch in range(2):
        assert sorted(stream[epoch * cache.rows : (epoch + 1) * cache.rows]) == list(range(cache.rows))


def test_unshuffled_rows_come_in_order(cache):
    loader = Loader(cache, 4, seed=0, shuffle=False)
    assert loader.rows_at(1).tolist() == [4, 5, 6, 7]


def test_epochs_bound_the_steps(cache):
    loader = Loader(cache, 4, seed=0, epochs=2)
    assert loader.steps == 2 * (cache.rows // 4)
    loader.batch_at(loader.steps - 1)
    for step in (-1, loader.steps):
        with pytest.raises(IndexError, match=f"step {step} is outside"):
            loader.batch_at(step)
    assert Loader(cache, 4, seed=0).steps is None
    assert Loader(cache, 4, seed=0, epochs=0.5).steps == int(0.5 * (cache.rows // 4))


def test_steps_of_an_epoch_are_whole_batches_as_in_the_published_schedule(cache):
    """60,908 pairs in batches of 32 for 3 epochs are 5,709 updates (spec tulu25 §12)."""
    counted = type("Cache", (), {"rows": 60_908, "fingerprint": "", "manifest": {"parts": [{"rows": 60_908}]}})()
    assert Loader(counted, 32, seed=0, epochs=3).steps == 5_709


def test_fingerprint_and_digest_tell_orders_apart(cache):
    loader = Loader(cache, 4, seed=0)
    same = Loader(open_cache(cache.folder), 4, seed=0)
    assert loader.fingerprint == same.fingerprint and loader.digest(3) == same.digest(3)
    others = [Loader(cache, 4, seed=1), Loader(cache, 2, seed=0), Loader(cache, 4, seed=0, shuffle=False)]
    assert len({loader.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert loader.digest(3) not in {loader.digest(4), others[0].digest(3)}
    assert len(loader.digest(0)) == 12


def test_a_mixture_draws_at_its_rates_from_the_start_and_shuffled(mixed):
    loader = Loader(mixed, 10, seed=0)
    sources = np.array([source_of(mixed, row) for step in range(1000) for row in loader.rows_at(step)])
    for prefix in (500, 2000, 10_000):
        share = np.bincount(sources[:prefix], minlength=3) / prefix
        np.testing.assert_allclose(share, [0.7, 0.2, 0.1], atol=4 / prefix**0.5 * 0.5)
    exact = np.array([0.7, 0.2, 0.1]) * 8192
    assert np.abs(np.bincount(sources[:8192]) - exact).max() < 1.5  # whole blocks hold the rates to a row
    assert len(set(map(tuple, sources.reshape(1000, 10)))) > 50


def test_each_source_of_a_mixture_runs_through_its_own_shuffled_epochs(mixed):
    loader = Loader(mixed, 10, seed=0)
    rows = np.concatenate([loader.rows_at(step) for step in range(700)])
    for part, (first, count) in enumerate([(0, 60), (60, 30), (90, 10)]):
        mine = [int(row) - first for row in rows if source_of(mixed, row) == part]
        epochs = [mine[i : i + count] for i in range(0, len(mine) - count + 1, count)]
        assert len(epochs) > 10 and all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_a_mixture_at_a_tiny_rate_never_draws_backwards(folder, tokenizer):
    rare = mixture(folder, tokenizer, weights=(1.0, 1e-4, 3e-6))
    loader = Loader(rare, 8, seed=0)
    drawn = np.array([loader._drawn(block) for block in range(50)])
    assert (np.diff(drawn, axis=0) >= 2).all()
    assert (drawn.sum(1) == np.arange(50) * loader._block_rows).all()
    loader.batch_at(10**9)


@pytest.mark.parametrize(
    "temperature, rates", [(1.0, (0.6, 0.3, 0.1)), (2.0, (0.4644, 0.3284, 0.1896)), (1e6, (1 / 3, 1 / 3, 1 / 3))]
)
def test_temperature_flattens_natural_sizes(temperature, rates, folder, tokenizer):
    natural = mixture(folder, tokenizer, weights=(None, None, None), temperature=temperature)
    found = [part["rate"] for part in natural.manifest["parts"]]
    expected = np.array(rates) if temperature != 2.0 else np.sqrt([60, 30, 10]) / np.sqrt([60, 30, 10]).sum()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sources_without_weights_are_shuffled_together(folder, tokenizer):
    plain = mixture(folder, tokenizer, weights=(None, None, None))
    assert len(plain.manifest["parts"]) == 1
    loader = Loader(plain, 10, seed=0)
    epoch = np.concatenate([loader.rows_at(step) for step in range(10)])
    assert sorted(epoch) == list(range(100))
    assert len({source_of(plain, row) for row in epoch[:30]}) == 3


def test_permutations_never_change():
    """The order of a run must outlive NumPy versions: PCG64's words and sorting are fixed by definition."""
    assert permutation(8, "fingerprint", 0, 0, 0).tolist() == [2, 4, 7, 5, 1, 6, 0, 3]
    big = permutation(10_000, "x", 1)
    assert sorted(big) == list(range(10_000)) and big.dtype == np.uint32
    assert abs(np.corrcoef(big, np.arange(10_000))[0, 1]) < 0.05


def test_a_batch_above_the_cache_is_one_line(cache):
    with pytest.raises(UserError, match=f"a batch of 500 rows is more than the {cache.rows} rows of cache"):
        Loader(cache, 500, seed=0)
    with pytest.raises(UserError, match="batch_rows 0 must be at least 1"):
        Loader(cache, 0, seed=0)


def test_changing_one_document_changes_only_its_own_places(folder, tokenizer):
    """The document table says where a document stands, so its neighbours can be compared bit by bit."""
    spec = chat_spec(folder, tokenizer)
    batch = Loader(build_cache(spec, folder / "chat"), 2, seed=0, shuffle=False).batch_at(0)
    assert batch["segment_ids"].max() > 1
    cache = build_cache(spec, folder / "chat")
    for segment_number, segment in enumerate(cache.documents(0), 1):
        where = np.flatnonzero(batch["segment_ids"][0] == segment_number)
        assert where.tolist() == list(range(segment.start, segment.start + segment.length))
