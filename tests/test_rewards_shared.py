"""Verifiers on several processes: each checks whole groups of its own, and all get what one process alone would."""

import jax
import numpy as np
import pytest

from easylm_jax.decode import rollout
from easylm_jax.rewards import scorer
from easylm_jax.rewards.verify import Scores


@pytest.mark.parametrize("rows, samples, count", [(24, 4, 3), (24, 4, 4), (8, 4, 5), (7, 1, 2), (512, 1, 64)])
def test_shares_are_whole_groups_that_cover_every_row_once(rows, samples, count):
    shares = [scorer.share_of(rows, samples, index, count) for index in range(count)]
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    sizes = [(share.stop - share.start) // samples for share in shares]
    assert all(share.start % samples == 0 for share in shares) and max(sizes) - min(sizes) <= 1


class Length:
    """In place of an expression: the length of a response, plus what models gave."""

    reads_group = False
    names = ("length",)

    def __init__(self):
        self.seen = []

    def __call__(self, texts, records, *, model=None, judge=None, moderator=None):
        self.seen.append(list(texts))
        values = np.array([len(text) / 3 for text in texts])
        reasons = {row: f"{text} is long" for row, text in enumerate(texts) if len(text) > 3}
        return Scores(values + (0 if model is None else model), {"length": values}, len(reasons), 0.5, reasons)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_process_gets_the_scores_of_all_rows(count, monkeypatch):
    texts = ["a", "bb", "ccc", "dddd", "eeeee", "f"]
    sampled = type("Sampled", (), {"rows": 6, "samples": 2})
    model = np.array([0.1, np.nan, np.inf, 1e-300, 1 / 3, 0.0])
    monkeypatch.setattr(rollout, "responses_and_records", lambda *_, **__: (texts, [{}] * 6))
    expected = scorer.score_rollout([Length()], sampled, None, None, model=model)[0]
    shares: dict[int, bytes] = {}
    monkeypatch.setattr(jax, "process_count", lambda: count)
    for gathered in (False, True):  # what each gives is known only after all have run once
        for index in range(count):

            def gather(here, members, index=index, gathered=gathered):
                shares[index] = here
                return [shares[i] for i in range(count)] if gathered else [here]

            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            monkeypatch.setattr(scorer.processes, "gather_bytes", gather)
            length = Length()
            found = scorer.score_rollout([length], sampled, None, None, model=model)[0]
            if gathered:
                np.testing.assert_array_equal(found.scores, expected.scores)
                np.testing.assert_array_equal(found.components["length"], expected.components["length"])
                assert (found.reasons, found.timed_out) == (expected.reasons, expected.timed_out)
                assert sum(map(len, length.seen)) <= 4  # not all of them
