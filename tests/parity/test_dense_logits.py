"""Dense models compute what `transformers` computes: random weights, odd shapes, both directions of conversion.

Attention there is the plain ("eager") implementation; all is float32. Measured differences are about 1e-5 on logits up
to 16; the bar of the specification is 2e-4.
"""

import jax
import numpy as np
import pytest
from tiny_models import CASES, random_params, random_tokens

import models
from models import trees
from models.hf import names as hf_names
from models.hf.convert import family_of, iter_hf_tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
BAR = 5e-5
ONE_PER_FAMILY = [
    "olmo-clipped-tied",
    "olmo2-grouped-wide-heads",
    "olmo3-grouped-yarn",
    "olmoe",
    "llama3-grouped-tied",
    "qwen2-yarn",
    "mistral-windows",
    "gemma2",
]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)


def read_by_transformers(folder):
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return reference.eval()


@torch.no_grad()
def reference_logits(reference, tokens):
    return reference(torch.as_tensor(np.asarray(tokens, np.int64))).logits.numpy()


def exported(name, folder):
    model = models.build(CASES[name])
    params = random_params(model)
    models.save_hf(model, params, folder)
    return model, params, read_by_transformers(folder)


@pytest.mark.parametrize("name", CASES)
def test_export_gives_the_same_logits_in_transformers(name, tmp_path):
    model, params, reference = exported(name, tmp_path / "model")
    tokens = random_tokens((2, 23))
    want = reference_logits(reference, tokens)
    got = np.asarray(models.logits(model, params, tokens))
    difference = np.abs(got - want).max()
    print(f"{name}: max abs logit difference {difference:.2e} (logits up to {np.abs(want).max():.1f})")
    assert want.std() > 0.05
    assert difference <= BAR


@pytest.mark.parametrize("name", CASES)
def test_packed_documents_get_the_logits_that_each_has_alone(name, tmp_path):
    model, params, reference = exported(name, tmp_path / "model")
    documents = [random_tokens((n,), seed=n) for n in (9, 14, 6)]
    tokens = np.concatenate([*documents, np.zeros(3, np.int32)])[None]
    segments = np.repeat([1, 2, 3, 0], [9, 14, 6, 3])[None].astype(np.int32)
    got = np.asarray(models.logits(model, params, tokens, segment_ids=segments))[0]
    for number, document in enumerate(documents, start=1):
        alone = reference_logits(reference, document[None])[0]
        assert np.abs(got[segments[0] == number] - alone).max() <= BAR


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_every_block_gives_the_same_activations(name, tmp_path):
    model, params, reference = exported(name, tmp_path / "model")
    tokens = random_tokens((1, 23))
    with torch.no_grad():
        states = reference(torch.as_tensor(tokens.astype(np.int64)), output_hidden_states=True).hidden_states
        normed = [reference.model.norm(state).numpy() for state in states[:-1]] + [states[-1].numpy()]
    for depth in range(1, model.config.layers + 1):
        shallow = models.build(model.config.replace(layers=depth))
        below = {**params, "layers": jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["layers"])}
        hidden = np.asarray(shallow(below, tokens).hidden)
        assert np.abs(hidden - normed[depth]).max() <= BAR, f"block {depth}"


def saved_by_transformers(name, folder, dtype=torch.float32, **options):
    """A model made by `transformers` from the same configuration, with random weights, as it saves it."""
    model = models.build(CASES[name])
    models.save_hf(model, random_params(model, seed=1), folder.with_name("start"))
    reference = read_by_transformers(folder.with_name("start"))
    reference = reference.to(dtype).eval()
    reference.save_pretrained(folder, **options)
    return reference


@pytest.mark.parametrize("name", CASES)
def test_import_from_transformers_gives_the_same_logits_and_the_same_file_back(name, tmp_path):
    reference = saved_by_transformers(name, tmp_path / "theirs")
    model, params = models.load_hf(tmp_path / "theirs")
    tokens = random_tokens((2, 23), seed=3)
    assert np.abs(np.asarray(models.logits(model, params, tokens)) - reference_logits(reference, tokens)).max() <= BAR
    models.save_hf(model, params, tmp_path / "ours")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_bfloat16_import_through_float32_gives_the_same_file_back(name, tmp_path):
    saved_by_transformers(name, tmp_path / "theirs", torch.bfloat16)
    model, params = models.load_hf(tmp_path / "theirs", dtype="float32")
    models.save_hf(model, params, tmp_path / "ours", dtype="bfloat16")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "theirs/model.safetensors").read_bytes()
    again = read_by_transformers(tmp_path / "ours")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").dtype == torch.bfloat16
    assert np.isfinite(reference_logits(again, random_tokens((1, 5)))).all()


def test_shards_of_transformers_read_as_one_model(tmp_path):
    name = "olmo2-grouped-wide-heads"
    reference = saved_by_transformers(name, tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    model, params = models.load_hf(tmp_path / "shards")
    theirs = {key: value.detach().numpy() for key, value in reference.named_parameters()}
    for key, tensor in iter_hf_tensors(family_of(model.config).hf_table(model.config), params):
        np.testing.assert_array_equal(tensor, theirs[key])


def test_our_shards_load_in_transformers(tmp_path):
    model = models.build(CASES["olmo3"])
    params = random_params(model)
    models.save_hf(model, params, tmp_path / "shards", max_shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    tokens = random_tokens((1, 23))
    want = reference_logits(read_by_transformers(tmp_path / "shards"), tokens)
    assert np.abs(np.asarray(models.logits(model, params, tokens)) - want).max() <= BAR


@pytest.mark.parametrize(
    "name",
    [
        "olmo2-7b",
        "olmo3-7b",
        "olmo-7b-0424",
        "llama3.1-8b",
        "llama3.2-1b",
        "qwen2.5-math-7b",
        "mistral-7b-v0.1",
        "gemma2-27b",
    ],
)
def test_presets_have_the_parameters_that_transformers_makes(name):
    config = models.preset(name)
    config_json = family_of(config).to_hf(config)
    hf_config = transformers.AutoConfig.for_model(config_json.pop("model_type"), **config_json)
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(hf_config)
    want = {key: tuple(value.shape) for key, value in reference.named_parameters()}
    leaves = trees.flatten(models.build(config).abstract_params())
    got = {
        key: place.row.stored_shape(leaves[place.row.path].shape)
        for key, place in hf_names.places(family_of(config).hf_table(config), leaves)
    }
    assert got == want


def test_released_configurations_survive_a_visit_to_transformers(tmp_path):
    known = [name for name in models.presets() if models.preset(name).vision is None]  # no class there reads Molmo
    for number, name in enumerate(known):
        config = models.preset(name)
        config_json = family_of(config).to_hf(config)
        kind = config_json.pop("model_type")
        transformers.AutoConfig.for_model(kind, **config_json).save_pretrained(tmp_path / str(number))
        back = models.hf.convert.read_config(tmp_path / str(number))
        assert back.replace(vocab_used=config.vocab_used) == config, name
