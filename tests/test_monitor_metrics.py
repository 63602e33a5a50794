import json
import math
import subprocess
import sys
import types

import numpy as np
import pytest

from easylm_jax.runtime.monitor import MetricsWriter, read_metrics
from easylm_jax.runtime.monitor.metrics import last_line
from models.errors import UserError


def writer(folder, **options):
    return MetricsWriter(folder, process_index=0, **options)


def test_line_is_valid_json_and_on_disk_before_write_returns(tmp_path):
    with writer(tmp_path / "stage") as metrics:
        metrics.write(3, {"loss": np.float32(2.5), "tokens": np.int64(512), "mfu": None})
        line = json.loads((tmp_path / "stage" / "metrics.jsonl").read_text())
    assert {name: line[name] for name in ("step", "loss", "tokens", "mfu")} == {
        "step": 3,
        "loss": 2.5,
        "tokens": 512,
        "mfu": None,
    }
    assert line["time"] > 1.7e9


def test_values_that_json_lacks_are_strings_in_the_file_and_floats_again_when_read(tmp_path):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": math.nan, "norms": np.array([1.0, -math.inf]), "worst": math.inf})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse)["loss"] == "NaN"
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["loss"]) and line["norms"] == [1.0, -math.inf] and line["worst"] == math.inf


def test_array_on_a_device_is_read_back(tmp_path):
    import jax.numpy as jnp

    with writer(tmp_path) as metrics:
        metrics.write(jnp.int32(4), {"loss": jnp.float32(0.5), "per_layer": jnp.arange(3)})
    (line,) = read_metrics(tmp_path)
    assert (line["step"], line["loss"], line["per_layer"]) == (4, 0.5, [0, 1, 2])


def test_resumed_run_appends_and_the_last_line_of_a_step_counts(tmp_path):
    with writer(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, {"loss": float(step)})
    with writer(tmp_path) as metrics:
        metrics.write(3, {"loss": 30.0})
        metrics.write(4, {"loss": 4.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1), (2, 2), (3, 30), (4, 4)]


def test_line_cut_short_by_a_kill_is_left_out_and_mended_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1]
    assert last_line(path)["step"] == 1
    with writer(tmp_path) as metrics:
        metrics.write(2, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_whole_last_line_without_newline_is_kept_on_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}')
    with writer(tmp_path) as metrics:
        metrics.write(2, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_killed_writer_loses_no_line(tmp_path):
    code = (
        "import os, sys\nfrom easylm_jax.runtime.monitor import MetricsWriter\n"
        "metrics = MetricsWriter(sys.argv[1], process_index=0)\n"
        "for step in range(50): metrics.write(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(50))


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no metrics at .*metrics\.jsonl"):
        read_metrics(tmp_path)


def test_only_process_zero_writes(tmp_path):
    with MetricsWriter(tmp_path / "stage", tensorboard=True, process_index=1) as metrics:
        metrics.write(1, {"loss": 1.0})
    assert not (tmp_path / "stage").exists()


def test_tensorboard_gets_every_number(tmp_path):
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.write(7, {"loss": 1.25, "note": "text", "mfu": None})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes() and b"note" not in events.read_bytes()


def test_wandb_resumes_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(**options):
        calls.append(("init", options["project"], options["id"], options["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for step in (1, 2):
        with writer(tmp_path, wandb="olmo") as metrics:
            metrics.write(step, {"loss": 2.0})
    first, second = [call for call in calls if call[0] == "init"]
    assert first == second and first[1] == "olmo" and first[3] == "allow"
    assert [call for call in calls if call[0] == "log"] == [("log", 1, {"loss": 2.0}), ("log", 2, {"loss": 2.0})]


@pytest.mark.parametrize(
    "options, package, hint",
    [
        ({"wandb": "project"}, "wandb", r"pip install 'easylm_jax\[wandb\]'"),
        ({"tensorboard": True}, "tensorboardX", "pip install tensorboardX"),
    ],
)
def test_tracker_that_is_not_installed_is_a_clear_error(tmp_path, monkeypatch, options, package, hint):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=hint):
        writer(tmp_path, **options)
