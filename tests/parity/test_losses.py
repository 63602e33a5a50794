"""Losses and gradients equal TRL's on the same log-probabilities.

TRL computes most of its losses inside trainers. Each is called here on a trainer that was never initialised, with the
few attributes that its loss reads and with a model that hands out given log-probabilities.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm_jax.objectives import group_advantages, grpo_loss, kto_loss, preference_loss, reward_model_loss

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # their imports warn of much

PAIRS, LENGTH = 6, 14
BETA = {"dpo": 0.1, "dpo_norm": 5.0, "ipo": 0.1, "wpo": 0.1, "simpo": 2.0, "orpo": 0.1}


def close(got, want):
    """Within 1e-5 of the largest number in sight, which for losses of order 1 is 1e-5 itself."""
    want = want.detach().numpy()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=1e-5 * min(1.0, float(np.abs(want).max())))


def material(seed=0):
    """Token log-probabilities of policy and reference [2 · PAIRS, LENGTH], chosen first, and which tokens count."""
    rng = np.random.default_rng(seed)
    start, end = rng.integers(1, 5, 2 * PAIRS), rng.integers(6, LENGTH + 1, 2 * PAIRS)
    index = np.arange(LENGTH)
    mask = (index >= start[:, None]) & (index < end[:, None])
    policy = -rng.gamma(1.0, 1.0, size=mask.shape)
    reference = np.minimum(policy + rng.normal(0, 0.4, size=mask.shape), -1e-3)
    return (policy * mask).astype(np.float32), (reference * mask).astype(np.float32), mask


def trainer(cls, **attributes):
    """A trainer on one device that can compute a loss and nothing else."""
    import torch

    same = lambda x: x  # noqa: E731
    made = cls.__new__(cls)
    made.accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, gather=same, gather_for_metrics=same,
        reduce=lambda x, reduction: x, sync_gradients=True,
    )  # fmt: skip
    made.model = SimpleNamespace(training=True)
    made.aux_loss_enabled = False
    made._metrics = {"train": defaultdict(list)}
    made._total_train_tokens, made._tp_size = 0, 1
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def handing_out(log_probs):
    """A model whose forward pass is already known."""
    import torch

    zeros = torch.zeros(log_probs.shape)
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros
    )
    return lambda **inputs: outputs


def halves(x):
    return x[:PAIRS], x[PAIRS:]


def ours(kind, policy, reference, mask, **options):
    """Mean loss of all pairs from token log-probabilities."""
    sums, lengths = policy.sum(axis=1), mask.sum(axis=1)
    references = () if reference is None else halves(reference.sum(axis=1))
    chosen, rejected = halves(lengths)
    named = {} if kind == "dpo" else {"chosen_lengths": chosen, "rejected_lengths": rejected}
    return preference_loss(kind, *halves(sums), *references, **named, **options)[0].mean()


def compare(theirs, tokens, mask, f):
    """Loss, and gradient at the tokens that count, of their scalar and of ours as a function of the tokens."""
    theirs.backward()
    loss, slope = jax.value_and_grad(f)(jnp.asarray(tokens.detach().numpy()))
    close(loss, theirs)
    counted = np.asarray(mask, np.float32)
    close(slope * counted, tokens.grad * counted)
    assert float(jnp.abs(slope * counted).max()) > 1e-4, "the comparison must not be one of zeros"


@pytest.mark.parametrize(
    ("kind", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo"), ("dpo_norm", "sigmoid_norm"), ("wpo", "sigmoid")]
)
def test_losses_against_a_reference(kind, loss_type):
    import torch
    from trl import DPOTrainer

    policy, reference, mask = material()
    tokens = torch.tensor(policy, requires_grad=True)
    theirs = trainer(
        DPOTrainer, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type],
        loss_weights=[1.0], beta=BETA[kind], label_smoothing=0.0, use_weighting=kind == "wpo",
    )  # fmt: skip
    sums = torch.tensor(reference).sum(1)
    whole = torch.tensor(np.pad(mask, ((0, 0), (1, 0)))).long()  # unshifted: nothing predicts the first token
    inputs = {
        "input_ids": torch.zeros_like(whole), "attention_mask": torch.ones_like(whole), "completion_mask": whole,
        "ref_chosen_logps": sums[:PAIRS], "ref_rejected_logps": sums[PAIRS:],
    }  # fmt: skip
    loss = theirs._compute_loss(handing_out(tokens), inputs, False)
    compare(loss, tokens, mask, lambda x: ours(kind, x, jnp.asarray(reference), mask, beta=BETA[kind]))
    _, metrics = preference_loss("dpo", *halves(policy.sum(1)), *halves(reference.sum(1)), beta=BETA[kind])
    names = {
        "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected",
        "reward_margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
        "logprob_chosen": "logps/chosen",
        "logprob_rejected": "logps/rejected",
    }
    for name, their_name in names.items():
        assert float(metrics[name].mean()) == pytest.approx(theirs._metrics["train"][their_name][0], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("kind", ["simpo", "dpo"])
def test_losses_without_a_reference(kind, smoothing):
    """SimPO; and label-smoothed DPO against a reference of zeros, which their CPO is."""
    import torch
    from trl.experimental.cpo import CPOTrainer

    policy, _, mask = material(1)
    tokens = torch.tensor(policy, requires_grad=True)
    lengths = torch.tensor(mask.sum(1)) if kind == "simpo" else 1.0
    chosen, rejected = halves(tokens.sum(1) / lengths)
    nothing = torch.zeros(1)
    theirs = trainer(
        CPOTrainer, alpha=0.0, loss_type="simpo" if kind == "simpo" else "sigmoid", simpo_gamma=0.5, beta=BETA[kind],
        label_smoothing=smoothing, cpo_alpha=0.0,
        concatenated_forward=lambda model, batch: (chosen, rejected, nothing, nothing, nothing.sum()),
    )  # fmt: skip
    loss, _ = theirs.get_batch_loss_metrics(None, {})
    options = {"beta": BETA[kind], "label_smoothing": smoothing, "gamma": 0.5 if kind == "simpo" else None}
    base = None if kind == "simpo" else jnp.zeros(mask.shape)
    compare(loss, tokens, mask, lambda x: ours(kind, x, base, mask, **options))


def test_odds_ratio_loss_with_its_likelihood():
    """Their likelihood covers the prompt too; here both are given the response's."""
    import torch
    from trl.experimental.orpo import ORPOTrainer

    policy, _, mask = material(2)
    tokens = torch.tensor(policy, requires_grad=True)
    chosen, rejected = halves(tokens.sum(1) / torch.tensor(mask.sum(1)))
    nothing = torch.zeros(1)
    theirs = trainer(
        ORPOTrainer, beta=BETA["orpo"],
        concatenated_forward=lambda model, batch: (chosen, rejected, nothing, nothing, -chosen.mean()),
    )  # fmt: skip
    loss, _ = theirs.get_batch_loss_metrics(None, {})
    compare(loss, tokens, mask, lambda x: ours("orpo", x, None, mask, beta=BETA["orpo"]))


