"""The stages of Tülu 3 (arXiv 2411.15124): SFT, DPO, reward model, RLVR by PPO and by GRPO. OLMo 2 uses them too.

SFT is Section 4 and Table 11, DPO Section 5 and Table 20, the reward model Table 36, RLVR Section 6 and Table 21. Other
settings are those of the released commands (allenai/open-instruct, docs/tulu3.md and docs/olmo2.md) and their code. The
SFT mixture (Table 7) is published as trained: 939 344 conversations, sampled and with duplicates.

Departs from the paper: the last, smaller batch of an epoch is not trained on.
"""

import dataclasses

from easylm_jax.config import (
    DPO,
    GRPO,
    PPO,
    SFT,
    Checkpoints,
    Compute,
    DataSpec,
    Entry,
    Evaluate,
    OptimizerConfig,
    Published,
    Reward,
    RewardModel,
    Sampling,
    Source,
    Task,
    Validation,
)  # fmt: skip
from easylm_jax.evaluate import tasks
from recipes import mixes

LENGTH = 4096  # Table 11
SIDE = 2048  # tokens of one side of a pair: Tables 20 and 36
PROMPT, REPLY = 2048, 2048  # tokens: Table 21
MIXED = "RLVR-GSM-MATH-IF-Mixed-Constraints"  # 29,946 prompts, Section 6
HORIZON = 10_000_000  # episodes until the learning rate of the released commands is zero; the runs stop far earlier

# A row names its verifier, whose score is multiplied by ten. The constraints are those of Section 6, which are older
# than IFEval's; version "tulu3" verifies them as in the training of the released models, errors included (spec tulu3
# §6.3). REPAIRED uses corrected verifiers; a run with it departs from the paper
# (`ppo.reward.verifier="10 * by_dataset(...)"`). The reward does not include the score of a reward model. PPO and GRPO
# differ in the score of responses without an end token.
VERIFIER = "10 * by_dataset(ifeval=\"ifeval_old('tulu3')\")"
REPAIRED = "10 * by_dataset(ifeval='ifeval_old')"
PPO_REWARD = Reward(verifier=VERIFIER, missing_end=-10.0)
GRPO_REWARD = Reward(verifier=VERIFIER, missing_end=0.0)


def mixture(tokenizer: str) -> DataSpec:
    """The Tülu 3 SFT mixture: one conversation per row, truncated at 4096 tokens, loss on assistant turns, no BOS."""
    return DataSpec(
        (mixes.source("tulu3_sft"),),
        tokenizer,
        LENGTH,
        kind="chat",
        template="tulu",
        packing="none",
        on_bad="skip",  # conversations without trained tokens are dropped, as in the released code
    )


def sft(
    *, init: str, data: DataSpec, lr: float, batch: int, remat: str, accumulate: int = 1, seed: int = 0,
    examples: int | None = None,
) -> SFT:  # fmt: skip
    """Two epochs; the loss is summed over tokens and divided by the number of conversations (Section 4)."""
    return SFT(
        "sft",
        init=init,
        data=data,
        batch=batch,
        accumulate=accumulate,
        epochs=2,
        examples=examples,
        seed=seed,
        reduction="sequence_sum",
        # PyTorch's default betas. The commands disable gradient clipping, but their libraries replaced that by 1.0.
        optimizer=OptimizerConfig(
            f"{lr:g} linear to 0 warmup 3% rounded down", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0
        ),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(when_busy="skip"),
    )


def adamw(lr: str, *, eps: float = 1e-8, weight_decay: float = 0.0) -> OptimizerConfig:
    """AdamW of PyTorch. RLVR has PyTorch's default weight decay, 0.01 on every parameter."""
    return OptimizerConfig(
        lr, b1=0.9, b2=0.999, eps=eps, weight_decay=weight_decay, decay_embeddings=True, clip=1.0
    )  # fmt: skip


