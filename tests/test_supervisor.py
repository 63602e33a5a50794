"""Runs on many machines: one command on a worker, what the workers report, and what the supervisor makes of it."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from easylm_jax.cli import main as cli
from easylm_jax.runtime import exit_status
from easylm_jax.runtime.launch import status, supervisor, worker
from easylm_jax.runtime.launch.status import Report
from easylm_jax.runtime.launch.supervisor import Limits, Supervisor, judge
from models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
LIMITS = Limits(deadline=2400, frozen=120, pause=10, longest_pause=60, failures=3)


@pytest.fixture
def job(tmp_path):
    """The folder of a job, which does not run any more after the test."""
    folder = tmp_path / "it's a job"
    yield folder
    worker.stop(folder, 0, now=True)


def python(code):
    return [sys.executable, "-S", "-c", code]


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(job):
    until(lambda: worker.status(job)["state"] != "running")
    return worker.status(job)


def test_a_command_runs_on_and_its_exit_status_and_error_are_reported(job):
    assert worker.status(job)["state"] == "absent"
    code = "import sys, time; time.sleep(0.3); print('easylm: error: no such data'); print('bye'); sys.exit(2)"
    assert worker.start(job, python(code), settle=0) == 0
    assert worker.status(job)["state"] == "running"
    found = ended(job)
    assert (found["state"], found["status"]) == ("ended", 2)
    assert found["error"] == "easylm: error: no such data"


def test_a_job_that_runs_is_not_started_twice_and_starts_again_when_it_has_ended(job, capfd):
    assert worker.start(job, python("import time; time.sleep(60)"), settle=0) == 0
    assert worker.main(["start", str(job), "--", "true"]) == 2
    assert "it's a job is running already" in capfd.readouterr().err
    assert worker.stop(job, 5) == 0
    assert worker.status(job)["asked_to_stop"]
    assert worker.start(job, python("print('again')"), settle=0) == 0
    assert ended(job)["status"] == 0 and not worker.status(job)["asked_to_stop"]
    assert (job / worker.LOG).read_text().count("=== ") == 2  # the log keeps both


def test_a_command_that_fails_at_once_fails_the_start_with_its_error(job, capfd):
    assert (
        worker.main(["start", str(job), "--", *python("print('easylm: error: no recipe'); raise SystemExit(2)")]) == 2
    )
    assert capfd.readouterr().err == "easylm: error: no recipe\n"
    assert worker.main(["start", str(job), "--", *python("raise SystemExit(1)")]) == 75
    assert worker.main(["start", str(job), "--", "/no/such/command"]) == 2
    assert "cannot run /no/such/command: No such file or directory" in capfd.readouterr().err


def test_stop_lets_the_command_save_and_kills_it_after_its_grace(job):
    saves = (
        "import signal, time, sys\nsignal.signal(15, lambda *_: sys.exit(130))\nprint('up', flush=True)\ntime.sleep(60)"
    )
    worker.start(job, python(saves), settle=0)
    until(lambda: "\nup\n" in (job / worker.LOG).read_text())
    assert worker.stop(job, 20) == 0
    until(lambda: worker.status(job)["status"] == 130)
    deaf = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    worker.start(job, python(deaf), settle=0)
    until(lambda: "\ndeaf\n" in (job / worker.LOG).read_text())
    assert worker.stop(job, 0.1) == 0
    until(lambda: worker.status(job)["status"] == -9)


def test_processes_that_a_command_leaves_are_ended_with_it(job):
    child = python("import time; time.sleep(60)")
    code = f"import subprocess; print(subprocess.Popen({child!r}).pid)"
    worker.start(job, python(code), settle=0)
    assert ended(job)["status"] == 0
    child = int(re.search(r"^(\d+)$", (job / worker.LOG).read_text(), re.MULTILINE)[1])
    until(lambda: not Path(f"/proc/{child}").exists() or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text())


def test_a_command_whose_machine_went_down_is_lost(job):
    worker.start(job, python("import time; time.sleep(60)"), settle=0)
    begun = json.loads((job / worker.STATE).read_text())
    (job / worker.STATE).write_text(json.dumps({**begun, "born": "1", "watcher_born": "1"}))  # other processes' numbers
    found = worker.status(job)
    assert (found["state"], found["status"]) == ("lost", exit_status.LOST)
    (job / worker.STATE).write_text(json.dumps(begun))


def test_a_full_disk_is_told_in_one_line(job, capfd):
    job.mkdir()
    (job / worker.LOG).symlink_to("/dev/full")
    assert worker.main(["start", str(job), "--", "true"]) == 2
    assert capfd.readouterr().err == f"easylm: error: cannot write {job}: No space left on device\n"
    assert worker.status(job)["state"] == "absent"


def test_the_watchdog_of_a_run_tells_the_worker_its_stage_step_and_phase(job, tmp_path):
    code = (
        "import time\nfrom easylm_jax.runtime.monitor.watchdog import Watchdog\n"
        f"with Watchdog({str(tmp_path / 'sft')!r}, interval=0.01) as watchdog:\n"
        "    with watchdog.phase('step', 7): time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "easylm_jax.runtime.launch.worker", "start", str(job), "--", sys.executable, "-c"]
    subprocess.run([*command, code], env=environment, check=True, cwd=REPOSITORY, timeout=120)
    until(lambda: worker.status(job)["step"] is not None, 60)
    found = worker.status(job)
    assert (found["stage"], found["step"], found["phase"]) == ("sft", 7, "step")
    os.kill(found["pid"], signal.SIGSTOP)
    before = worker.status(job)["heartbeat_age"]
    until(lambda: worker.status(job)["heartbeat_age"] > before + 0.2)


def test_a_run_that_is_profiled_writes_an_xprof_trace_and_goes_on(job, tmp_path):
    code = (
        "import jax, time\nfrom easylm_jax.runtime.monitor.profile import ProfileOnRequest\n"
        "with ProfileOnRequest(0.05):\n    while True: jax.numpy.ones(8).sum().block_until_ready(); time.sleep(0.01)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    start = [sys.executable, "-m", "easylm_jax.runtime.launch.worker", "start", str(job), "--", sys.executable, "-c"]
    subprocess.run([*start, code], env=environment, check=True, cwd=REPOSITORY, timeout=120)
    assert worker.profile(job, 0.2) == 0
    assert list((job / "profile").rglob("*.xplane.pb"))
    assert worker.status(job)["state"] == "running"


def one(state="running", code=None, **fields):
    """What a worker reports."""
    running = state == "running"
    return {
        "worker": "w", "state": state, "status": code, "asked_to_stop": False, "pid": 1, "stage": "sft",
        "phase": "step" if running else None, "step": 5, "heartbeat_age": 1.0 if running else None,
        "progress_age": 2.0 if running else None, "log_age": 3.0, "error": None, **fields,
    }  # fmt: skip


def between_stages(**fields):
    return one(phase=None, heartbeat_age=None, progress_age=None, **fields)


@pytest.mark.parametrize(
    "pod, workers, kind, says",
    [
        ("READY", [one(), one()], "running", ""),
        ("READY", [one("ended", 0), one("ended", 0)], "done", "finished"),
        ("READY", [one("ended", 0), one()], "running", ""),
        ("PREEMPTED", [], "recreate", "the pod is PREEMPTED"),
        ("UNKNOWN", [], "unknown", "no worker answers"),
        ("READY", [one(), None, one()], "unknown", "worker 1 does not answer"),
        ("READY", [one("ended", 75), one("ended", -9)], "restart", "worker 1 ended, sft step 5, exit status -9"),
        ("READY", [one(), one("ended", 75)], "restart", "worker 1 ended, sft step 5, exit status 75"),
        ("READY", [one("ended", 130), one("ended", 130)], "restart", "exit status 130 (a signal"),
        ("READY", [one(), one("lost", -1)], "restart", "exit status -1 (the process is gone"),
        ("READY", [one(), one("absent", step=None)], "restart", "worker 1 nothing started"),
        (
            "READY",
            [one("ended", 75), one("ended", 2, error="easylm: error: no space")],
            "fix",
            "worker 1 ended, sft step 5, exit status 2 (an error that the user has to fix, in one line): "
            "easylm: error: no space",
        ),
        ("READY", [one("ended", 130, asked_to_stop=True)], "stopped", "stopped as asked"),
        ("READY", [one(asked_to_stop=True), one("ended", 130)], "running", "stopping"),
        ("READY", [one(), one(heartbeat_age=121.0)], "restart", "worker 1 hangs in phase step at step 5: its process"),
        ("READY", [one(), one(progress_age=2401.0)], "restart", "worker 1 hangs in phase step at step 5: no progress"),
        ("READY", [one(), {**between_stages(), "heartbeat_age": 121.0}], "restart", "worker 1 hangs at step 5: its"),
        ("READY", [between_stages(log_age=1.0), between_stages(log_age=9e4)], "running", ""),
        ("READY", [between_stages(log_age=2401.0), between_stages(log_age=9e4)], "restart", "outside of training"),
    ],
)
def test_what_the_workers_report_decides_what_is_done(pod, workers, kind, says):
    verdict = judge(Report(pod, tuple(workers)), LIMITS)
    assert verdict.kind == kind and says in verdict.reason


class FakePod:
    """A pod whose reports are a list, of which the last one stays; it records what it is asked to do."""

    def __init__(self, *reports, launch=0, recreate=()):
        self.reports, self.did, self._launch, self._recreate = list(reports), [], launch, list(recreate)

    def report(self):
        found = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(found, Report) else Report("READY", tuple(found))

    def launch(self, workers=None):
        self.did.append("launch" if workers is None else f"launch on {' '.join(map(str, workers))}")
        return self._launch

    def stop(self, now):
        self.did.append("kill" if now else "stop")
        return 0

    def recreate(self):
        self.did.append("recreate")
        return self._recreate.pop(0) if self._recreate else 0


def supervise(pod, elastic=None, **limits):
    """(exit status, what it said, how long it slept) with a clock that only sleeping moves."""
    said, slept = [], []
    made = Supervisor(
        pod, dataclasses.replace(LIMITS, poll=1, leave=0, **limits), elastic=elastic,
        say=said.append, sleep=slept.append, clock=lambda: sum(slept),
    )  # fmt: skip
    return made.run(), said, [pause for pause in slept if pause != 1]


NOTHING, FINISHED = [one("absent", step=None)], [one("ended", 0)]


def test_a_run_that_crashes_goes_on_to_its_end():
    pod = FakePod(NOTHING, [one(step=3)], [one("ended", 1)], [one(step=4)], FINISHED)
    status, said, pauses = supervise(pod)
    assert (status, pod.did, pauses) == (0, ["launch", "kill", "launch"], [10])
    assert "exit status 1 (an unexpected error" in said[0] and said[-1] == "finished after 1 restart"


def test_pauses_double_until_a_new_step_is_reached():
    crash = [[one("ended", 1, step=3)]]
    pod = FakePod(NOTHING, [one(step=3)], *crash, [one(step=2)], *crash, [one(step=3)], *crash, [one(step=4)], *crash,
                  FINISHED)  # fmt: skip
    status, _, pauses = supervise(pod)
    assert (status, pauses) == (0, [10, 20, 40, 10])


def test_a_step_that_is_seen_only_after_the_end_is_progress_too():
    pod = FakePod(NOTHING, *([one("ended", -9, step=step)] for step in range(1, 7)), FINISHED)
    status, _, pauses = supervise(pod)
    assert (status, pauses) == (0, [10] * 6)


def test_it_gives_up_after_failures_without_a_new_step():
    pod = FakePod(NOTHING, [one(step=3)], [one("ended", 1, step=3)])
    status, said, pauses = supervise(pod)
    assert (status, pauses, pod.did.count("launch")) == (75, [10, 20, 40], 4)
    assert said[-1].startswith("error: given up: 3 failures without a new step; the last: worker 0 ended")


def test_an_error_of_the_user_is_not_restarted_and_nothing_is_left_running():
    pod = FakePod(NOTHING, [one("ended", 2, error="easylm: error: no such data"), one()])
    status, said, _ = supervise(pod)
    assert (status, pod.did) == (2, ["launch", "kill"])
    assert said == [
        "error: not restarted: worker 0 ended, sft step 5, exit status 2 (an error that the user has to fix, in one "
        "line): easylm: error: no such data"
    ]


def test_a_preempted_pod_is_created_again_however_long_capacity_takes():
    gone = Report("PREEMPTED")
    pod = FakePod(NOTHING, [one(step=3)], gone, [one(step=4)], FINISHED, recreate=[69] * 6 + [0])
    status, said, pauses = supervise(pod)
    assert (status, pod.did) == (0, ["launch", *["recreate"] * 7, "launch"])
    assert "the pod is PREEMPTED" in said and pauses == [10] * 7


def test_a_hang_is_killed_and_restarted():
    pod = FakePod(NOTHING, [one(step=3, heartbeat_age=500.0), one()], [one()], [one(step=6)], FINISHED)
    status, said, _ = supervise(pod)
    assert (status, pod.did) == (0, ["launch", "kill", "launch"])
    assert said[0] == "worker 0 hangs in phase step at step 3: its process has not run for 500 s"


def test_a_run_that_is_going_on_is_watched_and_not_started():
    pod = FakePod([one()], FINISHED)
    assert supervise(pod)[0] == 0 and pod.did == []


def test_workers_that_stay_silent_are_taken_for_gone():
    pod = FakePod(NOTHING, [one(), None], *[[one(), None]] * 12, [one(step=9)], FINISHED)
    status, said, _ = supervise(pod, unreachable=10)
    assert (status, pod.did) == (0, ["launch", "recreate", "launch"])
    assert said[0] == "worker 1 does not answer for 10 s"


def four(lost=(), **how):
    return [None if i in lost else one(**how) for i in range(4)]


def test_an_elastic_run_goes_on_without_a_lost_worker_and_takes_it_back():
    pod = FakePod(
        [one("absent", step=None)] * 4, four(step=3), *[four(lost=[2])] * 4,
        *[four(lost=[2], step=4)] * 2, *[four(step=6)] * 5, four(step=9), [one("ended", 0)] * 4,
    )  # fmt: skip
    status, said, pauses = supervise(pod, elastic=2, shrink=2, grow=3)
    assert (status, pod.did, pauses) == (0, ["launch", "kill", "launch on 0 1 3", "stop", "launch"], [])
    assert said == [
        "worker 2 does not answer for 3 s", "restart 1 on workers 0, 1, 3", "worker 2 answers again",
        "restart 2 on all workers", "finished after 2 restarts",
    ]  # fmt: skip


def test_what_a_worker_that_was_left_out_reports_does_not_count():
    """It comes back with a job that its crash ended, or with none."""
    back = [one("lost", -1), one(step=5), one(step=5), one(step=5)]
    ended = [one("lost", -1), *[one("ended", 0)] * 3]
    pod = FakePod([one("absent", step=None)] * 4, *[four(lost=[0])] * 4, back, ended)
    status, _, _ = supervise(pod, elastic=2, shrink=2, grow=100)
    assert (status, pod.did) == (0, ["launch", "kill", "launch on 1 2 3"])


def test_rows_that_do_not_divide_over_the_workers_that_are_left_take_one_less():
    odd = [one("ended", 78), None, one("ended", 75), one("ended", 75)]
    two = [one("ended", 0), None, one("ended", 0), one("ended", 75)]
    pod = FakePod([one("absent", step=None)] * 4, *[four(lost=[1])] * 4, odd, two)
    status, said, _ = supervise(pod, elastic=2, shrink=2)
    assert (status, pod.did) == (0, ["launch", "kill", "launch on 0 2 3", "kill", "launch on 0 2"])
    assert "the rows do not divide over the devices that are left" in said[2]


def test_an_elastic_run_with_too_few_workers_waits_for_them():
    gone = [one(), *[None] * 3]
    pod = FakePod([one("absent", step=None)] * 4, *[gone] * 12, [one(step=9)] * 4, [one("ended", 0)] * 4)
    status, _, _ = supervise(pod, elastic=2, shrink=2, unreachable=10)
    assert (status, pod.did) == (0, ["launch", "recreate", "launch"])


def test_an_elastic_run_begins_on_the_workers_that_answer():
    pod = FakePod([one("absent", step=None), None], [one("ended", 0), None])
    assert supervise(pod, elastic=1)[0] == 0 and pod.did == ["launch on 0"]


def test_a_slice_is_not_elastic(tmp_path):
    scripts = supervisor.Scripts(tmp_path, "tulu", (), "run", ())
    with pytest.raises(UserError, match="a TPU slice cannot run without one of its hosts"):
        scripts.launch([0, 1])


def test_ctrl_c_stops_the_run_gently():
    pod = FakePod(NOTHING, [one()], KeyboardInterrupt())
    status, said, _ = supervise(pod)
    assert (status, pod.did, said) == (130, ["launch", "stop"], ["stopping the run; it saves first"])


def test_a_pod_that_does_not_exist_is_an_error_at_the_start_only():
    with pytest.raises(UserError, match="no such pod"):
        supervise(FakePod(Report("ABSENT")))
    pod = FakePod(NOTHING, Report("ABSENT"), FINISHED)
    assert supervise(pod)[0] == 0 and pod.did == ["launch", "recreate", "launch"]


def test_reports_are_read_from_what_each_worker_printed(tmp_path):
    (tmp_path / "0.log").write_text(f"Warning: a new host\n{json.dumps(one())}\n")
    (tmp_path / "1.log").write_text("ssh: connect to host 10.0.0.2 port 22: Connection refused\n")
    found = status.collect(tmp_path, "READY", 3)
    assert found == Report("READY", (one(), None, None))
    assert status.table(found).splitlines() == [
        "pod     READY", "worker 0  running, sft step 5, step for 2 s", "worker 1  does not answer",
        "worker 2  does not answer",
    ]  # fmt: skip


def test_every_exit_status_has_one_meaning_and_the_page_prints_it():
    assert (cli.EXIT_USER_ERROR, cli.EXIT_INTERRUPTED) == (exit_status.USER_ERROR, exit_status.STOPPED)
    rows = re.findall(
        r"^\| (-?\d+) \| (.+?) \| (yes|no) \|$", (REPOSITORY / "docs/launching.md").read_text(), re.MULTILINE
    )
    expected = [(str(code), row.text, "yes" if row.restart else "no") for code, row in exit_status.TABLE.items()]
    assert rows == expected
    assert exit_status.meaning(137).restart and exit_status.meaning(-6).text == "ended by signal 6"


def test_the_supervisor_runs_where_there_is_no_jax():
    code = "import sys, easylm_jax.runtime.launch.supervisor, easylm_jax.plan.cost\n"
    code += "print({'jax', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert run.stdout == "set()\n", run.stderr
    assert supervisor.main.__module__ == "easylm_jax.runtime.launch.supervisor"
