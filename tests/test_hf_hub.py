"""Names of models resolve to folders: local ones first, then the hub, and without it one clear line."""

import huggingface_hub
import pytest

from easylm_jax.checkpoint import hub
from models import UserError


@pytest.fixture
def calls(monkeypatch, tmp_path):
    made = []

    def download(repository, **options):
        made.append((repository, options))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return made


def test_local_folder_comes_before_the_hub(calls, tmp_path, monkeypatch):
    (tmp_path / "allenai" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("allenai/model").samefile(tmp_path / "allenai" / "model")
    assert hub.resolve(tmp_path / "allenai") == tmp_path / "allenai"
    assert calls == []
    assert hub.resolve("hf:allenai/model") == tmp_path / "cached"
    assert calls[0][0] == "allenai/model"


def test_revision_and_patterns_reach_the_hub(calls, tmp_path):
    assert hub.fetch("allenai/OLMo-2-1124-7B@stage1-step1000-tokens5B", allow=("*.json",)) == tmp_path / "cached"
    hub.resolve("allenai/OLMo-2-1124-7B")
    assert calls == [
        ("allenai/OLMo-2-1124-7B", {"revision": "stage1-step1000-tokens5B", "allow_patterns": ["*.json"]}),
        ("allenai/OLMo-2-1124-7B", {"revision": None, "allow_patterns": list(hub.MODEL_FILES)}),
    ]


@pytest.mark.parametrize("name", ["./nowhere/model", "nowhere", "hf:a/b/c", "hf:"])
def test_neither_folder_nor_hub_name_is_refused(name, calls):
    with pytest.raises(UserError, match="neither a folder nor a hub name"):
        hub.resolve(name)
    assert calls == []


def test_without_the_network_there_is_one_line(monkeypatch):
    def download(repository, **options):
        raise ConnectionError("could not reach the hub\nmany lines follow")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="cannot download allenai/x from the hub .*give the folder instead") as raised:
        hub.resolve("hf:allenai/x")
    assert "\n" not in str(raised.value)
