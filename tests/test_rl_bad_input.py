"""What a user can get wrong with rollouts ends in one clear line and status 2, and nothing already saved is lost."""

from pathlib import Path

import pytest
import rl_kit
from support import launcher, only_line

from easylm_jax.checkpoint import store
from easylm_jax.config import BestOfN, Reward, Validation
from easylm_jax.data.build import stage_cache
from easylm_jax.rewards.scorer import RewardScorer
from models.errors import UserError

STAGES = """
    ppo("ppo"), grpo("grpo"), online_dpo("online"),
    BestOfN("best", init="sft", data=prompts(HOME), reward=Reward(verifier="gsm8k"), sampling=Sampling(8), batch=4),
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A recipe and a runs folder in which what stands before reinforcement learning is done."""
    folder = tmp_path_factory.mktemp("finished")
    return rl_kit.recipe_file(folder, STAGES), rl_kit.copy_of_run(folder / "runs")


def assert_intact(out: Path) -> None:
    for stage, steps in (("pretrain", [1, 2]), ("sft", [19, 20]), ("reward", [2, 3])):
        checkpoints = out / "rl" / stage / "checkpoints"
        assert store.committed_steps(checkpoints) == steps
        assert all(store.damage(checkpoints / str(step)) == [] for step in steps)
        assert (out / "rl" / stage / "done.json").is_file()


def refused(finished, *arguments, **how) -> str:
    recipe, out = finished
    line = only_line(launcher().run("run", recipe, "--out", out, *arguments, **how))
    assert_intact(out)
    return line


