"""Several processes train as one: the same batches, the same losses, and checkpoints that either can go on from."""

import json

import pytest
from support import (
    free_port,
    largest_difference,
    launcher,
    losses,
    only_line,
    project,
    reference,
    rows_read,
    with_vocabulary,
)

from easylm_jax.checkpoint import store
from easylm_jax.runtime.monitor.metrics import FILE_NAME

# 75 where a collective saw the connection close first, an abort where JAX's own watch over the processes did.
ENDED_BY_ANOTHER = (75, -6)
SAVING = "easylm_jax.train.loop:Loop._save"


def assert_same_batches(read, steps):
    """Every place of every global batch was read, and whoever read it saw the reference's row there."""
    ((cache, places),) = read.items()
    expected = reference().batches[cache]
    for step in steps:
        assert places[step] == expected[step], step


def statuses(results):
    return [result.status for result in results]


def test_two_processes_of_two_devices_go_on_from_one_and_follow_its_curve(tmp_path, record_property):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    assert launcher().run(*run, at=f"{SAVING}:2:SIGTERM").status == 130
    stopped = store.committed_steps(out / "tiny" / "pretrain" / "checkpoints")[-1]
    batches = tmp_path / "batches.jsonl"
    results = launcher().processes(2, *run, "mesh=fsdp=2,tp=2", devices=2, batches=batches)
    assert statuses(results) == [0, 0], results
    assert f"resuming at step {stopped} of 8" in results[0].err and "mesh fsdp=2,tp=2" in results[0].err
    assert not results[1].err  # one process speaks
    worst = largest_difference(losses(out / "tiny" / "pretrain"), losses(expected.root / "pretrain"))
    record_property("largest relative difference", worst)
    assert worst <= 1e-6
    assert_same_batches(rows_read(batches), range(stopped, 8))


def test_processes_whose_rows_are_no_neighbours_read_their_own(tmp_path, record_property):
    """On a pod the mesh follows the torus, in which the chips of a host form a square."""
    expected, out, batches = reference(), with_vocabulary(tmp_path / "runs"), tmp_path / "batches.jsonl"
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain", "mesh=fsdp=4")
    results = launcher().processes(2, *run, devices=2, woven=True, batches=batches)
    assert statuses(results) == [0, 0], results
    worst = largest_difference(losses(out / "tiny" / "pretrain"), losses(expected.root / "pretrain"))
    record_property("largest relative difference", worst)
    assert worst <= 1e-6
    assert_same_batches(rows_read(batches), range(8))


def test_four_processes_build_train_and_stop_together_and_one_goes_on(tmp_path, record_property):
    """From nothing: one trains the vocabulary and builds the cache; a signal to one stops all at the same step."""
    recipe, out, batches = project(tmp_path), tmp_path / "runs", tmp_path / "batches.jsonl"
    expected = reference()
    run = ("run", recipe, "--out", out, "pretrain.checkpoints.history=2")
    results = launcher().processes(4, *run, at={2: f"{SAVING}:4:SIGTERM"}, batches=batches)
    assert statuses(results) == [130] * 4, results
    folder = out / "tiny" / "pretrain"
    stopped = store.committed_steps(folder / "checkpoints")[-1]
    assert 4 <= stopped < 8
    assert len({result.err.splitlines()[-1] for result in results}) == 1
    lines = (folder / FILE_NAME).read_text().splitlines()
    assert len(lines) == stopped  # only process 0 writes
    assert_same_batches(rows_read(batches), range(stopped))
    shares = {len(json.loads(line)["places"]) for line in batches.read_text().splitlines()}
    assert max(shares) == 2  # no process reads more than its quarter of the eight rows
    assert store.damage(folder / "checkpoints" / str(stopped)) == []
    assert store.committed_steps(folder / "checkpoints" / "history")
    ended = launcher().run(*run, "--only", "pretrain")
    assert ended.status == 0 and f"resuming at step {stopped} of 8" in ended.err, ended.err
    worst = largest_difference(losses(folder), losses(expected.root / "pretrain"))
    record_property("largest relative difference", worst)
    assert worst <= 1e-6


