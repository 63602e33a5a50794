"""Every released size has the published shape, and its configuration survives the way to config.json and back."""

import math

import pytest

import models
from models import DecoderConfig, UserError, trees
from models.hf import names as hf_names
from models.hf.convert import family_of


def parameter_count(config: DecoderConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in trees.flatten(models.build(config).abstract_params()).values())


# OLMo: the specification's table of sizes. Llama and Qwen: the model cards.
COUNTS = {
    "olmo-1b": 1_176_764_416,
    "olmo-1b-0724": 1_279_787_008,
    "olmo-7b": 6_888_095_744,
    "olmo-7b-0424": 6_888_095_744,
    "olmo-7b-0724": 6_888_095_744,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "olmo2-32b": 32_234_279_936,
    "olmo3-7b": 7_298_617_344,
    "olmo3-32b": 32_234_279_936,
    "olmoe-1b-7b": 6_919_161_856,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-math-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", COUNTS)
def test_released_size_has_exactly_its_parameters(name):
    assert parameter_count(models.preset(name)) == COUNTS[name]


@pytest.mark.parametrize("name", models.presets())
def test_preset_survives_config_json(name):
    config = models.preset(name)
    family = family_of(config)
    back = family.from_hf(family.to_hf(config))
    assert back.replace(vocab_used=config.vocab_used) == config


@pytest.mark.parametrize("name", models.presets())
def test_every_leaf_of_a_preset_has_one_stored_name_and_none_is_shared(name):
    config = models.preset(name)
    leaves = trees.flatten(models.build(config).abstract_params())
    stored = list(hf_names.places(family_of(config).hf_table(config), leaves))
    places = [(stored_name, place.row.start) for stored_name, place in stored]  # Molmo's share tensors, at starts
    assert len(places) == len(set(places))
    sizes = sum(math.prod(place.row.stored_shape(leaves[place.row.path].shape)) for _, place in stored)
    assert sizes == parameter_count(config)


def test_families_own_different_names_and_model_types():
    assert sum(len(family.PRESETS) for family in models.family_modules()) == len(models.presets())
    kinds = [kind for family in models.family_modules() for kind in family.MODEL_TYPES]
    assert len(kinds) == len(set(kinds))
    assert {config.family for config in models.presets().values()} <= set(kinds)


# config.json files as released, the fields that matter: the older layout of transformers 4.
RELEASED = {
    "olmo-7b-0724": {
        "model_type": "olmo", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 50304, "max_position_embeddings": 4096,
        "clip_qkv": 8.0, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
        "eos_token_id": 50279, "pad_token_id": 1, "attention_bias": False, "hidden_act": "silu",
        "initializer_range": 0.02,
    },
    "olmo2-7b": {
        "model_type": "olmo2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 500000, "rope_scaling": None, "tie_word_embeddings": False,
        "eos_token_id": 100257, "pad_token_id": 100277, "attention_bias": False, "hidden_act": "silu",
    },
    "olmo3-7b": {
        "model_type": "olmo3", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100352, "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6, "rope_theta": 500000, "tie_word_embeddings": False, "sliding_window": 4096,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        "eos_token_id": 100257, "pad_token_id": 100277, "attention_bias": False, "hidden_act": "silu",
    },
    "olmoe-1b-7b": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False,
        "clip_qkv": None, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "output_router_logits": False, "router_aux_loss_coef": 0.01, "eos_token_id": 50279, "pad_token_id": 1,
        "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02,
    },
    "llama3.2-1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "mlp_bias": False,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    },
    "llama2-7b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "pretraining_tp": 1,
    },
    "qwen2.5-math-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False, "use_sliding_window": False,
        "sliding_window": 4096, "max_window_layers": 28, "eos_token_id": 151643, "pad_token_id": 151643,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_config_json_is_the_preset(name):
    config = models.preset(name)
    read = family_of(config).from_hf(RELEASED[name])
    assert read.replace(vocab_used=config.vocab_used) == config


def test_newer_layout_of_rope_settings_reads_the_same():
    older = RELEASED["olmo3-7b"]
    yarn = {**older["rope_scaling"], "rope_theta": 500000.0}
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    newer = {key: value for key, value in older.items() if key not in ("rope_scaling", "rope_theta")}
    newer["rope_parameters"] = {"sliding_attention": plain, "full_attention": yarn}
    olmo = family_of(models.preset("olmo3-7b"))
    assert olmo.from_hf(newer) == olmo.from_hf(older)


