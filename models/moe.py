"""Mixtures of experts: the router, the experts, their auxiliary losses, and a decoder with them (spec olmo §13).

A router gives every token a probability of each expert, p = softmax(W x) in float32. The k most probable experts
compute the token, and their outputs are summed with weights p, which are not renormalised (OLMoE, arXiv 2409.02060).
No token is dropped, however many choose one expert: copies of tokens are sorted by expert and multiplied by group
(`models/grouped_matmul.py`).

Under a mesh every device routes its own tokens. Where experts are sharded (`Placement.experts`), devices that hold
different experts exchange tokens: each gathers the tokens of all of them, computes the copies of its own experts, and
the sums are scattered back. An exchange of single copies would move about as much (with 8 of 64 experts over 8 devices
a token needs 5.3 of the 8 on average), and its buffers would have to be as large, or drop tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from models.config import DecoderConfig, Placement
from models.decoder import SHARDING_RULES, Block, Decoder
from models.grouped_matmul import Backend, backend_for, grouped_matmul
from models.layers import Linear, matrix_std, truncated_normal
from models.model import Auxiliary, Rules

Form = Literal["olmoe", "hf"]


class AuxLosses(NamedTuple):
    """The auxiliary losses of routers before their weights, float32 scalars."""

    load_balancing: jax.Array
    router_z: jax.Array


def aux_losses(router_logits: jax.Array, k: int, form: Form = "olmoe", mask: jax.Array | None = None) -> AuxLosses:
    """The load-balancing loss and the router z-loss of T tokens in L layers.

    With c the number of tokens that choose an expert and p̄ the mean of its probability over tokens:

    | form | load balancing | router z |
    |---|---|---|
    | "olmoe" (as trained) | E / (L·T·k) · Σ_l Σ_e c_le · p̄_le, which is 1 when balanced | Σ lse² / (L·T·k) |
    | "hf" (`transformers`) | E · Σ_e (Σ_l c_le / (L·T)) · (Σ_l p̄_le / L), which is k when balanced | Σ lse² / (L·T) |

    The counts c have no gradient. lse is the logsumexp of a token's logits; the z-loss of "hf" is that of the paper
    (`transformers` has none).

    Args:
        router_logits: [L, T, E].
        k: experts of a token.
        form: a name of the table.
        mask: [T], 1 for tokens that count (padding does not); by default all do.
    """
    logits = router_logits.astype(jnp.float32)
    chosen = jax.lax.top_k(logits, k)[1]
    weights = jnp.ones(logits.shape[1]) if mask is None else mask.astype(jnp.float32)
    sums = _sums(logits, chosen, weights)
    return AuxLosses(
        _balance(sums, k, form), sums.squares / (len(logits) * sums.tokens * (k if form == "olmoe" else 1))
    )


class _Sums(NamedTuple):
    """Sums over tokens: `counts` and `probabilities` [L, E]; `squares` of the logsumexp, `entropy` and `tokens` []."""

    counts: jax.Array
    probabilities: jax.Array
    squares: jax.Array
    entropy: jax.Array
    tokens: jax.Array


def _sums(logits: jax.Array, chosen: jax.Array, mask: jax.Array) -> _Sums:
    """Sums over the tokens of `mask` (float32 [...]) for logits [L, ..., E] and chosen experts int [L, ..., k]."""
    experts = logits.shape[-1]
    probabilities = jax.nn.softmax(logits)
    hits = (chosen[..., None] == jnp.arange(experts)).any(axis=-2)
    axes = tuple(range(1, logits.ndim - 1))
    entropy = -(probabilities * jax.nn.log_softmax(logits)).sum(axis=-1)
    return _Sums(
        counts=(hits * mask[..., None]).sum(axis=axes),
        probabilities=(probabilities * mask[..., None]).sum(axis=axes),
        squares=(jax.nn.logsumexp(logits, axis=-1) ** 2 * mask).sum(),
        entropy=jax.lax.stop_gradient(entropy * mask).sum(),
        tokens=jnp.maximum(mask.sum(), 1.0),
    )


def _balance(sums: _Sums, k: int, form: Form) -> jax.Array:
    layers, experts = sums.counts.shape
    shares = jax.lax.stop_gradient(sums.counts) / sums.tokens
    means = sums.probabilities / sums.tokens
    if form == "hf":
        return experts * (shares.mean(axis=0) * means.mean(axis=0)).sum()
    return experts / (layers * k) * (shares * means).sum()


# ---------------------------------------------------------------------------------------------------------------------
# The experts


class Routing(NamedTuple):
    """What a layer reports of its router. `logits` float32 [..., E]; `chosen` int32 [..., k], the experts of a token,
    most probable first; `computed` int32 [...], how many of them computed it, which is k where nothing is dropped."""

    logits: jax.Array
    chosen: jax.Array
    computed: jax.Array


class ExpertKernels(NamedTuple):
    """`router` [d, E]; `gate` and `up` [E, d, f]; `down` [E, f, d]."""

    router: jax.Array
    gate: jax.Array
    up: jax.Array
    down: jax.Array


def mixture(
    x: jax.Array, kernels: ExpertKernels, k: int, *, backend: Backend, placement: Placement = Placement(),  # noqa: B008
    interpret: bool = False, given: jax.Array | None = None,
) -> tuple[jax.Array, Routing]:  # fmt: skip
    """Σ over the k chosen experts of probability · down(silu(gate x) ⊙ up x).

    Args:
        x: [B, S, d].
        kernels: in any float type; the experts compute in the type of x, the router in float32.
        k: experts of a token.
        backend: see `models/grouped_matmul.py`.
        placement: the mesh axes that rows, sequences, experts and the experts' hidden size are sharded over.
        interpret: run Pallas kernels without a TPU, for tests.
        given: int [B, S, k], experts that compute a token in place of the most probable ones, with the router's own
            probabilities as weights; tokens with negative ones are routed as ever.

    Returns:
        [B, S, d] in the type of x, and the routing of each token.
    """
    kernels = kernels._replace(**{name: getattr(kernels, name).astype(x.dtype) for name in ("gate", "up", "down")})
    run = functools.partial(_mixture, k=k, backend=backend, placement=placement, interpret=interpret)
    if placement.batch is None:
        return run(x, kernels, given)
    spec: Any = PartitionSpec  # which stands in the place of arrays below
    rows, token = spec(placement.batch, placement.sequence, None), spec(placement.batch, placement.sequence)
    wide, tall = spec(placement.experts, None, placement.tensor), spec(placement.experts, placement.tensor, None)
    return jax.shard_map(
        run, in_specs=(rows, ExpertKernels(spec(), wide, wide, tall), None if given is None else rows),
        out_specs=(rows, Routing(rows, rows, token)), check_vma=False,
    )(x, kernels, given)  # fmt: skip


def _mixture(x, kernels: ExpertKernels, given, *, k: int, backend: Backend, placement: Placement, interpret: bool):
    """`mixture` of one device's tokens [B, S, d] and experts."""
    rows = x.reshape(-1, x.shape[-1])
    logits = jnp.matmul(rows.astype(jnp.float32), kernels.router.astype(jnp.float32), precision="highest")
    probabilities = jax.nn.softmax(logits)
    chosen = checkpoint_name(jax.lax.top_k(jax.lax.stop_gradient(probabilities), k)[1], "routing")
    if given is not None:
        given = given.reshape(-1, k).astype(chosen.dtype)
        chosen = jnp.where(given >= 0, given, chosen)
    weights = _at(probabilities, chosen)
    own, axis = chosen, placement.experts
    if len(kernels.gate) == logits.shape[-1]:  # the mesh axis has one device: it has all experts
        axis = None
    if axis is not None:
        rows, weights, own = (jax.lax.all_gather(part, axis, tiled=True) for part in (rows, weights, own))
        own = own - jax.lax.axis_index(axis) * len(kernels.gate)
        own = jnp.where((own >= 0) & (own < len(kernels.gate)), own, len(kernels.gate))  # sorted behind the own ones
    product = functools.partial(grouped_matmul, backend=backend, interpret=interpret, whole=axis is None)
    y, computed = _experts(rows, weights, own, kernels, product)
    if placement.tensor is not None:
        y = jax.lax.psum(y, placement.tensor)
    if axis is not None:
        y, computed = (jax.lax.psum_scatter(part, axis, tiled=True) for part in (y, computed))
    y = checkpoint_name(y.astype(x.dtype), "down")
    back = (*x.shape[:-1], -1)
    return y.reshape(x.shape), Routing(logits.reshape(back), chosen.reshape(back), computed.reshape(x.shape[:-1]))


