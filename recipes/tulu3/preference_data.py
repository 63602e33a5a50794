"""The stages that make Tülu 3's preference data (arXiv 2411.15124, Section 5; spec tulu3 §7.4), for its recipes.

Prompts are those of Table 15, responses of models of Table 38 that are models of this project (Yi and Llama, Tülu 2,
Gemma 2, Mistral, Qwen 2.5), one response each at temperature 1, four models a prompt. The judge rates four aspects.

Departs from the paper: InternLM, MPT and Falcon are no models of this project and GPT-4o is asked for nothing, so the
pool has 15 of the 22 models; the judge is Llama 3.1 70B, which is 0.7 points below GPT-4o in Table 17
(`rate.init=none 'rate.server={"url": …}'` asks another); responses have at most 2,048 tokens, not 7,500, which is what
training reads of them; "WildChat IF" are prompts of WildChat with instructions appended, since how its own were found
is not published; the texts of all questions are this project's own (`config/preference_prompts.py`).
"""

from easylm_jax.config import (
    Binarise,
    DataSpec,
    PersonaPrompts,
    PoolModel,
    PromptPart,
    Rate,
    Respond,
    SelectPrompts,
    Source,
    Stage,
)  # fmt: skip
from recipes.tulu3.base import SIDE

POLICY = "hf:allenai/Llama-3.1-Tulu-3-8B-SFT"
JUDGE = "hf:meta-llama/Llama-3.1-70B-Instruct"
MIXTURE = Source("hf:allenai/tulu-3-sft-mixture")
WILDCHAT = Source("hf:allenai/WildChat-1M", messages_field="conversation")
ULTRAFEEDBACK = Source("hf:allenai/ultrafeedback_binarized_cleaned:train_prefs")
POOL = tuple(
    PoolModel(name.rpartition("/")[2].lower(), init=f"hf:{name}")
    for name in (
        "01-ai/Yi-34B-Chat", "01-ai/Yi-6B-Chat", "allenai/tulu-2-7b", "allenai/tulu-2-13b", "google/gemma-2-27b-it",
        "google/gemma-2-9b-it", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3-8B-Instruct", "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-Nemo-Instruct-2407", "Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-32B-Instruct",
        "Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-7B-Instruct",
    )
)  # fmt: skip
OWN = PoolModel("sft", init=POLICY, on_policy=True, always=True)

# Table 15, the columns of 8B.
OFF_POLICY = (
    PromptPart("sft-off", source=MIXTURE, count=96_911),
    PromptPart("sft-if", source=MIXTURE, count=65_530, instructions=(1, 2, 3)),
    PromptPart("wildchat-if", source=WILDCHAT, count=10_792, instructions=(1, 2, 3)),
    PromptPart("ultrafeedback", source=ULTRAFEEDBACK, count=41_635),
)
ON_POLICY = (
    PromptPart("sft-on", source=MIXTURE, count=19_444),
    PromptPart("wildchat-on", source=WILDCHAT, count=17_207),
)
UNUSED = PromptPart("wildchat-unused", source=WILDCHAT, count=82_783, unused=True)  # 70B alone
PERSONAS = Source("hf:proj-persona/PersonaHub:train", subset="persona")


def prompts(*parts: PromptPart) -> SelectPrompts:
    return SelectPrompts("prompts", parts=parts, used=(MIXTURE,))


def responses(name: str, own: bool = False, source: str = "prompts/prompts.jsonl") -> Respond:
    """Four models of the pool; or one's own beside one of the pool (Section 5.2)."""
    pool = (OWN, *POOL) if own else POOL
    return Respond(name, prompts=Source(f"stage:{source}"), pool=pool, each=2 if own else 4, max_new_tokens=SIDE,
                   slots=256, batch=2048)  # fmt: skip


def ratings(name: str, of: str, judge: str = JUDGE) -> Rate:
    return Rate(name, responses=Source(f"stage:{of}/responses.jsonl"), init=judge, slots=128, batch=2048)


def pairs(name: str, *of: str, **how) -> Binarise:
    return Binarise(name, ratings=tuple(Source(f"stage:{one}/ratings.jsonl") for one in of), **how)


def persona_instructions() -> PersonaPrompts:
    """Persona IF (Table 15: 19,890 pairs); pairs need two instructions or more, of which one is then left out."""
    return PersonaPrompts("persona-if", init=JUDGE, personas=PERSONAS, skill="instructions", count=60_000,
                          instructions=(2, 3), slots=256, batch=2048)  # fmt: skip


def data(*stages: str) -> DataSpec:
    """The pairs of some stages, read as those of the published mixture."""
    sources = tuple(Source(f"stage:{name}/pairs.jsonl") for name in stages)
    return DataSpec(
        sources, POLICY, 2 * SIDE, kind="preference", template="tulu", packing="none", overlong="truncate",
        train_on="assistant", on_bad="skip",
    )  # fmt: skip


def off_policy(*parts: PromptPart) -> tuple[Stage, ...]:
    """From prompts to the pairs `pairs`, all off-policy."""
    return prompts(*parts), responses("responses"), ratings("rate", "responses"), pairs("pairs", "rate")