BAD = {
    "an unknown verifier": ("grpo", ["reward.verifier=gsm9k"], "reward: no verifier 'gsm9k'"),
    "an unknown check": ("ppo", ["check=nowhere:judge"], "reward: no verifier 'nowhere:judge'"),
    "a verdict that is no number": (
        "grpo",
        ["reward.verifier=rl_kit:not_a_number"],
        "not_a_number gave nan for record",
    ),
    "a mini-batch that does not divide": ("ppo", ["mini_batch=3"], "mini_batch 3 does not divide the 8 responses"),
    "a policy that is a reward model": (
        "ppo",
        ["init=reward"],
        "stage ppo: init reward is a reward model (scalar head)",
    ),
    "a reward model without a head": (
        "ppo",
        ["reward.model=sft"],
        "stage ppo: reward.model sft has no scalar head, so it is no",
    ),
    "one answer without a group": ("grpo", ["samples=1"], "samples must be at least 2; an advantage compares"),
    "no answer": ("ppo", ["samples=0"], "ppo.samples: 0 is not a whole number of at least 1"),
    "an unknown advantage": ("grpo", ["advantages=best"], "'best' is not one of 'grpo', 'standard', 'mean'"),
    "an unknown loss": ("online", ["loss=dpoo"], "'dpoo' is not one of 'dpo', 'dpo_norm', 'ipo', 'simpo'"),
    "no room for a prompt": (
        "ppo",
        ["sampling.max_new_tokens=64"],
        "stage ppo: sampling.max_new_tokens needs a context of 65 tokens, but init sft has one of 64",
    ),
    "no share of the tokens": ("grpo", ["sampling.top_p=1.5"], "sampling.top_p: 1.5 is not a number of at most 1"),
    "no room for an answer": ("ppo", ["sampling.max_new_tokens=60"], "exceed the model's context of 64"),
    "a batch larger than the prompts": ("ppo", ["batch=64", "mini_batch=64"], "a batch of 64 rows is more than the"),
    "a reference of another shape": (
        "grpo",
        ["reference=reward"],
        "stage grpo: reference reward is a reward model (scalar head)",
    ),
    "greedy exploration": ("grpo", ["sampling.temperature=0"], "sampling.temperature must be above 0"),
    "data that are no prompts": (
        "ppo",
        ["data.kind=chat", "data.packing=none", "data.overlong=drop"],
        "data must be prompts",
    ),
    "nothing that scores": ("grpo", ["reward.verifier=None"], "reward: give a model, a verifier, or both"),
    "a reward that is nowhere": ("ppo", ["reward.model=run:/no/such"], "/no/such"),
    "an unknown verifier of best-of-N": ("best", ["reward.verifier=gsm9k"], "reward: no verifier 'gsm9k'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_setting_is_told_in_one_line(name, finished):
    stage, settings, says = BAD[name]
    line = refused(finished, *(f"{stage}.{setting}" for setting in settings), "--only", stage)
    assert says in line
    assert not store.committed_steps(finished[1] / "rl" / stage / "checkpoints")


def test_rows_that_do_not_divide_over_the_devices(finished):
    line = refused(finished, "--only", "ppo", devices=8)
    assert "a batch of 4 rows cannot be split over 8 shards of the mesh" in line


def test_models_of_another_vocabulary_are_refused(finished, tmp_path):
    """The prompts' tokens are not those that the policy and the reward model know by these numbers."""
    other = rl_kit.other_tokenizer(tmp_path)
    for stage in ("ppo", "best"):
        line = refused(finished, f"{stage}.data.tokenizer={other}", "--only", stage)
        assert line.startswith(
            f"stage {stage}: init sft was trained with another tokenizer than the one of the stage's"
        )


@pytest.fixture
def in_process():
    with rl_kit.devices(1):
        yield


def test_a_reward_model_of_another_vocabulary_is_refused(in_process, tmp_path):
    """The policy knows the prompts' tokens; the reward model says that it was trained with others."""
    step = store.resolve(rl_kit.made().out / "rl" / "reward")
    meta = {**store.read_meta(step), "tokenizer_hash": "0" * 64}
    with rl_kit.Checkpointer(tmp_path / "other" / "checkpoints", asynchronous=False) as checkpointer:
        params = rl_kit.nested_params(rl_kit.experiment(tmp_path / "runs"), "reward")
        checkpointer.save(1, {"params": params}, meta)
    other = f"run:{tmp_path}/other"
    for stage, what in ((rl_kit.grpo(reward=Reward(model=other)), "reward.model"), (rl_kit.ppo(value=other), "value")):
        it = rl_kit.experiment(tmp_path / "runs", stage)
        with pytest.raises(UserError, match=f": {what} run:.*/other was trained with another tokenizer than"):
            it.run(stage)


def test_a_reward_model_that_gives_no_number_ends_the_stage_and_it_goes_on(in_process, tmp_path, monkeypatch):
    broken = rl_kit.broken_reward(tmp_path / "broken")
    it = rl_kit.experiment(tmp_path / "runs", rl_kit.ppo(steps=3))
    original, calls = RewardScorer._model_scores, []

    def breaks(self, made):
        calls.append(made)
        return original(self, made) * (float("nan") if len(calls) == 3 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(RewardScorer, "_model_scores", breaks)
        with pytest.raises(UserError, match="reward: the reward model gave nan for record [0-9]+ of .*prompts.jsonl"):
            it.run(it.recipe.stage("ppo"))
    checkpoints = it.folder("ppo") / "checkpoints"
    assert store.committed_steps(checkpoints)[-1] == 2
    assert all(store.damage(checkpoints / str(step)) == [] for step in store.committed_steps(checkpoints))
    it.run(it.recipe.stage("ppo"))  # goes on where it was
    assert it.done(it.recipe.stage("ppo"))["step"] == 3
    again = rl_kit.experiment(tmp_path / "more", rl_kit.ppo(reward=Reward(model=broken)))
    with pytest.raises(UserError, match="the reward model gave nan"):
        again.run(again.recipe.stage("ppo"))


def test_a_value_model_that_diverges_ends_the_stage(in_process, tmp_path):
    """Its updates are skipped one after the other, as a policy's would be."""
    rate = rl_kit.dataclasses.replace(rl_kit.RATE, abort_after=2)
    stage = rl_kit.ppo(steps=3, value_optimizer=rate, value=rl_kit.broken_reward(tmp_path / "broken"))
    it = rl_kit.experiment(tmp_path / "runs", stage)
    with pytest.raises(UserError, match="the last 2 updates were all skipped .loss nan"):
        it.run(it.recipe.stage("ppo"))


def test_prompts_that_are_empty_or_too_long_are_left_out_and_counted(tmp_path):
    records = [rl_kit.prompt(i) for i in range(6)]
    records[1]["messages"][0]["content"] = "  "
    records[4]["messages"][0]["content"] = "one two three " * 20
    rl_kit.write(tmp_path / "prompts.jsonl", records)
    it = rl_kit.experiment(tmp_path / "runs")
    cache = stage_cache(it, rl_kit.prompts(tmp_path))
    counts = cache.manifest["sources"][0]["records"]
    assert (counts["read"], counts["kept"], counts["empty"]) == (6, cache.rows, 1)
    assert counts["overlong_dropped"] == 5 - cache.rows >= 1
    kept = [cache.record(i)["_messages"][0]["content"] for i in range(cache.rows)]
    assert set(kept) < {records[i]["messages"][0]["content"] for i in (0, 2, 3, 5)} | {""} and len(kept) > 1
    rl_kit.write(tmp_path / "prompts.jsonl", [records[1]] * 3)
    with pytest.raises(UserError, match="gave no prompt"):
        stage_cache(it, rl_kit.prompts(tmp_path))


def test_recipes_that_make_no_sense_are_refused_where_they_are_written():
    with pytest.raises(UserError, match="must be a multiple of samples .2."):
        rl_kit.online_dpo(samples=2, batch=3, mini_batch=3)
    with pytest.raises(UserError, match="compares whole responses at temperature 1"):
        rl_kit.online_dpo(sampling=rl_kit.Sampling(8, temperature=0.7))
    assert rl_kit.online_dpo(sampling=rl_kit.Sampling(8, temperature=0.7), logprob_temperature=1.0).temperature == 1
    with pytest.raises(UserError, match="give init, the policy to start from"):
        rl_kit.ppo(init=None, model=rl_kit.MODEL)
    with pytest.raises(UserError, match="validation prompts need check"):
        rl_kit.ppo(validation=Validation(rl_kit.prompts("x")))
    with pytest.raises(UserError, match="b.samples: 0 is not a whole number of at least 1"):
        BestOfN(
            "b",
            init="sft",
            data=rl_kit.prompts("x"),
            reward=Reward(verifier="gsm8k"),
            sampling=rl_kit.Sampling(8),
            samples=0,
        )
