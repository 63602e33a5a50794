"""Win rates against a baseline: plain, and length-controlled as AlpacaEval 2 publishes it (arXiv 2404.04475).

    wins = [preference of the model on each instruction, from 0 to 1]
    plain_win_rate(wins)                                               the mean
    length_controlled(wins, lengths, baseline_lengths, difficulty, gamed)  what it would be at the baseline's lengths

The generalised linear model of the paper, for one model m and the baseline b on instruction x:

    P(m wins) = σ(θ + φ · tanh((|y_b| − |y_m|) / s) + ψ · γ_x)

with s the standard deviation of the length differences (in characters) and γ_x the difficulty of the instruction. The
length-controlled win rate is the mean of P with equal lengths. θ, φ and ψ minimise the logistic loss with an L1
penalty whose strength is chosen by five-fold cross-validation, over the model's preferences and, at weight 0.1 a row,
over those of two variants of the baseline that were told to be verbose or concise (`gamed`; θ is 0 for them). γ_x and
the preferences of the variants are published as `df_gamed.csv` of the data set tatsu-lab/alpaca_eval on the hub.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from easylm_jax.evaluate.statistics import Estimate, mean
from models.errors import UserError

STRENGTHS = np.logspace(-4, 4, 10)  # the inverse penalties C that cross-validation chooses from
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2  # of a row of either variant of the baseline
COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")


@dataclasses.dataclass(frozen=True)
class Gamed:
    """What `df_gamed.csv` holds: the difficulty γ_x of each instruction, and the rows of the baseline's variants."""

    difficulty: np.ndarray
    """[instructions], by index."""
    rows: np.ndarray
    """[n, 3]: standardised length difference, difficulty and preference from 0 to 1."""


def read_gamed(path: str | Path) -> Gamed:
    """The published file. Raises UserError if it lacks a column or a number."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    missing = [name for name in COLUMNS if not table or name not in table[0]]
    if missing:
        raise UserError(f"{path}: has no column {', '.join(missing)}; give df_gamed.csv of tatsu-lab/alpaca_eval")
    try:
        difficulty = {int(float(row["index"])): float(row["instruction_difficulty"]) for row in table}
        names = ("std_delta_len", "instruction_difficulty", "preference")
        rows = np.array([[float(row[name] or "nan") for name in names] for row in table])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if sorted(difficulty) != list(range(len(difficulty))):
        raise UserError(f"{path}: its column index must number the instructions from 0")
    rows = rows[~np.isnan(rows).any(axis=1)]
    return Gamed(np.array([difficulty[index] for index in sorted(difficulty)]), rows)


def plain_win_rate(wins: Sequence[float]) -> Estimate:
    """The mean preference for the model, from 0 to 1, with its standard error; a draw is ½."""
    return mean(np.asarray(wins, np.float64))


@dataclasses.dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate and the fitted model."""

    rate: Estimate
    """The mean over instructions of the predicted preferences, from 0 to 1. Its standard error is, as published, that
    of the predictions, which vary less than preferences do."""
    weights: Mapping[str, float]
    """θ ("model"), φ ("length"), ψ ("difficulty")."""


