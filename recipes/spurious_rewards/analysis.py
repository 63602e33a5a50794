"""The analyses of Spurious Rewards (arXiv 2506.10947, Sections 4 and 5; appendix on the clipping bias).

    python -m recipes.spurious_rewards.analysis runs/spurious-rewards/figure1-qwen2.5-math-7b

prints code reasoning and strategy switch of every entry of an evaluation compared with its first entry. It uses the
score of each prompt and whether the response contains "python".
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from easylm_jax.evaluate.statistics import Estimate, mean
from models import reading
from models.errors import UserError

SUBSETS = ("code → code", "code → language", "language → code", "language → language")
CODE = "python"  # column of an evaluation: whether a response contains "python"


class CodeReasoning(NamedTuple):
    """Share of responses with code, and accuracy of responses with and without code (None where there are none)."""

    share: Estimate
    with_code: Estimate | None
    without_code: Estimate | None


def code_reasoning(correct: np.ndarray, code: np.ndarray) -> CodeReasoning:
    """Code reasoning from scores and from flags whether the response has code, both [prompts]."""
    correct, code = np.asarray(correct, float), np.asarray(code) > 0
    parts = (correct[code], correct[~code])
    return CodeReasoning(mean(code.astype(float)), *(mean(part) if len(part) else None for part in parts))


class Subset(NamedTuple):
    """Prompts of one strategy switch: count, and percentage solved before and after (NaN without prompts)."""

    count: int
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Prompts solved only after training, minus those solved only before."""
        return self.count * (self.after - self.before) / 100 if self.count else 0.0


def strategy_switch(
    correct: np.ndarray, code: np.ndarray, correct_after: np.ndarray, code_after: np.ndarray
) -> dict[str, Subset]:
    """Prompts by (code before, code after) in the order of `SUBSETS`; all arguments [prompts] (Section 4.2)."""
    before, after = (np.asarray(x) > 0 for x in (code, code_after))
    masks = (before & after, before & ~after, ~before & after, ~before & ~after)
    solved = [100 * np.asarray(x, float) for x in (correct, correct_after)]
    return {
        name: Subset(int(mask.sum()), *(float(x[mask].mean()) if mask.any() else math.nan for x in solved))
        for name, mask in zip(SUBSETS, masks, strict=True)
    }


def contributions(subsets: Mapping[str, Subset]) -> dict[str, float]:
    """C_d, the percentage of the total gain from each subset; they sum to 100 (Section 4.2).

    Raises:
        UserError: the total gain is 0, so that shares of it are undefined.
    """
    total = sum(subset.gain for subset in subsets.values())
    if total == 0:
        raise UserError(
            "strategy switch: as many prompts are solved after training as before, so shares of the gain are undefined"
        )
    return {name: 100 * subset.gain / total for name, subset in subsets.items()}


def mean_contributions(rewards: Sequence[Mapping[str, Subset]]) -> dict[str, float]:
    """The mean over rewards of each subset's share of the gain, as in the paper's table."""
    each = [contributions(subsets) for subsets in rewards]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def group_mu(samples: int, share: float) -> float:
    """μ = E[max(A, 0)] of a random reward: each of a group's `samples` earns 1 with probability `share`.

    Exact: if k of G responses are rewarded, p = k / G, their advantage is (1 − p) / σ with σ² = p (1 − p) G / (G − 1);
    zero-variance groups have advantage 0. E[max(−A, 0)] is the same, since the advantages of a group sum to 0.
    """
    total = 0.0
    for k in range(1, samples):
        p = k / samples
        chance = math.comb(samples, k) * share**k * (1 - share) ** (samples - k)
        total += chance * math.sqrt(p * (1 - p) * (samples - 1) / samples)
    return total


def clipping_bias(old: np.ndarray, logits: np.ndarray, mu: float, clip: float) -> np.ndarray:
    """E[∂ objective / ∂ logits] of a softmax policy under a random reward, [actions] (spec spurious_rewards §8).

    μ Σ_y π_old(y) ∇R(y) (1{R(y) < 1 − ε} − 1{R(y) > 1 + ε}), R = π / π_old, ∇R(y) = R(y) (e_y − π): actions whose ratio
    is below the clipping range are increased, those above it decreased. Without clipping (ε = ∞) it is 0.

    Args:
        old: logits of the policy that sampled, [actions].
        logits: logits of the policy that is updated, [actions].
        mu: `group_mu`.
        clip: ε; infinite for no clipping.
    """
    policy, sampler = _softmax(logits), _softmax(old)
    ratio = policy / sampler
    push = sampler * ratio * ((ratio < 1 - clip).astype(float) - (ratio > 1 + clip))
    return mu * (push - policy * push.sum())


