"""The benchmarks run and keep their contract; what they compute from measurements is right. No test looks at a time."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    """The scripts' own folder is where they import from when they run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as in use
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def last_line(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert set(line) == {"ours", "peer", "ratio", "unit", "load", "config"}
    return line


def test_train_ends_in_a_json_line_and_says_where_the_step_goes():
    done = run("train.py", "--size", "tiny", "--repeats", "1", "--steps", "1", "--rows", "2", "--length", "32")
    line = last_line(done)
    assert line["ours"] > 0 and line["peer"] is None and line["ratio"] is None and line["unit"] == "tokens/s"
    config = line["config"]
    assert (config["rows"], config["length"], config["layers"], config["dtype"]) == (2, 32, 2, "float32")
    assert sum(config["milliseconds"].values()) == pytest.approx(config["step_ms"], rel=0.01)
    assert "parts of our step" in done.stdout


@pytest.mark.slow
def test_train_times_a_preset_with_experts():
    shape = ("--rows", "1", "--length", "32", "--steps", "1", "--repeats", "1")
    config = last_line(run("train.py", "--model", "olmoe-tiny", *shape))["config"]
    assert (config["size"], config["experts"], config["active"]) == ("olmoe-tiny", 16, 4)
    assert config["milliseconds"]["routers and experts"] > 0
    assert sum(config["milliseconds"].values()) == pytest.approx(config["step_ms"], rel=0.01)


def test_settings_of_a_peer_that_are_far_slower_than_its_best_are_left_out(capsys):
    from types import SimpleNamespace

    from common import Repeat
    from train import contenders

    workers = [SimpleNamespace(name=name) for name in ("ours", "a", "b", "c")]
    seconds = {"ours": 90.0, "a": 6.0, "b": 2.0, "c": 6.5}
    first = {name: Repeat(value, value, 0.0, {}) for name, value in seconds.items()}
    assert [worker.name for worker in contenders(workers, first)] == ["ours", "a", "b"]
    assert capsys.readouterr().out == "c: 3.2 times as long as the best; left out of the repeats\n"


@pytest.mark.slow
def test_dialogues_ends_in_a_json_line_and_writes_the_same_replies_either_way():
    small = ("--size", "tiny", "--dialogues", "2", "--turns", "2", "--system", "16", "--message", "4", "--reply", "4")
    line = last_line(run("dialogues.py", *small, "--repeats", "1"))
    assert line["ours"] > 0 and line["peer"] > 0 and line["unit"] == "dialogues/s"
    config = line["config"]
    assert config["same_replies"] == 1.0 and config["computed_with"] < config["computed_without"]


def test_evaluate_ends_in_a_json_line_with_questions_per_second():
    line = last_line(run("evaluate.py", "--size", "tiny", "--questions", "3", "--repeats", "1"))
    assert line["ours"] > 0 and line["peer"] is None and line["unit"] == "questions/s"
    assert (line["config"]["questions"], line["config"]["options"], line["config"]["dtype"]) == (3, 4, "float32")


def test_preferences_ends_in_a_json_line_with_real_tokens_and_the_padded_share():
    line = last_line(run("preferences.py", "--size", "tiny", "--pairs", "3", "--repeats", "1"))
    config = line["config"]
    assert line["ours"] > 0 and line["peer"] is None and line["unit"] == "real tokens/s"
    assert config["sequences"] == 6 and 0 < config["padding"]["ours"] < 1
    assert config["read"] < config["tokens"]  # a prompt is read once for its two answers


@pytest.mark.slow
def test_checkpoint_ends_in_a_json_line_with_blocked_time_and_disk():
    line = last_line(run("checkpoint.py", "--size", "tiny", "--repeats", "1", "--steps", "6"))
    config = line["config"]
    assert line["ours"] == config["blocked_ms"] > 0 and line["ratio"] == config["blocked_share"]
    assert config["blocked_ms_p95"] >= config["blocked_ms"]
    # Two stay and one is being written; a look may come between two files of one that is being deleted.
    assert config["checkpoint_mb"] <= config["largest_disk_mb"] < 4.5 * config["checkpoint_mb"]


def test_curation_finds_every_planted_row_and_ends_in_a_json_line():
    done = run("curation.py", "--rows", "3000", "--workers", "1")
    config = last_line(done)["config"]
    assert set(config["planted"]) > {"exact", "cased", "49%", "50%"} and config["peak_mb"] > 0
    assert all(share == (form not in ("40%", "49%")) for form, share in config["planted"].items())
    joined = {(t, s): share for t, s, share, _ in config["near_duplicates"]}
    assert joined[0.8, 0.8957] == joined[0.7, 0.7021] == 1 and joined[0.8, 0.7021] == 0


def test_a_peer_without_its_environment_is_one_line_and_exit_2(monkeypatch, tmp_path):
    import common
    import train

    monkeypatch.setattr(train, "ROOT", tmp_path)
    with pytest.raises(common.BenchmarkError, match=r"setup_peers\.sh hf"):
        train.peer_workers("hf", "spec.json", mixture=False)


def test_an_unknown_peer_environment_is_refused_before_anything_is_built():
    done = subprocess.run([BENCHMARKS / "setup_peers.sh", "nobody"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'nobody'" in done.stderr and not (ROOT / ".peers" / "nobody").exists()


def test_busy_and_stolen_seconds_are_read_from_proc():
    from common import parse_process_stat, parse_stat

    text = "cpu  100 20 30 5000 60 7 3 40 0 0\ncpu0 50 10 15 2500 30 3 1 20 0 0\n"
    assert parse_stat(text) == (1.6, 0.4)
    name_with_brackets = "42 (a (b) c) S 1 42 42 0 -1 4194304 10 0 0 0 250 50 7 8 20 0 9 0 100"
    assert parse_process_stat(name_with_brackets) == 3.0


def test_load_is_what_others_used_and_what_the_host_took():
    from common import CpuClocks, load_between

    before = CpuClocks(wall=10.0, busy=100.0, stolen=1.0, own=40.0)
    after = CpuClocks(wall=14.0, busy=107.0, stolen=2.0, own=46.0)
    assert load_between(before, after) == pytest.approx(0.5)
    assert load_between(before, None) is None
    assert load_between(before, CpuClocks(14.0, 103.0, 1.0, 44.0)) == 0.0  # clocks tick in steps; never below nothing


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="there is no /proc on this system")
def test_another_busy_process_is_seen_as_load():
    from common import cpu_clocks, load_between

    code = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    spin = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.3)  # past its start
        stranger, ours = cpu_clocks([]), cpu_clocks([spin.pid])
        time.sleep(1.0)
        as_stranger, as_ours = load_between(stranger, cpu_clocks([])), load_between(ours, cpu_clocks([spin.pid]))
    finally:
        spin.kill()
        spin.wait()
    assert as_stranger > as_ours


def repeat(load, seconds=1.0):
    from common import Repeat

    return Repeat(seconds, seconds, load, {})


def test_noisy_repeats_are_left_out_only_where_enough_quiet_ones_remain():
    from common import kept

    quiet, noisy = repeat(0.02), repeat(1.5)
    chosen, is_quiet = kept({"ours": [quiet, noisy, quiet, quiet], "peer": [quiet] * 4})
    assert is_quiet and chosen == {"ours": [quiet] * 3, "peer": [quiet] * 4}
    taken = {"ours": [quiet, quiet, noisy, noisy], "peer": [quiet] * 4}
    assert kept(taken) == (taken, False)
    unknown = {"ours": [repeat(None)] * 4}
    assert kept(unknown) == (unknown, False)


def test_medians_and_percentiles():
    from common import median_load, percentile, spread
    from train import medians

    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert percentile(range(1, 101), 0.95) == 95 and percentile([7.0], 0.95) == 7.0
    assert percentile([1, 2, 3], 0.5) == 2 and percentile([1, 2, 3], 0.95) == 3
    assert median_load([repeat(0.1), repeat(None), repeat(0.3)]) == pytest.approx(0.2)
    assert median_load([repeat(None)]) is None
    assert medians([{"a": 1.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 9.0}]) == {"a": 2.0, "b": 4.0}


def test_the_ratio_is_ours_over_the_peers():
    from common import json_line

    assert json.loads(json_line(1234.56, 1000.0, "tokens/s", 0.01, {"rates": [1.23456]})) == {
        "ours": 1235.0, "peer": 1000.0, "ratio": 1.235, "unit": "tokens/s", "load": 0.01, "config": {"rates": [1.235]},
    }  # fmt: skip


def test_products_of_both_sides_are_the_same_work_but_for_the_recomputed_logits():
    from common import SIZES
    from train import hf_products, our_products

    shape, rows, length = SIZES["35m"], 4, 512
    ours = sum(p.flops for p in our_products(shape, rows, length, 1024).values())
    theirs = sum(p.flops for p in hf_products(shape, rows, length).values())
    again = 2 * rows * length * shape["width"] * shape["vocab"]
    assert ours - theirs == again
    matrices = shape["layers"] * (4 * shape["width"] ** 2 + 3 * shape["width"] * shape["ffn"])
    assert theirs == 6 * rows * length * (matrices + shape["width"] * shape["vocab"])
    mixture = {**shape, "experts": 16}
    left = shape["layers"] * 3 * shape["width"] * shape["ffn"]
    for made in (our_products, hf_products):  # those of experts are timed as a part of the step
        sizes = (rows, length, 1024)[: 3 if made is our_products else 2]
        both = (sum(p.flops for p in made(one, *sizes).values()) for one in (shape, mixture))
        assert next(both) - next(both) == 6 * rows * length * left


def test_the_parts_of_a_step_add_up_to_it():
    from train import breakdown

    parts = {"step": 1.0, "attention": 0.05, "head": 0.2, "optimizer": 0.04}
    lines = breakdown(parts, {"qkv": 0.3, "down": 0.1, "head": 0.15}, layers=2)
    assert sum(lines.values()) == pytest.approx(1.0)
    assert lines["softmax and loss"] == pytest.approx(0.05) and lines["the rest"] == pytest.approx(0.26)
    mixture = breakdown({**parts, "experts": 0.1}, {"qkv": 0.3, "head": 0.15}, layers=2)
    assert mixture["routers and experts"] == pytest.approx(0.2) and sum(mixture.values()) == pytest.approx(1.0)


def test_workers_take_turns_and_the_order_turns_round(tmp_path):
    from common import Worker, take_turns

    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from common import serve, take_stdout\n"
        "channel = take_stdout(); print('noise that is no answer')\n"
        "def burst(steps):\n"
        f"    open({str(tmp_path / 'order')!r}, 'a').write(sys.argv[1])\n"
        "    return {'seconds': 1.0, 'cpu_seconds': 1.0, 'steps': steps}\n"
        "serve({'name': sys.argv[1]}, {'burst': burst}, channel)\n"
    )
    with Worker("a", [sys.executable, "-c", code, "a"]) as a, Worker("b", [sys.executable, "-c", code, "b"]) as b:
        assert (a.about, b.about) == ({"name": "a"}, {"name": "b"})
        taken = take_turns([a, b], 3, steps=2)
    assert (tmp_path / "order").read_text() == "abbaab"
    assert [r.answer["steps"] for r in taken["a"]] == [2, 2, 2]


