"""Vision towers compute what `transformers` computes, from its weights; positions are interpolated as torch does it."""

import dataclasses

import numpy as np
import pytest

from models.config import VisionConfig
from models.families.molmo import TOWERS
from models.hf import towers
from models.molmo import tower

pytestmark = pytest.mark.parity
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 4}
BAR = 2e-4


def reference(encoder):
    """A tiny random model of `transformers` and its hidden states of every layer for two random crops."""
    import torch
    import transformers

    torch.manual_seed(0)
    size = {"image_size": 28, "patch_size": 7}
    if encoder == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES, **size))
    elif encoder == "dino":
        sizes = {**SIZES, "mlp_ratio": 2}
        del sizes["intermediate_size"]
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, **size))
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **size))
    for parameter in model.parameters():  # norms, biases and scales too
        torch.nn.init.normal_(parameter, 0.3 if parameter.ndim < 2 else 0.0, 0.15)
    return model.eval()


def vision_of(encoder):
    ffn = 64 if encoder == "dino" else 48
    return dataclasses.replace(
        TOWERS[encoder], image=28, patch=7, margin=1, width=32, heads=4, ffn=ffn, layers=4, features=(-1, -3)
    )


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dino"])
def test_towers_have_the_hidden_states_of_transformers(encoder):
    import torch

    model, vision = reference(encoder), vision_of(encoder)
    pixels = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        states = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_hidden_states=True).hidden_states
    params = towers.from_tensors({name: x.numpy() for name, x in model.state_dict().items()}, vision)
    patches = pixels.reshape(2, 4, 7, 4, 7, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, -1)
    ours = tower.hidden_states(vision, params, patches, (0, 2, 3))
    for layer, found in zip((0, 2, 3), ours, strict=True):
        theirs = states[layer + 1].numpy()
        assert np.abs(np.asarray(found) - theirs).max() <= BAR * max(1, np.abs(theirs).max())


def test_positions_are_interpolated_as_torch_does_it():
    import torch

    table = np.random.default_rng(1).normal(size=(1 + 16 * 16, 12)).astype(np.float32)
    vision = VisionConfig("metaclip", layers=24)
    grid = torch.from_numpy(table[1:].reshape(1, 16, 16, 12).transpose(0, 3, 1, 2).copy())
    scale = 24.1 / 16
    theirs = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    ours = towers.interpolated(table, dataclasses.replace(vision, width=12, heads=4))
    np.testing.assert_array_equal(ours[0], table[0])
    np.testing.assert_allclose(ours[1:], theirs.numpy()[0].transpose(1, 2, 0).reshape(576, 12), atol=1e-4)
