"""Tülu 3's preference pipeline (arXiv 2411.15124, Section 5) on one CPU: a pool of models, a judge, pairs, DPO

    easylm run recipes/tulu3/preferences_small.py

One small model learns to solve problems and to judge answers as the pipeline's judge is asked to
(`recipes/tulu3/preferences_small_data.py`). From it come the policy and a pool of four models, each with faults of its
own. Then everything is their work: prompts are selected, reused from fine-tuning and unused; the policy and two models
of the pool answer each; the judge rates the answers by aspect; the ratings become pairs. DPO trains on as many
off-policy pairs, on-policy pairs, and half of each; SFT trains on the best answers (rejection sampling). One table says
how often the judge is right, the other what each method's held-out answers are like, faults by aspect.

The steps, four aspects, unused prompts and the on-policy model beside the pool are the paper's; sizes, rates and the
world are this project's own. Instructions are not appended to prompts: these models cannot read them.
"""

from easylm_jax.config import (
    DPO,
    SFT,
    Binarise,
    Checkpoints,
    Compute,
    DataSpec,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    PoolModel,
    PromptPart,
    Rate,
    Recipe,
    Respond,
    Sampling,
    SelectPrompts,
    Source,
    Task,
    Tokenizer,
)
from easylm_jax.config.preferences import ASPECTS
from recipes import quickstart
from recipes.tulu3.preferences_small_data import FAULTS, RATED

HERE = "recipes.tulu3.preferences_small_data"
SEQUENCE = 384  # tokens; a question of the judge and its reply fit
PROMPT, ANSWER, REPLY = 48, 32, 96
COUNT = 160  # pairs of an arm
SEEDS = (0, 1)
VOCABULARY = 768  # so that most words of the judge's questions are a token each
MODEL = quickstart.MODEL.replace(vocab=VOCABULARY, vocab_used=VOCABULARY, context=SEQUENCE)
COMPUTE = Compute(unroll=2)
CHECKPOINTS = Checkpoints(every=100)
POOL = tuple(name for name in FAULTS if name != "sft")
ARMS = {"off": {"policy": "off"}, "on": {"policy": "on"}, "both": {"on_share": 0.5}}


def chats(file: str, **how: str) -> DataSpec:
    source = (Source(f"stage:{file}"),)
    return DataSpec(source, "stage:tokenizer", SEQUENCE, kind="chat", template="tulu", packing="best_fit", **how)


def tuned(name: str, file: str, init: str = "base", lr: str = "1e-3") -> SFT:
    return SFT(
        name, init=init, data=chats(file), batch=4, epochs=2, compute=COMPUTE, checkpoints=CHECKPOINTS,
        optimizer=OptimizerConfig(f"{lr} linear to 0 warmup 3%", weight_decay=0.0),
    )  # fmt: skip


def dpo(arm: str, seed: int) -> DPO:
    pairs = DataSpec(
        (Source(f"stage:pairs-{arm}/pairs.jsonl"),), "stage:tokenizer", 2 * (PROMPT + ANSWER), kind="preference",
        template="tulu", max_side_length=PROMPT + ANSWER,
    )  # fmt: skip
    return DPO(
        f"dpo-{arm}-{seed}", seed=seed, init="sft", data=pairs, batch=8, epochs=3, loss="dpo_norm", beta=5.0,
        optimizer=OptimizerConfig("3e-4 linear to 0 warmup 10%", weight_decay=0.0), compute=COMPUTE,
        checkpoints=CHECKPOINTS,
    )  # fmt: skip


def task(name: str, file: str, verifier: str, prompt: int, answer: int, **also: str) -> Task:
    source = (Source(f"stage:data/{file}.jsonl"),)
    data = DataSpec(source, "stage:tokenizer", prompt, kind="prompts", template="tulu", keep=("answer",))
    columns = tuple((column, f"{HERE}:{one}") for column, one in also.items())
    return Task(name, data, f"{HERE}:{verifier}", Sampling(answer, temperature=0.0, slots=64), also=columns)


reused, unused = Source("stage:data/sft.jsonl"), Source("stage:data/unused.jsonl")
recipe = Recipe(
    "tulu3-preferences-small",
    stages=(
        MakeData("data", function=f"{HERE}:write", seed=1),
        Tokenizer("tokenizer", sources=(Source("stage:data/base.jsonl"),), vocab_size=VOCABULARY),
        SFT(
            "base", model=MODEL, data=chats("data/base.jsonl", train_on="all"), batch=4, epochs=2, compute=COMPUTE,
            optimizer=OptimizerConfig("4e-3 cosine to 5% warmup 20 steps"), checkpoints=CHECKPOINTS,
        ),
        Evaluate(
            "judge", title="How often the judge's rating is the known one", entries=(Entry("judge", ("base",)),),
            tasks=tuple(task(aspect, aspect, "agrees", SEQUENCE - REPLY, REPLY) for aspect in ASPECTS),
        ),
        *(tuned(name, f"data/{name}.jsonl") for name in FAULTS),
        SelectPrompts(
            "prompts", used=(reused,),
            parts=(PromptPart("reused", source=reused, count=350),
                   PromptPart("unused", source=unused, count=350, unused=True)),
        ),
        Respond(
            "responses", prompts=Source("stage:prompts/prompts.jsonl"), each=RATED, max_new_tokens=ANSWER, batch=700,
            pool=(PoolModel("sft", init="sft", on_policy=True, always=True),
                  *(PoolModel(name, init=name) for name in POOL)),
        ),
        Rate("rate", responses=Source("stage:responses/responses.jsonl"), init="base", max_new_tokens=REPLY, batch=700),
        Binarise("pairs", ratings=(Source("stage:rate/ratings.jsonl"),)),
        *(Binarise(f"pairs-{arm}", ratings=(Source("stage:rate/ratings.jsonl"),), count=COUNT, **how)
          for arm, how in ARMS.items()),
        tuned("best", "pairs/best.jsonl", init="sft", lr="3e-4"),
        *(dpo(arm, seed) for arm in ARMS for seed in SEEDS),
        Evaluate(
            "table", title="Small Tülu 3: DPO and rejection sampling on preferences of its own making",
            tasks=(task("no fault", "held_out", "faultless", PROMPT, ANSWER, working="helpful", marked="marked",
                        modest="modest", right="right"),),
            entries=(
                Entry("SFT", ("sft",)), Entry("SFT on the best answers", ("best",), over="SFT"),
                *(Entry(f"DPO, {arm}", tuple(f"dpo-{arm}-{seed}" for seed in SEEDS), over="SFT") for arm in ARMS),
            ),
        ),
    ),
)  # fmt: skip