@pytest.mark.parametrize("sign", [1, -1])
def test_kahneman_tversky_loss(sign):
    """With a positive estimate of the divergence, and a negative one, which counts as 0."""
    import torch
    from trl import KTOTrainer

    policy, reference, mask = material(3)
    tokens = torch.tensor(policy, requires_grad=True)
    good = np.random.default_rng(4).random(2 * PAIRS) < 0.4
    mismatched, base = policy[::-1].copy(), policy[::-1] - sign * 0.05
    whole = torch.tensor(np.pad(mask, ((0, 0), (1, 0)))).long()
    elsewhere = torch.ones_like(whole)
    known = [handing_out(tokens), handing_out(torch.tensor(mismatched))]
    theirs = trainer(
        KTOTrainer, calculate_KL=True, precompute_ref_logps=True, loss_type="kto", beta=0.1, desirable_weight=1.3,
        undesirable_weight=0.8,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(whole), "attention_mask": whole, "completion_mask": whole,
        "KL_input_ids": elsewhere, "KL_attention_mask": whole, "KL_completion_mask": whole,
        "label": torch.tensor(good), "ref_logps": torch.tensor(reference).sum(1),
        "ref_KL_logps": torch.tensor(base.astype(np.float32)).sum(1),
    }  # fmt: skip
    loss = theirs._compute_loss(lambda **x: known[int(x["input_ids"][0, 0])](), inputs, False)
    kl = (mismatched.sum(1) - base.astype(np.float32).sum(1)).mean()
    assert (kl > 0) == (sign > 0)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    compare(loss, tokens, mask,
            lambda x: kto_loss(x.sum(1), reference.sum(1), good, beta=0.1, kl=kl, **weights)[0].mean())  # fmt: skip


