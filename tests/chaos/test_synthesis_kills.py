"""Dialogues and the preference pipeline, killed at ten random moments: the same files, and nothing asked twice.

The seed of the moments is printed; EASYLM_CHAOS_SEED repeats one.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faulty_server import faulty_server
from preference_pipeline import FILES, no_row_twice, reply_to, seeds
from test_dialogues import SEEDS
from test_dialogues import reply_to as said_in_dialogues

pytestmark = pytest.mark.chaos

TESTS = Path(__file__).resolve().parent.parent

KILLS = 10
RECIPE = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from preference_pipeline import recipe as pipeline
from test_dialogues import SEEDS
from easylm_jax.config import Dialogues, Revisions, Server, Source
folder, url = Path({folder!r}), {url!r}
talk, revise = (Server(url=url, model=name, concurrency=3) for name in ("talker", "reviser"))
recipe = pipeline(folder, url, timeout=60.0)
recipe = dataclasses.replace(recipe, stages=(
    *recipe.stages,
    Dialogues("talk", server=talk, count=24, batch=6, slots=3, max_messages=6, domain_share=1.0, goal_share=1.0,
              **{{name: Source(str(folder / f"{{name}}.jsonl")) for name in SEEDS}}),
    Revisions("revise", server=revise, dialogues=Source("stage:talk/dialogues.jsonl"), batch=3, rounds=2),
))
"""
TALK = ("talk/dialogues.jsonl", "talk/dropped.jsonl", "talk/sft.jsonl", "talk/released.jsonl", "talk/tables.md",
        "talk/reading.md", "revise/revisions.jsonl", "revise/pairs.jsonl", "revise/tables.md")  # fmt: skip
STAGES = {"judge-a": "rate-a", "judge-b": "rate-b", "writer": "persona", "lister": "self", "talker": "talk",
          "reviser": "revise"}  # fmt: skip


def reply(body):
    return said_in_dialogues(body) if body["model"] in ("talker", "reviser") else reply_to(body)


def asks(server):
    """(model, number of the ask) of every request so far."""
    return [(body["model"], body["seed"] % (1 << 31)) for _, _, body in list(server.asked)]


def answered(root: Path, models):
    """(model, number) of every answer that is in a journal."""
    found = set()
    for model in models:
        stage = STAGES.get(model, "respond")
        for path in (root / stage / "parts").glob(f"asked-{model if stage == 'respond' else '*'}.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:  # what follows the last line end was cut
                found.add((model, int(json.loads(line)["id"])))
    return found


def test_ten_kills_leave_the_files_of_a_run_that_was_never_killed_and_nothing_is_asked_twice(tmp_path):
    seed = int(os.environ.get("EASYLM_CHAOS_SEED", random.randrange(10**6)))
    print(f"EASYLM_CHAOS_SEED={seed}")
    chooser = random.Random(seed)
    seeds(tmp_path)
    for name, rows in SEEDS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(url, out):
        path = tmp_path / "recipe.py"
        path.write_text(RECIPE.format(tests=str(TESTS), folder=str(tmp_path), url=url))
        command = [sys.executable, "-m", "easylm_jax", "run", str(path), "--out", str(out)]
        with open(tmp_path / "log.txt", "ab") as log:
            return subprocess.Popen(command, cwd=TESTS.parent, stdout=log, stderr=log)

    def finish(process):
        assert process.wait(timeout=300) == 0, (tmp_path / "log.txt").read_text()[-3000:]

    def slowly(body):
        time.sleep(0.01)
        return reply(body)

    with faulty_server(slowly, whole=True) as server:
        finish(start(server.url, tmp_path / "quiet"))
        total, every = len(server.asked), set(asks(server))
    assert len(every) == total
    moments = sorted(chooser.sample(range(1, total), KILLS))
    known, begun, killed = set(), 0, 0
    out = tmp_path / "killed"
    with faulty_server(slowly, whole=True) as server:
        # The recipe names the server's address, so its stages must be those of one server throughout.
        for moment in moments:
            process = start(server.url, out)
            while process.poll() is None and len(server.asked) < moment + 3 * killed:
                time.sleep(0.002)
            time.sleep(chooser.uniform(0, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
            time.sleep(0.1)  # what was in flight is counted with this run
            now = asks(server)
            assert not known & set(now[begun:]), "an answer of the journal was asked for again"
            begun, known = len(now), answered(out / "preferences", {model for model, _ in every})
        process = start(server.url, out)
        finish(process)
        now = asks(server)
    assert killed >= KILLS - 1, killed  # the last may come after the end
    assert not known & set(now[begun:]) and set(now) == every
    assert len(now) - total <= 3 * killed  # only what was in flight when a process was killed
    for name in (*FILES, *TALK):
        quiet, other = ((tmp_path / one / "preferences" / name).read_bytes() for one in ("quiet", "killed"))
        assert quiet == other, name
    no_row_twice(out / "preferences")