def pairs(mixture: str, tokenizer: str, *, overlong: str, template: str = "tulu") -> DataSpec:
    """Preferences of a published mixture, one pair per row. All assistant turns are trained, as until mid-2025."""
    return DataSpec(
        (Source(f"hf:allenai/{mixture}"),), tokenizer, 2 * SIDE, kind="preference", template=template, packing="none",
        overlong=overlong, train_on="assistant", on_bad="skip",
    )  # fmt: skip


def dpo(
    *, init: str, data: DataSpec, lr: float, remat: str, batch: int = 128, accumulate: int = 1, seed: int = 0,
    examples: int | None = None,
) -> DPO:  # fmt: skip
    """Length-normalised DPO with beta 5 for one epoch; the rate decays linearly after 10 % warm-up (Table 20)."""
    return DPO(
        "dpo",
        init=init,
        data=data,
        batch=batch,
        accumulate=accumulate,
        epochs=1,
        examples=examples,
        seed=seed,
        loss="dpo_norm",
        beta=5.0,
        optimizer=adamw(f"{lr:g} linear to 0 warmup 10% rounded down"),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(when_busy="skip"),
    )


def reward_model(
    *, init: str, data: DataSpec, remat: str, held_out: DataSpec | None = None, accumulate: int = 1,
    examples: int | None = None,
) -> RewardModel:  # fmt: skip
    """A reward model from the SFT model on the pairs of DPO, one epoch (Table 36). It initialises value models."""
    return RewardModel(
        "rm",
        init=init,
        data=data,
        validation=Validation(held_out) if held_out else None,
        batch=256,
        accumulate=accumulate,
        epochs=1,
        examples=examples,
        optimizer=adamw("3e-6 linear to 0", eps=1e-5),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(when_busy="skip"),
    )


def rlvr_prompts(name: str, tokenizer: str, template: str = "tulu") -> DataSpec:
    """Published prompts: a row has the name of its verifier (`dataset`) and its label (`ground_truth`)."""
    return DataSpec(
        (Source(f"hf:allenai/{name}"),), tokenizer, PROMPT, kind="prompts", template=template,
        keep=("dataset", "ground_truth"), on_bad="skip",
    )  # fmt: skip


def barely_falling(lr: float, batch: int, epochs: int = 4) -> str:
    """A schedule that decays linearly to zero over 10 million episodes, with `epochs` updates per `batch` of them."""
    return f"{lr:g} linear to 0 horizon {round(HORIZON / batch * epochs)} steps"


def ppo(
    name: str, *, init: str, value: str, data: DataSpec, lr: str, batch: int, episodes: int, kl: float, remat: str,
    epochs: int = 4, accumulate: int = 1, seed: int = 1, every: int = 100,
) -> PPO:  # fmt: skip
    """RLVR by PPO: a rollout is one batch and used `epochs` times, while the next is generated (Table 21).

    The value model is initialised from the reward model `value`, whose score is not part of the reward. GSM8K's test
    set is evaluated every `every` rollouts and those checkpoints are kept, since the released models were selected from
    such checkpoints.

    Departs from the paper: advantages are whitened over the rollout and losses averaged over the update; the released
    code whitens on each device and averages over each micro-batch (spec tulu3 §5.2).
    """
    return PPO(
        name,
        init=init,
        value=value,
        reward=PPO_REWARD,
        data=data,
        batch=batch,
        samples=1,
        rollout_epochs=epochs,
        accumulate=accumulate,
        steps=episodes // batch,
        seed=seed,
        sampling=Sampling(REPLY, temperature=1.0, slots=batch),
        asynchronous=1,
        sampler_correction="off",  # the released code has no importance weights for stale policies (spec tulu3 §5.2)
        kl=kl,
        kl_kind="k1",
        gamma=1.0,
        lam=0.95,
        clip=0.2,
        value_clip=0.2,
        value_coefficient=0.1,
        whiten="rollout",
        validation=Validation(gsm8k(data.tokenizer, str(data.template)).data, every=every),
        check="gsm8k",
        optimizer=adamw(lr, weight_decay=0.01),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(keep_every=every, when_busy="skip"),
    )


