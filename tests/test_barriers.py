"""Barriers that time out say who is late, and a hang that one process finds ends all of them with their stacks."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import free_port, launcher, reference, with_vocabulary

from easylm_jax.checkpoint import store
from easylm_jax.runtime import barriers
from easylm_jax.runtime.barriers import Late, Meeting
from easylm_jax.runtime.monitor.watchdog import Watchdog

SAVING = "easylm_jax.train.loop:Loop._save"


class Service:
    """The coordination service, in one process: a client is used by the thread of each process."""

    def __init__(self, count):
        self.values, self.count, self.met, self.condition = {}, count, {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.values and not allow_overwrite:
            raise RuntimeError(f"ALREADY_EXISTS: {key}")
        self.values[key] = value

    def key_value_dir_get(self, key):
        return [(path, value) for path, value in self.values.items() if path == key or path.startswith(f"{key}/")]

    def key_value_delete(self, key):
        del self.values[key]

    def wait_at_barrier(self, name, milliseconds):
        with self.condition:
            self.met[name] = self.met.get(name, 0) + 1
            self.condition.notify_all()
            if not self.condition.wait_for(lambda: self.met[name] == self.count, milliseconds / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: Barrier timed out. Id: {name}")


def meetings(count, **how):
    service = Service(count)
    return [Meeting(service, i, count, f"host-{i}", **how) for i in range(count)]


def test_all_go_on_once_the_last_has_come_as_often_as_they_meet():
    first, second = meetings(2)
    for _ in range(3):
        other = threading.Thread(target=second.wait, args=("save", 10))
        other.start()
        first.wait("save", 10)
        other.join()
    assert not any("barrier" in key for key in first._store.values)


def test_who_is_late_is_named_with_its_host_and_where_it_was_last_seen():
    first, second, third, _ = meetings(4)
    third.publish({"stage": "sft", "step": 11, "phase": "data"})
    other = threading.Thread(target=lambda: pytest.raises(Late, second.wait, "save of step 12", 0.2))
    other.start()
    with pytest.raises(Late) as late:
        first.wait("save of step 12", 0.2)
    other.join()
    assert str(late.value) == (
        "barrier 'save of step 12': processes 2 (host host-2, at step 11 in phase data) and 3 (host host-3) are not "
        "there after 0 s, while 2 processes wait"
    )


def test_another_failure_of_the_service_is_not_taken_for_lateness(monkeypatch):
    (first,) = meetings(1)

    def gone(*_):
        raise RuntimeError("UNAVAILABLE: Connection reset by peer")

    monkeypatch.setattr(first._store, "wait_at_barrier", gone)
    with pytest.raises(RuntimeError, match="Connection reset"):
        first.wait("save", 1)


def test_who_is_behind_in_a_step_is_named_and_nobody_where_all_are_at_one():
    first, second, third = meetings(3)
    for meeting in (first, second, third):
        meeting.publish({"stage": "sft", "step": 4, "phase": "step"})
    assert first.behind() == ""
    for meeting in (first, third):
        meeting.publish({"stage": "sft", "step": 5, "phase": "step"})
    assert first.behind() == "process 1 (host host-1, at step 4 in phase step) is behind the others"


def test_a_hang_that_one_process_finds_is_heard_by_the_others_once(monkeypatch):
    monkeypatch.setattr(barriers, "_POLL", 0.01)
    heard = []
    first, second = meetings(2, end=heard.append)
    assert second.heard_of_hang() is None
    first.announce_hang("phase 'step' has taken 100 s")
    second.announce_hang("found later")
    assert first.heard_of_hang() is None
    second.listen()
    for _ in range(500):
        if heard:
            break
        threading.Event().wait(0.01)
    assert heard == ["process 0 found a hang: phase 'step' has taken 100 s"]


def test_the_watchdog_publishes_its_phase_and_tells_the_others_of_its_hang(tmp_path, monkeypatch):
    first, second = meetings(2)
    monkeypatch.setattr(barriers, "_meeting", first)
    second.publish({"stage": "sft", "step": 2, "phase": "data"})
    watchdog = Watchdog(tmp_path / "sft", process_index=0)
    watchdog.heartbeat_path.parent.mkdir()
    with watchdog.phase("step", 3):
        watchdog._write_heartbeat()
    assert barriers.hang_found("late").endswith("process 1 (host host-1, at step 2 in phase data) is behind the others")
    assert "found a hang: late; process 1" in second.heard_of_hang()


def test_stacks_are_dumped_and_the_exit_status_is_that_of_a_hang():
    code = "from easylm_jax.runtime import barriers\ndef f(): barriers.dump_and_exit('x is late')\nf()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert ended.returncode == 75 and ended.stderr.startswith("easylm: hang: x is late; exit status 75\n")
    assert "in f" in ended.stderr


@pytest.mark.chaos
def test_a_process_that_does_not_come_to_save_is_named_by_the_other(tmp_path):
    """Stopped at the start of a save, it never arrives at the barrier; the other waits five seconds for it."""
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    shared = {"EASYLM_COORDINATOR": f"localhost:{free_port()}", "EASYLM_PROCESSES": "2", barriers.VARIABLE: "5"}
    first, second = (
        launcher().start(*run, environment={**shared, "EASYLM_PROCESS_ID": str(i)}, at=at)
        for i, at in enumerate((None, f"{SAVING}:4:SIGSTOP"))
    )
    ended = first.wait()
    second.signal(signal.SIGKILL)
    second.wait()
    assert ended.status == 75, ended
    assert "easylm: hang: barrier 'save of step 4': process 1 (host" in ended.err and "Thread" in ended.err
    assert store.committed_steps(out / "tiny" / "pretrain" / "checkpoints")[-1] in (2, 3)