def length_controlled(
    wins: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int], difficulty: Sequence[float],
    gamed: np.ndarray | None = None,
) -> LengthControlled:  # fmt: skip
    """The length-controlled win rate of a model.

    Args:
        wins: [n] the preference for the model on each instruction, from 0 to 1.
        lengths: [n] characters of the model's outputs.
        baseline_lengths: [n] characters of the baseline's.
        difficulty: [n] γ_x of each instruction.
        gamed: [k, 3] rows of `Gamed.rows`; None fits without them, which the authors call "noreg".

    Raises:
        UserError: the lists differ in length, or hold fewer than `FOLDS` instructions.
    """
    y, gamma = np.asarray(wins, np.float64), np.asarray(difficulty, np.float64)
    ours, theirs = np.asarray(lengths, np.float64), np.asarray(baseline_lengths, np.float64)
    if not len(y) == len(gamma) == len(ours) == len(theirs) >= FOLDS:
        raise UserError(
            f"length-controlled win rate: {len(y)} preferences, {len(ours)} and {len(theirs)} lengths and {len(gamma)} "
            f"difficulties; it needs as many of each, and at least {FOLDS}"
        )
    delta = theirs - ours
    spread = delta.std(ddof=1)
    shorter = np.tanh(delta / spread) if spread > 0 else np.zeros_like(delta)
    features, targets, weights = np.column_stack([shorter, gamma, np.ones_like(gamma)]), y, np.ones_like(y)
    if gamed is not None and len(gamed):
        extra = np.column_stack([np.tanh(gamed[:, 0]), gamed[:, 1], np.zeros(len(gamed))])
        features, targets = np.vstack([extra, features]), np.concatenate([gamed[:, 2], targets])
        weights = np.concatenate([np.full(len(gamed), GAMED_WEIGHT), weights])
    coefficients = fit_logistic(features, targets, weights, _strength(features, targets, weights))
    named = dict(zip(("length", "difficulty", "model"), coefficients.tolist(), strict=True))
    return LengthControlled(mean(predicted(named, gamma)), named)


def predicted(weights: Mapping[str, float], difficulty: Sequence[float] | np.ndarray) -> np.ndarray:
    """[instructions] the preferences that a fitted model predicts at equal lengths, from 0 to 1."""
    return _sigmoid(weights["difficulty"] * np.asarray(difficulty, np.float64) + weights["model"])


def fit_logistic(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """[d] coefficients that minimise |w|₁ + C Σ weight · logistic loss, without an intercept.

    Args:
        features: [n, d].
        targets: [n] probabilities of 1.
        weights: [n].
        strength: C.

    Each step minimises a quadratic approximation by coordinate descent, and is halved until the objective falls.
    """
    w = np.zeros(features.shape[1])
    value = _objective(w, features, targets, weights, strength)
    for _ in range(100):
        p = _sigmoid(features @ w)
        gradient = strength * features.T @ (weights * (p - targets))
        curvature = strength * features.T @ (features * (weights * p * (1 - p))[:, None])
        curvature += 1e-10 * np.eye(len(w))
        step = _quadratic_step(w, gradient, curvature)
        size = 1.0
        while True:
            trial = w + size * step
            after = _objective(trial, features, targets, weights, strength)
            if after <= value or size < 1e-8:
                break
            size /= 2
        moved, w = np.abs(trial - w).max(), trial
        if moved < 1e-9 or value - after < 1e-12 * abs(value):
            break
        value = after
    return w


def _quadratic_step(w: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The step d that minimises gradient · d + ½ d · curvature d + |w + d|₁."""
    step = np.zeros_like(w)
    for _ in range(200):
        moved = 0.0
        for j in range(len(w)):
            slope = gradient[j] + curvature[j] @ step - curvature[j, j] * (w[j] + step[j])
            best = -np.sign(slope) * max(abs(slope) - 1.0, 0.0) / curvature[j, j]
            change = best - w[j] - step[j]
            step[j] += change
            moved = max(moved, abs(change))
        if moved < 1e-12:
            break
    return step


def _objective(
    w: np.ndarray, features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float
) -> float:  # fmt: skip
    return float(np.abs(w).sum() + strength * (weights * _loss(features @ w, targets)).sum())


def _loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - targets * logits


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _strength(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """The C of least held-out loss, averaged over the folds; of equal ones the first. Row i is in fold i mod 5."""
    fold = np.arange(len(targets)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        for index, strength in enumerate(STRENGTHS):
            w = fit_logistic(features[train], targets[train], weights[train], strength)
            losses[index] += (weights[test] * _loss(features[test] @ w, targets[test])).mean()
    return float(STRENGTHS[losses.argmin()])
