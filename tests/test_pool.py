"""The pool of verifier processes: a call that hangs or dies loses its own verdict, and no process stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from easylm_jax.rewards.pool import Pool
from easylm_jax.rewards.verify import LOOKUP
from models.errors import UserError

TESTS = Path(__file__).resolve().parent
WALL = 4.0  # what sleeps costs this long; nothing else needs more than milliseconds of CPU time
OBEY, LENGTH = "pool_verifiers:obey", "pool_verifiers:length"

needs_proc = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are looked for in /proc")


@pytest.fixture(scope="module")
def pool():
    sys.path.insert(0, str(TESTS))  # workers look for verifiers where this process does
    try:
        with Pool(workers=2, seconds=0.7, lookup=LOOKUP, wall_seconds=WALL) as made:
            yield made
    finally:
        sys.path.remove(str(TESTS))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=20.0) -> bool:
    """Whether all processes end within this time."""
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def worker_pids(pool: Pool) -> set[int]:
    """The processes of a pool, all of them busy once."""
    return {worker.process.pid for worker in pool._free if worker.process is not None}


def test_reasons_come_with_the_verdicts_that_have_them(pool):
    verdicts = pool.verdicts(["pool_verifiers:explain", OBEY], ["ab", "abcd", "sleep"], [{}] * 3)
    assert verdicts.values[:, 0].tolist() == [2, 4, 5]
    assert verdicts.reasons.pop((2, 1)).startswith("the verifier was stopped: it took too long")
    assert verdicts.reasons == {(0, 0): "only 2"}


def test_values_come_in_the_order_of_responses_and_names(pool):
    responses = ["x" * (n % 7) for n in range(500)]
    records = [{"more": 10.0 * n} for n in range(500)]
    got = pool.verdicts([LENGTH, OBEY, f"'{LENGTH}'(times=3)"], responses, records)
    lengths, more = np.array([len(r) for r in responses]), np.arange(500) * 10.0
    np.testing.assert_array_equal(got.values, np.stack([lengths + more, np.ones(500), 3 * lengths + more], 1))
    assert got.values.dtype == np.float64 and got.timed_out.shape == (500, 3) and not got.timed_out.any()
    assert got.busy_seconds > 0
    assert pool.verdicts([LENGTH], [], []).values.shape == (0, 1)
    assert pool.verdicts([], ["a"], [{}]).values.shape == (1, 0)


def test_a_call_that_hangs_loses_its_own_verdict_only(pool):
    responses = ["fine"] * 20
    responses[3], responses[11] = "hang in C", "sleep"
    got = pool.verdicts([OBEY, LENGTH], responses, [{}] * 20)
    ended = np.zeros((20, 2), bool)
    ended[3, 0] = ended[11, 0] = True
    np.testing.assert_array_equal(got.timed_out, ended)
    np.testing.assert_array_equal(got.values[:, 0], ~ended[:, 0])
    np.testing.assert_array_equal(got.values[:, 1], [len(r) for r in responses])
    assert got.busy_seconds > 1.0  # the hanging ones were busy too


def test_a_verdict_counts_cpu_time_so_it_does_not_depend_on_the_load(pool):
    """A process that waits, as on a busy machine, keeps its verdict; one that works for the same time loses it."""
    got = pool.verdicts([OBEY], ["wait", "work", "wait"], [{"seconds": 2.0}] * 3)
    assert got.values[:, 0].tolist() == [1, 0, 1]
    assert got.timed_out[:, 0].tolist() == [False, True, False]
    after = pool.verdicts([OBEY], ["work"] * 5, [{"seconds": 0.3}] * 5)  # the limit is that of one call
    assert after.values.all() and not after.timed_out.any()


def test_a_call_that_takes_its_process_along_loses_its_own_verdict_only(pool):
    responses = ["fine", "exit", "fine", "memory", "sys.exit", "fine"]
    got = pool.verdicts([OBEY], responses, [{}] * 6)
    assert got.values[:, 0].tolist() == [1, 0, 1, 0, 0, 1]
    assert got.timed_out[:, 0].tolist() == [False, True, False, True, True, False]


def test_a_process_killed_from_outside_costs_no_verdict(pool, tmp_path):
    records = [{"marker": str(tmp_path / "marker")}] * 3
    got = pool.verdicts([OBEY], ["fine", "killed once", "fine"], records)
    assert got.values.all() and not got.timed_out.any() and (tmp_path / "marker").exists()
    for pid in worker_pids(pool):  # and while they wait
        os.kill(pid, signal.SIGKILL)
    assert pool.verdicts([OBEY], ["fine"] * 10, [{}] * 10).values.all()


def test_what_verifiers_print_or_read_stays_out_of_the_way(pool):
    got = pool.verdicts([OBEY], ["print", "fine"] * 3, [{}] * 6)
    assert got.values.all() and not got.timed_out.any()


def test_any_text_passes(pool):
    odd = ["\ud800", "\x00" * 10, "é" * 100_000, "", "\U0001f600"]
    assert pool.verdicts([LENGTH], odd, [{}] * 5).values[:, 0].tolist() == [len(text) for text in odd]


def test_mistakes_of_the_user_are_raised_here_and_the_pool_goes_on(pool):
    with pytest.raises(UserError, match="record 7 is wrong"):
        pool.verdicts([OBEY], ["fine", "complain", "fine"], [{"number": 7}] * 3)
    with pytest.raises(UserError, match="no verifier 'gsm9k'"):
        pool.verdicts(["gsm9k"], ["1"], [{}])
    with pytest.raises(UserError, match="gsm8k needs the column 'answer'"):
        pool.verdicts(["gsm8k"], ["1"], [{}])
    with pytest.raises(UserError, match="a record cannot be sent"):
        pool.verdicts([LENGTH], ["1"], [{"f": lambda: 1}])
    with pytest.raises(UserError, match="ended with status 7 while it started or looked up"):
        pool.verdicts(["pool_verifiers:cannot_start"], ["1"], [{}])
    for workers, seconds, wall in ((0, 1.0, None), (1, 0.0, None), (1, float("inf"), None), (1, 1.0, -1.0)):
        with pytest.raises(UserError):
            Pool(workers, seconds, wall_seconds=wall)
    with pytest.raises(ValueError, match="1 responses and 0 records"):
        pool.verdicts([LENGTH], ["1"], [])
    assert pool.verdicts([OBEY], ["fine"], [{}]).values.all()


def test_workers_load_neither_jax_nor_the_main_module_of_this_process(pool):
    assert pool.verdicts([OBEY], ["modules"] * 8, [{}] * 8).values.sum() == 0


def test_what_a_verifier_loads_first_is_outside_of_the_cap():
    sys.path.insert(0, str(TESTS))
    try:
        with Pool(1, seconds=0.3) as pool:
            assert pool.verdicts(["pool_verifiers:needs_warmth"], ["a"], [{}]).values.all()
    finally:
        sys.path.remove(str(TESTS))


def test_threads_share_a_pool(pool):
    def ask(number):
        responses = ["sleep" if number == 2 and n == 5 else "a" * n for n in range(30)]
        return pool.verdicts([OBEY, LENGTH], responses, [{"more": number}] * 30)

    with ThreadPoolExecutor(4) as threads:
        for number, got in enumerate(threads.map(ask, range(4))):
            assert got.timed_out.sum() == (number == 2)
            expected = [len("sleep") if number == 2 and n == 5 else n for n in range(30)]
            np.testing.assert_array_equal(got.values[:, 1], np.array(expected) + number)


@needs_proc
def test_nothing_stays_after_close_not_even_what_a_verifier_started(tmp_path, pool):
    with Pool(2, seconds=0.7, wall_seconds=WALL) as own:
        own.verdicts([OBEY], ["fine"] * 8, [{}] * 8)
        marker = tmp_path / "child"
        own.verdicts([OBEY], ["start another"], [{"marker": str(marker)}])
        assert gone([int(marker.read_text())])
        own.verdicts([OBEY], ["fine"] * 8, [{}] * 8)
        pids = worker_pids(own)
        assert pids and all(map(alive, pids))
    assert gone(pids)
    own.close()
    with pytest.raises(RuntimeError, match="closed"):
        own.verdicts([OBEY], ["fine"], [{}])


def test_closing_ends_what_another_thread_waits_for(pool):
    own, raised = Pool(1, seconds=500), []

    def ask():
        try:
            own.verdicts([OBEY], ["sleep"], [{}])
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while not any(w.phase == "calling" for w in own._all):
        time.sleep(0.02)
    own.close()
    thread.join(120)
    assert raised == ["the pool of verifiers was closed"]


SCRIPT = """
import os, sys, threading, time
print("main", flush=True)  # once: workers do not import this file
sys.path.insert(0, sys.argv[1])
from easylm_jax.rewards.pool import Pool
pool = Pool(2, seconds=600)
pids = pool.verdicts(["pool_verifiers:obey"], ["pid"] * 64, [{}] * 64).values.ravel()
print(*{int(pid) for pid in pids} | {w.process.pid for w in pool._free if w.process}, flush=True)
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        os._exit(int(pool.verdicts(["pool_verifiers:length"], ["abc"], [{}]).values[0, 0]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(int(pool.verdicts(["pool_verifiers:length"], ["ab"], [{}]).values[0, 0]), flush=True)
else:
    pool.seconds = 2.0 if sys.argv[2] == "hang in C" else 600.0
    pool.verdicts(["pool_verifiers:obey"], [sys.argv[2]] * 2, [{}] * 2)
"""


@contextlib.contextmanager
def script(tmp_path, what):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(TESTS), what], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "main\n"
        yield process, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@needs_proc
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, end):
    with script(tmp_path, "sleep") as (process, pids):
        assert pids and all(map(alive, pids))
        process.send_signal(end)
        assert process.wait(120) != 0
        assert gone(pids)


@needs_proc
@pytest.mark.slow
def test_a_worker_that_holds_its_interpreter_ends_too_when_the_pool_is_gone(tmp_path):
    with script(tmp_path, "hang in C") as (process, pids):
        time.sleep(0.5)  # into the calls, which the pool would end after 2 s
        process.kill()
        assert all(map(alive, pids))  # no end of input reaches them
        assert gone(pids, seconds=200)


@needs_proc
def test_a_forked_process_has_workers_of_its_own(tmp_path):
    with script(tmp_path, "fork") as (process, pids):
        assert process.stdout.read().split() == ["3", "2"]
        assert process.wait(120) == 0 and gone(pids)
