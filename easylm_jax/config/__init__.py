"""The dataclasses of a recipe. A recipe is a Python file that sets `recipe = Recipe(...)`.

    recipe = Recipe("my-run", stages=(
        Tokenizer("tokenizer", sources=(Source("data/*.jsonl"),), vocab_size=4096),
        Pretrain("pretrain", model=DecoderConfig(...), data=DataSpec(...), batch=32, steps=1000,
                 optimizer=OptimizerConfig("3e-4 cosine to 10% warmup 100 steps")),
        SFT("sft", init="pretrain", data=DataSpec(...), batch=16, epochs=2,
            optimizer=OptimizerConfig("2e-5 linear to 0")),
    ))

How a recipe is read, from the file to a run:

1. `load.load_recipe` imports the file, takes its `recipe`, checks the types of all fields (`fields.check_types`) and
   applies the overrides of the command line: `mesh=…` or `<stage>.<field>=…`, read by the type of the field.
2. A `Recipe` is a name, the layout of the devices, and stages. A stage is a frozen dataclass (`base.Stage` and its
   subclasses) that names the stages it depends on (`init="sft"`, `Source("stage:data/train.jsonl")`); `Stage.needs`
   lists them.
3. A `workspace.Workspace` is a recipe with its output folder `runs/<recipe>`. It orders stages by their needs and
   resolves names of stages to checkpoints and files.
4. `easylm_jax/experiment.py` runs each stage by its kind and skips those that are done. `fields.digest` of a stage's
   settings, and of those it needs, decides whether a folder of an earlier run still belongs to it.

Training stages return their loss from `objective`. A new training method is a class here and a pure function in
`easylm_jax.objectives`. Nothing in this package imports JAX.
"""

from easylm_jax.config.base import Checkpoints, MakeData, Monitoring, Stage, Tokenizer, Validation
from easylm_jax.config.data import DataSpec, Source
from easylm_jax.config.derive import AddVision, Average, Upcycle
from easylm_jax.config.dialogue import Dialogues, Revisions, Topics
from easylm_jax.config.evaluate import Ask, Benchmarks, Entry, Evaluate, PreferenceTable, Published, Task
from easylm_jax.config.losses import HeldOut, Losses
from easylm_jax.config.optimizer import LoraConfig, OptimizerConfig, ParameterGroup, SkipStep
from easylm_jax.config.preferences import (
    Binarise,
    PersonaPrompts,
    PoolModel,
    PromptPart,
    Rate,
    Respond,
    SelectPrompts,
    SelfInstruct,
)
from easylm_jax.config.recipe import Recipe
from easylm_jax.config.reward import JudgeModel, Reward, Sampling
from easylm_jax.config.rl import GRPO, PPO, RL, OnlineDPO
from easylm_jax.config.synthesize import BestOfN, Generate, MajorityVote
from easylm_jax.config.train import DPO, SFT, Pretrain, RewardModel, Train
from easylm_jax.config.writing import Server
from models.config import Compute, DecoderConfig, RopeScaling

__all__ = [
    "AddVision",
    "Ask",
    "Average",
    "Benchmarks",
    "BestOfN",
    "Binarise",
    "Checkpoints",
    "Compute",
    "DPO",
    "DataSpec",
    "DecoderConfig",
    "Dialogues",
    "Entry",
    "Evaluate",
    "GRPO",
    "Generate",
    "HeldOut",
    "JudgeModel",
    "LoraConfig",
    "Losses",
    "MajorityVote",
    "MakeData",
    "Monitoring",
    "OnlineDPO",
    "OptimizerConfig",
    "PPO",
    "ParameterGroup",
    "PersonaPrompts",
    "PoolModel",
    "PreferenceTable",
    "Pretrain",
    "PromptPart",
    "Published",
    "RL",
    "Rate",
    "Recipe",
    "Respond",
    "Revisions",
    "Reward",
    "RewardModel",
    "RopeScaling",
    "SFT",
    "Sampling",
    "SelectPrompts",
    "SelfInstruct",
    "Server",
    "SkipStep",
    "Source",
    "Stage",
    "Task",
    "Tokenizer",
    "Topics",
    "Train",
    "Upcycle",
    "Validation",
]
