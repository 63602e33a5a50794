import io
import re
import threading

import pytest

from easylm_jax.runtime.monitor import Monitor, Progress, read_metrics
from easylm_jax.runtime.monitor.progress import short_number, short_time


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Lines(io.StringIO):
    """A log that tells when a line has come."""

    def __init__(self):
        super().__init__()
        self.came = threading.Semaphore(0)

    def write(self, text):
        count = super().write(text)
        self.came.release()
        return count


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_tells_all_that_a_person_asks():
    clock, log = Clock(), io.StringIO()
    with Progress("sft", 1000, 0, log, heartbeat=3600, clock=clock) as progress:
        progress.update(10, {"loss": 3.0})
        clock.now = 20
        with progress.phase("step"):
            progress.update(20, {"loss": 2.34567, "tokens_per_second": 12345.6, "mfu": 0.4123}, checkpoint_age=4.0)
            assert progress.line() == (
                "[sft] step 20/1000 | loss 2.3457 | 12.3k tokens/s | MFU 41.2% | 32m40s left"
                " | checkpoint 4s ago | training"
            )
            clock.now = 91
            assert progress.line().endswith("checkpoint 1m15s ago | training for 1m11s")


def test_line_of_a_rollout_tells_what_the_policy_does():
    with Progress("ppo", 100, 0, io.StringIO(), heartbeat=3600, clock=Clock()) as progress, progress.phase("rollout"):
        progress.update(7, {"loss": 0.5, "score": 0.6251, "kl": -0.00412, "length": 145.26, "ended": 0.875})
        assert progress.line() == (
            "[ppo] step 7/100 | loss 0.5000 | score 0.625 | KL -0.004 | length 145 | ended 88% | rollout"
        )


def test_other_work_tells_its_counts_and_the_time_left():
    clock, log = Clock(), Lines()
    with Progress("table", 2000, stream=log, unit="responses", heartbeat=0.01, clock=clock) as progress:
        with progress.phase("sft: generating for GSM8K"):
            report = progress.part()
            report(0, 100)
            clock.now = 10
            report(500, 40_000)
            assert (
                progress.line()
                == "[table] 500/2,000 responses | 4k tokens/s | 30s left | sft: generating for GSM8K for 10s"
            )
            progress.part()(250, 0)  # the next part counts from what was done before
            assert progress.line().startswith("[table] 750/2,000 responses | 0 tokens/s | 17s left")
        assert log.came.acquire(timeout=30)
        clock.now = 100
        progress.update(2000, {})
    assert log.getvalue().splitlines()[-1] == "[table] 2,000/2,000 responses | took 1m40s"


def test_work_of_unknown_size_tells_what_is_known():
    clock = Clock()
    with Progress("data", None, stream=io.StringIO(), unit="records", heartbeat=3600, clock=clock) as progress:
        progress.update(1234, {})
        assert progress.line() == "[data] 1,234 records | between phases"
        clock.now = 5
        progress.update(3734, {})
        assert progress.line() == "[data] 3,734 records | 500 records/s | between phases"
    tokenizer = Progress("tokenizer", None, stream=io.StringIO(), unit=None, heartbeat=3600)
    with tokenizer as progress, progress.phase("training the vocabulary"):
        assert progress.line() == "[tokenizer] training the vocabulary"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_work_that_takes_no_time_leaves_nothing_to_read(stream):
    log = stream()
    with Progress("data", 10, stream=log, unit="records", heartbeat=3600) as progress, progress.phase("reading"):
        progress.update(5, {})
        progress.update(10, {})
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", log.getvalue()).replace("\r", "\n")
    assert stream is Terminal or screen == ""
    if stream is Terminal:  # the bar is one line that is rewritten, and erased at the end
        assert "10/10 records" in screen and log.getvalue().endswith("\x1b[1A\x1b[2K")


