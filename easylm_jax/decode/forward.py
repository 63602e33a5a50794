"""The forward passes of the engine: weights prepared once per call, prefill of prompts, and one decode step per token.

The layers are the model's own `Block`; only the attention inside is the engine's. On a CPU the layers are unrolled and
projections of the same input are fused into one matrix beforehand; elsewhere the layers are scanned, which compiles an
order of magnitude faster.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from easylm_jax.decode import cache as kv
from easylm_jax.decode.cache import Cache
from easylm_jax.runtime.sharding import parameter_shardings
from models.attention import MASKED, attention
from models.config import Placement
from models.decode_attention import decode_attention, fits_kernel
from models.decoder import cast_kernels
from models.heads import head_logits
from models.layers import residual_norm, soft_cap
from models.model import Attend, Model, Params

Weights = dict[str, Any]

_JOINED = {"attn": ("q", "k", "v"), "mlp": ("gate", "up")}


def prepare(
    model: Model, params: Params, *, unroll: bool, join: bool, mesh: jax.sharding.Mesh | None, gather: bool
) -> Weights:
    """The weights in the compute dtype and in the layout of the decode programs. The head is [d, V], or [d, 1] of a
    reward model.

    With `unroll`, layers are separate trees; with `join`, projections of the same input are one matrix. Under a mesh
    the weights are sharded by the model's rules, or with `gather` over `tp` only: a decode step then needs no
    all-gather, but each group of devices that splits the batch holds a full copy.
    """
    c, params = model.config, cast_kernels(params, model.compute.dtype)
    if mesh is not None:
        shardings = parameter_shardings(params, model.sharding_rules, mesh)
        if gather:
            shardings = jax.tree.map(_only_tp, shardings)
        params = jax.lax.with_sharding_constraint(params, shardings)
    layers = params["layers"]
    if unroll:
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(c.layers)]
        layers = [_join(layer) for layer in layers] if join else layers
    head = params["score"]["kernel"] if c.scalar_head else model.head_kernel(params)
    weights = {"embed": params["embed"], "layers": layers, "norm": params.get("final_norm", {}), "head": head}
    return weights if c.vision is None else {**weights, **{part: params[part] for part in ("vision", "connector")}}


def _only_tp(sharding: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
    kept = (axis if axis in ("tp", "ep") else None for axis in sharding.spec)
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*kept))


def _join(layer: Params) -> Params:
    """Replaces the kernels of q, k, v and of gate, up by one matrix each, under `joined`; biases are unchanged."""
    layer = dict(layer)
    for part, names in _JOINED.items():
        if part in layer and all(name in layer[part] for name in names):
            kernels = [layer[part][name]["kernel"] for name in names]
            rest = {name: {k: x for k, x in layer[part][name].items() if k != "kernel"} for name in names}
            layer[part] = {**layer[part], **rest, "joined": jnp.concatenate(kernels, axis=1)}
    return layer


def _unjoin(layer: Params, model: Model) -> Params:
    """The tree that `Block` expects. `Block` concatenates the slices again, which XLA folds into the joined matrix."""
    c = model.config
    sizes = {"q": c.heads * c.head_dim, "k": c.kv_heads * c.head_dim, "v": c.kv_heads * c.head_dim,
             "gate": c.ffn, "up": c.ffn}  # fmt: skip
    layer = dict(layer)
    for part, names in _JOINED.items():
        if "joined" in layer.get(part, {}):
            layer[part] = dict(layer[part])
            joined, start = layer[part].pop("joined"), 0
            for name in names:
                layer[part][name] = {**layer[part][name], "kernel": joined[:, start : start + sizes[name]]}
                start += sizes[name]
    return layer


def run_layers(
    model: Model, layers: Any, x: jax.Array, ropes: dict, attend: Attend, cache: Cache
) -> tuple[jax.Array, Cache, dict[str, jax.Array]]:
    """Runs all blocks over x [B, S, d]; the attention of each layer receives its part of the cache and returns it. What
    the layers report is dropped by the compiler where nobody reads it."""
    if isinstance(layers, list):
        layers = [_unjoin(layer, model) for layer in layers]
    return model.walk_with_reports(layers, x, ropes, attend, cache)


def _routing(reports: dict[str, jax.Array], wanted: bool) -> jax.Array | None:
    """The experts of each token, int16 [B, S, L, k]; None where they are not wanted."""
    return reports["chosen"].transpose(1, 2, 0, 3).astype(jnp.int16) if wanted else None


def prefill(
    model: Model, weights: Weights, tokens: jax.Array, lengths: jax.Array, cache: Cache, routing: bool = False
) -> tuple[Cache, jax.Array | None]:
    """The cache with the keys and values of whole prompts, and with `routing` the experts of their tokens.

    Args:
        model: the model.
        weights: as `prepare` returns them.
        tokens: int32 [R, P], left-padded.
        lengths: int32 [R], tokens of each row; may be 0.
        cache: with R rows and P columns.
    """
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] - (tokens.shape[1] - lengths[:, None])
    segments = (index >= 0).astype(jnp.int32)

    def attend(q, k, v, window, part, layer):
        out = attention(
            q, k, v, segment_ids=segments, window=window, kernel=model.compute.attention, platform=model.platform,
            placement=model.placement, softcap=model.config.attention_softcap,
        )  # fmt: skip
        return out, kv.write(part, layer, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), 0)

    x = model.embed(weights["embed"], tokens, model.compute.dtype)
    _, cache, reports = run_layers(model, weights["layers"], x, model.ropes(jnp.maximum(index, 0)), attend, cache)
    return cache, _routing(reports, routing)


def step(
    model: Model, weights: Weights, tokens: jax.Array, counts: jax.Array, clock: jax.Array, cache: Cache,
    routing: bool = False,
) -> tuple[jax.Array, Cache, jax.Array | None]:  # fmt: skip
    """One decode step: float32 logits [B, V] of the next token, the cache with column `clock` written, and with
    `routing` the experts of the tokens, int16 [B, 1, L, k].

    Args:
        model: the model.
        weights: as `prepare` returns them.
        tokens: int32 [B], the last token of each row.
        counts: int32 [B], tokens of each row in the cache, which is the position of the new token.
        clock: int32 scalar, the column to write; the tokens of a row are in the `counts` columns before it.
        cache: the cache of B rows.
    """
    attend = functools.partial(
        attend_cached, counts=counts, clock=clock, kernel=model.compute.attention, platform=model.platform,
        placement=model.placement, softcap=model.config.attention_softcap,
    )  # fmt: skip
    x = model.embed(weights["embed"], tokens[:, None], model.compute.dtype)
    if model.placement.batch is not None:  # rows are split over more axes for sampling; undo that here
        x = jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(model.placement.batch))
    x, cache, reports = run_layers(model, weights["layers"], x, model.ropes(counts[:, None]), attend, cache)
    hidden: Any = residual_norm(model.config).apply({"params": weights["norm"]}, x)  # flax does not type its result
    return head_logits(hidden[:, 0], weights["head"], model.config.logits_softcap), cache, _routing(reports, routing)


def attend_cached(
    q, k, v, window, part, layer, *, counts, clock, kernel: str = "auto", platform: str = "cpu",
    placement: Placement = Placement(), softcap: float | None = None, interpret: bool = False,  # noqa: B008 - frozen
) -> tuple[jax.Array, Any]:  # fmt: skip
    """Attention of one query per row, q [B, 1, H, hd], over the cached keys of the row and its own key.

    It uses the kernel of `models/decode_attention.py` if that supports the (stacked) cache, else matrix products.
    """
    part = kv.write(part, layer, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), clock)
    columns = jax.tree.leaves(part)[0].shape[-2]
    if layer is not None and fits_kernel(platform, q.shape[3], columns, q.dtype, kernel):
        keys, values = part
        out = decode_attention(
            q[:, 0], keys, values, layer, counts, clock, window=window, placement=placement, softcap=softcap,
            interpret=interpret,
        )  # fmt: skip
        return out[:, None], part
    start: Any = 0
    if window is not None and 2 * window <= columns:  # copying the window is cheaper than reading all columns
        columns, start = window, jnp.clip(clock - window + 1, 0, columns - window)
    keys, values = kv.read(part, layer, start, columns)
    age = clock - start - jnp.arange(columns)
    visible = (age >= 0) & (age <= counts[:, None])
    if window is not None:
        visible &= age < window
    b, _, heads, hd = q.shape
    grouped = (q * hd**-0.5).reshape(b, keys.shape[1], -1, hd)
    scores = jnp.einsum("bkgd,bkcd->bkgc", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], soft_cap(scores, softcap), MASKED)
    p = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    out = jnp.einsum("bkgc,bkcd->bkgd", p.astype(values.dtype), values) / p.sum(axis=-1, keepdims=True)
    return out.astype(q.dtype).reshape(b, 1, heads, hd), part