@pytest.mark.parametrize("with_margin", [False, True])
def test_reward_model_loss(with_margin):
    import torch
    from trl import RewardTrainer

    rng = np.random.default_rng(5)
    scores, margin = rng.normal(0, 2, 2 * PAIRS).astype(np.float32), rng.random(PAIRS).astype(np.float32)
    given = torch.tensor(scores, requires_grad=True)
    theirs = trainer(RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=None))
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 3)} | ({"margin": torch.tensor(margin)} if with_margin else {})
    loss = theirs.compute_loss(lambda **x: SimpleNamespace(logits=given[:, None]), inputs)
    compare(loss, given, 1.0, lambda x: reward_model_loss(*halves(x), margin if with_margin else None)[0].mean())


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    ("aggregation", "loss_type"), [("token", "dapo"), ("sequence", "grpo"), ("dr_grpo", "dr_grpo"), ("bnpo", "bnpo")]
)
def test_group_relative_losses(aggregation, loss_type, ratio):
    import torch
    from trl import GRPOTrainer

    policy, reference, _ = material(6)
    rng = np.random.default_rng(7)
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, len(policy))[:, None]
    policy = np.minimum(policy, -0.01)
    old = (policy + rng.normal(0, 0.3, policy.shape)).astype(np.float32)
    rewards = rng.random((3, 4))
    advantages = np.array(group_advantages(rewards, "grpo")).reshape(-1)
    spread = torch.tensor(rewards).std(dim=1, keepdim=True)
    centred = torch.tensor(rewards) - torch.tensor(rewards).mean(dim=1, keepdim=True)
    close(advantages, (centred / (spread + 1e-8)).reshape(-1))

    tokens = torch.tensor(policy, requires_grad=True)
    theirs = trainer(
        GRPOTrainer, top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=ratio,
        beta=0.04, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.28, use_vllm=False,
        current_gradient_accumulation_steps=1, max_completion_length=20, _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=1.5, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *x, **y: (tokens, torch.zeros(tokens.shape), None),
    )  # fmt: skip
    ids, on = torch.zeros(mask.shape).long(), torch.tensor(mask).long()
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": on,
        "advantages": torch.tensor(advantages), "old_per_token_logps": torch.tensor(old),
        "ref_per_token_logps": torch.tensor(reference), "num_items_in_batch": on.sum(),
    }  # fmt: skip
    loss = theirs._compute_loss(None, inputs)

    def f(x):
        total, denominator, _ = grpo_loss(
            x, old, advantages, mask, clip_low=0.2, clip_high=0.28, aggregation=aggregation, ratio=ratio, dual_clip=1.5,
            reference_logprobs=reference, beta=0.04, constant=20.0 if aggregation == "dr_grpo" else None,
        )  # fmt: skip
        return total / denominator

    compare(loss, tokens, mask, f)
