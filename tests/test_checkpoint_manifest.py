"""A manifest protects itself: whatever is changed in it is damage, which is skipped and never counted as intact."""

import json
import logging
import random

import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.checkpoint import Checkpointer, Retention, store, tools
from easylm_jax.cli.main import main
from models.errors import UserError
from models.reading import Damaged

WANTED = {"params": {"w": np.zeros((4, 4), np.float32)}}


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints of one small array."""
    with Checkpointer(tmp_path / "checkpoints", Retention(latest=5)) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"params": {"w": jnp.full((4, 4), float(step))}}, {"step": step})
    return tmp_path / "checkpoints"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def without_seal(manifest: bytes, **changes) -> str:
    """The manifest as versions before checksums of manifests wrote it."""
    fields = json.loads(manifest)
    del fields["sealed"], fields["crc32"]
    return json.dumps({**fields, "format": 1, **changes})


def test_every_single_bit_flip_of_a_manifest_is_damage(folder, record_property):
    path = folder / "3" / "manifest.json"
    whole = path.read_bytes()
    accepted = []
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        try:
            store.read_manifest(folder / "3")
        except Damaged:
            continue
        accepted.append(bit)
    record_property("single-bit flips", 8 * len(whole))
    record_property("accepted", len(accepted))
    assert accepted == []
    path.write_bytes(whole)
    assert store.damage(folder / "3") == []


def test_verify_and_resume_take_a_changed_manifest_for_damage(folder, caplog):
    path = folder / "3" / "manifest.json"
    whole = path.read_bytes()
    rng = random.Random(0)
    changes = [flipped(whole, rng.randrange(8 * len(whole))) for _ in range(5)]
    changes += [b"", whole[: len(whole) // 2], b"[" * 5000, b"\xff" + whole, whole + b" ", b"{}"]
    for changed in changes:
        path.write_bytes(changed)
        assert main(["checkpoints", "verify", str(folder)]) == 1
        with Checkpointer(folder) as checkpointer, caplog.at_level(logging.WARNING):
            restored, meta = checkpointer.restore(WANTED)
        assert meta == {"step": 2} and np.all(restored["params"]["w"] == 2)
        assert "checkpoint 3 in" in caplog.text and "using checkpoint 2 instead" in caplog.text
        (folder / f"3{store.SET_ASIDE}").rename(folder / "3")
    path.write_bytes(whole)
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(WANTED)[1] == {"step": 3}


def test_a_manifest_without_a_checksum_of_its_own_stays_readable(folder):
    path = folder / "3" / "manifest.json"
    whole, manifest = path.read_bytes(), store.read_manifest(folder / "3")
    path.write_text(without_seal(whole))
    assert store.read_manifest(folder / "3") == manifest and store.damage(folder / "3") == []
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(WANTED)[1] == {"step": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": True},
        {"step": -1},
        {"step": "3"},
        {"step": 7},
        {"kind": "half"},
        {"name": 3},
        {"saved_at": None},
        {"saved_at": float("nan")},
        {"more": 1},
        {"leaves": []},
        {"leaves": {"params.w": ["float33", [4, 4]]}},
        {"leaves": {"params.w": ["object", [4, 4]]}},
        {"leaves": {"params.w": ["finfo", [4, 4]]}},
        {"leaves": {"params.w": ["float32", [-4, 4]]}},
        {"leaves": {"params.w": ["float32", 16]}},
        {"files": {"../2/meta/meta.json": [11, None]}},
        {"files": {"/etc/hostname": [11, None]}},
        {"files": {"meta/meta.json": ["11", None]}},
        {"files": {"meta/meta.json": [11, -1]}},
        {"files": {"meta/meta.json": [11]}},
    ],
)
def test_a_manifest_that_cannot_be_right_is_damage_even_without_a_checksum(folder, changes):
    path = folder / "3" / "manifest.json"
    path.write_text(without_seal(path.read_bytes(), **changes))
    (fault,) = store.damage(folder / "3")
    assert "\n" not in fault
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.restore(WANTED)[1] == {"step": 2}


def test_a_whole_manifest_of_a_later_version_is_not_called_damage(folder):
    manifest = store.read_manifest(folder / "3")
    text = manifest.to_json().replace('"format": 2', '"format": 3')
    (folder / "3" / "manifest.json").write_text(text)
    with pytest.raises(Damaged, match="CRC-32 differs"):
        store.read_manifest(folder / "3")
    sealed = store.reading.sealed({"format": 3, "layout": "of the future"})
    (folder / "3" / "manifest.json").write_text(sealed)
    with pytest.raises(UserError, match="has format 3, this version reads 2; use the version that wrote it"):
        store.read_manifest(folder / "3")


def test_metadata_is_compared_with_its_checksum_wherever_it_is_read(folder):
    path = folder / "3" / "meta" / "meta.json"
    path.write_text(path.read_text().replace("3", "2"))
    with pytest.raises(Damaged, match="meta.json is damaged .* CRC-32 differs"):
        store.read_meta(folder / "3")


def test_prune_counts_only_intact_checkpoints(folder, capsys):
    """With `latest=2`, two intact ones stay though a damaged one lies between them."""
    with Checkpointer(folder, Retention(latest=9)) as checkpointer:
        for step in (4, 5):
            checkpointer.save(step, {"params": {"w": jnp.full((4, 4), float(step))}}, {"step": step})
    path = folder / "4" / "manifest.json"
    path.write_bytes(flipped(path.read_bytes(), 100))
    assert tools.prune(folder, Retention(latest=2)) == [str(folder / "1"), str(folder / "2")]
    assert store.committed_steps(folder) == [3, 4, 5] and store.damage(folder / "3") == []
    path = folder / "5" / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["checkpoints", "prune", str(folder), "--latest", "1"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert store.committed_steps(folder) == [3, 4, 5]


def test_retention_of_a_run_counts_only_checkpoints_with_a_readable_manifest(folder):
    path = folder / "2" / "manifest.json"
    path.write_bytes(flipped(path.read_bytes(), 100))
    with Checkpointer(folder, Retention(latest=2)) as checkpointer:
        assert checkpointer.restore(WANTED)[1] == {"step": 3}
        checkpointer.save(4, {"params": {"w": jnp.full((4, 4), 4.0)}}, {})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 3, 4]  # of the two intact ones none is deleted for the damaged one