def _at(probabilities: jax.Array, chosen: jax.Array) -> jax.Array:
    """[T, k]: the probabilities [T, E] of the chosen experts. As a masked sum, whose gradient needs no scatter."""
    hits = chosen[..., None] == jnp.arange(probabilities.shape[-1])
    return jnp.where(hits, probabilities[:, None, :], 0.0).sum(axis=-1)


def _experts(x, weights, chosen, kernels: ExpertKernels, product) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of the experts' outputs, float32 [T, d], for tokens [T, d], and copies computed, int32 [T].

    `chosen` int32 [T, k] numbers the given experts; a larger number is an expert of another device. Copies are numbered
    by rank first, so that those of a token are added along the outermost axis, which costs a TPU least. The weights
    multiply what goes into the last product, so that the backward pass needs none of its results.
    """
    count, (tokens, k) = len(kernels.gate), chosen.shape
    flat = chosen.T.reshape(-1)
    sizes = (flat[:, None] == jnp.arange(count)).sum(axis=0, dtype=jnp.int32)
    scale, order = _sorted(weights.T.reshape(-1), flat)
    order = checkpoint_name(order, "routing")
    place = checkpoint_name(jnp.argsort(order), "routing")  # of each copy among the sorted ones
    # Spread for each: the compiler computes it once, and the two gradients are added token by token.
    gate, up = (product(_spread(x, order, place), kernel, sizes) for kernel in (kernels.gate, kernels.up))
    gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
    hidden = (nn.silu(gate) * up).astype(jnp.float32) * scale[:, None]
    y = _collected(product(hidden.astype(x.dtype), kernels.down, sizes), order, place, tokens)
    computed = (place < sizes.sum()).reshape(k, tokens).sum(axis=0, dtype=jnp.int32)
    return y, computed


@jax.custom_vjp
def _sorted(weights: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights [N] in the order of their keys, and that order. Its gradient is a sort too, instead of a scatter."""
    index = jnp.arange(len(keys), dtype=jnp.int32)
    _, order, ordered = jax.lax.sort((keys, index, weights), num_keys=1, is_stable=True)
    return ordered, order


