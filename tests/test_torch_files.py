"""`pytorch_model.bin` is read as safetensors are, lazily, and nothing that is in it is ever run."""

import json
import tracemalloc

import jax
import numpy as np
import pytest
import torch_archives
from safetensors.numpy import load_file
from test_hf import assert_trees_equal, saved  # noqa: F401 - a fixture
from torch_archives import EMPTY, called, number, pickled, storage, tensor, text

import models
from models import UserError
from models.hf import torch_files

ONE = np.arange(6, dtype=np.float32).reshape(2, 3)


def as_torch(folder, shards=1):
    """A folder's safetensors, written as torch does instead."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if shards == 1:
        torch_archives.write(folder / "pytorch_model.bin", tensors)
        return
    names, weight_map = sorted(tensors), {}
    for at in range(shards):
        file = f"pytorch_model-{at + 1:05d}-of-{shards:05d}.bin"
        torch_archives.write(folder / file, {name: tensors[name] for name in names[at::shards]}, root="archive")
        weight_map |= dict.fromkeys(names[at::shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_without_safetensors_is_read_from_its_torch_files(dtype, shards, saved):  # noqa: F811
    _, _, folder = saved("llama2", dtype=dtype)
    _, expected = models.load_hf(folder, dtype=None)
    as_torch(folder, shards)
    assert_trees_equal(models.load_hf(folder, dtype=None)[1], expected)
    if len(jax.devices()) > 1:
        mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
        model = models.build(models.hf.convert.read_config(folder))
        layout = jax.tree.map(
            lambda leaf: jax.sharding.NamedSharding(
                mesh, jax.sharding.PartitionSpec(*["fsdp" if n % 2 == 0 else None for n in leaf.shape[:1]])
            ),
            model.abstract_params(),
        )
        assert_trees_equal(models.load_hf(folder, dtype=None, shardings=layout)[1], expected)


def test_safetensors_come_first_where_a_folder_has_both(saved):  # noqa: F811
    _, params, folder = saved("llama2")
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    assert_trees_equal(models.load_hf(folder)[1], params)


def test_a_missing_shard_is_told(saved):  # noqa: F811
    _, _, folder = saved("llama2")
    as_torch(folder, 3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(UserError, match="lacks pytorch_model-00002-of-00003.bin, which its index lists"):
        models.load_hf(folder)


def test_reading_a_slice_reads_no_more_than_that(tmp_path):
    big = np.zeros((4096, 1024), np.float32)  # 16 MiB
    big[7, 3] = 5
    torch_archives.write(tmp_path / "w.bin", {"big": big})
    tracemalloc.start()
    found = torch_files.read_tensors(tmp_path / "w.bin")["big"]
    assert (found.get_shape(), found.get_dtype()) == ([4096, 1024], "F32")
    np.testing.assert_array_equal(found[4:8, :8], big[4:8, :8])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_views_of_one_storage_parameters_and_empty_tensors_are_what_torch_means(tmp_path):
    shared = storage("FloatStorage", "0", 6)
    items = {
        "whole": tensor(shared, 0, (2, 3), (3, 1)), "column": tensor(shared, 1, (2,), (3,)),
        "one": tensor(shared, 5, (), ()), "none": tensor(shared, 6, (0, 4), (4, 1)),
        "repeated": tensor(shared, 2, (3,), (0,)),
        "parameter": called("torch._utils", "_rebuild_parameter", tensor(shared, 3, (3,), (1,)), b"\x88", EMPTY),
    }  # fmt: skip
    torch_archives.archive(tmp_path / "w.bin", pickled(items), {"0": ONE.tobytes()})
    found = {name: one[...] for name, one in torch_files.read_tensors(tmp_path / "w.bin").items()}
    assert found["none"].shape == (0, 4)
    for name, value in {
        "whole": ONE,
        "column": ONE[:, 1],
        "one": 5,
        "repeated": [2, 2, 2],
        "parameter": [3, 4, 5],
    }.items():
        np.testing.assert_array_equal(found[name], value)


STORED = storage("FloatStorage", "0", 6)
GOOD = tensor(STORED, 0, (2, 3), (3, 1))
HOSTILE = {
    "a command": (called("os", "system", text("touch {mark}")), "os.system"),
    "a command by another name": (called("posix", "system", text("touch {mark}")), "posix.system"),
    "eval": (called("builtins", "eval", text("open('{mark}', 'w')")), "builtins.eval"),
    "a dotted name": (called("collections", "OrderedDict.__init__.__globals__"), "OrderedDict.__init__"),
    "another part of torch": (called("torch.hub", "load", text("x")), "torch.hub.load"),
    "an import alone": (b"cantigravity\nfly\n", "antigravity.fly"),
    "beyond its storage": (tensor(STORED, 1, (2, 3), (3, 1)), "reaches beyond its storage"),
    "a negative stride": (tensor(STORED, 5, (2,), (-1,)), "impossible shape"),
    "a negative offset": (tensor(STORED, -1, (2,), (1,)), "impossible shape"),
    "a huge stride": (tensor(STORED, 0, (2,), (2**31 - 1,)), "reaches beyond its storage"),
    "no storage": (tensor(number(1), 0, (2,), (1,)), "without a storage"),
    "another size": (tensor(storage("FloatStorage", "0", 7), 0, (2,), (1,)), "that the file does not have"),
    "a lost storage": (tensor(storage("FloatStorage", "9", 6), 0, (2,), (1,)), "that the file does not have"),
    "an odd reference": (b"(" + text("module") + text("os") + b"tQ", "in the place of a storage"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused_in_one_line_and_nothing_runs(case, tmp_path):
    body, said = HOSTILE[case]
    mark = tmp_path / "ran"
    for name in ("touch {mark}", "open('{mark}', 'w')"):
        body = body.replace(text(name), text(name.replace("{mark}", str(mark))))
    torch_archives.archive(tmp_path / "w.bin", pickled({"good": GOOD, "bad": body}), {"0": ONE.tobytes()})
    with pytest.raises(UserError, match="nothing of it was run") as raised:
        torch_files.read_tensors(tmp_path / "w.bin")
    assert said in str(raised.value) and "\n" not in str(raised.value) and not mark.exists()


def test_a_hostile_file_really_runs_where_pickle_itself_reads_it(tmp_path):
    """So that the refusals above refuse something."""
    import pickle

    mark = tmp_path / "ran"
    pickle.loads(b"\x80\x02" + called("builtins", "open", text(str(mark)), text("w")) + b".").close()
    assert mark.exists()


@pytest.mark.parametrize("state", ["_array", "_kind", "__class__"])
def test_a_pickle_cannot_change_what_it_was_given(state, tmp_path):
    """BUILD with a pair sets attributes: of a tensor, and of the function that makes tensors."""
    change = b"N}" + text(state) + text("x") + b"s\x86b"
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for body in (GOOD + change, function + change + b"0" + GOOD):
        torch_archives.archive(tmp_path / "w.bin", pickled({"w": body}), {"0": ONE.tobytes()})
        with pytest.raises(UserError, match="data.pkl is broken"):
            torch_files.read_tensors(tmp_path / "w.bin")


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "not in torch's ZIP format"),
    "old format": (lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."), "torch before 1.6"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not in torch's ZIP format"),
    "no pickle": (lambda path: torch_archives.archive(path, b"", {}, root="a/b"), "has no data.pkl"),
    "broken pickle": (lambda path: torch_archives.archive(path, b"\x80\x02(", {}), "data.pkl is broken"),
    "a list": (lambda path: torch_archives.archive(path, b"\x80\x02].", {}), "no dictionary of tensors"),
    "no tensors": (lambda path: torch_archives.archive(path, pickled({}), {}), "does not hold named tensors"),
    "numbers": (
        lambda path: torch_archives.archive(path, pickled({"a": number(3)}), {}),
        "does not hold named tensors",
    ),
    "compressed": (lambda path: torch_archives.write(path, {"a": ONE}, compress=True), "compressed or encrypted"),
    "big-endian": (lambda path: torch_archives.write(path, {"a": ONE}, byteorder="big"), "big-endian"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_in_one_line(case, tmp_path):
    path = tmp_path / "w.bin"
    torch_archives.write(path, {"a": ONE})
    spoil, said = BROKEN[case]
    spoil(path)
    with pytest.raises(UserError) as raised:
        torch_files.read_tensors(path)
    assert said in str(raised.value) and "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_torch_saves_is_read_bit_for_bit(dtype, tmp_path):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    base = torch.randn(6, 8).to(kind)
    state = {
        "whole": base,
        "view": base.t(),
        "part": base[1:3, 2:5],
        "own": torch.nn.Parameter(torch.ones(3, dtype=kind)),
    }
    module = torch.nn.Linear(4, 3, dtype=kind)
    state |= module.state_dict(prefix="linear.")
    torch.save(state, tmp_path / "w.bin")
    found = torch_files.read_tensors(tmp_path / "w.bin")
    assert found.keys() == state.keys()
    for name, want in state.items():
        np.testing.assert_array_equal(found[name][...].astype(np.float32), want.detach().float().numpy(), err_msg=name)
    torch.save(module, tmp_path / "module.bin")
    with pytest.raises(UserError, match="nothing of it was run"):
        torch_files.read_tensors(tmp_path / "module.bin")
