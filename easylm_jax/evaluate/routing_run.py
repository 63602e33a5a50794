"""Routing analyses over the checkpoints of a run: choices on held-out text, tables and figures (docs/routing.md).

routing.json     all numbers that the tables and figures show
routing.html     the figures
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm_jax.checkpoint import load, store
from easylm_jax.config import Compute, DataSpec, Source
from easylm_jax.data import build_cache
from easylm_jax.data.cache import Cache
from easylm_jax.evaluate import routing
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.runtime.monitor import counting
from models.errors import UserError
from models.moe import MoEDecoder, RoutingDecoder

ROWS = 4  # in one forward pass
LONGEST = 2048  # tokens of a row (spec olmo §14)


class Choices(NamedTuple):
    """The routing of T tokens: `chosen` uint16 [L, T, k]; `entropy` float64 [L], the mean of the routers' in nats;
    `ids`, `following` and `predicted` int32 [T], the input token, the one after it, and the model's guess of that."""

    chosen: np.ndarray
    entropy: np.ndarray
    ids: np.ndarray
    following: np.ndarray
    predicted: np.ndarray


def checkpoints_of(run: str, steps: str) -> list[tuple[int, Path]]:
    """The checkpoints of a stage by step, with those of its history: "all", or steps separated by commas."""
    root = store.checkpoints_folder(run)
    found: dict[int, Path] = {}
    for where in (root / store.HISTORY, root):  # full checkpoints before bfloat16 ones
        found |= {step: where / str(step) for step in store.committed_steps(where)}
    if not found:
        raise UserError(f"{run} has no checkpoints; give the folder of a stage that trains a mixture of experts")
    if steps == "all":
        return sorted(found.items())
    wanted = [text.strip() for text in steps.split(",")]
    missing = [text for text in wanted if not (text.isdecimal() and int(text) in found)]
    if missing:
        there = ", ".join(str(step) for step in sorted(found)[:20])
        raise UserError(f"--steps {steps}: {run} has no checkpoint of step {missing[0]!r}; it has {there}")
    return sorted((int(text), found[int(text)]) for text in wanted)


def text_cache(folder: Path, source: Source, tokens: int, cache: Path) -> Cache:
    """Text joined and cut into rows of the model's context (at most 2048), for at least `tokens` tokens."""
    config = load.model_of(str(folder))
    _, meta = load.checked_meta(folder)
    tokenizer = load.tokenizer_of(folder, meta)
    if tokenizer is None:
        raise UserError(f"the tokenizer of {folder} is not known; run the stage's recipe again, or move it back")
    spec = DataSpec((source,), tokenizer, min(LONGEST, config.context), document_mask=False)
    return build_cache(spec, cache)


