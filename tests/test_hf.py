"""Hugging Face folders are read and written exactly, in bounded memory; one line says what is wrong with one."""

import json
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_models import CASES, VOCAB, random_params, random_tokens

import models
from models import UserError, trees
from models.hf import convert, files, names

NAME = "olmo2-grouped-wide-heads"


@pytest.fixture
def saved(tmp_path):
    """A function that saves the tiny model `name` and returns (model, params, folder)."""

    def save(name=NAME, **options):
        model = models.build(CASES[name])
        params = random_params(model)
        models.save_hf(model, params, tmp_path / name, **options)
        return model, params, tmp_path / name

    return save


def assert_trees_equal(a, b):
    a, b = trees.flatten(a), trees.flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        assert a[path].dtype == b[path].dtype, path
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


def rewrite(folder, change):
    """Applies `change` to the dict of tensors in a one-file folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# Both ways


@pytest.mark.parametrize("name", CASES)
def test_saved_model_loads_as_it_was(name, saved):
    model, params, folder = saved(name)
    loaded, loaded_params = models.load_hf(folder)
    assert loaded.config.replace(init=model.config.init) == model.config
    assert_trees_equal(loaded_params, params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("through", [None, "float32"])
def test_file_read_and_written_again_is_the_same_file(dtype, through, saved, tmp_path):
    _, _, folder = saved(dtype=dtype)
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert {np.dtype(file.get_tensor(key).dtype).name for key in file.keys()} == {dtype}  # noqa: SIM118
    model, params = models.load_hf(folder, dtype=through)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {through or dtype}
    models.save_hf(model, params, tmp_path / "again", dtype=dtype)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_shards_stay_under_the_bound_and_the_index_names_every_tensor_once(saved):
    model, params, folder = saved(max_shard_bytes=20_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert len(held) > 3
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert max(sizes) <= 20_000 and sum(sizes) == index["metadata"]["total_size"]
    assert_trees_equal(models.load_hf(folder)[1], params)


def test_config_json_holds_rope_settings_for_old_and_new_readers(saved):
    config = json.loads((saved("olmo3-grouped-yarn")[2] / "config.json").read_text())
    assert config["architectures"] == ["Olmo3ForCausalLM"] and config["torch_dtype"] == "float32"
    yarn = config["rope_scaling"]
    assert yarn["rope_type"] == "yarn" and config["rope_theta"] == 1000.0
    assert config["rope_parameters"]["full_attention"] == {**yarn, "rope_theta": 1000.0}
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 1000.0}


def test_post_attention_norm_means_what_the_family_means(saved):
    _, olmo, olmo_folder = saved("olmo2")
    _, llama, llama_folder = saved("llama2")
    name = "model.layers.1.post_attention_layernorm.weight"
    np.testing.assert_array_equal(
        load_file(olmo_folder / "model.safetensors")[name], olmo["layers"]["post_attn_norm"]["scale"][1]
    )
    np.testing.assert_array_equal(
        load_file(llama_folder / "model.safetensors")[name], llama["layers"]["pre_ffn_norm"]["scale"][1]
    )


def test_sharded_parameters_export_as_whole_ones_do(saved, tmp_path):
    model, params, folder = saved()
    mesh = jax.make_mesh((4,), ("fsdp",))
    spread = jax.tree.map(
        lambda leaf: (
            jax.device_put(
                leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * (leaf.ndim - 1), "fsdp"))
            )
            if leaf.shape[-1] % 4 == 0
            else leaf
        ),
        params,
    )
    models.save_hf(model, spread, tmp_path / "spread")
    assert (tmp_path / "spread/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


# Tied heads, vocabularies


def test_tied_model_is_saved_without_a_head_and_read_with_an_equal_one(saved):
    _, params, folder = saved("llama3-grouped-tied")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_trees_equal(models.load_hf(folder)[1], params)


def test_tied_model_with_another_head_is_refused(saved):
    _, _, folder = saved("llama3-grouped-tied")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(UserError, match="lm_head.weight differs from model.embed_tokens.weight"):
        models.load_hf(folder)


def test_vocabulary_is_padded_with_zeros_on_request_and_trimmed_again(saved, tmp_path):
    _, params, folder = saved()
    model, padded = models.load_hf(folder, vocab=80)
    assert model.config.vocab == 80 and model.config.vocab_used == VOCAB
    assert padded["embed"]["table"].shape[0] == padded["head"]["kernel"].shape[1] == 80
    np.testing.assert_array_equal(padded["embed"]["table"][:VOCAB], params["embed"]["table"])
    np.testing.assert_array_equal(padded["head"]["kernel"][:, :VOCAB], params["head"]["kernel"])
    assert not padded["embed"]["table"][VOCAB:].any() and not padded["head"]["kernel"][:, VOCAB:].any()
    models.save_hf(model, padded, tmp_path / "trimmed", vocab=VOCAB)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "trimmed" / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(UserError, match="vocab 60 is fewer"):
        models.load_hf(folder, vocab=60)
    with pytest.raises(UserError, match="only 80 rows"):
        models.save_hf(model, padded, tmp_path / "more", vocab=90)


def test_padded_rows_are_zero_on_every_device_of_a_split_vocabulary(saved):
    _, params, folder = saved()
    mesh = jax.make_mesh((8,), ("tp",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, params)
    shardings["embed"]["table"] = split
    _, padded = models.load_hf(folder, vocab=96, shardings=shardings)  # 12 rows a device: the last two hold only zeros
    np.testing.assert_array_equal(padded["embed"]["table"], np.pad(params["embed"]["table"], ((0, 96 - VOCAB), (0, 0))))


@pytest.mark.parametrize(("tokens", "used"), [(50, 52), (90, VOCAB)])
def test_tokenizer_says_how_many_rows_are_used(tokens, used, saved):
    _, _, folder = saved()
    vocabulary = {f"t{i}": i for i in range(tokens)}
    content = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 51, "content": "<x>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert models.load_hf(folder)[0].config.vocab_used == used


def test_tokenizer_files_travel_with_an_export(saved, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt", "weights.bin"):
        (source / name).write_text("{}")
    _, _, folder = saved(tokenizer_folder=source)
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"}
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", *copied}
    with pytest.raises(UserError, match="no tokenizer files"):
        saved("olmo2", tokenizer_folder=tmp_path)
    assert not (tmp_path / "olmo2").exists()


# Placing and streaming


def test_each_device_gets_its_slice_and_no_host_reads_more_than_that(saved, monkeypatch):
    model, params, folder = saved()
    mesh = jax.make_mesh((2, 4), ("fsdp", "tp"))
    spec = jax.sharding.PartitionSpec(None, "fsdp", "tp")
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, params)
    shardings["layers"]["mlp"]["gate"]["kernel"] = jax.sharding.NamedSharding(mesh, spec)
    read, store_read = [], files.Store.read

    def recording(self, name, bounds):
        tensor = store_read(self, name, bounds)
        read.append((name, tensor.size))
        return tensor

    monkeypatch.setattr(files.Store, "read", recording)
    _, loaded = models.load_hf(folder, shardings=shardings)
    assert_trees_equal(loaded, params)
    assert loaded["layers"]["mlp"]["gate"]["kernel"].sharding.spec == spec
    gate = [size for name, size in read if "gate_proj" in name]
    assert set(gate) == {model.config.width * model.config.ffn // 8} and len(gate) == 8 * model.config.layers
    assert len([name for name, _ in read if "down_proj" in name]) == model.config.layers  # replicated: read once


def test_loading_holds_the_model_once_and_one_tensor_more(tmp_path):
    config = CASES["olmo2"].replace(layers=12, width=160, heads=4, kv_heads=4, head_dim=40, ffn=512)
    model = models.build(config)
    models.save_hf(model, random_params(model), tmp_path / "model", dtype="bfloat16", max_shard_bytes=1e6)
    total = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params()))
    largest = 4 * 160 * 512
    assert total > 20 * largest
    models.load_hf(tmp_path / "model")  # imports and caches
    tracemalloc.start()
    _, params = models.load_hf(tmp_path / "model")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(jax.tree.leaves(params)) == 14
    assert total <= peak < total + 2 * largest


def test_cpu_arrays_adopt_the_memory_that_was_read_into():
    memory = convert._aligned_empty((3, 5), np.dtype("float32"))
    memory[...] = 1
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = jax.make_array_from_callback((3, 5), device, lambda index: memory)
    assert array.unsafe_buffer_pointer() == memory.ctypes.data


def test_saving_holds_one_shard_at_a_time(tmp_path):
    model = models.build(CASES["olmo2"].replace(layers=12, width=160, heads=4, kv_heads=4, head_dim=40, ffn=512))
    params = jax.tree.map(jax.numpy.asarray, random_params(model))
    models.save_hf(model, params, tmp_path / "first", max_shard_bytes=1e6)
    tracemalloc.start()
    models.save_hf(model, params, tmp_path / "second", max_shard_bytes=1e6)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5e6


def test_experts_are_stored_one_by_one_and_stacked_again(tmp_path):
    table = (
        names.Row("model.norm.weight", "norm.scale"),
        names.Row("model.layers.{layer}.mlp.gate.weight", "layers.moe.router.kernel", transpose=True),
        names.Row("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", "layers.moe.up", transpose=True),
        names.Row("model.layers.{layer}.temperature", "layers.moe.temperature"),
    )
    shapes = {"norm.scale": (6,), "layers.moe.router.kernel": (2, 6, 3), "layers.moe.up": (2, 3, 6, 4),
              "layers.moe.temperature": (2,)}  # fmt: skip
    params = {path: np.random.default_rng(len(path)).normal(size=shape).astype("f4") for path, shape in shapes.items()}
    tensors = dict(convert.iter_hf_tensors(table, params))
    assert list(tensors)[:4] == ["model.norm.weight", "model.layers.0.mlp.gate.weight",
                                 "model.layers.0.mlp.experts.0.up_proj.weight",
                                 "model.layers.0.mlp.experts.1.up_proj.weight"]  # fmt: skip
    np.testing.assert_array_equal(
        tensors["model.layers.1.mlp.experts.2.up_proj.weight"], params["layers.moe.up"][1, 2].T
    )
    save_file(tensors, tmp_path / "model.safetensors")
    model = SimpleNamespace(
        abstract_params=lambda: trees.unflatten({p: jax.ShapeDtypeStruct(s, "float32") for p, s in shapes.items()}),
        config=SimpleNamespace(tie_embeddings=False),
    )
    with files.Store(tmp_path) as store:
        assert_trees_equal(convert._read(store, table, model, None, None, 0), trees.unflatten(params))


def test_a_leaf_without_a_name_is_an_error_of_the_table():
    with pytest.raises(ValueError, match="no Hugging Face name for layers.extra"):
        names.rows_for(names.DENSE, {"embed.table": None, "layers.extra": None})
    with pytest.raises(ValueError, match="two Hugging Face names for embed.table"):
        names.rows_for(names.DENSE * 2, {"embed.table": None})


# What goes wrong


def test_everything_wrong_with_the_weights_is_in_one_message(saved):
    _, _, folder = saved()

    def spoil(tensors):
        del tensors["model.layers.2.mlp.up_proj.weight"], tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(72, np.float32)
        tensors["score.weight"] = np.zeros((1, 40), np.float32)
        tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((52, 40), np.float32)
        tensors["lm_head.weight"] = np.zeros((VOCAB + 1, 40), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((52, 40), np.int8)

    rewrite(folder, spoil)
    with pytest.raises(UserError) as raised:
        models.load_hf(folder)
    message = str(raised.value)
    assert "\n" not in message and str(folder) in message
    for said in (
        "missing: model.layers.2.mlp.up_proj.weight, model.norm.weight",
        "unknown: model.layers.0.self_attn.q_proj.bias, score.weight",
        "misshapen: model.layers.1.mlp.down_proj.weight is [52, 40], the model's is [40, 52]",
        "misshapen: lm_head.weight is [68, 40], the model's is [67, 40]",
        "unreadable: model.layers.0.mlp.up_proj.weight is stored as I8",
    ):
        assert said in message


def test_rotary_buffers_of_old_exports_are_passed_over(saved):
    _, params, folder = saved("llama2")
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    assert_trees_equal(models.load_hf(folder)[1], params)


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def only_torch(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_shard(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged .no valid JSON"),
    "list config": (lambda folder: (folder / "config.json").write_text("[]"), "should be an object, not"),
    "other model": (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), "model_type 'gpt2'"),
    "empty config": (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "lacks num_hidden"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "only torch, and no archive": (only_torch, "pytorch_model.bin is not in torch.s ZIP format"),
    "truncated": (truncate, "not a complete safetensors file"),
    "lost shard": (lose_a_shard, "lacks model-00001-of-00002.safetensors"),
    "broken index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "there is no 'weight_map'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_folder_is_refused_in_one_line(case, saved):
    _, _, folder = saved("llama2")
    spoil, said = BROKEN[case]
    spoil(folder)
    with pytest.raises(UserError, match=said) as raised:
        models.load_hf(folder)
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, np.dtype("float16")])
def test_a_dtype_may_be_whatever_jax_takes_as_one(dtype, saved, tmp_path):
    model, params, folder = saved()
    models.save_hf(model, params, tmp_path / "out", dtype=dtype)
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.get_tensor("model.norm.weight").dtype == jnp.dtype(dtype)
    _, params = models.load_hf(folder, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_missing_folder_and_misspelt_dtype_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no folder .*nowhere"):
        models.load_hf(tmp_path / "nowhere")
    model, params, folder = saved()
    with pytest.raises(UserError, match="dtype 'float31' is not one of"):
        models.load_hf(folder, dtype="float31")
    with pytest.raises(UserError, match="dtype 'bf16' is not one of"):
        models.save_hf(model, params, folder, dtype="bf16")


def test_parameters_of_another_model_are_not_saved(tmp_path):
    model = models.build(CASES["olmo2"])
    params = random_params(model)
    params["head"]["kernel"] = params["head"]["kernel"][:, :-1]
    del params["final_norm"]
    params["extra"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"missing final_norm.scale; unknown extra; head.kernel is \[40, 66\], .*\[40, 67\]"
    ):
        models.save_hf(model, params, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), files.SafetensorError("I/O error: full")])
def test_full_disk_leaves_the_older_export_whole(error, saved, tmp_path, monkeypatch):
    model, params, folder = saved(max_shard_bytes=20_000)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def failing(tensors, path, **options):
        if path.name == "part-2":
            raise error
        save_file(tensors, path, **options)

    monkeypatch.setattr(files, "save_file", failing)
    with pytest.raises(UserError, match="cannot write .*full"):
        models.save_hf(model, jax.tree.map(lambda leaf: leaf + 1, params), folder, max_shard_bytes=20_000)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_new_export_leaves_no_weights_of_the_older_one_and_keeps_other_files(saved):
    model, params, folder = saved(max_shard_bytes=20_000)
    (folder / "README.md").write_text("card")
    models.save_hf(model, params, folder)
    assert {file.name for file in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert_trees_equal(models.load_hf(folder)[1], params)


def test_loaded_model_computes_and_may_be_donated(saved):
    model, params, folder = saved()
    loaded, loaded_params = models.load_hf(folder, compute=models.Compute(logits_chunk=8))
    assert loaded.compute.logits_chunk == 8
    tokens = random_tokens((1, 9))
    want = np.asarray(models.logits(model, params, tokens))
    np.testing.assert_array_equal(np.asarray(models.logits(loaded, loaded_params, tokens)), want)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)(loaded_params)
    np.testing.assert_array_equal(doubled["embed"]["table"], params["embed"]["table"] * 2)
