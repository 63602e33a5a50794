"""Promises of the checkpointer: the same bits back, atomic, bounded, and one clear line when something is wrong."""

import errno
import json
import logging
import os
import subprocess
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from easylm_jax.checkpoint import (
    Checkpointer,
    Retention,
    arrays,
    config_difference,
    guard_fresh_start,
    restore_params,
    store,
)
from easylm_jax.runtime import processes
from models import trees
from models.errors import UserError


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    rng: Any


def make_state(seed: int = 0, width: int = 16) -> State:
    """Every kind of leaf that training has: f32, bf16, int, uint32, empty arrays, nested optax states."""
    key = jax.random.key(seed)
    params = {
        "embed": {"table": jax.random.normal(key, (64, width))},
        "layers": {"q": {"kernel": jax.random.normal(key, (2, width, width)).astype(jnp.bfloat16)}},
        "none": {"scale": jnp.zeros((0, width))},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), jax.random.key_data(key))


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        assert x.tobytes() == y.tobytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_state_and_meta_come_back_bit_for_bit(folder):
    state, meta = make_state(3), {"data": {"epoch": 1, "row": 17}, "clocks": {"seconds": 0.1}, "config": {"lr": 1e-3}}
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.save(3, state, meta)
        restored, restored_meta = checkpointer.restore(abstract(state))
    assert_same_bits(restored, state)
    assert isinstance(restored.opt[1][0], optax.ScaleByAdamState)
    assert restored_meta == meta


def test_every_bit_pattern_survives(folder):
    bits = np.arange(2**16, dtype=np.uint16)
    state = {
        "bf16": jnp.asarray(bits).view(jnp.bfloat16),
        "int8": jnp.arange(-128, 128, dtype=jnp.int8),
        "nan": jnp.array([np.nan, np.inf, -0.0]),
        "flag": jnp.array([True, False]),
    }
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(0, state, {})
        assert_same_bits(checkpointer.restore(abstract(state))[0], state)


def test_numpy_and_scalar_leaves_come_back_as_numpy(folder):
    state = {"array": np.arange(6, dtype=np.int64).reshape(2, 3), "number": 7, "list": [np.float32(1.5)]}
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(0, state, {})
        state["array"][:] = 0
        wanted = {"array": np.zeros((2, 3), np.int64), "number": 0, "list": [np.float32(0)]}
        restored, _ = checkpointer.restore(wanted)
    np.testing.assert_array_equal(restored["array"], np.arange(6).reshape(2, 3))
    assert int(restored["number"]) == 7 and float(restored["list"][0]) == 1.5


def test_donated_buffers_do_not_reach_the_checkpoint(folder):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros((512, 512)), "n": jnp.int32(0)}
    with Checkpointer(folder, Retention(latest=10)) as checkpointer:
        for number in range(8):
            checkpointer.save(number, state, {})
            old = state
            state = step(state)
            assert old["w"].is_deleted()  # the save holds no view of it that would force a copy
        for number in range(8):
            restored, _ = checkpointer.restore(abstract(state), number)
            assert np.all(np.asarray(restored["w"]) == number) and int(restored["n"]) == number


# Another mesh


@pytest.mark.parametrize("devices, axes, spec", [(4, ("x",), P("x")), (1, ("x",), P()), (8, ("a", "b"), P("b", "a"))])
def test_restores_on_another_mesh_bit_for_bit(folder, devices, axes, spec):
    def layout(count, names, spec):
        shape = (count,) if len(names) == 1 else (count // 2, 2)
        return NamedSharding(jax.make_mesh(shape, names, devices=jax.devices()[:count]), spec)

    value = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    before = {
        "params": {
            "w": jax.device_put(value, layout(8, ("x",), P("x"))),
            "n": jax.device_put(np.int32(5), layout(8, ("x",), P())),
        }
    }
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, before, {})
        target = layout(devices, axes, spec)
        scalar = layout(devices, axes, P())
        wanted = {
            "params": {
                "w": jax.ShapeDtypeStruct((16, 32), np.float32, sharding=target),
                "n": jax.ShapeDtypeStruct((), np.int32, sharding=scalar),
            }
        }
        restored, _ = checkpointer.restore(wanted)
    assert restored["params"]["w"].sharding == target
    assert_same_bits(restored, before)


