"""Analyses of a mixture's routing (OLMoE, arXiv 2409.02060, Section 5; spec olmo §14): pure functions of choices.

A choice is an array `chosen` [L, T, k]: for each layer and token its k experts, most probable first. `counts` [L, E]
are tokens sent to each expert, as `expert_counts` makes them or as they were published.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


def expert_counts(chosen: np.ndarray, experts: int, k: int | None = None) -> np.ndarray:
    """Tokens of each expert, int64 [L, E], among the first `k` choices (None: all)."""
    first = chosen[..., :k].reshape(len(chosen), -1)
    return np.stack([np.bincount(layer, minlength=experts) for layer in first]).astype(np.int64)


def saturation(earlier: np.ndarray, final: np.ndarray, k: int) -> np.ndarray:
    """The mean share of a token's k experts that are already those of the final checkpoint: float64 [L].

    `earlier` and `final` are the choices of the same tokens, of which the first `k` count. Two independent uniform
    routers of E experts agree in k / E.
    """
    same = earlier[..., :k, None] == final[..., None, :k]
    return same.any(axis=-1).mean(axis=(1, 2), dtype=np.float64)


def coactivation(chosen: np.ndarray, experts: int, *, adjacent: bool = False) -> np.ndarray:
    """N_ij / N_i: of the tokens of expert i, the share that expert j computes too; float64 [L, E, E], diagonal 0.

    With `adjacent` only pairs of neighbouring ranks count, as in OLMoE's own script, of all pairs of a token's experts
    the k − 1 whose probabilities follow each other. Rows of experts without tokens are 0.
    """
    layers, _, k = chosen.shape
    pairs = np.zeros((layers, experts, experts), np.float64)
    for layer, choice in enumerate(chosen.astype(np.int64)):
        for i in range(k):
            for j in range(i + 1, i + 2 if adjacent else k):
                if j < k:
                    flat = choice[:, i] * experts + choice[:, j]
                    pairs[layer] += np.bincount(flat, minlength=experts**2).reshape(experts, experts)
    pairs += pairs.transpose(0, 2, 1)
    return _divided(pairs, expert_counts(chosen, experts)[:, :, None])


def domain_specialisation(counts: np.ndarray, k: int) -> np.ndarray:
    """N_eD / N_D: the share of a domain's tokens that each expert computes, float64 [L, E]; uniform is k / E.

    `counts` are those of the domain's first `k` choices, so that its number of tokens is their sum over k.
    """
    counts = np.asarray(counts, np.float64)
    return counts * k / counts.sum(axis=-1, keepdims=True)


def domain(counts: Mapping[int, np.ndarray], pairs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What tables and figures show of one domain, as plain values.

    `counts` are those [L, E] of the first n choices by n; `pairs` those [E, E] of first choices in two layers by the
    name of the pair. Loads are of the largest n.
    """
    most = max(counts)
    loads = load(counts[most])
    return {
        "tokens": int(counts[most][0].sum()) // most,
        "shares": {str(n): domain_specialisation(made, n).tolist() for n, made in counts.items()},
        "load_max": loads.max(axis=1).tolist(),
        "load_min": loads.min(axis=1).tolist(),
        "load_entropy": load_entropy(counts[most]).tolist(),
        "flows": {name: [list(flow) for flow in cross_layer_flow(made)] for name, made in pairs.items()},
    }


class Flow(NamedTuple):
    """A pair of experts of two layers, and the share of all tokens that pass through both."""

    first: int
    second: int
    share: float


def cross_layer_flow(pairs: np.ndarray, *, above: float = 1.5) -> list[Flow]:
    """Pairs of experts (i of one layer, j of a later one) that more tokens pass than `above` times a uniform share.

    `pairs` [E, E] counts tokens by their first choices in both layers (`layer_pairs`). Largest first.
    """
    shares = np.asarray(pairs, np.float64) / max(1, np.sum(pairs))
    found = [Flow(int(i), int(j), float(shares[i, j])) for i, j in np.argwhere(shares > above / shares.size)]
    return sorted(found, key=lambda flow: (-flow.share, flow.first, flow.second))


def layer_pairs(chosen: np.ndarray, first: int, second: int, experts: int) -> np.ndarray:
    """Tokens by their first choices in two layers, int64 [E, E]."""
    flat = chosen[first, :, 0].astype(np.int64) * experts + chosen[second, :, 0]
    return np.bincount(flat, minlength=experts**2).reshape(experts, experts)


class Vocabulary(NamedTuple):
    """How the ids of a vocabulary are spread over experts.

    `by_token` [L, n]: the largest share N_xe / N_x over experts of each token id of `ids` [n]; `total` [n]: N_x;
    `mean` [L]: its plain mean over ids (the paper's figure); `weighted` [L]: weighted by N_x.
    """

    ids: np.ndarray
    total: np.ndarray
    by_token: np.ndarray
    mean: np.ndarray
    weighted: np.ndarray


def vocabulary_specialisation(chosen: np.ndarray, ids: np.ndarray, experts: int, k: int) -> Vocabulary:
    """How much the tokens of one id go to one expert: max_e N_xe / N_x with N_xe among the first `k` choices.

    `ids` [T] are input tokens, or those that follow them, or those that the model predicts. With k above 1 an id's
    shares sum to k.
    """
    known, place, count = np.unique(ids, return_inverse=True, return_counts=True)
    by_token = np.stack([(_id_counts(layer[:, :k], place, experts).max(axis=1) / count) for layer in chosen])
    mean, weighted = by_token.mean(axis=1), (by_token * count).sum(axis=1) / count.sum()
    return Vocabulary(known, count, by_token, mean, weighted)


def _id_counts(choice: np.ndarray, place: np.ndarray, experts: int) -> np.ndarray:
    """N_xe of one layer, int64 [ids, E]."""
    flat = place[:, None].astype(np.int64) * experts + choice
    size = int(place.max()) + 1
    return np.bincount(flat.reshape(-1), minlength=size * experts).reshape(size, experts)


class TopToken(NamedTuple):
    """A token id and the share of its occurrences that one expert computes."""

    id: int
    share: float
    total: int


def top_tokens(
    choice: np.ndarray, ids: np.ndarray, expert: int, experts: int, *, k: int, least: int = 10, most: int = 15
) -> list[TopToken]:
    """The ids that an expert of one layer (`choice` [T, k]) computes most, of those that occur `least` times or more
    (Table 8); ties in the order of ids."""
    known, place, count = np.unique(ids, return_inverse=True, return_counts=True)
    shares = _id_counts(choice[:, :k], place, experts)[:, expert] / count
    found = [TopToken(int(i), float(s), int(n)) for i, s, n in zip(known, shares, count, strict=True) if n >= least]
    return sorted(found, key=lambda token: (-token.share, token.id))[:most]


def load(counts: np.ndarray) -> np.ndarray:
    """The tokens of each expert as a multiple of a balanced load, float64 [L, E]."""
    counts = np.asarray(counts, np.float64)
    return counts * counts.shape[-1] / counts.sum(axis=-1, keepdims=True)


def load_entropy(counts: np.ndarray) -> np.ndarray:
    """The entropy in nats of how tokens spread over experts, float64 [L]; ln E when balanced."""
    share = np.asarray(counts, np.float64) / np.sum(counts, axis=-1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)


def _divided(sums: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.divide(sums, by, out=np.zeros_like(sums), where=by > 0)
