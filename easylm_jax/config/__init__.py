"""What a recipe is made of: frozen dataclasses that a Python file fills in and a command line changes field by field.

    recipe = Recipe("my-run", stages=(
        Tokenizer("tokenizer", sources=(Source("data/*.jsonl"),), vocab_size=4096),
        Pretrain("pretrain", model=DecoderConfig(...), data=DataSpec(...), batch=32, steps=1000,
                 optimizer=OptimizerConfig("3e-4 cosine to 10% warmup 100 steps")),
        SFT("sft", init="pretrain", data=DataSpec(...), batch=16, epochs=2,
            optimizer=OptimizerConfig("2e-5 linear to 0")),
    ))

A stage is data and one method, `objective`: a new kind of training is a class here and a pure function in
`easylm_jax.objectives`.
"""

from easylm_jax.config.base import Checkpoints, MakeData, Monitoring, Stage, Tokenizer, Validation
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.config.evaluate import Entry, Evaluate, Published, Task
from easylm_jax.config.optimizer import LoraConfig, OptimizerConfig, ParameterGroup, SkipStep
from easylm_jax.config.recipe import Recipe
from easylm_jax.config.reward import JudgeModel, Reward, Sampling
from easylm_jax.config.rl import GRPO, PPO, RL, OnlineDPO
from easylm_jax.config.synthesize import BestOfN, Generate, MajorityVote
from easylm_jax.config.train import DPO, SFT, Pretrain, RewardModel, Train
from models.config import Compute, DecoderConfig, RopeScaling

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "SFT",
    "BestOfN",
    "Checkpoints",
    "Compute",
    "DataSpec",
    "DecoderConfig",
    "Entry",
    "Evaluate",
    "JudgeModel",
    "LoraConfig",
    "MajorityVote",
    "Generate",
    "MakeData",
    "Monitoring",
    "OnlineDPO",
    "OptimizerConfig",
    "ParameterGroup",
    "Pretrain",
    "Published",
    "RL",
    "Recipe",
    "Reward",
    "RewardModel",
    "RopeScaling",
    "Sampling",
    "SkipStep",
    "Source",
    "Stage",
    "Task",
    "Tokenizer",
    "Train",
    "Validation",
]
