"""Promises of `easylm checkpoints list|verify|average|prune|diff`."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.checkpoint import tools
from easylm_jax.checkpoint.checkpointer import Checkpointer, Retention, restore_params
from easylm_jax.cli import checkpoints, main
from models.errors import UserError


def params(seed: int) -> dict:
    keys = jax.random.split(jax.random.key(seed))
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 8))},
        "b": {"scale": jax.random.normal(keys[1], (8,)).astype(jnp.bfloat16)},
    }


def write(stage, step: int = 1, seed: int = 0, clock: float = 0.0, row: int = 0, **retention) -> str:
    state = {"step": jnp.int32(step), "params": params(seed)}
    with Checkpointer(stage / "checkpoints", Retention(**retention)) as checkpointer:
        checkpointer.save(step, state, {"data": {"row": row}, "clocks": {"seconds": clock}})
    return str(stage / "checkpoints" / str(step))


def easylm_checkpoints(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    checkpoints.add_arguments(parser)
    return checkpoints.main(parser.parse_args(arguments))


def test_list_shows_step_size_age_name_and_kind(tmp_path, capsys):
    stage = tmp_path / "stage"
    with Checkpointer(stage / "checkpoints", Retention(latest=2, history=2)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"params": params(0)}, {}, name="first" if step == 1 else None)
    found = [(e.step, e.kind, e.name) for e in tools.list_checkpoints(stage)]
    assert found == [(1, "full", "first"), (2, "full", None), (2, "params", None), (3, "full", None)]
    assert all(e.bytes > 8 * 8 * 2 and 0 <= e.age < 600 for e in tools.list_checkpoints(stage))
    assert easylm_checkpoints("list", str(stage), "--json", str(tmp_path / "out.json")) == 0
    assert "first" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["checkpoints"]) == 4
    with pytest.raises(UserError, match="no such folder"):
        tools.list_checkpoints(tmp_path / "nowhere")


def test_list_shows_whole_checkpoints_beside_a_damaged_one(tmp_path, capsys):
    stage = tmp_path / "stage"
    with Checkpointer(stage / "checkpoints", Retention(latest=3)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"params": params(0)}, {})
    (stage / "checkpoints/2/manifest.json").write_text("{")
    found = tools.list_checkpoints(stage)
    assert [(e.step, e.kind, e.age is None) for e in found] == [
        (1, "full", False),
        (2, "damaged", True),
        (3, "full", False),
    ]
    assert easylm_checkpoints("list", str(stage)) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "full"], ["2", "damaged"], ["3", "full"]
    ]  # fmt: skip


def largest_file(step_folder):
    return max(
        (p for p in step_folder.rglob("*") if p.is_file() and p.name != "manifest.json"), key=lambda p: p.stat().st_size
    )


@pytest.mark.parametrize(
    "harm, fault",
    [
        (lambda p: p.write_bytes(bytes([p.read_bytes()[0] ^ 4]) + p.read_bytes()[1:]), "CRC-32 differs"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes instead of"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_verify_finds_a_flipped_bit_a_short_file_and_a_missing_one(tmp_path, capsys, harm, fault):
    good, bad = write(tmp_path / "s", 1), write(tmp_path / "s", 2)
    assert easylm_checkpoints("verify", str(tmp_path / "s")) == 0
    harm(largest_file(tmp_path / "s" / "checkpoints" / "2"))
    faults = tools.verify(tmp_path / "s")
    assert faults[good] == [] and fault in faults[bad][0]
    assert easylm_checkpoints("verify", str(tmp_path / "s"), "--json", str(tmp_path / "v.json")) == 1
    assert fault in capsys.readouterr().out
    assert json.loads((tmp_path / "v.json").read_text())["whole"] is False


def test_every_file_of_a_checkpoint_is_covered_by_verify(tmp_path):
    folder = tmp_path / "s" / "checkpoints" / "1"
    write(tmp_path / "s", 1)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            continue  # written by Orbax as it commits; holds times only
        whole = path.read_bytes()
        path.write_bytes(b"\xff" + whole[1:])
        assert not all(found == [] for found in [tools.verify(folder).get(str(folder), ["not listed"])]), path
        path.write_bytes(whole)
    assert tools.verify(folder) == {str(folder): []}


def test_average_of_identical_checkpoints_is_identical(tmp_path):
    stages = [write(tmp_path / str(i), seed=4) for i in range(7)]
    tools.average(stages, tmp_path / "soup")
    soup, one = restore_params(tmp_path / "soup"), restore_params(stages[0])
    for x, y in zip(jax.tree.leaves(soup), jax.tree.leaves(one), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


def test_average_is_the_arithmetic_mean_in_the_stored_dtype(tmp_path):
    stages = [tmp_path / str(i) for i in range(3)]
    for i, stage in enumerate(stages):
        write(stage, seed=i)
    assert easylm_checkpoints("average", *map(str, stages), "--out", str(tmp_path / "soup")) == 0
    soup = restore_params(tmp_path / "soup")
    for name, leaf in (("a", "kernel"), ("b", "scale")):
        values = [np.asarray(params(i)[name][leaf]) for i in range(3)]
        mean = np.mean([v.astype(np.float64) for v in values], axis=0).astype(values[0].dtype)
        assert soup[name][leaf].dtype == values[0].dtype
        np.testing.assert_array_equal(soup[name][leaf].astype(np.float64), mean.astype(np.float64))
    with pytest.raises(UserError, match="exists already"):
        tools.average(stages, tmp_path / "soup")


def test_average_refuses_one_checkpoint_and_other_shapes(tmp_path, capsys):
    first = write(tmp_path / "a")
    with pytest.raises(UserError, match="at least two"):
        tools.average([first], tmp_path / "soup")
    with Checkpointer(tmp_path / "b") as checkpointer:
        checkpointer.save(1, {"params": {"a": {"kernel": jnp.ones(3)}}}, {})
    with pytest.raises(UserError, match="cannot be averaged with .*: a.kernel|params.a.kernel differs in shape"):
        tools.average([first, tmp_path / "b"], tmp_path / "soup")
    capsys.readouterr()
    command = ["checkpoints", "average", str(first), str(tmp_path / "b"), "--out", str(tmp_path / "soup")]
    assert main.main(command) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "soup").exists()


def test_prune_deletes_what_retention_does_not_keep(tmp_path, capsys):
    stage = tmp_path / "s"
    with Checkpointer(stage / "checkpoints", Retention(latest=9, history=1)) as checkpointer:
        for step in range(1, 7):
            checkpointer.save(step, {"params": params(0)}, {}, name="kept" if step == 2 else None)
    (stage / "checkpoints" / "9.set-aside").mkdir()
    before = tools.list_checkpoints(stage)
    arguments = ("prune", str(stage), "--latest", "1", "--every", "3")
    assert easylm_checkpoints(*arguments, "--dry-run") == 0
    assert "would delete" in capsys.readouterr().out
    assert [e.folder for e in tools.list_checkpoints(stage)] == [e.folder for e in before]
    assert easylm_checkpoints(*arguments) == 0
    left = tools.list_checkpoints(stage)
    assert [e.step for e in left if e.kind == "full"] == [2, 3, 6]
    assert [e.step for e in left if e.kind == "params"] == [1, 2, 3, 4, 5, 6]
    assert not (stage / "checkpoints" / "9.set-aside").exists()


def test_prune_keeps_what_the_stage_itself_keeps(tmp_path):
    stage = tmp_path / "s"
    settings = {"checkpoints": {"every": 1, "latest": 3, "keep_every": 4, "history": None}}
    with Checkpointer(stage / "checkpoints", Retention(latest=9)) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, {"params": params(0)}, {"config": settings})
    assert easylm_checkpoints("prune", str(stage), "--latest", "4") == 0  # what is given comes before the stage's own
    assert [e.step for e in tools.list_checkpoints(stage)] == [4, 5, 6, 7, 8]
    assert easylm_checkpoints("prune", str(stage)) == 0
    assert [e.step for e in tools.list_checkpoints(stage)] == [4, 6, 7, 8]
    settings["checkpoints"]["latest"] = 1  # a resumed run may have other settings of checkpoints
    (stage / "config.json").write_text(json.dumps({"stage": settings}))
    assert easylm_checkpoints("prune", str(stage)) == 0
    assert [e.step for e in tools.list_checkpoints(stage)] == [4, 8]


def test_prune_refuses_when_the_newest_is_damaged(tmp_path):
    write(tmp_path / "s", 1)
    write(tmp_path / "s", 2)
    path = largest_file(tmp_path / "s" / "checkpoints" / "2")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="nothing pruned"):
        tools.prune(tmp_path / "s", Retention(latest=1))
    assert [e.step for e in tools.list_checkpoints(tmp_path / "s")] == [1, 2]


def test_diff_ignores_clocks_and_takes_a_stages_latest_step(tmp_path, capsys):
    write(tmp_path / "a", 1, seed=8)
    write(tmp_path / "a", 2, clock=1.0)
    step = write(tmp_path / "b", 2, clock=2.0)
    assert tools.diff(tmp_path / "a", step) == tools.DiffResult(True, [], {})
    assert easylm_checkpoints("diff", str(tmp_path / "a"), step, "--json", str(tmp_path / "d.json")) == 0
    assert capsys.readouterr().out == "identical\n"
    assert json.loads((tmp_path / "d.json").read_text()) == {"identical": True, "differ": [], "max_abs_diff": {}}


def test_diff_names_what_differs_and_exits_with_1(tmp_path, capsys):
    one = write(tmp_path / "a", 1, seed=1, row=1)
    two = write(tmp_path / "b", 1, seed=2, row=2)
    found = tools.diff(one, two)
    assert found.differ == ["params.a.kernel", "params.b.scale", "meta.data"]
    gap = np.abs(np.asarray(params(1)["a"]["kernel"], np.float64) - np.asarray(params(2)["a"]["kernel"])).max()
    assert found.max_abs_diff["params.a.kernel"] == pytest.approx(gap, rel=1e-12)
    assert easylm_checkpoints("diff", one, two, "--json", str(tmp_path / "d.json")) == 1
    assert "params.a.kernel  max abs difference" in capsys.readouterr().out
    written = json.loads((tmp_path / "d.json").read_text())
    assert written["identical"] is False and written["differ"] == found.differ


def test_diff_sees_sign_of_zero_nan_and_missing_arrays(tmp_path):
    for name, state in (
        ("a", {"x": jnp.array([0.0, np.nan]), "y": jnp.ones(2)}),
        ("b", {"x": jnp.array([-0.0, np.nan]), "y": jnp.ones(3)}),
        ("c", {"x": jnp.array([0.0, np.nan])}),
    ):
        with Checkpointer(tmp_path / name) as checkpointer:
            checkpointer.save(0, state, {})
    assert tools.diff(tmp_path / "a", tmp_path / "a").identical
    assert tools.diff(tmp_path / "a", tmp_path / "b") == tools.DiffResult(False, ["x", "y"], {"x": None, "y": None})
    assert tools.diff(tmp_path / "a", tmp_path / "c").differ == ["y"]


def test_folder_without_checkpoints_is_one_clear_line(tmp_path):
    for action in ("diff", "verify", "average"):
        with pytest.raises(UserError, match="no committed checkpoint in"):
            easylm_checkpoints(
                *{
                    "diff": ("diff", str(tmp_path), str(tmp_path)),
                    "verify": ("verify", str(tmp_path)),
                    "average": ("average", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "o")),
                }[action]
            )
