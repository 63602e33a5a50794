"""Columns computed from a finished cache: kept beside it, read by number, whole or absent."""

import numpy as np
import pytest
from data_kit import pair_cache, sentencepiece

from easylm_jax.data import Loader, open_cache, open_columns, write_columns
from easylm_jax.data.columns import ColumnStore, columns_folder
from models.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def test_columns_kept_beside_a_cache_reach_the_batch_by_pair(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer)
    assert open_columns(cache, "reference", "model 1") is None
    values = {"reference_chosen": np.arange(40) - 50.5, "reference_rejected": -np.arange(40.0)}
    write_columns(cache, "reference", "model 1", values, facts={"model": "sft"})
    store = open_columns(open_cache(cache.folder), "reference", "model 1")
    assert open_columns(cache, "reference", "model 2") is None
    wider = cache.with_columns(store)
    batch, plain = Loader(wider, 4, seed=0).batch_at(1), Loader(cache, 4, seed=0).batch_at(1)
    there = batch["pair_index"] >= 0
    assert (batch["pair_index"] == plain["pair_index"]).all() and there.any() and not there.all()
    for name, expected in values.items():
        assert batch[name].dtype == np.float32 and batch[name].shape == batch["pair_index"].shape
        assert (batch[name] == np.where(there, expected[batch["pair_index"]], 0)).all()
        assert name not in plain
    last = list(wider.in_order(cache.rows + 3))[-1]
    assert (last["pair_index"][-3:] == -1).all() and not last["reference_chosen"][-3:].any()
    assert open_cache(cache.folder).verify() is None  # the cache itself is untouched


def test_columns_of_the_wrong_size_or_cache_or_value_are_refused(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer)
    good = np.zeros(40)
    cases = [
        ({"a": np.zeros(39)}, {}, r"a has shape \(39,\), cache .* has 40 pairs"),
        ({"a": np.where(np.arange(40) == 7, np.nan, 0)}, {}, "a is nan at index 7; only finite values can be stored"),
        ({"a/b": good}, {}, "'a/b' is not a valid name"),
        ({"a": good}, {"index": "prompt_index"}, "has no column prompt_index"),
    ]
    for arrays, options, message in cases:
        with pytest.raises(UserError, match=message):
            write_columns(cache, "reference", "k", arrays, **options)
    assert open_columns(cache, "reference", "k") is None
    with pytest.raises(UserError, match="were computed for cache other"):
        cache.with_columns(ColumnStore("other", {"a": good}))
    taken = write_columns(cache, "scores", "k", {"margins": good})
    with pytest.raises(UserError, match="there is already a column margins"):
        cache.with_columns(taken)


def test_the_first_writer_of_columns_wins_and_damage_is_noticed(tmp_path, tokenizer):
    cache = pair_cache(tmp_path, tokenizer)
    write_columns(cache, "reference", "k", {"a": np.zeros(40)})
    assert not write_columns(cache, "reference", "k", {"a": np.ones(40)}).arrays["a"].any()
    folder = columns_folder(cache, "reference", "k")
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    path = folder / "a.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(UserError, match=r"columns .* are damaged \(a checksum differs\); delete the folder"):
        open_columns(cache, "reference", "k")