def test_a_worker_that_dies_is_one_line_with_what_it_said_last():
    from common import BenchmarkError, Worker

    with pytest.raises(BenchmarkError, match="worker sick ended with status 3: the reason"):
        Worker("sick", [sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"])


def test_disk_use_is_counted_while_files_come_and_go(tmp_path):
    from checkpoint import DiskWatch, folder_bytes

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 1000)
    assert folder_bytes(tmp_path) == 1000 and folder_bytes(tmp_path / "nowhere") == 0
    looked = threading.Event()

    class Looking(DiskWatch):
        def _watch(self):
            self.largest = folder_bytes(self._folder)
            looked.set()
            super()._watch()

    with Looking(tmp_path, seconds=0.001) as watch:
        assert looked.wait(10)
        (tmp_path / "deep" / "file").unlink()
        (tmp_path / "deep").rmdir()
    assert watch.largest == 1000


def test_a_method_counts_as_better_where_its_gain_is_more_than_two_standard_errors():
    import quickstart_seeds

    def table(dpo: float, ppo: float) -> dict:
        over = {"method": "SFT", "stderr": 0.02}
        rows = [{"method": "pretrained", "over": None}, {"method": "SFT", "over": {**over, "method": "pretrained",
                 "difference": 0.5}}, {"method": "DPO", "over": {**over, "difference": dpo}},
                {"method": "PPO", "over": {**over, "difference": ppo}}]  # fmt: skip
        return {"rows": rows}

    found = [quickstart_seeds.gains(table(*gains)) for gains in ((0.05, 0.03), (0.041, -0.2), (0.04, 0.5))]
    assert found[0]["DPO"] == pytest.approx({"points": 5, "stderr": 2})
    assert quickstart_seeds.beaten(found) == {"DPO": 2, "PPO": 1}