def test_half_a_description_of_the_processes_is_told_in_one_line(tmp_path):
    recipe = project(tmp_path)
    result = launcher().run("run", recipe, "--out", tmp_path, environment={"EASYLM_PROCESSES": "2"})
    line = only_line(result)
    assert line.endswith("all set; missing: EASYLM_COORDINATOR, EASYLM_PROCESS_ID")
    number = {"EASYLM_COORDINATOR": "localhost:1", "EASYLM_PROCESSES": "two", "EASYLM_PROCESS_ID": "0"}
    line = only_line(launcher().run("run", recipe, "--out", tmp_path, environment=number))
    assert "EASYLM_PROCESSES must be a whole number, not 'two'" in line
    number |= {"EASYLM_PROCESSES": "2", "EASYLM_PROCESS_ID": "2"}
    line = only_line(launcher().run("run", recipe, "--out", tmp_path, environment=number))
    assert "EASYLM_PROCESS_ID must be between 0 and 1, not 2" in line


def test_hosts_that_do_not_share_the_run_folder_are_told_before_anything_is_written(tmp_path):
    recipe = project(tmp_path)
    shared = {"EASYLM_COORDINATOR": f"localhost:{free_port()}", "EASYLM_PROCESSES": "2"}
    running = [
        launcher().start("run", recipe, "--out", tmp_path / name, environment={**shared, "EASYLM_PROCESS_ID": str(i)})
        for i, name in enumerate(("mine", "yours"))
    ]
    first, second = (process.wait() for process in running)
    for result in (first, second):
        if result.status == 2:  # the other may see it end first
            assert "is not the same folder on all 2 processes; mount a bucket or NFS" in only_line(result)
    assert {first.status, second.status} <= {2, *ENDED_BY_ANOTHER} and 2 in (first.status, second.status)
    assert not (tmp_path / "mine" / "tiny").exists() and not (tmp_path / "yours").exists()


def test_a_pod_of_another_type_than_the_recipes_is_refused_unless_it_is_asked_for(tmp_path):
    recipe = project(tmp_path)
    recipe.write_text(recipe.read_text().replace('Recipe("tiny", ', 'Recipe("tiny", pod="v5p-64", '))
    run = ("run", recipe, "--out", tmp_path / "runs", "--only", "tokenizer")
    line = only_line(launcher().run(*run, environment={"EASYLM_POD": "v5litepod-16"}))
    assert "recipe tiny is for a v5p-64 and this pod is a v5litepod-16" in line and "pod=v5litepod-16" in line
    for pod, override in (("v5p-64", ()), ("v5litepod-16", ("pod=v5e-16",))):
        assert launcher().run(*run, *override, environment={"EASYLM_POD": pod}).status == 0


def test_a_mistake_that_one_process_meets_ends_all_of_them(tmp_path):
    recipe = project(tmp_path)
    with open(tmp_path / "texts.jsonl", "a") as file:
        file.write("{broken\n")
    first, second = launcher().processes(2, "run", recipe, "--out", tmp_path / "runs")
    assert f"{tmp_path}/texts.jsonl:121: broken JSON" in only_line(first)
    assert second.status in ENDED_BY_ANOTHER and "Traceback" not in second.err, second


@pytest.mark.chaos
def test_when_one_process_is_killed_the_others_end_and_the_run_goes_on_to_the_same_end(tmp_path):
    expected, out = reference(), with_vocabulary(tmp_path / "runs")
    run = ("run", expected.recipe, "--out", out, "--only", "pretrain")
    first, second = launcher().processes(2, *run, at={1: f"{SAVING}:4:SIGKILL"})
    assert second.status == -9
    assert first.status in ENDED_BY_ANOTHER and "Traceback" not in first.err, first
    stopped = store.committed_steps(out / "tiny" / "pretrain" / "checkpoints")[-1]
    assert stopped in (2, 3)
    results = launcher().processes(2, *run)
    assert statuses(results) == [0, 0], results
    assert f"resuming at step {stopped} of 8" in results[0].err
    assert largest_difference(losses(out / "tiny" / "pretrain"), losses(expected.root / "pretrain")) <= 1e-6
