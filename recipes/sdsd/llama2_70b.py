"""SDSD's Llama 2 split (arXiv 2407.18421): topics, 107,683 dialogues, revisions, DPO, and the check of the data

    easylm run recipes/sdsd/llama2_70b.py --only talk

The published split was written by Nous-Hermes-2-Llama-2-70B; the two other models of the paper, DBRX-Instruct and
Mistral Large, are no models of this project: give them as a server,

    easylm run recipes/sdsd/llama2_70b.py talk.init=none 'talk.server={"url": "https://…/v1", "model": "…", "key": "…"}'

From the data set's cards: 107,683 dialogues for each model; 801 domains of 20 sub-topics; messages of a dialogue, plan
included, 13.24 on average here (8.47 DBRX, 8.02 Mistral); 23,262 revisions, which is 21.6 % of the dialogues. No code
and no other number of the paper is public: principles, goals and personas are this project's own
(`recipes/sdsd/seeds.py`; the paper has 127 principles), as are lengths, temperatures and filters, which are the
defaults of `Topics`, `Dialogues` and `Revisions` (spec sdsd §2 to §6). The agent sees the plan, as the published rows
carry it ("informed"); `talk.talk=blind` and `revise.controls=1` are the ablations of spec sdsd §9.

The paper trains no model that could be checked. What follows is the check of spec sdsd §9 with Tülu 3's numbers for an
8B model (arXiv 2411.15124, Tables 11, 20 and 36): SFT, DPO and a reward model from OLMo 2 7B Instruct's SFT stage.
"""

from easylm_jax.config import (
    DPO,
    SFT,
    Ask,
    DataSpec,
    Dialogues,
    Entry,
    Evaluate,
    MakeData,
    OptimizerConfig,
    PreferenceTable,
    Recipe,
    Revisions,
    RewardModel,
    Source,
    Topics,
)  # fmt: skip

WRITER = "hf:NousResearch/Nous-Hermes-2-Llama-2-70B"
BASE = "hf:allenai/OLMo-2-1124-7B-SFT"
HELD_OUT = 1000  # pairs
TOKENIZER = "hf:allenai/OLMo-2-1124-7B-SFT"


def seeds(name: str) -> Source:
    return Source(f"stage:seeds/{name}.jsonl")


def pairs(**part: int) -> DataSpec:
    source = Source("stage:revise/pairs.jsonl", **part)
    return DataSpec((source,), TOKENIZER, 4096, kind="preference", template="olmo", max_side_length=2048)


recipe = Recipe(
    "sdsd-llama2-70b",
    pod="v5p-64",  # 32 chips; each copy of the 70B writer on four of them
    mesh="fsdp=-1",
    decode_mesh="fsdp=-1,tp=4",
    stages=(
        MakeData("seeds", function="recipes.sdsd.seeds:write"),
        # 40 fields × 2 temperatures × 30 domains, of which 801 stay.
        Topics("topics", init=WRITER, chat_template="chatml", fields=seeds("fields"), count=801, subareas=20),
        Dialogues(
            "talk", init=WRITER, chat_template="chatml", count=107_683, talk="informed", principles=seeds("principles"),
            goals=seeds("goals"), personas=seeds("personas"), domains=Source("stage:topics/domains.jsonl"),
            moderator="hf:allenai/wildguard", compare=(Source("hf:HuggingFaceH4/ultrachat_200k:test_sft"),),
            rules="language(name=en)", slots=256, batch=2048,
        ),
        Revisions(
            "revise", init=WRITER, chat_template="chatml", dialogues=Source("stage:talk/dialogues.jsonl"),
            moderator="hf:allenai/wildguard", slots=256, batch=2048,
        ),
        SFT(
            "sft", init=BASE, batch=128, epochs=2,  # Tülu 3, Table 11
            data=DataSpec((Source("stage:talk/sft.jsonl"),), TOKENIZER, 4096, kind="chat", template="olmo"),
            optimizer=OptimizerConfig("5e-6 linear to 0 warmup 3%", b2=0.999, weight_decay=0.0),
        ),
        DPO(
            "dpo", init="sft", data=pairs(skip=HELD_OUT), batch=128, epochs=1, loss="dpo_norm", beta=5.0,
            optimizer=OptimizerConfig("5e-7 linear to 0 warmup 10%", b2=0.999, weight_decay=0.0),  # Table 20
        ),
        RewardModel(
            "reward", init="sft", data=pairs(skip=HELD_OUT), batch=256, epochs=1,
            optimizer=OptimizerConfig("3e-6 linear to 0", b2=0.999, eps=1e-5, weight_decay=0.0),  # Table 36
        ),
        PreferenceTable(
            "pairs", title="Held-out pairs: revision over original", reward_models=("reward",),
            pairs=Source("stage:revise/pairs.jsonl", limit=HELD_OUT),
        ),
        Evaluate(
            "table", title="OLMo 2 7B SFT before and after dialogues and revisions", tasks=(),
            benchmarks=(Ask("wildguard_test"), Ask("xstest"), Ask("gsm8k"), Ask("ifeval")),
            judge="hf:allenai/wildguard",
            entries=(Entry("base", (BASE,)), Entry("SFT", ("sft",), over="base"), Entry("DPO", ("dpo",), over="base")),
        ),
    ),
)  # fmt: skip