# Retention and disk


def test_retention_keeps_latest_every_and_named_together(folder):
    state = {"w": jnp.ones(4)}
    with Checkpointer(folder, Retention(latest=2, keep_every=4)) as checkpointer:
        for step in range(1, 12):
            checkpointer.save(step, state, {}, name="before-anneal" if step == 3 else None)
            checkpointer.wait()
            assert checkpointer.latest_step() == step
        assert checkpointer.steps() == [3, 4, 8, 10, 11]
    assert sorted(p.name for p in folder.iterdir()) == ["10", "11", "3", "4", "8"]
    assert store.read_manifest(folder / "3").name == "before-anneal"


def test_older_checkpoint_is_deleted_only_after_the_newer_commits(folder, monkeypatch):
    seen = []
    delete = store.delete_step
    monkeypatch.setattr(
        store,
        "delete_step",
        lambda path: (seen.append((path.name, store.committed_steps(folder))), delete(path)),
    )
    with Checkpointer(folder, Retention(latest=1)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"w": jnp.ones(4)}, {})
    assert seen == [("1", [1, 2]), ("2", [2, 3])]


@pytest.mark.parametrize("fields", [{"latest": 0}, {"keep_every": 0}, {"history": -1}])
def test_senseless_retention_is_one_clear_line(fields):
    with pytest.raises(UserError, match=f"retention: {next(iter(fields))}"):
        Retention(**fields)


def test_history_keeps_all_parameters_in_bfloat16(folder):
    state = make_state(1)
    with Checkpointer(folder, Retention(latest=1, history=2)) as checkpointer:
        for step in range(1, 7):
            checkpointer.save(step, state, {"model": "tiny"})
        checkpointer.wait()
        assert checkpointer.steps() == [6]
    assert store.committed_steps(folder / "history") == [2, 4, 6]
    params = restore_params(folder / "history" / "2")
    assert params["embed"]["table"].dtype == jnp.bfloat16
    assert_same_bits(params, jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), state.params))
    assert store.read_meta(folder / "history" / "2") == {"model": "tiny"}


def test_saving_a_step_again_replaces_it(folder):
    with Checkpointer(folder) as checkpointer:
        for value in (1.0, 2.0):
            checkpointer.save(5, {"w": jnp.full(3, value)}, {"value": value})
        restored, meta = checkpointer.restore({"w": np.zeros(3, np.float32)})
    assert restored["w"].tolist() == [2.0, 2.0, 2.0] and meta == {"value": 2.0}
    assert [p.name for p in folder.iterdir()] == ["5"]