def _sorted_forward(weights, keys):
    ordered, order = _sorted(weights, keys)
    return (ordered, order), order


def _sorted_backward(order, gradients):
    return jax.lax.sort((order, gradients[0]), num_keys=1)[1], None


_sorted.defvjp(_sorted_forward, _sorted_backward)


@jax.custom_vjp
def _spread(x: jax.Array, order: jax.Array, place: jax.Array) -> jax.Array:
    """The copies [k·T, d] of tokens [T, d] in the order of their experts; copy c is of token c mod T."""
    return x.at[order % len(x)].get(mode="promise_in_bounds")


def _spread_forward(x, order, place):
    return _spread(x, order, place), (order, place, x[:, :0])  # the last for its length


def _spread_backward(saved, gradient):
    order, place, tokens = saved
    return _collected(gradient, order, place, len(tokens)).astype(gradient.dtype), None, None


_spread.defvjp(_spread_forward, _spread_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _collected(copies: jax.Array, order: jax.Array, place: jax.Array, tokens: int) -> jax.Array:
    """float32 [T, d]: the sums of the copies of each token; the transpose of `_spread`."""
    ranks = place.reshape(-1, tokens)  # one by one: a TPU's sum over an axis takes four times as long
    found = (copies.at[rank].get(mode="promise_in_bounds").astype(jnp.float32) for rank in ranks)
    return functools.reduce(jnp.add, found)


def _collected_forward(copies, order, place, tokens):
    return _collected(copies, order, place, tokens), (order, place, copies[:0])  # the last for its type


def _collected_backward(tokens, saved, gradient):
    order, place, kind = saved
    return _spread(gradient.astype(kind.dtype), order, place), None, None


_collected.defvjp(_collected_forward, _collected_backward)


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Stacked(nn.Module):
    """The kernels [E, inputs, outputs] of one projection of all experts."""

    count: int
    inputs: int
    outputs: int
    std: float

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (self.count, self.inputs, self.outputs)
        return self.param("kernel", truncated_normal(self.std), shape, jnp.float32)


class MoE(nn.Module):
    """The feed-forward layer of a mixture: its router and its experts."""

    config: DecoderConfig
    platform: str
    placement: Placement

    def setup(self):
        c, e = self.config, self.config.experts
        assert e is not None
        self.router = Linear(c.width, e.count, matrix_std(c, c.width))
        self.gate = Stacked(e.count, c.width, c.ffn, matrix_std(c, c.width))
        self.up = Stacked(e.count, c.width, c.ffn, matrix_std(c, c.width))
        self.down = Stacked(e.count, c.ffn, c.width, matrix_std(c, c.ffn, output=True))

    def __call__(self, x: jax.Array, routing: jax.Array | None = None) -> tuple[jax.Array, Routing]:
        e = self.config.experts
        assert e is not None
        kernels = ExpertKernels(self.router.kernel, self.gate(), self.up(), self.down())
        return mixture(
            x, kernels, e.active, backend=backend_for(self.platform), placement=self.placement, given=routing
        )


class MoEBlock(Block):
    """One layer whose feed-forward layer is a mixture of experts."""

    placement: Placement = Placement()

    def setup(self):
        super().setup()
        self.moe = MoE(self.config, self.platform, self.placement)

    def feed_forward(self, x: jax.Array, routing: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        y, routed = self.moe(x, routing)
        return y, routed._asdict()


@dataclasses.dataclass(frozen=True)
class MoEDecoder(Decoder):
    """A decoder with a mixture of experts in every layer (`DecoderConfig.experts`)."""

    @property
    def sharding_rules(self) -> Rules:
        dense = tuple(rule for rule in SHARDING_RULES if "mlp" not in rule[0])
        return (
            *dense,
            (r"layers\.moe\.router\.kernel", (None, "width", None)),
            (r"layers\.moe\.(gate|up)\.kernel", (None, "experts", "expert_width", "ffn")),
            (r"layers\.moe\.down\.kernel", (None, "experts", "ffn", "expert_width")),
        )

    @functools.cached_property
    def block(self) -> nn.Module:
        return MoEBlock(self.config, self.platform, self.placement.sequence is None, self.placement)

    def auxiliary(self, reports: dict[str, jax.Array], segment_ids: jax.Array) -> dict[str, Auxiliary]:
        """The auxiliary losses of the routers, and how evenly they use the experts; padding does not count.

        `router_z`, `router_entropy` (nats, of the probabilities) and `dropped_copies` are exact however a batch is
        split. `load_balancing` is a product of two means over the tokens of a forward pass: with several micro-batches
        each has its own, as in OLMoE's training, and they are averaged by their tokens. So are `expert_load_max` and
        `expert_load_min`: the load of the most and the least used expert of a layer as a multiple of the mean load,
        averaged over layers.
        """
        e, mask = self.config.experts, (segment_ids > 0).astype(jnp.float32)
        assert e is not None
        sums = _sums(reports["logits"], reports["chosen"], mask)
        layers, tokens = len(sums.counts), sums.tokens
        load = sums.counts * e.count / (tokens * e.active)
        dropped = (mask * (e.active - reports["computed"])).sum()
        return {
            "load_balancing": Auxiliary(_balance(sums, e.active, e.form) * tokens, tokens, e.load_balancing),
            "router_z": Auxiliary(sums.squares, tokens * layers * (e.active if e.form == "olmoe" else 1), e.router_z),
            "router_entropy": Auxiliary(sums.entropy, tokens * layers, 0.0),
            "expert_load_max": Auxiliary(load.max(axis=1).mean() * tokens, tokens, 0.0),
            "expert_load_min": Auxiliary(load.min(axis=1).mean() * tokens, tokens, 0.0),
            "dropped_copies": Auxiliary(dropped, jnp.zeros(()), 0.0),
        }


class RoutingDecoder(MoEDecoder):
    """The decoder whose output has in `aux` what every layer reports of its router, stacked over layers, in place of
    auxiliary losses: the fields of `Routing`. For analyses."""

    def auxiliary(self, reports: dict[str, jax.Array], segment_ids: jax.Array) -> Any:
        return reports
