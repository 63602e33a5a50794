"""A decoder-only transformer: embedding, layers, final norm. Every dense family is a `DecoderConfig` of it.

`models/moe.py` replaces the feed-forward layer by a mixture of experts.

Parameters are a plain dict of arrays. The arrays of the layers have a leading layer axis, and the layers run as one
`lax.scan` over it. One layer is a Flax linen module, used only through `init` and `apply`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from models.attention import attention
from models.config import Compute, DecoderConfig, Placement
from models.errors import UserError
from models.flops import model_flops_per_token
from models.heads import TokenScores, token_scores
from models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    embed_rows,
    linear_each,
    matrix_std,
    residual_norm,
    rope_table,
    rotate,
    truncated_normal,
)
from models.model import Attend, Auxiliary, Images, Output, Params, Rules

BlockAttend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (q, k, v) → output

# Logical axes of every parameter, by dotted name. `runtime/sharding.py` maps them to mesh axes and requires that each
# parameter matches exactly one rule. `None` is never sharded: the layer axis of the scan, or a small vector.
SHARDING_RULES: Rules = (
    (r"embed\.table", ("vocab", "width")),
    (r"layers\.attn\.[qkv]\.kernel", (None, "width", "heads")),
    (r"layers\.attn\.[qkv]\.bias", (None, "heads")),
    (r"layers\.attn\.[qk]_norm\.scale", (None, "heads")),
    (r"layers\.attn\.o\.kernel", (None, "heads", "width")),
    (r"layers\.mlp\.(gate|up)\.kernel", (None, "width", "ffn")),
    (r"layers\.mlp\.down\.kernel", (None, "ffn", "width")),
    (r"layers\.(pre|post)_(attn|ffn)_norm\.scale", (None, None)),
    (r"final_norm\.scale", (None,)),
    (r"head\.kernel", ("width", "vocab")),
    (r"score\.kernel", ("width", None)),
)


class Attention(nn.Module):
    """Multi-head attention: projections, clipping, QK-norm and rotation; the caller supplies `attend` (spec olmo §2.2).

    The order is: project, split into heads, clip, normalise over all heads together, rotate. Values are not normalised.
    """

    config: DecoderConfig
    platform: str  # "cpu", "gpu" or "tpu"
    flatten: bool = True  # see `layers.matmul`

    def setup(self):
        c = self.config
        inner, kv_inner = c.heads * c.head_dim, c.kv_heads * c.head_dim
        std = matrix_std(c, c.width)
        self.q = Linear(c.width, inner, std, c.qkv_bias, self.flatten)
        self.k = Linear(c.width, kv_inner, std, c.qkv_bias, self.flatten)
        self.v = Linear(c.width, kv_inner, std, c.qkv_bias, self.flatten)
        self.o = Linear(inner, c.width, matrix_std(c, c.width, output=True), flatten=self.flatten)
        if c.qk_norm:
            self.q_norm = RMSNorm(inner, c.norm_eps, c.norm_offset)
            self.k_norm = RMSNorm(kv_inner, c.norm_eps, c.norm_offset)

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: BlockAttend) -> jax.Array:
        c = self.config
        projected = linear_each(x, [self.q, self.k, self.v], self.platform)
        if self.platform == "tpu" and x.shape[-2] == 1:
            # Decoding: without this barrier XLA fuses the split into heads with the product and transposes the weights.
            projected = jax.lax.optimization_barrier(projected)
        heads = (u.reshape(*u.shape[:-1], -1, c.head_dim) for u in projected)
        q, k, v = (checkpoint_name(u, name) for u, name in zip(heads, ("query", "key", "value"), strict=True))
        if c.qkv_clip is not None:
            q, k, v = (jnp.clip(u, -c.qkv_clip, c.qkv_clip) for u in (q, k, v))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rope, self.platform), rotate(k, rope, self.platform)
        if c.query_scalar is not None and c.query_scalar != c.head_dim:  # `attend` divides by √head_dim
            q = q * jnp.asarray((c.head_dim / c.query_scalar) ** 0.5, q.dtype)
        out = attend(q, k, v)
        return checkpoint_name(self.o(out.reshape(*out.shape[:-2], -1)), "output")


class Block(nn.Module):
    """One layer. Norms "pre": h = x + A(N x), y = h + F(N h). "post": h = x + N(A(x)), y = h + N(F(h)). "sandwich" has
    both: h = x + N(A(N x)), y = h + N(F(N h))."""

    config: DecoderConfig
    platform: str
    flatten: bool = True  # see `layers.matmul`

    def setup(self):
        c = self.config
        self.attn = Attention(c, self.platform, self.flatten)
        self.mlp = SwiGLU(c, self.platform, self.flatten)
        if c.norm_placement != "post":
            self.pre_attn_norm, self.pre_ffn_norm = residual_norm(c), residual_norm(c)
        if c.norm_placement != "pre":
            self.post_attn_norm, self.post_ffn_norm = residual_norm(c), residual_norm(c)

    def __call__(
        self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: BlockAttend,
        dropout_key: jax.Array | None = None, routing: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
        """The output [B, S, d] for x [B, S, d], and what the layer reports for auxiliary losses (empty when dense).

        `routing` int [B, S, k] gives the experts of tokens where it is not negative, in a mixture.
        """
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        before, after = self.config.norm_placement != "post", self.config.norm_placement != "pre"
        a = self.attn(self.pre_attn_norm(x) if before else x, rope, attend)
        h = x + self._drop(self.post_attn_norm(a) if after else a, keys[0])
        y, report = self.feed_forward(self.pre_ffn_norm(h) if before else h, routing)
        return h + self._drop(self.post_ffn_norm(y) if after else y, keys[1]), report

    def feed_forward(self, x: jax.Array, routing: jax.Array | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The feed-forward layer F(x) [B, S, d], and what it reports for auxiliary losses."""
        return self.mlp(x), {}

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Dropout of a sub-layer's output before it is added to the residual stream; off without a key."""
        rate = self.config.dropout
        if key is None or rate == 0.0:
            return x
        keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


