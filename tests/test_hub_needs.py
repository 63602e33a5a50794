"""What a run needs from the hub is looked for and told before any stage begins."""

import huggingface_hub
import pytest
from data_kit import write_jsonl
from huggingface_hub.errors import HfHubHTTPError

from easylm_jax import experiment
from easylm_jax.checkpoint import needs
from easylm_jax.checkpoint.needs import DATA, MODEL, TOKENIZER, Need
from easylm_jax.config import MakeData
from easylm_jax.experiment import load_recipe
from models.errors import UserError
from recipes.__main__ import FOLDER


class NotThere(HfHubHTTPError):
    """The hub answers that it has no such repository."""

    def __init__(self):
        Exception.__init__(self, "404")


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """An empty cache, and a hub that has what the set names; None: no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    state = {"has": set(), "asked": []}

    def repo_info(self, repository, *, revision=None, repo_type=None, timeout=None):
        state["asked"].append((repository, repo_type))
        if state["has"] is None:
            raise ConnectionError("no route\nto the hub")
        if repository not in state["has"]:
            raise NotThere

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    return state


def needs_of(name):
    return needs.needs(load_recipe(str(FOLDER / name)).stages)


def test_every_model_and_data_set_of_a_recipe_is_named_once():
    found = needs_of("tulu3/rlvr_8b.py")
    assert len(found) == len(set(found)) and set(found) == {
        Need(DATA, "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints"), Need(DATA, "openai/gsm8k"),
        Need(MODEL, "allenai/Llama-3.1-Tulu-3-8B-DPO"), Need(MODEL, "allenai/Llama-3.1-Tulu-3-8B-RM"),
        Need(DATA, "HuggingFaceH4/MATH-500"), Need(DATA, "google/IFEval"),
        Need(MODEL, "allenai/Llama-3.1-Tulu-3-8B-SFT"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # TensorFlow and seqio, which know the repositories of a mixture, warn on import
def test_a_tokenizer_alone_and_what_functions_read_by_default_are_needed_too():
    found = needs_of("olmo2/stage1_1b.py")
    assert Need(TOKENIZER, "allenai/dolma2-tokenizer") in found and Need(DATA, "allenai/olmo-mix-1124") in found
    made = MakeData("prompts", function="recipes.ifbench.data:write", arguments={"source": "hf:my/requests:test"})
    assert needs.needs([made]) == [Need(DATA, "my/requests"), Need(DATA, "allenai/IFBench_test")]
    assert needs.needs([MakeData("x", function="no.such:thing", arguments={"path": "hf:a/b", "n": 3})]) == [
        Need(DATA, "a/b")
    ]


def test_a_recipe_of_ones_own_files_needs_nothing_and_says_nothing(hub):
    said = []
    needs.check(load_recipe(str(FOLDER / "quickstart.py")).stages, said.append)
    assert said == [] and hub["asked"] == []


def test_folders_and_caches_count_as_here_and_nothing_is_asked(hub, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "hub/models--a--b/snapshots/1").mkdir(parents=True)
    (tmp_path / "hub/datasets--a--c/snapshots/1").mkdir(parents=True)
    (tmp_path / "datasets/a___d/x").mkdir(parents=True)
    (tmp_path / "hub/models--a--empty/snapshots").mkdir(parents=True)
    where = needs.Hub()
    here = [Need(MODEL, str(tmp_path / "model")), Need(MODEL, "a/b@main"), Need(DATA, "a/c"), Need(DATA, "a/d")]
    assert [where.locate(need) for need in here] == [needs.LOCAL, *[needs.CACHED] * 3] and hub["asked"] == []
    assert where.locate(Need(MODEL, "a/empty")) is None and where.locate(Need(DATA, "a/b")) is None
    assert hub["asked"] == [("a/empty", "model"), ("a/b", "dataset")]


def test_what_the_hub_has_is_told_and_no_error(hub):
    hub["has"] = {"a/b"}
    said = []
    needs.check([MakeData("x", function="no.such:thing", arguments={"path": "hf:a/b"})], said.append)
    assert said == ["needs the data set hf:a/b: on the hub, downloaded when it is read"]


def test_without_the_hub_everything_missing_is_one_line_and_it_is_asked_once(hub):
    hub["has"] = None
    said = []
    with pytest.raises(UserError, match="cannot be found: hf:.*the hub does not answer .ConnectionError.") as raised:
        needs.check(load_recipe(str(FOLDER / "tulu25/final_13b.py")).stages, said.append)
    assert "\n" not in str(raised.value) and len(hub["asked"]) == 1
    assert "needs the model hf:allenai/tulu-2-13b: NOT FOUND" in said
    assert all(line.startswith("needs the ") for line in said) and len(said) == str(raised.value).count("hf:") - 1


def test_a_run_ends_before_its_first_stage_and_goes_on_once_folders_are_given(hub, tmp_path, capfd):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from easylm_jax.config import MakeData, Recipe, Source, Tokenizer\n"
        "recipe = Recipe('r', (MakeData('first', function='test_hub_needs:rows', arguments={}),\n"
        "                      Tokenizer('later', sources=(Source('hf:no/such:test'),), vocab_size=300)))\n"
    )
    with pytest.raises(UserError, match="1 of the 1 models and data sets .* cannot be found: hf:no/such;"):
        experiment.run(str(recipe), out=str(tmp_path / "runs"))
    assert "needs the data set hf:no/such: NOT FOUND" in capfd.readouterr().err
    assert not (tmp_path / "runs/r/first/done.json").exists()  # nothing was begun
    assert experiment.run(str(recipe), only="first", out=str(tmp_path / "runs")) == 0  # which needs nothing of it
    write_jsonl(tmp_path / "mine.jsonl", [{"text": "one two three"}])
    given = [f"later.sources.0.path={tmp_path / 'mine.jsonl'}", "later.vocab_size=270"]
    assert needs.needs(load_recipe(str(recipe), given).stages) == []


def rows(seed):
    return {"rows.jsonl": [{"text": "a"}]}
