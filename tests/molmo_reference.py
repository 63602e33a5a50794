"""Molmo by the book, in float64 NumPy on tensors under their released names: loops and no cleverness (spec molmo).

`TINY` are models of every block style that are small enough for it. The mathematics is written independently of
`models/molmo`: features are scattered crop by crop and cell by cell, as the reference code does it.
"""

from __future__ import annotations

import numpy as np

from models.config import DecoderConfig, Experts, VisionConfig
from models.molmo import image

VISION = VisionConfig(
    image=24, patch=3, margin=2, width=16, heads=2, ffn=20, layers=4, features=(-2, -4), connector_ffn=28,
    max_crops=6, start_id=70, end_id=71, patch_id=72, column_id=73, image_id=74, extra_rows=8,
)  # fmt: skip
_SHAPE = {"layers": 2, "width": 24, "heads": 4, "ffn": 28, "vocab": 70, "context": 512, "vision": VISION}
TINY = {
    "7b-d": DecoderConfig(
        "molmo", **_SHAPE, kv_heads=2, norm_placement="pre", qkv_bias=True, rope_theta=1e6, pad_id=0
    ),
    "7b-o": DecoderConfig("molmo", **_SHAPE, norm_placement="post", qk_norm=True, norm_eps=1e-3),
    "moe": DecoderConfig(
        "molmo", **{**_SHAPE, "ffn": 8}, norm_placement="pre", qk_norm=True, experts=Experts(5, 2, 0.0, 0.0)
    ),
}  # fmt: skip


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def layer_norm(x, scale, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale + bias


def rms_norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * scale


class Reference:
    """A model from its released tensors `t` (float64)."""

    def __init__(self, config: DecoderConfig, tensors: dict[str, np.ndarray]):
        self.c, self.v = config, config.vision
        self.t = {name.removeprefix("model."): np.asarray(x, np.float64) for name, x in tensors.items()}

    def linear(self, name, x):
        y = x @ self.t[f"{name}.weight"].T
        return y + self.t[f"{name}.bias"] if f"{name}.bias" in self.t else y

    def tower(self, crops):
        """[C, P², layers · width] of uint8 crops."""
        v, root = self.v, "vision_backbone.image_vit."
        mean = np.array([0.48145466, 0.4578275, 0.40821073])
        std = np.array([0.26862954, 0.26130258, 0.27577711])
        x = ((crops / 255.0).reshape(*crops.shape[:2], -1, 3) - mean) / std
        x = self.linear(f"{root}patch_embedding", x.reshape(crops.shape))
        first = np.broadcast_to(self.t[f"{root}class_embedding"], (len(x), 1, v.width))
        x = np.concatenate([first, x], 1) + self.t[f"{root}positional_embedding"]
        x = layer_norm(x, self.t[f"{root}pre_ln.weight"], self.t[f"{root}pre_ln.bias"], 1e-5)
        outputs = []
        for layer in range(v.layers):
            p = f"{root}transformer.resblocks.{layer}."
            y = layer_norm(x, self.t[f"{p}attention_norm.weight"], self.t[f"{p}attention_norm.bias"], 1e-5)
            q, k, w = (
                self.linear(f"{p}attention.w{n}", y).reshape(*y.shape[:2], v.heads, -1).swapaxes(1, 2) for n in "qkv"
            )
            y = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ w
            x = x + self.linear(f"{p}attention.wo", y.swapaxes(1, 2).reshape(x.shape))
            y = layer_norm(x, self.t[f"{p}ffn_norm.weight"], self.t[f"{p}ffn_norm.bias"], 1e-5)
            y = self.linear(f"{p}feed_forward.w1", y)
            x = x + self.linear(f"{p}feed_forward.w2", y / (1 + np.exp(-1.702 * y)))
            outputs.append(x[:, 1:])
        return np.concatenate([outputs[i] for i in v.features], -1)

    def connect(self, features, padding):
        """[C, T, T, d] of all pooled cells of each crop."""
        v, root = self.v, "vision_backbone."
        table = self.t[f"{root}pad_embed"]
        features = features + (padding == 2)[..., None] * table[0] + (padding == 1)[..., None] * table[1]
        side, crops = v.grid // 2, len(features)
        groups = features.reshape(crops, side, 2, side, 2, -1).transpose(0, 1, 3, 2, 4, 5)
        groups = groups.reshape(crops, side, side, 4, -1)
        pool = f"{root}image_pooling_2d.w"
        q = self.linear(pool + "q", groups.mean(-2)).reshape(crops, side, side, v.heads, -1)
        k, w = (self.linear(pool + n, groups).reshape(crops, side, side, 4, v.heads, -1) for n in "kv")
        weights = softmax(np.einsum("cyxhd,cyxghd->cyxhg", q, k) / np.sqrt(q.shape[-1]))
        x = np.einsum("cyxhg,cyxghd->cyxhd", weights, w).reshape(crops, side, side, -1)
        x = self.linear(pool + "o", x)
        root = "vision_backbone.image_projector.w"
        return self.linear(root + "2", silu(self.linear(root + "1", x)) * self.linear(root + "3", x))

    def embed(self, tokens, pictures):
        """Embeddings [S, d] of a row with its pictures."""
        table = np.concatenate([self.t["transformer.wte.embedding"], self.t["transformer.wte.new_embedding"]])
        x, at = table[tokens], 0
        v = self.v
        for picture in pictures:
            padding = image.legacy_padding(picture.padding) if v.legacy_image_mask else picture.padding
            cells = self.connect(self.tower(picture.crops), padding)
            start = at + int(np.flatnonzero(tokens[at:] == v.start_id)[0])
            (r, c), m, w, side = picture.tiling, v.margin // 2, v.grid // 2 - v.margin, v.grid // 2
            for a in range(side):
                for b in range(side):
                    x[start + 1 + (side + 1) * a + b] += cells[0, a, b]
            high, columns = start + side * (side + 1) + 3, w * c + 2 * m
            for i in range(r):
                for j in range(c):
                    for a in range(0 if i == 0 else m, side if i == r - 1 else side - m):
                        for b in range(0 if j == 0 else m, side if j == c - 1 else side - m):
                            x[high + (w * i + a) * (columns + 1) + w * j + b] += cells[1 + i * c + j, a, b]
            at = start + len(picture.tokens)
        return x

    def feed_forward(self, p, x):
        if self.c.experts is None:
            up, gate = np.split(self.linear(f"{p}ff_proj", x), 2, -1)
            return self.linear(f"{p}ff_out", silu(gate) * up)
        weights, out = softmax(self.linear(f"{p}mlp.gate", x)), np.zeros_like(x)
        for token in range(len(x)):
            for e in np.argsort(-weights[token])[: self.c.experts.active]:
                q, row = f"{p}mlp.experts.{e}.", x[token]
                y = silu(self.linear(f"{q}gate_proj", row)) * self.linear(f"{q}up_proj", row)
                out[token] += weights[token, e] * self.linear(f"{q}down_proj", y)
        return out

    def logits(self, tokens, pictures=(), positions=None, visible=None):
        """[S, V] of one row; `visible` bool [S, S], by default causal."""
        c, x, length = self.c, self.embed(tokens, pictures), len(tokens)
        positions = np.arange(length) if positions is None else positions
        visible = np.tril(np.ones((length, length), bool)) if visible is None else visible
        frequencies = c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
        angles = np.concatenate([positions[:, None] * frequencies] * 2, -1)

        def rotate(u):
            a, b = np.split(u, 2, -1)
            return u * np.cos(angles)[:, None] + np.concatenate([-b, a], -1) * np.sin(angles)[:, None]

        for layer in range(c.layers):
            p = f"transformer.blocks.{layer}."
            norms = [lambda u, n=n, p=p: rms_norm(u, self.t[f"{p}{n}_norm.weight"], c.norm_eps) for n in ("attn", "ff")]
            post = c.norm_placement == "post"
            y = x if post else norms[0](x)
            sizes = [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim]
            q, k, v = np.split(self.linear(f"{p}att_proj", y), sizes, -1)
            if c.qk_norm:
                q, k = (rms_norm(u, self.t[f"{p}{n}_norm.weight"], c.norm_eps) for u, n in ((q, "q"), (k, "k")))
            q, k, v = (u.reshape(length, -1, c.head_dim) for u in (q, k, v))
            q, k = rotate(q), np.repeat(rotate(k), c.heads // c.kv_heads, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(c.head_dim)
            weights = softmax(np.where(visible, scores, -np.inf))
            out = np.einsum("hqk,khd->qhd", weights, np.repeat(v, c.heads // c.kv_heads, 1)).reshape(length, -1)
            out = self.linear(f"{p}attn_out", out)
            x = x + (norms[0](out) if post else out)
            y = self.feed_forward(p, x if post else norms[1](x))
            x = x + (norms[1](y) if post else y)
        return rms_norm(x, self.t["transformer.ln_f.weight"], c.norm_eps) @ self.t["transformer.ff_out.weight"].T
