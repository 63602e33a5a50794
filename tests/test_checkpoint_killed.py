"""A run killed with SIGKILL at any instant loses no committed checkpoint and lists no half-written one.

Run as a script, this file is the victim: it loads JAX and Orbax once and forks one process for each life, since to
start an interpreter for each kill would take most of the test's time.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from easylm_jax.checkpoint import store

STEPS = 60
# The instants that matter, by the function of the store that is about to run, or has just run, when the kill comes.
INSTANTS = (
    "before write_manifest",
    "after write_manifest",
    "before delete_step",
    "within delete_step",
    "after set_aside",
)


def expected(step: int):
    import numpy as np

    return {"params": {"w": (np.arange(1 << 18, dtype=np.float32) + step)}, "step": np.int32(step)}


def live(folder: str, last: int) -> None:
    """One life: resume from the latest step, check it, save every step up to `last`."""
    import jax.numpy as jnp
    import numpy as np

    from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention

    with Checkpointer(folder, Retention(latest=2, keep_every=25)) as checkpointer:
        start = checkpointer.latest_step()
        if start is not None:
            restored, meta = checkpointer.restore(expected(0), step=start)
            assert meta == {"data": {"step": start}}
            np.testing.assert_array_equal(restored["params"]["w"], expected(start)["params"]["w"])
        for step in range(0 if start is None else start + 1, last):
            state = {name: x for name, x in expected(step).items()}
            state["params"] = {"w": jnp.asarray(state["params"]["w"])}
            checkpointer.save(step, state, {"data": {"step": step}})


def kill_at(instant: str) -> None:
    """Makes this process kill itself at one instant, the third time that it comes by."""
    when, name = instant.split()
    original, calls = getattr(store, name), []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def patched(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3 or name == "set_aside":
            if when == "before":
                die()
            if when == "within":
                store.remove_tree = lambda folder: die()
            original(*args, **kwargs)
            die()
        return original(*args, **kwargs)

    setattr(store, name, patched)


def fork(life) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            life()
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole_steps(folder: Path) -> list[int]:
    steps = store.committed_steps(folder)
    for step in steps:
        assert store.damage(folder / str(step)) == []
    return steps


def random_kills(folder: Path, kills: int, seed: int) -> dict:
    rng = random.Random(seed)
    reached, codes = [], []
    for _ in range(kills):
        before = store.committed_steps(folder)
        pid = fork(lambda: live(str(folder), 10**6))
        give_up = time.monotonic() + 60
        while store.committed_steps(folder)[-1:] == before[-1:] and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        codes.append(ended(pid))
        reached.append(whole_steps(folder)[-1])
    last = reached[-1] + 5
    codes.append(ended(fork(lambda: live(str(folder), last + 1))))
    return {"codes": codes, "reached": reached, "last": last, "steps": whole_steps(folder), "left": names(folder)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "history")


def kills_at_instants(folder: Path) -> dict:
    results = {}
    for instant in INSTANTS:
        where = folder / instant.replace(" ", "_")
        if "set_aside" in instant:
            assert ended(fork(lambda where=where: live(str(where), 4))) == 0

        def doomed(where=where, instant=instant) -> None:
            kill_at(instant)
            if "set_aside" in instant:
                path = max((where / "3" / "state").rglob("*"), key=lambda p: p.stat().st_size)
                path.write_bytes(path.read_bytes()[:-1])
                from easylm_jax.checkpoint.checkpointer import Checkpointer

                Checkpointer(where).restore(expected(0))
            live(str(where), STEPS)

        code = ended(fork(doomed))
        steps = whole_steps(where)
        last = steps[-1] + 3
        codes = [code, ended(fork(lambda where=where, last=last: live(str(where), last + 1)))]
        results[instant] = {
            "codes": codes,
            "before": steps,
            "last": last,
            "steps": whole_steps(where),
            "left": names(where),
        }
    return results


def run_script(*arguments: str) -> dict:
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_random_kills(result: dict, kills: int) -> None:
    assert result["codes"] == [-signal.SIGKILL] * kills + [0]
    assert result["reached"] == sorted(set(result["reached"]))  # every life got further than the one before
    last = result["last"]
    kept = sorted({last - 1, last} | set(range(0, last, 25)))
    assert result["steps"] == kept
    assert result["left"] == sorted(map(str, kept))


def test_run_killed_at_random_moments_resumes_from_whole_checkpoints(tmp_path):
    check_random_kills(run_script("random", str(tmp_path), "5", "0"), 5)


@pytest.mark.chaos
def test_run_killed_fifty_times_resumes_from_whole_checkpoints(tmp_path):
    check_random_kills(run_script("random", str(tmp_path), "50", "1"), 50)


def test_kill_at_each_delicate_instant_leaves_earlier_checkpoints_whole(tmp_path):
    results = run_script("instants", str(tmp_path))
    assert set(results) == set(INSTANTS)
    for instant, result in results.items():
        assert result["codes"] == [-signal.SIGKILL, 0], instant
        assert result["before"], instant
        assert result["steps"][-2:] == [result["last"] - 1, result["last"]], instant
        aside = ["3.set-aside"] if "set_aside" in instant else []
        assert result["left"] == sorted([*map(str, result["steps"]), *aside]), instant


if __name__ == "__main__":
    import jax  # noqa: F401  imported before the forks, with no backend made yet
    import orbax.checkpoint  # noqa: F401

    if sys.argv[1] == "random":
        print(json.dumps(random_kills(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(kills_at_instants(Path(sys.argv[2]))))
