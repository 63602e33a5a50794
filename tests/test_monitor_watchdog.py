import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from easylm_jax.runtime.monitor import Limits, StopRequest, Watchdog


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def watched(tmp_path):
    clock, messages = Clock(), []
    return clock, messages, Watchdog(tmp_path, clock=clock, on_expire=messages.append)


def take(clock, watchdog, name, seconds):
    with watchdog.phase(name):
        clock.now += seconds


def test_deadline_is_six_medians_and_at_least_ninety_seconds(watched):
    clock, messages, watchdog = watched
    for seconds in (1, 2, 3):
        take(clock, watchdog, "step", seconds)
    for seconds in (10, 40, 400):
        take(clock, watchdog, "checkpoint", seconds)
    for name, deadline in (("step", 90), ("checkpoint", 240)):
        with watchdog.phase(name, 7):
            clock.now += deadline
            watchdog.check()
            assert not messages
            clock.now += 1
            watchdog.check()
        assert messages.pop() == (f"phase {name!r} at step 7 has taken {deadline + 1} s, its deadline is {deadline} s")


def test_first_time_of_a_phase_may_take_half_an_hour(watched):
    clock, messages, watchdog = watched
    with watchdog.phase("compile"):
        clock.now += 1800
        watchdog.check()
        assert not messages
        clock.now += 1
        watchdog.check()
    assert len(messages) == 1


def test_only_the_inner_phase_is_watched_and_the_outer_one_starts_anew(watched):
    clock, messages, watchdog = watched
    take(clock, watchdog, "evaluate", 1)
    with watchdog.phase("evaluate"):
        clock.now += 80
        take(clock, watchdog, "compile", 1000)
        clock.now += 80
        watchdog.check()
        assert not messages
        clock.now += 11
        watchdog.check()
    assert len(messages) == 1


def test_nothing_is_watched_between_phases_or_when_disabled(watched, tmp_path):
    clock, messages, watchdog = watched
    clock.now += 1e6
    watchdog.check()
    off = Watchdog(tmp_path, clock=clock, on_expire=messages.append, enabled=False)
    with off.phase("step"):
        clock.now += 1e6
        off.check()
    assert not messages


def test_heartbeat_file_tells_step_phase_and_time(tmp_path):
    watchdog = Watchdog(tmp_path, interval=0.01, process_index=3)
    with watchdog, watchdog.phase("step", 12):
        beat = {"step": None}  # the first one comes at the start
        while beat["step"] is None:
            time.sleep(0.01)
            beat = json.loads(watchdog.heartbeat_path.read_text()) if watchdog.heartbeat_path.exists() else beat
    assert (beat["step"], beat["phase"], beat["pid"]) == (12, "step", os.getpid())
    assert beat["progress_time"] <= beat["time"] <= time.time()
    assert watchdog.heartbeat_path.name == "heartbeat-3.json"
    assert json.loads(watchdog.heartbeat_path.read_text())["phase"] is None  # the last one, at stop


def test_hanging_process_dumps_its_stacks_and_exits_75(tmp_path):
    code = (
        "import sys, time\nfrom easylm_jax.runtime.monitor import Limits, Watchdog\n"
        "def stuck_in_here(): time.sleep(600)\n"
        "limits = Limits(minimum=0.05, factor=1.0, first=0.05)\n"
        "watchdog = Watchdog(sys.argv[1], limits=limits, interval=0.02).start()\n"
        "with watchdog.phase('step', 5): stuck_in_here()\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 75
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "stuck_in_here" in stacks and "phase 'step' at step 5" in stacks
    assert "stuck_in_here" in run.stderr and "easylm: hang: phase 'step' at step 5" in run.stderr


def test_limits_can_be_changed_for_slow_phases():
    limits = Limits(minimum=10, factor=2, first=60)
    assert limits.deadline([]) == 60 and limits.deadline([3, 4, 5]) == 10 and limits.deadline([30]) == 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_only_asks_and_the_old_handler_comes_back(number):
    before, lines, came = signal.getsignal(number), [], threading.Event()

    def note(text):
        lines.append(text)
        came.set()

    with StopRequest(note) as stop:
        assert not stop.agreed(1)
        os.kill(os.getpid(), number)
        assert came.wait(30)
        assert stop.requested and stop.agreed(2)
    assert signal.getsignal(number) is before
    assert len(lines) == 1 and signal.Signals(number).name in lines[0]


def test_second_signal_ends_a_process_that_is_stuck():
    code = (
        "import ctypes\nfrom easylm_jax.runtime.monitor import StopRequest\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)\n"
        "    while True: library.pthread_mutex_lock(mutex)\n"  # the second call never returns, not for a signal either
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "saving after this step" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert "ending now" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
