"""`gs://BUCKET/PATH` is a folder where the bucket is mounted, and one clear line elsewhere."""

import pytest

from easylm_jax.cli import main
from easylm_jax.experiment import run
from easylm_jax.runtime import mounts
from models.errors import UserError


@pytest.fixture
def host(tmp_path):
    """(folder, function from a text to its path) of a host with two mounted buckets; of one only a folder."""
    table = tmp_path / "mounts"
    (tmp_path / "some runs").mkdir()
    (tmp_path / "part").mkdir()
    (tmp_path / "part.source").write_text("gs://large/teams/ours\n")
    folder = str(tmp_path).replace(" ", "\\040")
    table.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nruns {folder}/some\\040runs fuse.gcsfuse rw,nosuid 0 0\n"
        f"large {folder}/part fuse.gcsfuse rw 0 0\ndisk {folder}/disk ext4 rw 0 0\n"
    )
    return tmp_path, lambda text: mounts.local_path(text, str(table))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("gs://runs/tulu/first", "some runs/tulu/first"),
        ("gs://runs", "some runs"),
        ("gs://runs//tulu/", "some runs/tulu"),
        ("gs://large/teams/ours/x", "part/x"),
        ("gs://large/teams/ours", "part"),
    ],
)
def test_a_path_in_a_bucket_is_one_below_its_mount_point(text, path, host):
    folder, local = host
    assert local(text) == str(folder / path)


@pytest.mark.parametrize("text", ["runs", "/runs/x", "~/runs", "a:b"])
def test_a_path_stays_as_it_is(text, host):
    assert host[1](text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("gs://other/x", "the bucket other is not mounted on this host; mount it on every host"),
        ("gs://disk/x", "the bucket disk is not mounted"),  # a disk that is called like a bucket
        ("gs://large/teams/theirs", "only gs://large/teams/ours is mounted"),
        ("gs://large/teams/oursandmore", "only gs://large/teams/ours is mounted"),
        ("gs://runs/../x", "is no folder of a bucket"),
        ("gs://", "is no folder of a bucket"),
        ("s3://runs/x", "give a folder or gs://BUCKET/PATH"),
    ],
)
def test_what_is_not_mounted_is_one_clear_line(text, why, host):
    with pytest.raises(mounts.NotMountedError, match=why):
        host[1](text)


def test_a_run_is_written_to_its_bucket(host, monkeypatch, capsys):
    folder, _ = host
    monkeypatch.setattr(mounts.local_path, "__defaults__", (str(folder / "mounts"),))
    assert main.main(["run", "quickstart", "--only", "data", "--out", "gs://other/x"]) == 2
    assert "argument --out: gs://other/x cannot be reached: the bucket other" in capsys.readouterr().err
    with pytest.raises(UserError, match="--out gs://other/x cannot be reached"):
        run("quickstart", only="data", out="gs://other/x")
    assert main.main(["run", "quickstart", "--only", "data", "--out", "gs://runs/mine"]) == 0
    assert (folder / "some runs" / "mine" / "quickstart" / "data" / "done.json").is_file()
