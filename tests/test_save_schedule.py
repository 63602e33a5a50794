"""A run says what its checkpoints write, and saves fewer steps once it has to wait for them; results stay the same."""

import shutil
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.checkpoint import store
from easylm_jax.checkpoint.arrays import CheckpointWriter
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.config import Checkpoints, Monitoring
from easylm_jax.runtime.mesh import make_mesh
from easylm_jax.train import save_schedule
from easylm_jax.train.loop import Job, Loop
from easylm_jax.train.save_schedule import SaveSchedule

STEPS = 12


class State(NamedTuple):
    step: jax.Array
    params: jax.Array


class Doubling(Loop):
    """Each step adds its number and doubles, so that a step left out or done twice changes the result."""

    def prepare(self, state, start):
        self.step = jax.jit(lambda state: State(state.step + 1, 2 * state.params + state.step))

    def advance(self, state, step):
        return self.step(state), step

    def read(self, pending):
        return {"loss": 1.0, "tokens": pending}

    def check(self, metrics, step):
        assert metrics["tokens"] == step

    def trained(self, state):
        return {}  # there is no model

    def validate(self, state, step):
        raise AssertionError("there is nothing to validate")


def run(folder, checkpoints):
    mesh = make_mesh("fsdp=1", jax.devices()[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = State(jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((500,), jnp.float32))
    layout = State(place, place)
    fresh = lambda: jax.device_put(State(np.int32(0), np.linspace(0, 1, 500, dtype=np.float32)), layout)  # noqa: E731
    job = Job(
        name="doubling", folder=folder, mesh=mesh, abstract_state=abstract, layout=layout, fresh_state=fresh,
        fingerprint="x", validates=False, validate_every=None, steps=STEPS, checkpoints=checkpoints,
        monitoring=Monitoring(watchdog=False), meta={"config": {}},
    )  # fmt: skip
    Doubling(job).run()
    with Checkpointer(folder / "checkpoints") as checkpointer:
        state, _ = checkpointer.restore(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract))
    return np.asarray(state.params), store.committed_steps(folder / "checkpoints")


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing a checkpoint takes a tenth of a second, and the run has no patience."""
    wait = CheckpointWriter.wait
    monkeypatch.setattr(CheckpointWriter, "wait", lambda self: (time.sleep(0.1), wait(self))[1])
    monkeypatch.setattr(save_schedule, "PATIENCE_SECONDS", 0.0)


def test_saves_that_training_waits_for_are_thinned_out_without_changing_the_result(tmp_path, slow_disk, capsys):
    every, all_steps = run(tmp_path / "every", Checkpoints(every=1, latest=99))
    said = capsys.readouterr().err
    assert all_steps == list(range(1, STEPS + 1)), "an explicit interval is kept"
    assert "a checkpoint is 2kB, saved after each step; the newest 99 are kept" in said and "from now on" not in said
    assert "a checkpoint takes" in said and "s to write" in said
    thinned, steps = run(tmp_path / "thinned", Checkpoints(latest=99))
    assert set(steps) < set(all_steps) and steps[-1] == STEPS
    assert "s: from now on every" in capsys.readouterr().err
    np.testing.assert_array_equal(thinned, every)
    shutil.rmtree(tmp_path / "thinned/checkpoints" / str(STEPS))
    resumed, _ = run(tmp_path / "thinned", Checkpoints(latest=99))
    assert f"resuming at step {steps[-2]} of {STEPS}" in capsys.readouterr().err
    np.testing.assert_array_equal(resumed, every)


def clocked(monkeypatch, every, step_seconds, wait_seconds, steps):
    """The intervals of a schedule over steps that take so long, with saves that are waited for so long."""
    now, schedule, intervals = [0.0], SaveSchedule(every), [every or 1]
    monkeypatch.setattr(save_schedule.time, "monotonic", lambda: now[0])
    for step in range(1, steps + 1):
        now[0] += step_seconds
        if schedule.due(step):
            waited = wait_seconds(schedule.every)
            now[0] += waited
            if schedule.adapt(step, waited):
                intervals.append(schedule.every)
    return intervals


def test_the_interval_grows_to_the_steps_that_a_save_takes(monkeypatch):
    write = 7.0  # seconds
    assert clocked(monkeypatch, None, 1.0, lambda every: max(0.0, write - every), 300) == [1, 8]
    assert clocked(monkeypatch, 1, 1.0, lambda every: max(0.0, write - every), 300) == [1]


def test_saves_behind_the_step_and_short_waits_leave_every_step_saved(monkeypatch):
    assert clocked(monkeypatch, None, 1.0, lambda every: 0.05, 300) == [1]
    assert clocked(monkeypatch, None, 0.01, lambda every: 0.1, 40) == [1]  # four seconds in all


def test_a_given_interval_is_taken_as_it_is_and_the_default_begins_with_every_step():
    assert SaveSchedule(None).due(7) and SaveSchedule(5).due(10) and not SaveSchedule(5).due(7)