def grpo(
    name: str, *, init: str, data: DataSpec, steps: int, remat: str, prompts: int = 48, accumulate: int = 1,
    seed: int = 1,
) -> GRPO:  # fmt: skip
    """GRPO: 16 responses per prompt, two updates per rollout, KL coefficient 0.01 (docs/tulu3.md, docs/olmo2.md).

    Advantages are divided by the standard deviation with ddof 1, and no group is left out. The loss is the mean over
    the tokens of two responses, then over such pairs, as in the micro-batches of the released code (spec tulu3 §5.3;
    two is from docs/tulu3.md, OLMo 2's number is not published). `grpo.aggregation=token grpo.bnpo_rows=none` is the
    mean over all tokens of an update.

    Departs from the paper: old log-probabilities are those of the rollout, so that the ratio is not 1 in the second
    update; in the released code it is 1 in both.
    """
    return GRPO(
        name,
        init=init,
        reward=GRPO_REWARD,
        data=data,
        batch=prompts,
        samples=16,
        mini_batch=prompts * 8,
        accumulate=accumulate,
        steps=steps,
        seed=seed,
        sampling=Sampling(REPLY, temperature=1.0, slots=prompts * 16),
        asynchronous=1,
        sampler_correction="off",  # the released code has none
        kl=0.01,
        kl_kind="k3",
        advantages="grpo",
        clip_low=0.2,
        clip_high=0.2,
        aggregation="bnpo",
        bnpo_rows=2,
        validation=Validation(gsm8k(data.tokenizer, str(data.template)).data, every=100),
        check="gsm8k",
        optimizer=adamw("5e-7 constant", weight_decay=0.01),
        compute=Compute(dtype="bfloat16", remat=remat),
        checkpoints=Checkpoints(keep_every=100, when_busy="skip"),
    )


# Evaluations of the development suite (Table 24): greedy, 2,048 tokens. Departs from the paper: no worked examples, of
# which the paper shows eight for GSM8K and four for MATH; and MATH-500 instead of MATH.
_ASKED = {"max_new_tokens": 2048, "slots": 256}


def gsm8k(tokenizer: str, template: str = "tulu") -> Task:
    """GSM8K: 1,319 problems; the last number of the response must be correct."""
    return tasks.with_sampling(tasks.gsm8k(tokenizer, template), **_ASKED)


def math(tokenizer: str, template: str = "tulu") -> Task:
    """MATH-500: 500 of MATH's 5,000 test problems; the paper's column MATH has all of them."""
    data = dataclasses.replace(gsm8k(tokenizer, template).data, sources=(Source("hf:HuggingFaceH4/MATH-500:test"),))
    return Task("MATH-500", data, "math", Sampling(temperature=0.0, **_ASKED))


def ifeval(tokenizer: str, template: str = "tulu") -> Task:
    """IFEval: 541 prompts, prompt-level loose accuracy."""
    return tasks.with_sampling(tasks.ifeval(tokenizer, template), **_ASKED)


def table(
    title: str, entries: tuple[Entry, ...], published: tuple[Published, ...], tokenizer: str, template: str = "tulu"
) -> Evaluate:  # fmt: skip
    """Evaluates `entries` on GSM8K, MATH-500 and IFEval, with the paper's rows beside them.

    The score is the mean of GSM8K and IFEval, which are columns of the paper; MATH-500 is a further column.
    """
    return Evaluate(
        "table",
        title=title,
        tasks=tuple(task(tokenizer, template) for task in (gsm8k, math, ifeval)),
        entries=entries,
        published=published,
        compute=Compute(dtype="bfloat16"),
        average=("GSM8K", "IFEval"),
    )


def sft_table(title: str, data: DataSpec, published: tuple[Published, ...]) -> Evaluate:
    """The table of a recipe that ends with SFT on `data`: its model's row, with the paper's beside it."""
    return table(title, (Entry("SFT", ("sft",)),), published, data.tokenizer, str(data.template))