def token_probability(logprobs: np.ndarray, mask: np.ndarray) -> float:
    """The mean probability of sampled tokens, from log-probabilities [N, T] and the mask of response tokens [N, T]."""
    return float(np.exp(np.asarray(logprobs, np.float64)[np.asarray(mask) > 0]).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return shifted / shifted.sum()


# Results of an evaluation


class _ModelResults(TypedDict):
    model: str
    tasks: dict[str, dict[str, Any]]


class _Row(TypedDict):
    method: str
    stages: list[str]


class _Table(TypedDict):
    rows: list[_Row]


def read_evaluation(folder: Path, task: str) -> dict[str, dict[str, np.ndarray]]:
    """{model: {"score", "code"}} of a task, each [prompts], from the folder of an `Evaluate` stage."""
    found = {}
    for path in sorted((folder / "models").glob("*.json")):
        given, _ = reading.read_sealed(path, _ModelResults)
        tasks = given["tasks"]
        if task not in tasks or CODE not in tasks[task].get("also", {}):
            raise UserError(f"{path}: no task {task!r} with the column {CODE!r}")
        found[given["model"]] = {
            "score": np.array(tasks[task]["scores"]), "code": np.array(tasks[task]["also"][CODE])
        }  # fmt: skip
    if not found:
        raise UserError(f"{folder} holds no evaluation (models/*.json); give the folder of an Evaluate stage")
    return found


def report(folder: Path, task: str = "MATH-500") -> str:
    """Code reasoning and strategy switch of every entry of an evaluation compared with its first, as Markdown."""
    table = reading.read_json(folder / "table.json", _Table)
    models = read_evaluation(folder, task)
    base, *others = table["rows"]
    start = models[base["stages"][0]]
    lines = [f"{task}, from {base['method']}", "", "| | code % | accuracy with code | without |", "|---|---|---|---|"]
    for row in (base, *others):
        given = [models[name] for name in row["stages"]]
        one = code_reasoning(*(np.concatenate([it[key] for it in given]) for key in ("score", "code")))
        cells = (one.share, one.with_code, one.without_code)
        lines.append(f"| {row['method']} | " + " | ".join(map(_percent, cells)) + " |")
    lines += ["", "| | " + " | ".join(SUBSETS) + " |", "|---|" + "---|" * len(SUBSETS)]
    switches = []
    for row in others:
        # A prompt counts once for each seed.
        after = {key: np.concatenate([models[name][key] for name in row["stages"]]) for key in ("score", "code")}
        repeated = {key: np.tile(values, len(row["stages"])) for key, values in start.items()}
        subsets = strategy_switch(repeated["score"], repeated["code"], after["score"], after["code"])
        shares = {}
        if sum(subset.gain for subset in subsets.values()) > 0:
            shares = contributions(subsets)
            switches.append(subsets)
        cells = [f"{_switch(subset)}{f', C {shares[name]:.1f}' if shares else ''}" for name, subset in subsets.items()]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    if switches:
        total = mean_contributions(switches)
        lines.append(f"| mean C of {len(switches)} | " + " | ".join(f"{total[name]:.1f}" for name in SUBSETS) + " |")
    return "\n".join(lines)


def _switch(subset: Subset) -> str:
    return f"{subset.count}, {subset.before:.1f} → {subset.after:.1f}" if subset.count else "0"


def _percent(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{100 * estimate.value:.1f} ± {100 * estimate.stderr:.1f}"


if __name__ == "__main__":
    try:
        sys.stdout.write(report(*map(Path, sys.argv[1:2]), *sys.argv[2:3]) + "\n")
    except (UserError, OSError, TypeError) as error:
        sys.exit(f"{error}\nusage: python -m recipes.spurious_rewards.analysis EVALUATE_FOLDER [TASK]")