def choices(folder: Path, cache: Cache, tokens: int) -> Choices:
    """The routing of the first rows of a cache (`tokens` or more, or all it has) by one checkpoint."""
    mesh = make_mesh("fsdp=1", jax.devices()[:1])
    with jax.set_mesh(mesh):
        source = load.model_from(f"run:{folder}", mesh, compute=Compute(dtype=_dtype()))
        model = source.decoder
        if not isinstance(model, MoEDecoder):
            raise UserError(f"{folder} is a dense model; routing is of mixtures of experts")
        look = _looker(RoutingDecoder(model.config, model.compute, model.placement))
        params = source.frozen(mesh)
        rows = min(cache.rows, -(-tokens // cache.sequence_length))
        parts = [
            jax.device_get(look(params, cache.read(np.arange(first, min(first + ROWS, rows)))))
            for first in range(0, rows, ROWS)
        ]
    chosen = np.concatenate([part[0].reshape(len(part[0]), -1, part[0].shape[-1]) for part in parts], axis=1)
    entropy, ids, following, predicted, present = (
        np.concatenate([part[i].reshape(*part[i].shape[:-2], -1) for part in parts], axis=-1) for i in range(1, 6)
    )
    kept = present > 0
    return Choices(
        chosen[:, kept].astype(np.uint16), entropy[:, kept].mean(axis=1, dtype=np.float64), ids[kept], following[kept],
        predicted[kept],
    )  # fmt: skip


def _dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _looker(model: RoutingDecoder):
    """(params, batch) → choices [L, B, S, k], router entropy [L, B, S], input, next and predicted ids and which targets
    are there [B, S]."""

    @jax.jit
    def look(params, batch):
        tokens, positions, segment_ids = (jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids"))
        output = model(params, tokens, positions=positions, segment_ids=segment_ids)
        reports: Any = output.aux
        log_p = jax.nn.log_softmax(reports["logits"])
        entropy = -(jnp.exp(log_p) * log_p).sum(axis=-1)
        head = model.head_kernel(params).astype(output.hidden.dtype)
        guess = jax.lax.map(lambda row: jnp.argmax(row @ head, axis=-1), output.hidden)
        return reports["chosen"], entropy, batch["tokens"], batch["targets"], guess, batch["loss_weights"]

    return look


def analyse(run: str, steps: str, sources: Mapping[str, Source], tokens: int, out: Path, cache: Path) -> dict[str, Any]:
    """All analyses of a run; writes `routing.json` and `routing.html` into `out` and returns the former's content.

    The first source is the text of saturation, co-activation and vocabulary specialisation; all are domains.
    """
    from easylm_jax.evaluate.routing_page import write

    found = checkpoints_of(run, steps)
    final = found[-1][1]
    caches = {name: text_cache(final, source, tokens, cache) for name, source in sources.items()}
    config = load.model_of(str(final))
    if config.experts is None:
        raise UserError(f"{final} is a dense model; routing is of mixtures of experts")
    first = next(iter(caches))
    with counting("routing", len(found) + len(caches) - 1, "checkpoints") as progress:
        by_step = {}
        for number, (step, folder) in enumerate(found):
            with progress.phase(f"step {step}"):
                by_step[step] = choices(folder, caches[first], tokens)
            progress.update(number + 1, {})
        domains = {first: by_step[found[-1][0]]}
        for name in list(caches)[1:]:
            with progress.phase(f"domain {name}"):
                domains[name] = choices(final, caches[name], tokens)
            progress.update(len(found) + len(domains) - 1, {})
    result = {
        "run": str(run), "text": first, "experts": config.experts.count, "active": config.experts.active,
        "layers": config.layers, **results(by_step, domains, config.experts.count),
    }  # fmt: skip
    write(out, result)
    return result


def results(by_step: Mapping[int, Choices], domains: Mapping[str, Choices], experts: int) -> dict[str, Any]:
    """The numbers of all tables and figures; progress is a step's share of the last one."""
    last = max(by_step)
    final = by_step[last]
    k = final.chosen.shape[-1]
    steps = []
    for step, seen in sorted(by_step.items()):
        load_ = routing.load(routing.expert_counts(seen.chosen, experts))
        saturation = {str(n): routing.saturation(seen.chosen, final.chosen, n).tolist() for n in _counts_of(k)}
        steps.append({
            "step": step, "progress": step / max(1, last), "tokens": len(seen.ids), "saturation": saturation,
            "load_max": load_.max(axis=1).tolist(), "load_min": load_.min(axis=1).tolist(),
            "router_entropy": seen.entropy.tolist(), "vocabulary": _vocabulary(seen, experts),
        })  # fmt: skip
    middle, end = len(final.chosen) // 2, len(final.chosen) - 1
    shown = sorted({0, middle, end})
    return {
        "steps": steps,
        "shown_layers": shown,
        "coactivation": routing.coactivation(final.chosen, experts)[shown].round(6).tolist(),
        "domains": {name: _domain(seen, experts, shown) for name, seen in domains.items()},
        "top_tokens": [
            [
                routing.top_tokens(final.chosen[layer], final.ids, expert, experts, k=1, most=15)
                for expert in range(experts)
            ]
            for layer in shown
        ],
    }


def _counts_of(k: int) -> Iterable[int]:
    return dict.fromkeys((1, k))


def _vocabulary(seen: Choices, experts: int) -> dict[str, dict[str, list[float]]]:
    """Specialisation of first choices by the input token, the one that follows it, and the one that is predicted."""
    found = {}
    for name in ("ids", "following", "predicted"):
        one = routing.vocabulary_specialisation(seen.chosen, getattr(seen, name), experts, 1)
        found[name] = {"mean": one.mean.tolist(), "weighted": one.weighted.tolist()}
    return found


def _domain(seen: Choices, experts: int, shown: list[int]) -> dict[str, Any]:
    counts = {n: routing.expert_counts(seen.chosen, experts, n)[shown] for n in _counts_of(seen.chosen.shape[-1])}
    neighbours = zip(shown, shown[1:], strict=False)
    pairs = {f"{a}-{b}": routing.layer_pairs(seen.chosen, a, b, experts) for a, b in neighbours}
    return routing.domain(counts, pairs)
