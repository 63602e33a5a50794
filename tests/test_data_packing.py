"""Packing: every token once, no document cut where they stay whole, masks from recorded stretches, repetition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.data import packing
from easylm_jax.data.filters import is_repetitive

SIZE = 16
LENGTHS = st.lists(st.integers(1, SIZE), min_size=1, max_size=40)
LONG_LENGTHS = st.lists(st.integers(1, 5 * SIZE), min_size=1, max_size=25)


def rows_of(plan, lengths):
    """Rows of (document, offset) pairs laid out as the plan says; None is padding."""
    rows = [[None] * plan.width for _ in range(plan.rows)]
    for row, start, document, offset, length in zip(
        plan.row, plan.start, plan.document, plan.offset, plan.length, strict=True
    ):
        assert offset + length <= lengths[document] and length > 0
        for i in range(length):
            assert rows[row][start + i] is None, "two stretches overlap"
            rows[row][start + i] = (int(document), int(offset + i))
    return rows


@settings(deadline=None)
@given(LENGTHS, st.sampled_from(["best_fit", "none"]))
def test_whole_documents_stand_in_exactly_one_row_each(lengths, name):
    plan = packing.PACKERS[name](np.array(lengths), SIZE)
    rows = rows_of(plan, lengths)
    placed = [cell for row in rows for cell in row if cell]
    assert sorted(placed) == [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    assert sorted(plan.document.tolist()) == list(range(len(lengths)))
    assert (plan.offset == 0).all()
    assert set(plan.row.tolist()) == set(range(plan.rows))
    for row in rows:  # padding only at the end
        filled = [cell is not None for cell in row]
        assert filled == sorted(filled, reverse=True)


@settings(deadline=None)
@given(LENGTHS)
def test_best_fit_needs_no_more_rows_than_its_proven_bound(lengths):
    """Best-fit decreasing uses at most 11/9 of the optimum plus 4 rows; the optimum is at least the total size."""
    plan = packing.best_fit(np.array(lengths), SIZE)
    halves = sum(n > SIZE / 2 for n in lengths)
    assert max(-(-sum(lengths) // SIZE), halves) <= plan.rows <= len(lengths)
    rooms = np.full(plan.rows, SIZE)
    np.subtract.at(rooms, plan.row, plan.length)
    assert sum(rooms > SIZE // 2) <= 1  # two rows less than half full would have been one


def test_best_fit_takes_the_fullest_row_with_room():
    plan = packing.best_fit(np.array([9, 12, 4, 3]), SIZE)
    assert dict(zip(plan.document.tolist(), plan.row.tolist(), strict=True)) == {1: 0, 2: 0, 0: 1, 3: 1}


@settings(deadline=None)
@given(LONG_LENGTHS)
def test_concat_makes_every_token_but_the_first_a_target_once(lengths):
    plan = packing.concat(np.array(lengths), SIZE)
    rows = rows_of(plan, lengths)
    stream = [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    targets = [cell for row in rows for cell in row[1:] if cell]
    assert targets == stream[1:]
    inputs = [cell for row in rows for cell in row[:SIZE] if cell]
    assert inputs[: len(stream) - 1] == stream[:-1]
    assert all(row[0] is not None for row in rows)


def arrays(plan, lengths, *, document_mask=True, weights=None):
    tokens = np.zeros((plan.rows, plan.width), np.int32)
    code = {}
    for r, row in enumerate(rows_of(plan, lengths)):
        for c, cell in enumerate(row):
            if cell:
                tokens[r, c] = code.setdefault(cell, len(code) + 1)
    return {v: k for k, v in code.items()}, packing.next_token_arrays(
        tokens, weights, plan.row, plan.start, plan.length, sequence_length=SIZE, document_mask=document_mask, pad_id=0
    )


@settings(deadline=None)
@given(LONG_LENGTHS, st.sampled_from(["concat", "best_fit", "none"]))
def test_targets_follow_inputs_inside_documents_and_positions_restart(lengths, name):
    lengths = lengths if name == "concat" else [min(n, SIZE) for n in lengths]
    plan = packing.PACKERS[name](np.array(lengths), SIZE)
    names, batch = arrays(plan, lengths)
    for r in range(plan.rows):
        previous = None
        for t in range(SIZE):
            cell = names.get(int(batch["tokens"][r, t]))
            segment, position = batch["segment_ids"][r, t], batch["positions"][r, t]
            if cell is None:
                assert segment == 0 and position == 0 and batch["loss_weights"][r, t] == 0
                continue
            new = previous is None or previous[0] != cell[0]
            assert position == (0 if new else batch["positions"][r, t - 1] + 1)
            assert segment == (1 if previous is None else batch["segment_ids"][r, t - 1] + new)
            if batch["loss_weights"][r, t]:
                assert names[int(batch["targets"][r, t])] == (cell[0], cell[1] + 1)
            else:  # only the end of a document, or of a row of whole documents, has no target
                assert cell[1] == lengths[cell[0]] - 1 and batch["targets"][r, t] == 0
            previous = cell


@settings(deadline=None)
@given(LONG_LENGTHS)
def test_without_document_mask_a_row_is_one_segment_and_crosses_documents(lengths):
    plan = packing.concat(np.array(lengths), SIZE)
    names, batch = arrays(plan, lengths, document_mask=False)
    assert int(batch["loss_weights"].sum()) == sum(lengths) - 1
    real = batch["segment_ids"] > 0
    assert set(np.unique(batch["segment_ids"])) <= {0, 1}
    assert (batch["positions"][real] == np.broadcast_to(np.arange(SIZE), real.shape)[real]).all()
    stream = [(d, i) for d, n in enumerate(lengths) for i in range(n)]
    trained = batch["loss_weights"] > 0
    assert [names[int(i)] for i in batch["targets"][trained]] == stream[1:]


def test_loss_weights_are_those_of_the_target_not_of_the_input():
    plan = packing.one_each(np.array([4]), SIZE)
    marks = np.zeros((1, SIZE), np.uint8)
    marks[0, 2] = 1
    _, batch = arrays(plan, [4], weights=marks)
    assert batch["loss_weights"][0, :4].tolist() == [0, 1, 0, 0]
    assert batch["tokens"].dtype == batch["targets"].dtype == batch["segment_ids"].dtype == np.int32
    assert batch["positions"].dtype == np.int32 and batch["loss_weights"].dtype == np.float32


# The hand cases of the repetition filter (spec olmo §20.6): periods 1, 13, 14; 31 and 32 repeats.
@pytest.mark.parametrize(
    "period, repeats, flagged",
    [(1, 31, False), (1, 32, True), (13, 31, False), (13, 32, True), (14, 32, False), (14, 60, False), (5, 32, True)],
)
def test_repetition_filter_hand_cases(period, repeats, flagged):
    unit = np.arange(period) + 500
    text = np.concatenate([np.arange(100), np.tile(unit, repeats), np.arange(100, 200)])
    assert is_repetitive(text) is flagged


def test_repetition_filter_wants_the_repeats_in_a_row():
    broken = np.concatenate([np.tile([7, 8], 20), [9], np.tile([7, 8], 20)])
    assert not is_repetitive(broken)
    assert not is_repetitive(np.arange(3000))
    assert not is_repetitive(np.array([], np.int32))


def test_an_incomplete_unit_does_not_count_as_a_repeat():
    unit = [1, 2, 3, 4]
    assert not is_repetitive(np.array(unit * 31 + unit[:3]))
    assert is_repetitive(np.array(unit * 32))
