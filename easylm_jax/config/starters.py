"""The recipes that `easylm new` prints: Python text for a model and a data set, with sizes that suit both."""

from __future__ import annotations

import dataclasses
import json
import re

from models.errors import UserError

KINDS = {
    "sft": "supervised fine-tuning on conversations",
    "dpo": "preference optimisation (DPO) on pairs of responses",
    "reward": "a reward model from pairs of responses",
    "ppo": "PPO: from pairs with a reward model that is trained first, from prompts with a reward function",
    "grpo": "GRPO on prompts with a reward function",
    "eval": "greedy responses to prompts, scored by a function",
}
LONGEST = 4096  # tokens of a row, where the model's context is not known
RESPONSE = {True: 64, False: 256}  # tokens of a sampled response, of a small model and of a large one
# Peak learning rates: of a small model (below 100M parameters), of a large one as in the recipes of Tülu 3 and OLMo 2.
RATES = {"sft": ("1e-3", "1e-5"), "reward": ("1e-3", "3e-6"), "dpo": ("1e-4", "5e-7"), "rl": ("1e-4", "5e-7")}
BATCHES = {"sft": 32, "reward": 32, "dpo": 32, "ppo": 64, "grpo": 16}


@dataclasses.dataclass(frozen=True)
class Start:
    """What a recipe is written for.

    Attributes:
        kind: one of `KINDS`.
        name: the name of the recipe, which is also that of its folder below `runs`.
        file: the recipe's file, as commands in its docstring name it.
        model: `hf:<name or folder>` or `run:<folder>`.
        tokenizer, template: of the data.
        data: path of the rows; `fields` as for `Source`.
        rows, longest: number of rows, and tokens of the longest one (see `data.survey.Survey`).
        measured: whether tokens were counted and not estimated.
        pairs: whether the rows are pairs of responses; `longest_prompt`: tokens of the longest prompt of a pair.
        label: the column that a response is compared with; None without one.
        context: the model's context in tokens; None where it is not known.
        small: whether the model has less than 100M parameters.
    """

    kind: str
    name: str
    file: str
    model: str
    tokenizer: str
    template: str
    data: str
    rows: int
    longest: int
    measured: bool = True
    fields: tuple[tuple[str, str], ...] | None = None
    pairs: bool = False
    longest_prompt: int | None = None
    label: str | None = None
    context: int | None = None
    small: bool = False

    @property
    def held_out(self) -> int:
        """Rows for validation: a tenth, at most 200; none of fewer than 8."""
        return min(self.rows // 10 or 1, 200) if self.rows >= 8 else 0

    @property
    def epochs(self) -> int:
        return 3 if self.rows < 1000 else 1

    def batch(self, most: int) -> int:
        """A power of two, so that an epoch has about eight updates or more."""
        eighth = max((self.rows - self.held_out) // 8, 1)
        return min(1 << (eighth.bit_length() - 1), most)

    @property
    def length(self) -> int:
        """Tokens of the longest row, rounded up to a multiple of 16, within the model's context."""
        return self._rounded(self.longest)

    @property
    def prompt_length(self) -> int:
        """Tokens of the longest prompt, likewise."""
        return self._rounded(self.longest_prompt or self.longest)

    def _rounded(self, tokens: int) -> int:
        return min(-(-max(tokens, 16) // 16) * 16, self.context or LONGEST)

    @property
    def response(self) -> int:
        """Tokens of a sampled response: what the context leaves beside the prompt."""
        most = RESPONSE[self.small]
        left = most if self.context is None else min(most, self.context - self.prompt_length)
        if left < 1:
            longest = self.longest_prompt or self.longest
            raise UserError(
                f"the prompts of {self.data} have up to {longest} tokens, which leaves no room for a response in the "
                f"model's context of {self.context}; shorten them or take another model"
            )
        return left


def text_of(start: Start) -> str:
    """The recipe as Python text."""
    body = f'''{_functions(start)}


recipe = Recipe(
    "{start.name}",
    stages=(
{_stages(start)}
    ),
)
'''
    return f"{_docstring(start)}\n\n{_imports(body)}\n\n{_constants(start, body)}\n\n\n{body}"


def _docstring(start: Start) -> str:
    what, stage, rows = {
        "sft": ("Supervised fine-tuning", "SFT", "conversations"),
        "dpo": ("DPO", "DPO", "pairs"),
        "reward": ("A reward model", "RewardModel", "pairs"),
        "ppo": ("PPO", "PPO", "pairs" if start.pairs else "prompts"),
        "grpo": ("GRPO", "GRPO", "prompts"),
        "eval": ("Evaluation", "Evaluate", "prompts"),
    }[start.kind]
    lines = [(f"easylm run {start.file}", "run, or resume where it was interrupted")]
    if start.kind in ("sft", "dpo", "ppo", "grpo"):
        lines.append((f'easylm generate runs/{start.name}/{start.kind} "a prompt"', "what the model responds now"))
    lines += [
        (f"easylm report runs/{start.name}", "curves and tables"),
        (f"easylm fields {stage}", "every field with its default and meaning"),
    ]
    width = max(len(command) for command, _ in lines)
    commands = "\n".join(f"    {command:<{width}}  # {meaning}" for command, meaning in lines)
    return f'''"""{what} on the {start.rows:,} {rows} of {start.data}.

Paths are relative to the folder in which these commands are run:

{commands}
"""'''


def _imports(body: str) -> str:
    """The import of what the text of a recipe uses."""
    code = "\n".join(line.partition("#")[0] for line in body.splitlines())
    used = sorted(set(re.findall(r"\b[A-Z]\w+(?=\()", code)), key=lambda name: (not name.isupper(), name))
    path = "from pathlib import Path\n\n" if "REWARD" in body else ""
    line = f"from easylm_jax.config import {', '.join(used)}"
    if len(line) > 120:
        line = "from easylm_jax.config import (\n" + "".join(f"    {name},\n" for name in used) + ")"
    return path + line


def _constants(start: Start, body: str) -> str:
    """What one will want to change first."""
    lines = [
        f'MODEL = "{start.model}"  # hf:OWNER/NAME, hf:FOLDER, or run:FOLDER of a stage',
        f'TOKENIZER = "{start.tokenizer}"',
        f'TEMPLATE = "{start.template}"  # chat template (docs/data.md); keep the one that MODEL was trained with',
        f'DATA = "{start.data}"  # a file, a glob or a folder',
    ]
    if "HELD_OUT" in body:
        lines.append(f"HELD_OUT = {start.held_out}  # the first rows are for validation and are not trained on")
    if "REWARD" in body:
        lines.append('REWARD = f"{Path(__file__).stem}:reward"  # "module:function", or a name such as "math" '
                     "(docs/verifiers.md)")  # fmt: skip
    return "\n".join(lines)


def _functions(start: Start) -> str:
    """The functions of the recipe: its data sets, and the reward where there is no reward model."""
    if start.kind == "sft":
        return _data(start, "data", "chat", start.length, start.longest, "longer conversations are cut", "conversation")
    if start.kind in ("dpo", "reward") or (start.kind == "ppo" and start.pairs):
        both = f"two sides of up to {start.length}, longer ones are cut"
        pairs = _data(start, "data", "preference", 2 * start.length, start.longest, both, "pair")
        return f"{pairs}\n\n\n{_prompts(start)}" if start.kind == "ppo" else pairs
    return f"{_reward_function(start)}\n\n\n{_prompts(start)}"


def _prompts(start: Start) -> str:
    longest = start.longest_prompt or start.longest
    return _data(start, "prompts", "prompts", start.prompt_length, longest, "longer prompts are left out", None)


def _data(start: Start, name: str, kind: str, length: int, longest: int, longer: str, unit: str | None) -> str:
    """A function that makes a data set of a part of DATA."""
    fields = "" if start.fields is None else f", fields={_quoted(dict(start.fields))}"
    found = f"the longest has {longest}" if start.measured else f"the longest has about {longest}, estimated"
    packing = f'\n        packing="none",  # one {unit} in a row; "best_fit" puts several in a row, faster on much data'
    return f'''def {name}(**part):
    return DataSpec(
        (Source(DATA, **part{fields}),),
        TOKENIZER,
        sequence_length={length},  # tokens of a row: {longer} ({found})
        kind="{kind}",
        template=TEMPLATE,{packing if unit else ""}
    )'''


def _quoted(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _reward_function(start: Start) -> str:
    if start.label is None:
        return '''def reward(response, record):
    """Replace this placeholder, which prefers about twenty words. `record` is the prompt's row of DATA."""
    return 1.0 - min(abs(len(response.split()) - 20) / 20, 1.0)'''
    return f'''def reward(response, record):
    """1 where the response contains the label, else 0. `record` is the prompt's row of DATA."""
    label = str(record[{json.dumps(start.label)}]).rpartition("####")[2].strip()
    return float(label.lower() in response.lower())'''


def _stages(start: Start) -> str:
    if start.kind == "sft":
        return f"""        SFT(
            "sft",
            init=MODEL,
            # lora=LoraConfig(rank=16, alpha=32.0),  # trains an adapter (docs/lora.md)
{_training(start, "sft", "conversations")}
        ),"""
    if start.kind == "dpo":
        return f"""        DPO(
            "dpo",
            init=MODEL,
            beta=0.1,  # smaller values let the model move further from MODEL
            # loss="dpo_norm",  # or ipo, simpo, orpo, wpo, kto (docs/preferences.md)
{_training(start, "dpo", "pairs")}
        ),"""
    if start.kind == "eval":
        return f'''        Evaluate(
            "table",
            title="{start.name}",
            tasks=(Task("own", prompts(), REWARD, Sampling({start.response}, temperature=0.0)),),
            entries=(
                Entry("model", (MODEL,)),
                # Entry("trained", ("run:runs/my-sft/sft",), over="model"),  # a second row, compared with the first
            ),
        ),'''
    reward_model = f"""        RewardModel(
            "reward",
            init=MODEL,  # its vocabulary head is replaced by one that gives a score
{_training(start, "reward", "pairs")}
        ),"""
    if start.kind == "reward":
        return reward_model
    if start.kind == "ppo" and start.pairs:
        return f"{reward_model}\n{_rollouts(start, own=False)}"
    return _rollouts(start, own=True)


def _training(start: Start, kind: str, rows: str) -> str:
    """Fields of a stage that trains on data."""
    part = "skip=HELD_OUT" if start.held_out else ""
    batch = start.batch(BATCHES[kind])
    every = max((start.rows - start.held_out) // batch // 2, 1)
    lines = [
        f"data=data({part}),",
        f"validation=Validation(data(limit=HELD_OUT), every={every}),  # the loss on held-out rows" * bool(part),
        f"batch={batch},  # {rows} of a step; on several devices a multiple of them",
        "# accumulate=2,  # micro-batches of a step, where it does not fit into memory",
        f"epochs={start.epochs},",
    ]
    return _indented([*lines, *_last_fields(start, kind)])


def _rollouts(start: Start, own: bool) -> str:
    """A stage that trains on sampled responses; `own`: with the recipe's reward function, else its reward model."""
    split = own and start.held_out > 0
    ppo = start.kind == "ppo"
    reward = "verifier=REWARD, missing_end=0.0" if own else 'model="reward", missing_end=-10.0'
    lines = [
        f"reward=Reward({reward}),  # missing_end: the score of a response that did not end",
        "kl=0.05,  # larger values keep the model nearer to MODEL" if ppo else
        "samples=8,  # responses to each prompt, which are compared with each other",
        "" if ppo else "kl=0.0,  # above 0 the loss keeps the model near MODEL",
        f"data=prompts({'skip=HELD_OUT' if split else ''}),",
        "validation=Validation(prompts(limit=HELD_OUT), every=5),  # greedy responses, scored by check" * split,
        "check=REWARD," * split,
        f"batch={start.batch(BATCHES[start.kind])},  # prompts of a step; on several devices a multiple of them",
        f"epochs={start.epochs},  # or steps=100",
        f"sampling=Sampling(max_new_tokens={start.response}, temperature=1.0),",
    ]  # fmt: skip
    fields = _indented([*lines, *_last_fields(start, "rl")])
    return f'        {start.kind.upper()}(\n            "{start.kind}",\n            init=MODEL,\n{fields}\n        ),'


def _last_fields(start: Start, kind: str) -> list[str]:
    small, large = RATES[kind]
    compute = 'compute=Compute(dtype="bfloat16", remat="attention"),  # less memory'
    return [
        f'optimizer=OptimizerConfig("{small if start.small else large} linear to 0 warmup 3%", weight_decay=0.0),',
        "" if start.small else compute,
        "checkpoints=Checkpoints(every=20),  # after an interruption at most 20 steps are run again",
    ]


def _indented(lines: list[str]) -> str:
    return "\n".join(f"            {line}" for line in lines if line)
