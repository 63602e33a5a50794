"""States on the hosts' own disks: whole or not used, from wherever their parts are, and restored before checkpoints."""

import logging
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from easylm_jax.checkpoint import neighbour, parts, store
from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention
from easylm_jax.checkpoint.neighbour import Neighbours, alone
from easylm_jax.checkpoint.replica import Replica
from easylm_jax.runtime.mesh import make_mesh
from models.errors import UserError
from models.reading import Damaged

META = {"data": {"step": 5}, "text": "é"}


def state(offset=0.0, mesh="fsdp=4", devices=4):
    """A split array, a replicated one of an odd dtype, and a counter that is no array of JAX."""
    grid = make_mesh(mesh, jax.devices()[:devices])
    split, whole = (NamedSharding(grid, PartitionSpec(*axes)) for axes in ((("fsdp", "ep"), "tp"), ()))
    return {
        "a": jax.device_put(jnp.arange(64.0).reshape(8, 8) + offset, split),
        "b": {"c": jax.device_put(jnp.ones((3,), jnp.bfloat16), whole)},
        "n": np.int32(7),
    }


def abstract(value):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), value)


def equal(a, b):
    return all(
        np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def leaves(value):
    return {"a": value["a"], "b.c": value["b"]["c"], "n": value["n"]}


class Run:
    """Processes of a run as threads, each with a disk of its own; blocks of arrays are dealt out to them."""

    def __init__(self, folder: Path, count: int, monkeypatch):
        monkeypatch.setattr(neighbour.barriers, "own_address", lambda: "localhost")
        self.folder, self.count = folder, count
        self._texts, self._barrier = {}, threading.Barrier(count)
        self.replicas = self.at_once(
            lambda i: Replica(str(folder / f"host {i}"), "run", Neighbours(i, count, lambda n, t: self._exchange(i, t)))
        )

    def _exchange(self, index, text):
        self._texts[index] = text
        self._barrier.wait(20)
        found = [self._texts[i] for i in range(self.count)]
        self._barrier.wait(20)
        return found

    def at_once(self, function):
        results, threads = [None] * self.count, []
        for i in range(self.count):
            threads.append(threading.Thread(target=lambda i=i: results.__setitem__(i, function(i))))
            threads[-1].start()
        for thread in threads:
            thread.join(30)
        return results

    def save(self, step, value):
        blocks = parts.blocks_of(leaves(value), 0)
        for i, replica in enumerate(self.replicas):
            replica.wait()
            replica._write(step, blocks[i :: self.count], META)

    def holders(self):
        found = self.at_once(lambda i: self.replicas[i].holders())
        assert all(one == found[0] for one in found)
        return found[0]

    def disk(self, index):
        return self.replicas[index].folder

    def close(self):
        for replica in self.replicas:
            replica.close()


@pytest.fixture
def three(tmp_path, monkeypatch):
    made = Run(tmp_path, 3, monkeypatch)
    yield made
    made.close()


def test_a_part_is_read_as_it_was_written_and_any_change_to_it_is_noticed(tmp_path):
    value, path = state(), tmp_path / "0-of-1.part"
    parts.write_part(path, 5, 0, 1, parts.blocks_of(leaves(value), 0), META)
    part = parts.read_part(path)
    assert (part.step, part.process, part.count, part.meta) == (5, 0, 1, META) and parts.is_whole(path)
    assert len(part.blocks) == 4 + 1 + 1  # a block of each shard; one of what lies on all devices
    data = path.read_bytes()
    for at in (0, len(parts.MAGIC), len(parts.MAGIC) + 9, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert not parts.is_whole(path), at
    path.write_bytes(data[:-1])
    assert not parts.is_whole(path)


@pytest.mark.parametrize("mesh, devices", [("fsdp=4", 4), ("fsdp=2,tp=2", 4), ("fsdp=8", 8), ("fsdp=1", 1)])
def test_parts_of_one_mesh_are_restored_on_another(mesh, devices, tmp_path):
    value, replica = state(3.0), Replica(str(tmp_path), "run", alone())
    replica.save(5, leaves(value), META)
    replica.wait()
    target = abstract(state(mesh=mesh, devices=devices))
    found, meta, _ = replica.restore(target, 5, replica.holders()[5])
    assert equal(found, value) and meta == META
    assert found["a"].sharding == target["a"].sharding
    replica.close()


def test_any_one_host_may_be_lost_and_two_may_not(three):
    value = state(1.0)
    three.save(4, state())
    three.save(5, value)
    assert set(three.holders()) == {4, 5}
    assert three.holders()[5] == {0: [0, 1], 1: [1, 2], 2: [0, 2]}
    shutil.rmtree(three.disk(1))
    holders = three.holders()[5]
    assert holders == {0: [0], 1: [2], 2: [0, 2]}
    for i, (found, meta, words) in enumerate(
        three.at_once(lambda i: three.replicas[i].restore(abstract(value), 5, holders))
    ):
        assert equal(found, value) and meta == META
        assert f"{(1, 3, 1)[i]} of 3 parts from other hosts" in words
    three.save(6, state(2.0))
    shutil.rmtree(three.disk(0))
    shutil.rmtree(three.disk(1))
    assert list(three.holders()) == [5]  # the parts that host 2 fetched are still there


def test_a_damaged_copy_is_left_for_the_neighbours(three):
    three.save(5, state())
    (own,) = (three.disk(0) / "5").glob("0-of-3.part")
    data = bytearray(own.read_bytes())
    data[-1] ^= 1
    own.write_bytes(data)
    assert three.holders()[5][0] == [1]
    other = three.disk(1) / "5" / own.name
    other.write_bytes(other.read_bytes()[:100])
    assert three.holders() == {}


def test_the_newest_two_steps_are_kept_and_other_runs_are_other_folders(tmp_path):
    replica = Replica(str(tmp_path), "run", alone())
    for step in (1, 2, 3):
        replica.save(step, leaves(state()), META)
    replica.wait()
    other = Replica(str(tmp_path), "another run", alone())
    assert list(replica.holders()) == [2, 3] and other.holders() == {}
    replica.close(), other.close()


def test_a_stranger_and_a_path_are_refused(three):
    with pytest.raises(OSError, match="Forbidden"):
        three.replicas[0]._neighbours.fetch("../../etc/passwd", three.folder / "x", 1)
    host, port, _ = three.replicas[0]._neighbours._addresses[1]
    three.replicas[0]._neighbours._addresses[1] = (host, port, "guessed")
    with pytest.raises(OSError, match="Forbidden"):
        three.replicas[0]._neighbours.fetch("5/0-of-3.part", three.folder / "x", 1)


def test_a_full_disk_and_a_neighbour_that_is_gone_are_said_once_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
    replica = Replica(str(tmp_path), "run", alone())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "write_part", full)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            replica.save(step, leaves(state()), META)
            replica.wait()
    assert [record.message for record in caplog.records] == [
        "the replica of step 1 could not be written: [Errno 28] No space left on device"
    ]
    replica.close()


def test_a_state_of_another_dtype_or_shape_is_no_replica_of_this_one(tmp_path):
    replica = Replica(str(tmp_path), "run", alone())
    replica.save(1, leaves(state()), META)
    replica.wait()
    for changed in ((jnp.float16, (8, 8)), (jnp.float32, (4, 8))):
        target = {**abstract(state()), "a": jax.ShapeDtypeStruct(changed[1], changed[0])}
        with pytest.raises(Damaged):
            replica.restore(target, 1, replica.holders()[1])
    replica.close()


@pytest.fixture
def tiers(tmp_path):
    """A function that opens the checkpointer of the same run again, with its folder and its replica."""

    def open_again(**how):
        replica = Replica(str(tmp_path / "own disk"), "run", alone())
        return Checkpointer(tmp_path / "bucket", Retention(latest=3), asynchronous=False, replica=replica, **how)

    with open_again() as first:
        for step in (1, 2):
            first.save(step, state(float(step)), {"data": {"step": step}})
        first.replicate(3, state(3.0), {"data": {"step": 3}})
        first._replica.wait()
    yield tmp_path, open_again


def restored(checkpointer):
    with checkpointer:
        found, meta = checkpointer.restore(abstract(state()))
    assert equal(found, state(float(meta["data"]["step"])))
    return meta["data"]["step"], checkpointer.restored_from


def damage(step_folder):
    path = max((p for p in (step_folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def test_the_replica_is_restored_where_it_is_newer_and_that_is_said(tiers):
    _, open_again = tiers
    step, words = restored(open_again())
    assert step == 3 and words.startswith("replica on the hosts' own disks, 0 of 1 parts from other hosts")
    assert words.endswith("bucket is of step 2")


def test_a_bucket_that_is_gone_leaves_the_replica(tiers):
    folder, open_again = tiers
    shutil.rmtree(folder / "bucket")
    checkpointer = open_again()
    assert checkpointer.has_state() and checkpointer.latest_step() is None
    step, words = restored(checkpointer)
    assert step == 3 and words.endswith("bucket is none")


def test_own_disks_that_are_gone_leave_the_checkpoints(tiers):
    folder, open_again = tiers
    shutil.rmtree(folder / "own disk")
    assert restored(open_again()) == (2, "")


def test_damaged_replicas_and_checkpoints_leave_the_newest_that_is_whole(tiers, caplog):
    folder, open_again = tiers
    newest, older = sorted(folder.glob("own disk/*/*/*.part"), key=lambda path: -int(path.parent.name))
    newest.write_bytes(newest.read_bytes()[:-1])
    damage(folder / "bucket" / "2")
    assert restored(open_again())[0] == 2  # the replica of step 2, whose checkpoint is damaged
    older.unlink()
    with caplog.at_level(logging.WARNING):
        assert restored(open_again()) == (1, "")
    assert "checkpoint 2 in" in caplog.text and "using checkpoint 1 instead" in caplog.text
    assert store.committed_steps(folder / "bucket") == [1]


def test_nothing_whole_anywhere_is_one_line(tiers):
    folder, open_again = tiers
    shutil.rmtree(folder / "own disk")
    for step in (1, 2):
        damage(folder / "bucket" / str(step))
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        restored(open_again())