# What a layer stores for its backward pass, by `Compute.remat`. Projections are stored before norms and rotations,
# which are cheap to recompute and whose backward passes need nothing else. "routing": the experts of tokens, and their
# order, which cost sorts.
_ATTENTION = ("query", "key", "value", "attention", "routing")
_OUTPUTS = (*_ATTENTION, "output", "down")
_REMAT: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "attention": jax.checkpoint_policies.save_only_these_names(*_ATTENTION),
    "outputs": jax.checkpoint_policies.save_only_these_names(*_OUTPUTS),
    "dots": jax.checkpoint_policies.save_only_these_names(*_OUTPUTS, "gate", "up"),
}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A dense model: implements `models.model.Model`."""

    config: DecoderConfig
    compute: Compute = Compute()
    placement: Placement = Placement()

    @property
    def platform(self) -> str:
        return self.compute.platform or jax.default_backend()

    @property
    def sharding_rules(self) -> Rules:
        return SHARDING_RULES

    @functools.cached_property
    def block(self) -> nn.Module:
        """One layer; a family whose layers compute something else has its own."""
        return Block(self.config, self.platform, self.placement.sequence is None)

    def init(self, key: jax.Array) -> Params:
        """Freshly initialised float32 parameters, with the initialisation of the family (spec olmo §4)."""
        c = self.config
        embed_key, layer_key, head_key = jax.random.split(key, 3)
        block = dataclasses.replace(self, compute=Compute(platform="cpu"), placement=Placement()).block

        def one(key: jax.Array) -> Params:
            x = jnp.zeros((1, 1, c.width))
            rope = rope_table(jnp.zeros((1, 1), jnp.int32), c.head_dim, c.rope_theta, None)
            attend = lambda q, k, v: q  # noqa: E731 - only shapes matter
            return block.init(key, x, rope, attend)["params"]

        layers = jax.vmap(one)(jax.random.split(layer_key, c.layers))
        if c.init == "mitchell":
            depth = (jnp.arange(c.layers) + 1.0) ** -0.5
            for name, leaf in (("attn", "o"), ("mlp", "down")):
                layers[name][leaf]["kernel"] *= depth[:, None, None]
        std = matrix_std(c, c.width)
        params = {"embed": {"table": truncated_normal(std)(embed_key, (c.vocab, c.width))}, "layers": layers}
        if c.norm == "rms":
            params["final_norm"] = {"scale": jnp.ones((c.width,))}
        if c.scalar_head:
            params["score"] = {"kernel": score_kernel(head_key, c.width)}
        elif not c.tie_embeddings:
            params["head"] = {"kernel": truncated_normal(std)(head_key, (c.width, c.vocab))}
        return params

    def abstract_params(self, dtype: str = "float32") -> Params:
        """Shapes and types of the parameters (`jax.ShapeDtypeStruct`); allocates nothing."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), shapes)

    def target_scores(
        self, params: Params, hidden: jax.Array, targets: jax.Array, temperature: float = 1.0
    ) -> TokenScores:
        """Scores of targets int32 [B, S] given hidden states [B, S, d]; see `token_scores`."""
        return token_scores(
            hidden, self.head_kernel(params), targets, chunk=self.compute.logits_chunk, temperature=temperature,
            placement=self.placement, softcap=self.config.logits_softcap,
        )  # fmt: skip

    def head_kernel(self, params: Params) -> jax.Array:
        """The vocabulary head [d, V]; with tied embeddings, the transpose of the embedding table."""
        return params["embed"]["table"].T if self.config.tie_embeddings else params["head"]["kernel"]

    def __call__(
        self,
        params: Params,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        add_embeddings: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        routing: jax.Array | None = None,
        images: Images | None = None,
    ) -> Output:
        """Hidden states of packed rows.

        Args:
            params: the tree of `init`, in any float type.
            tokens: int32 [B, S].
            positions: int32 [B, S]; left out, they restart in each segment.
            segment_ids: int32 [B, S]; 0 is padding; left out, each row is one document.
            add_embeddings: [B, S, d], added to the token embeddings (for example image features at image tokens).
            dropout_key: turns the configured dropout on.
            routing: int [B, S, L, k], the experts that compute each token in each layer of a mixture; negative ones are
                chosen by the routers, as all are without it.
            images: pictures, for models that see them.
        """
        c, dtype = self.config, jnp.dtype(self.compute.dtype)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        if positions is None:
            positions = segment_positions(segment_ids)
        x = self.embed(params["embed"], tokens, dtype)
        if add_embeddings is not None:
            x = x + add_embeddings.astype(dtype)
        if images is not None:
            x = x + self.embed_images(params, images, tokens.shape[1])
        x, reports = self._layers(
            params["layers"], self._split(self._rows(x)), positions, segment_ids, dropout_key,
            None if routing is None else routing.transpose(2, 0, 1, 3),
        )  # fmt: skip
        final_norm = params.get("final_norm", {})  # the norm of OLMo 1 has no parameters
        # `apply` returns a tuple only where collections are mutable, which none is here.
        hidden = cast(jax.Array, residual_norm(c).apply({"params": final_norm}, x))
        return Output(hidden, self.auxiliary(reports, segment_ids))

    def embed(self, embed: Params, tokens: jax.Array, dtype: Any) -> jax.Array:
        """Embeddings [B, S, d] of tokens in `dtype`; `embed` is `params["embed"]`."""
        return embed_rows(self.config, embed["table"].astype(dtype), tokens)

    def embed_images(self, params: Params, images: Images, length: int) -> jax.Array:
        """What pictures add to the embeddings of their tokens; this model sees none."""
        raise UserError(f"a {self.config.family} model sees no pictures; leave images out")

    def auxiliary(self, reports: dict[str, jax.Array], segment_ids: jax.Array) -> dict[str, Auxiliary]:
        """The auxiliary losses in what the layers report, each array stacked over layers; none for a dense model."""
        return {}

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs of the forward pass for each token of a sequence of `sequence_length` tokens."""
        return model_flops_per_token(self.config, sequence_length)

    def ropes(self, positions: jax.Array) -> dict[int | None, tuple[jax.Array, jax.Array]]:
        """Rotary tables by attention window; YaRN applies to full-attention layers only (spec olmo §2.4)."""
        c = self.config
        sliding_scaling = None if c.rope_scaling is not None and c.rope_scaling.kind == "yarn" else c.rope_scaling
        table = functools.partial(rope_table, positions, c.head_dim, c.rope_theta)
        return {w: table(c.rope_scaling if w is None else sliding_scaling) for w in set(c.pattern)}

    def _layers(self, layers, x, positions, segment_ids, dropout_key, routing=None) -> tuple[jax.Array, dict]:
        """All layers, for training and scoring: x [B, S, d], and what the layers report, stacked over layers."""
        c, compute = self.config, self.compute

        def attend(q, k, v, window, carry, number):
            out = attention(
                q, k, v, segment_ids=segment_ids, window=window, kernel=compute.attention, platform=self.platform,
                placement=self.placement, softcap=c.attention_softcap, branches=c.vision is not None,
            )  # fmt: skip
            return out, carry

        keys = None if dropout_key is None or c.dropout == 0 else jax.random.split(dropout_key, c.layers)
        x, _, aux = self._scan(
            layers, x, self.ropes(positions), attend, None, keys, compute.remat, compute.unroll, routing
        )
        return x, aux

    def walk(self, layers: Any, x: jax.Array, ropes: dict, attend: Attend, carry: Any) -> tuple[jax.Array, Any]:
        """All layers, for decoding; see `models.model.Model.walk`.

        With a list of layers, `carry` is a list with one item for each layer, and `attend` receives None as the index
        of the layer.
        """
        return self.walk_with_reports(layers, x, ropes, attend, carry)[:2]

    def walk_with_reports(
        self, layers: Any, x: jax.Array, ropes: dict, attend: Attend, carry: Any
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """`walk`, and what the layers report, stacked over layers (empty when dense)."""
        if isinstance(layers, list):
            parts, reports = [], []
            for layer, window, part in zip(layers, self.config.pattern, carry, strict=True):
                x, part, report = self._apply(layer, x, ropes, attend, window, part, None)
                parts.append(part)
                reports.append(report)
            return x, parts, jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)
        return self._scan(layers, x, ropes, attend, carry)

    def _apply(self, layer, x, ropes, attend: Attend, window, carry, number, key=None, routing=None):
        """One layer: the new x, the new `carry`, and what the layer reports."""

        def inner(q, k, v):
            nonlocal carry
            out, carry = attend(q, k, v, window, carry, number)
            return out

        with jax.named_scope("block"):
            # A block of another family need not know of routing.
            given = () if routing is None else (routing,)
            x, aux = self.block.apply({"params": layer}, x, ropes[window], inner, key, *given)
        return x, carry, aux

    def _scan(
        self, layers, x, ropes, attend: Attend, carry, keys=None, remat: str = "none", unroll: int = 1, routing=None
    ):
        """A scan over the stacked layers. One iteration is one period of the window pattern, so windows are static."""
        count, pattern = self.config.layers, self.config.pattern
        period = next(p for p in range(1, count + 1) if count % p == 0 and pattern[:p] * (count // p) == pattern)
        numbered = bool(jax.tree.leaves(carry))  # only attention with a carry uses the index of its layer

        def run_block(layer, x, carry, number, key, given, window):
            x, carry, aux = self._apply(layer, x, ropes, attend, window, carry, number, key, given)
            return self._split(x), carry, aux

        def iteration(state, xs):
            (x, carry), (group, first) = state, xs
            reports = []
            for i, window in enumerate(pattern[:period]):
                layer, key, given = jax.tree.map(lambda leaf, i=i: leaf[i], group)
                run: Callable[..., Any] = functools.partial(run_block, window=window)
                if remat != "none":
                    run = jax.checkpoint(run, policy=_REMAT[remat], prevent_cse=False)
                x, carry, aux = run(layer, x, carry, first + i if numbered else None, key, given)
                reports.append(aux)
            return (x, carry), jax.tree.map(lambda *leaves: jnp.stack(leaves), *reports)

        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), (layers, keys, routing))
        firsts = jnp.arange(0, count, period) if numbered else None
        (x, carry), aux = jax.lax.scan(iteration, (x, carry), (groups, firsts), unroll=min(unroll, count // period))
        return x, carry, jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), aux)

    def _rows(self, x: jax.Array) -> jax.Array:
        """Reshards embeddings, which leave the lookup sharded in width like their table, before `_split`.

        First rows are sharded, then the sequence: in a single step the compiler would all-gather everything.
        """
        placement = self.placement
        if placement.sequence is None:
            return x
        spec = jax.sharding.PartitionSpec(placement.batch, None, placement.sequence)
        return jax.lax.with_sharding_constraint(x, spec)

    def _split(self, x: jax.Array) -> jax.Array:
        """Constrains the residual stream to be sharded over the mesh, in rows and along the sequence."""
        placement = self.placement
        if placement.batch is None:
            return x
        spec = jax.sharding.PartitionSpec(placement.batch, placement.sequence, None)
        return jax.lax.with_sharding_constraint(x, spec)


def cast_kernels(params: Params, dtype: str) -> Params:
    """Parameters with kernels and tables in `dtype`; norms, biases, routers and a scalar head stay in float32.

    A model casts kernels and tables to its activation type where it uses them, so with that type as `dtype` the results
    stay the same.
    """

    def cast(path, leaf):
        names = [key.key for key in path]
        cast_at_use = names[-1] in ("kernel", "table") and names[0] != "score" and "router" not in names
        return leaf.astype(dtype) if cast_at_use else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def score_kernel(key: jax.Array, width: int, std: float | None = None) -> jax.Array:
    """A freshly initialised scalar head [d, 1]: normal with standard deviation `std`.

    By default the variance is 1/(d + 1), so that initial scores have unit scale (Tülu 3; spec tulu3 §4).
    """
    return ((width + 1) ** -0.5 if std is None else std) * jax.random.normal(key, (width, 1))


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """int32 [B, S]: the position of each token within its segment (segments are contiguous)."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    first = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)