def test_ladder_sizes_follow_the_rule_for_the_hidden_size():
    hidden = {size: models.preset(f"olmo2-{size}").ffn for size in ("14m", "190m", "370m", "600m", "3b")}
    assert hidden == {"14m": 512, "190m": 3072, "370m": 4096, "600m": 5376, "3b": 13312}
    assert models.preset("olmo3-600m").width == 1280


def test_olmo3_windows_leave_every_fourth_layer_full_and_the_last():
    pattern = models.preset("olmo3-32b").pattern
    assert pattern[:4] == (4096, 4096, 4096, None) and pattern[-1] is None and pattern.count(None) == 16


@pytest.mark.parametrize(
    ("kinds", "fields"),
    [
        ("sssfsssf", {"window": 6, "full_attention_every": 4}),
        ("sfsfsfsf", {"window": 6, "full_attention_every": 2}),
        ("ssssssss", {"window": 6, "full_attention_every": 9}),
        ("ffffffff", {"window": None}),
        ("fssssssf", {"window": 6, "full_attention_layers": (0, 7)}),
        ("sffssssf", {"window": 6, "full_attention_layers": (1, 2, 7)}),
    ],
)
def test_any_mixture_of_sliding_and_full_attention_is_read_and_written(kinds, fields):
    olmo = family_of(models.preset("olmo3-7b"))
    types = ["full_attention" if kind == "f" else "sliding_attention" for kind in kinds]
    change = {"num_hidden_layers": 8, "layer_types": types, "sliding_window": 6}
    config = olmo.from_hf({**RELEASED["olmo3-7b"], **change})
    assert {name: getattr(config, name) for name in fields} == fields
    assert config.pattern == tuple(None if kind == "f" else 6 for kind in kinds)
    written = olmo.to_hf(config)
    assert written["layer_types"] == types and olmo.from_hf(written) == config


def test_windows_of_qwen2_begin_at_max_window_layers():
    qwen2 = family_of(models.preset("qwen2.5-math-7b"))
    change = {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 26}
    config = qwen2.from_hf({**RELEASED["qwen2.5-math-7b"], **change})
    assert config.pattern == (None,) * 26 + (512,) * 2
    assert qwen2.from_hf(qwen2.to_hf(config)) == config


REFUSED = [
    ("llama2-7b", {"hidden_size": None, "vocab_size": None}, "lacks hidden_size, vocab_size"),
    ("llama2-7b", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama2-7b", {"attention_bias": True}, "attention_bias"),
    ("llama2-7b", {"mlp_bias": True}, "mlp_bias"),
    ("llama2-7b", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama2-7b", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("llama2-7b", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
    ("llama2-7b", {"rope_scaling": {"type": "linear"}}, "linear without a factor"),
    ("llama2-7b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama2-7b", {"num_attention_heads": 31}, "31"),
    ("olmoe-1b-7b", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("olmoe-1b-7b", {"num_experts_per_tok": 65}, "active 65 is larger than count 64"),
    ("olmo3-7b", {"layer_types": ["chunked_attention"] + ["sliding_attention"] * 31}, "chunked_attention"),
    ("olmo3-7b", {"layer_types": ["sliding_attention"] * 31}, "31 entries for 32 layers"),
    ("olmo3-7b", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    (
        "qwen2.5-math-7b",
        {"use_sliding_window": True, "max_window_layers": 9, "rope_scaling": {"type": "yarn", "factor": 2.0}},
        "yarn",
    ),
]


@pytest.mark.parametrize(("name", "change", "said"), REFUSED)
def test_config_json_that_asks_for_other_mathematics_is_refused(name, change, said):
    with pytest.raises(UserError, match=said):
        family_of(models.preset(name)).from_hf({**RELEASED[name], **change})


def test_a_model_that_transformers_cannot_express_is_refused():
    config = models.preset("llama2-7b").replace(qk_norm=True, norm_placement="post")
    with pytest.raises(UserError, match="norm_placement='post', qk_norm=True"):
        family_of(config).to_hf(config)