def test_phase_shows_its_age_once_it_is_long():
    clock = Clock()
    with Progress("sft", 10, stream=io.StringIO(), heartbeat=3600, clock=clock) as progress:
        with progress.phase("checkpoint"):
            clock.now = 5
            assert progress.line().endswith("| saving")
            clock.now = 130
            assert progress.line().endswith("| saving for 2m10s")
            with progress.phase("data"):
                assert progress.line().endswith("| reading data")
            assert progress.line().endswith("| saving")
        assert progress.line().endswith("| between phases")


def test_log_has_plain_lines_only():
    log = io.StringIO()
    with Progress("sft", 2, stream=log, heartbeat=3600) as progress:
        progress.message("from step 0")
        progress.update(1, {"loss": 1.0})
        progress.update(2, {"loss": 0.5})
    assert log.getvalue().splitlines() == [
        "[sft] from step 0",
        "[sft] step 1/2 | loss 1.0000 | between phases",
        "[sft] step 2/2 | loss 0.5000 | done",
    ]
    assert not set("\r\x1b") & set(log.getvalue())


def test_heartbeat_comes_while_a_step_hangs():
    log = Lines()
    with Progress("sft", 10, stream=log, heartbeat=0.01) as progress, progress.phase("compile"):
        for _ in range(3):  # no update is ever called
            assert log.came.acquire(timeout=30)
    assert log.getvalue().count("[sft] step 0/10 | compiling\n") >= 3


def test_terminal_gets_a_bar_and_messages_stay_above_it():
    screen = Terminal()
    with Progress("sft", 10, stream=screen) as progress, progress.phase("step"):
        progress.message("resumed at step 4")
        progress.update(5, {"loss": 1.5, "tokens_per_second": 900.0})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "[sft] resumed at step 4\n" in shown
    assert "━" in shown and "5/10" in shown and "loss 1.5000" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_show_nothing(stream):
    log = stream()
    with Progress("sft", 10, stream=log, heartbeat=0.01, enabled=False) as progress, progress.phase("step"):
        progress.update(1, {"loss": 1.0})
        progress.message("hello")
    assert log.getvalue() == ""


def test_closed_log_does_not_end_the_run():
    log = io.StringIO()
    with Progress("sft", 10, stream=log, heartbeat=3600) as progress:
        log.close()
        progress.update(1, {"loss": 1.0})
        progress.message("still here")
        assert "step 1/10 | loss 1.0000" in progress.line()


def test_time_left_starts_from_the_first_report_after_a_resume():
    clock = Clock()
    with Progress("sft", 100, 90, io.StringIO(), heartbeat=3600, clock=clock) as progress:
        clock.now = 500  # compiling
        progress.update(91, {})
        assert "left" not in progress.line()
        clock.now = 502
        progress.update(92, {})
        assert "| 16s left |" in progress.line()


def test_short_forms():
    assert [short_time(s) for s in (0, 59.4, 59.6, 200, 3600, 14700, 183600)] == [
        "0s",
        "59s",
        "1m00s",
        "3m20s",
        "1h00m",
        "4h05m",
        "2d03h",
    ]
    assert [short_number(v) for v in (0.123, 9.99, 872.4, 999.7, 12345, 4.56e6, 1e9)] == [
        "0.123",
        "9.99",
        "872",
        "1000",
        "12.3k",
        "4.56M",
        "1G",
    ]


def test_monitor_ties_them_together_and_clocks_go_on_after_a_kill(tmp_path):
    def monitor():
        return Monitor(tmp_path, "sft", 4, stream=io.StringIO(), heartbeat=3600, process_index=0)

    with monitor() as first:
        with first.phase("step", 1):
            first.log(1, {"loss": 2.0})
        saved = first.clocks()
        first.checkpoint_saved()
        with first.phase("step", 2):
            first.log(2, {"loss": 1.5})
        assert "checkpoint 0s ago" in first.progress.line()
    with monitor() as second:
        second.resume(saved, step=1)
        with second.phase("step", 2):
            second.log(2, {"loss": 1.5})
        clocks = second.clocks()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert (clocks["restarts"], clocks["steps_redone"]) == (1, 1)
    assert clocks["seconds"]["step"] > saved["seconds"]["step"]
    assert (tmp_path / "heartbeat-0.json").is_file()