def test_steps_after_an_earlier_resume_are_set_aside(folder):
    with Checkpointer(folder, Retention(latest=5)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"w": jnp.full(3, step)}, {})
        checkpointer.restore({"w": np.zeros(3, np.int32)}, step=1)
        checkpointer.save(2, {"w": jnp.full(3, 9)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert (folder / "3.set-aside").is_dir()


# Busy, slow and failing storage


class Gate:
    """Holds the write of one manifest until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.reached = threading.Event(), threading.Event()
        write = store.write_manifest

        def held(*args, **kwargs):
            self.reached.set()
            assert self.open.wait(60)
            write(*args, **kwargs)

        monkeypatch.setattr(store, "write_manifest", held)


def test_busy_save_is_skipped_when_asked_but_never_a_named_one(folder, monkeypatch):
    gate = Gate(monkeypatch)
    with Checkpointer(folder, when_busy="skip") as checkpointer:
        assert checkpointer.save(1, {"w": jnp.ones(3)}, {})
        gate.reached.wait(60)
        assert not checkpointer.save(2, {"w": jnp.ones(3)}, {})
        gate.open.set()
        assert checkpointer.save(3, {"w": jnp.ones(3)}, {}, name="last")
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]


def test_unfinished_save_is_not_listed_and_waiting_is_counted(folder, monkeypatch):
    gate = Gate(monkeypatch)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
        gate.reached.wait(60)
        assert checkpointer.steps() == [] and checkpointer.last_committed is None
        before = checkpointer.blocked_seconds
        threading.Timer(0.2, gate.open.set).start()
        checkpointer.save(2, {"w": jnp.ones(3)}, {})
        assert checkpointer.blocked_seconds - before > 0.1
        assert checkpointer.last_committed[0] == 1 and abs(checkpointer.last_committed[1] - time.time()) < 60


def test_hanging_save_raises_at_its_deadline(folder, monkeypatch):
    with Checkpointer(folder, asynchronous=False) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
    gate = Gate(monkeypatch)
    checkpointer = Checkpointer(folder, deadline_seconds=0.3)
    checkpointer.save(2, {"w": jnp.ones(3)}, {})
    with pytest.raises(
        UserError, match=r"checkpoint 2 is still not written after 0.3 s .* step 1 and earlier ones are"
    ):
        checkpointer.wait()
    with pytest.raises(UserError, match="checkpoint 2 is still not written"):
        checkpointer.save(3, {"w": jnp.ones(3)}, {})
    gate.open.set()
    checkpointer._pending.done.wait(60)
    checkpointer.close()


def test_full_disk_is_one_clear_line_and_training_can_go_on(folder, monkeypatch):
    write = store.write_manifest
    full = [False]

    def failing(*args, **kwargs):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args, **kwargs)

    monkeypatch.setattr(store, "write_manifest", failing)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
        checkpointer.wait()
        full[0] = True
        checkpointer.save(2, {"w": jnp.ones(3)}, {})
        with pytest.raises(UserError, match="checkpoint 2 could not be written .*no space left.* step 1 and") as caught:
            checkpointer.wait()
        assert "\n" not in str(caught.value)
        assert [p.name for p in folder.iterdir()] == ["1"]  # nothing half-written stays to fill the disk
        full[0] = False
        checkpointer.save(3, {"w": jnp.ones(3)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]


def test_failed_save_of_a_step_again_leaves_its_earlier_copy(folder, monkeypatch):
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
        checkpointer.wait()
        monkeypatch.setattr(store, "write_manifest", _no_space)
        checkpointer.save(1, {"w": jnp.zeros(3)}, {})
        with pytest.raises(UserError, match="no space left"):
            checkpointer.wait()
        assert checkpointer.restore({"w": np.zeros(3, np.float32)})[0]["w"].tolist() == [1, 1, 1]


def _no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_really_full_disk_leaves_earlier_checkpoints_whole(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        with Checkpointer(disk / "checkpoints", Retention(latest=9)) as checkpointer:
            state = {"w": jnp.ones((256, 1024))}  # 1 MiB
            checkpointer.save(1, state, {})
            with pytest.raises(UserError, match="no space left on the disk.* and earlier ones are intact"):
                for step in (2, 3, 4):
                    checkpointer.save(step, state, {})
                checkpointer.wait()
            whole = checkpointer.steps()
            assert 1 in whole and all(not store.damage(checkpointer.folder / str(s)) for s in whole)
            assert not list(checkpointer.folder.glob("*tmp*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_defect_in_the_code_is_not_dressed_as_a_user_error(folder):
    with Checkpointer(folder) as checkpointer:
        with pytest.raises(TypeError):
            checkpointer.save(1, {"w": jnp.ones(3)}, {"bad": object()})
        with pytest.raises(TypeError, match="rng is a typed PRNG key"):
            checkpointer.save(1, {"rng": jax.random.key(0)}, {})


# Opening


def test_opening_removes_half_written_folders_only(folder):
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
        checkpointer.save(2, {"w": jnp.ones(3)}, {})
    for name in ("3.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17", "1.replaced"):
        (folder / name / "state").mkdir(parents=True)
    (folder / "5").mkdir()
    (folder / "5" / store.DELETED).write_text("{}")
    (folder / "6").mkdir()  # foreign: not ours to delete, not ours to list
    (folder / "2").rename(folder / "2.replaced")  # killed while step 2 was written anew
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.steps() == [1, 2]
        assert checkpointer.last_committed[0] == 2
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "6"]


def test_bucket_paths_save_retain_restore_and_clean_up(folder, monkeypatch):
    """The code that buckets take, over a local folder: paths are epaths, sizes stand for checksums."""
    monkeypatch.setattr(store, "is_remote", lambda path: True)
    with Checkpointer(folder, Retention(latest=1, history=2)) as checkpointer:
        for step in (1, 2, 2, 3):
            checkpointer.save(step, {"params": {"w": jnp.full(3, float(step))}}, {"step": step})
        assert checkpointer.restore({"params": {"w": np.zeros(3, np.float32)}})[1] == {"step": 3}
        assert checkpointer.steps() == [3]
    assert set(crc for _, crc in store.read_manifest(folder / "3").files.values()) == {None}
    (folder / "3" / store.REMOTE_COMMIT).unlink()  # killed before the marker that a bucket needs
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.steps() == []
    assert sorted(p.name for p in folder.iterdir()) == ["history"]
    assert store.committed_steps(folder / "history") == [2]


def test_fresh_start_over_a_run_is_refused_unless_told(folder):
    guard_fresh_start(folder)
    with Checkpointer(folder, Retention(history=1)) as checkpointer:
        checkpointer.save(7, {"params": {"w": jnp.ones(3)}}, {})
    with pytest.raises(UserError, match="up to step 7.*--overwrite"):
        guard_fresh_start(folder)
    guard_fresh_start(folder, overwrite=True)
    assert store.committed_steps(folder) == []
    assert (folder / "7.set-aside").is_dir() and (folder / "history" / "7.set-aside").is_dir()


def test_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot create the folder"):
        Checkpointer(tmp_path / "file" / "checkpoints")


def test_saving_and_restoring_print_nothing(folder, capfd):
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(3)}, {})
        checkpointer.restore({"w": np.zeros(3, np.float32)})
    assert capfd.readouterr() == ("", "")


# Damage


def damage_arrays(step_folder) -> None:
    """Flips one bit in the middle of the largest file."""
    path = max((p for p in step_folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def three_steps(folder):
    with Checkpointer(folder, Retention(latest=5)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"params": {"w": jnp.full((64, 64), float(step))}}, {"step": step})
    return folder


WANTED = {"params": {"w": np.zeros((64, 64), np.float32)}}


def test_damaged_latest_falls_back_to_the_newest_whole_one(three_steps, caplog):
    damage_arrays(three_steps / "3")
    (three_steps / "2" / "meta" / "meta.json").write_text("{")
    with Checkpointer(three_steps) as checkpointer, caplog.at_level(logging.WARNING):
        restored, meta = checkpointer.restore(WANTED)
        assert meta == {"step": 1} and np.all(restored["params"]["w"] == 1)
        assert "checkpoint 3" in caplog.text and "using checkpoint 1 instead" in caplog.text
        assert checkpointer.steps() == [1]
        checkpointer.save(2, {"params": {"w": jnp.ones((64, 64))}}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert (three_steps / "3.set-aside").is_dir()


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[]"])
def test_unreadable_manifest_falls_back_too(three_steps, text):
    (three_steps / "3" / "manifest.json").write_text(text)
    with Checkpointer(three_steps) as checkpointer:
        assert checkpointer.restore(WANTED)[1] == {"step": 2}
        assert checkpointer.last_committed[0] == 2


def test_pruning_during_a_run_does_not_break_its_saves(three_steps):
    with Checkpointer(three_steps, Retention(latest=1)) as checkpointer:
        store.delete_step(three_steps / "2")
        checkpointer.save(4, {"w": jnp.ones(3)}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [4]


def test_damaged_step_asked_for_names_the_newest_good_earlier_one(three_steps):
    damage_arrays(three_steps / "3")
    damage_arrays(three_steps / "2")
    with Checkpointer(three_steps) as checkpointer:
        with pytest.raises(UserError, match=r"checkpoint 3 in .* is damaged: .*CRC-32 differs.*; resume from step 1"):
            checkpointer.restore(WANTED, step=3)
        assert checkpointer.steps() == [1, 2, 3]
    with pytest.raises(UserError, match="is damaged"):
        restore_params(three_steps / "3")


def test_only_damaged_checkpoints_is_an_error_and_none_is_touched(three_steps):
    for step in (1, 2, 3):
        damage_arrays(three_steps / str(step))
    with Checkpointer(three_steps) as checkpointer:
        with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
            checkpointer.restore(WANTED)
        assert checkpointer.steps() == [1, 2, 3]


def test_missing_checkpoint_or_step_is_one_clear_line(folder, three_steps):
    message = "no checkpoint of step 9 .* it has steps 1, 2, 3"
    with Checkpointer(folder) as checkpointer, pytest.raises(UserError, match=message):
        checkpointer.restore(WANTED, step=9)
    with Checkpointer(folder / "empty") as checkpointer, pytest.raises(UserError, match="no checkpoint in"):
        checkpointer.restore(WANTED)


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"params": {"v": np.zeros((64, 64), np.float32)}}, "lacks params.v .* has in addition params.w"),
        (
            {"params": {"w": np.zeros((64, 32), np.float32)}},
            r"params.w has shape \(64, 64\), but the run needs \(64, 32\)",
        ),
        ({"params": {"w": np.zeros((64, 64), np.float16)}}, "params.w is stored as float32, but the run needs float16"),
    ],
)
def test_other_architecture_is_named_by_array(three_steps, wanted, message):
    with Checkpointer(three_steps) as checkpointer, pytest.raises(UserError, match=message):
        checkpointer.restore(wanted)


# Parameters alone


def test_parameters_alone_on_given_shardings_and_dtype(folder):
    state = make_state(2)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(4, state, {})
    assert_same_bits(restore_params(folder), jax.tree.map(np.asarray, state.params))
    assert_same_bits(restore_params(folder.parent, abstract(state.params)), state.params)
    halves = restore_params(folder / "4", abstract(state.params), dtype=jnp.bfloat16)
    assert_same_bits(halves, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params))
    assert_same_bits(
        restore_params(folder, prefix="opt"),
        trees.unflatten(
            {
                name.removeprefix("opt."): np.asarray(x)
                for name, x in arrays.named_leaves(state).items()
                if name.startswith("opt.")
            }
        ),
    )
    with pytest.raises(UserError, match="holds no value"):
        restore_params(folder, prefix="value")
    with pytest.raises(UserError, match="no such folder"):
        restore_params(folder / "nowhere")


def test_config_difference_names_fields():
    old = {"lr": 1e-3, "model": {"layers": 2, "width": 8}, "stages": [{"name": "a"}, {"name": "b"}], "same": 1}
    new = {
        "lr": 1e-2,
        "model": {"layers": 2, "width": 16, "bias": True},
        "stages": [{"name": "a"}, {"name": "c"}],
        "same": 1,
    }
    assert config_difference(old, new) == [
        "lr: 0.001 -> 0.01",
        "model.bias: absent -> True",
        "model.width: 8 -> 16",
        "stages[1].name: 'b' -> 'c'",
    ]
    assert config_difference(old, json.loads(json.dumps(old))) == []


def test_another_process_that_ends_during_a_save_is_nothing_that_the_user_has_to_fix(tmp_path, monkeypatch):
    """It is started again (75), while a storage that fails is told (2)."""
    ended = []
    monkeypatch.setattr(os, "_exit", lambda status: ended.append(status))
    for failure in ("Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1", "the bucket is gone"):
        checkpointer = Checkpointer(tmp_path / failure[:4], asynchronous=False)

        def fails(failure=failure):
            raise RuntimeError(failure)

        with monkeypatch.context() as broken:
            broken.setattr(checkpointer._writer, "wait", fails)
            with pytest.raises(RuntimeError if "peer" in failure else UserError) as caught:
                checkpointer.save(1, {"x": np.ones(2)}, {})
        processes.end_at_once(caught.value)
        checkpointer.close()
    processes.end_at_once(processes.Temporary("it took longer"))
    service = "UNAVAILABLE: Stream removed (Socket closed)\nwhile calling /xla.coordination.CoordinationService/Barrier"
    processes.end_at_once(RuntimeError(service))
    assert ended == [75, 2, 75, 75]
