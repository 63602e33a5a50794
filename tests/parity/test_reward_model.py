"""Reward models leave for and come from the sequence classifiers of transformers with the same scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.config import DecoderConfig
from models.families import gemma2

pytestmark = pytest.mark.parity

CONFIG = DecoderConfig(
    family="olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab=96, context=64, qk_norm=True, pad_id=0,
    scalar_head=True,
)  # fmt: skip
CONFIGS = {
    "olmo2": CONFIG,
    "llama": CONFIG.replace(family="llama", norm_placement="pre", qk_norm=False),
    "qwen2": CONFIG.replace(family="qwen2", norm_placement="pre", qk_norm=False, qkv_bias=True),
    "mistral": CONFIG.replace(family="mistral", norm_placement="pre", qk_norm=False, window=5, full_attention_every=3),
    "gemma2": CONFIG.replace(
        family="gemma2",
        head_dim=8,
        tie_embeddings=True,
        window=5,
        full_attention_every=2,
        query_scalar=5.0,
        attention_softcap=2.0,
        logits_softcap=3.0,
        **gemma2.ARCHITECTURE,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_scores_equal_those_of_the_exported_classifier(family, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = models.build(CONFIGS[family])
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    models.save_hf(model, params, tmp_path / "ours")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()

    tokens = np.array(jax.random.randint(jax.random.key(2), (3, 11), 1, 96))
    lengths = np.array([11, 7, 4])
    padded = np.where(np.arange(11) < lengths[:, None], tokens, CONFIG.pad_id)
    with torch.no_grad():
        want = theirs(torch.tensor(padded), attention_mask=torch.tensor((padded != 0).astype(np.int64))).logits[:, 0]
    hidden = model(params, jnp.asarray(tokens)).hidden
    scores = models.scalar_head(hidden, params["score"]["kernel"])
    got = scores[np.arange(3), lengths - 1]
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    back, again = models.load_hf(tmp_path / "theirs")
    assert back.config.scalar_head
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, params))
