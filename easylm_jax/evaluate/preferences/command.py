"""`easylm eval MODEL --suite m_rewardbench --data FOLDER`: loads the judge that a model is, and runs a bench."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from easylm_jax.checkpoint import load as checkpoint_load
from easylm_jax.config import Compute, fields
from easylm_jax.data.tokenizer_template import roles_of
from easylm_jax.evaluate.judges import Local
from easylm_jax.evaluate.preferences import judges
from easylm_jax.evaluate.preferences.items import files_by_language
from easylm_jax.evaluate.preferences.languages import ENGLISH
from easylm_jax.evaluate.preferences.run import judge_bench
from easylm_jax.rewards.judge_pairs import without_system
from easylm_jax.runtime.mesh import make_mesh
from models.errors import UserError

# Published sets, where no file is given.
HUB = {
    "rewardbench": "hf:allenai/reward-bench:filtered", "rewardbench2": "hf:allenai/reward-bench-2:test",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model judges.

    Attributes:
        reference: the reference of DPO's implicit reward; "none" is reference-free, None is another kind of judge.
        ask: how a language model is asked: "pair", "ratings" or "logits".
        template, tokenizer: of the model, where its checkpoint does not name them.
        compat: "mrb" for the published runner's quirks.
        seed: of the order of answers.
    """

    reference: str | None = None
    ask: str = "pair"
    template: str | None = None
    tokenizer: str | None = None
    compat: str | None = None
    seed: int = 0


def evaluate_bench(
    model: str, bench: str, data: str | None, options: Options, out: Path, *, languages: Sequence[str] | None = None,
    limit: int | None = None, beside: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[dict[str, Any], Path]:  # fmt: skip
    """The results of `run.judge_bench` and the folder that holds its files.

    Raises:
        UserError: the data or the model do not exist or do not fit the bench.
    """
    files = _files(bench, data, languages)
    init = checkpoint_load.resolve_model(model)[0]
    settings = {"model": init, "bench": bench, **dataclasses.asdict(options), "limit": limit}
    judge = judge_of(model, options)
    folder = out / f"eval-{bench}-{fields.digest(settings)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    results = judge_bench(
        judge, files, folder, bench=bench, model=model, settings=settings, limit=limit, beside=beside,
        progress=progress,
    )  # fmt: skip
    return results, folder


def _files(bench: str, data: str | None, languages: Sequence[str] | None) -> dict[str, str]:
    if bench == "m_rewardbench":
        if data is None or not Path(data).is_dir():
            raise UserError(
                f"m_rewardbench reads a folder with a file for each language, such as deu_Latn.jsonl; give it with "
                f"--data{'' if data is None else f', not {data}'}"
            )
        return files_by_language(data, languages)
    if languages:
        raise UserError(f"--languages is for m_rewardbench, not {bench}")
    path = data or HUB.get(bench)
    if path is None:
        raise UserError(f"{bench} reads a file of preference pairs; give it with --data")
    return {ENGLISH: path}


def judge_of(model: str, options: Options) -> judges.Judge:
    """The judge that a model is: a reward model by its head, DPO's implicit reward with a reference, or asked."""
    init, meta, known = checkpoint_load.resolve_model(model)
    trained = meta.get("config") or {}
    dtype = (trained.get("compute") or {}).get("dtype") or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    mesh = make_mesh("fsdp=-1")
    source = checkpoint_load.model_from(init, mesh, compute=Compute(dtype=dtype))
    template = options.template or (trained.get("data") or {}).get("template")
    if source.config.scalar_head:
        if options.reference is not None:
            raise UserError(f"{model} is a reward model; --reference is for DPO's implicit reward of a language model")
        tokenizer = checkpoint_load.model_tokenizer(
            model, source.config, meta, options.tokenizer or known, own=known
        )  # fmt: skip
        with jax.set_mesh(mesh):
            params = source.frozen(mesh)
        return judges.Classifier(
            source.decoder, params, tokenizer, _named(template, model), mesh, compat=options.compat
        )
    loaded = checkpoint_load.load(model, tokenizer=options.tokenizer, mesh=mesh)
    template = _named(options.template or loaded.template, model)
    if options.reference is None:
        return _asked(loaded, template, options)
    policy = _logprobs(loaded)
    base = None
    if options.reference != "none":
        if checkpoint_load.resolve_model(options.reference)[0] == init:
            raise UserError(f"--reference {options.reference} is the policy itself: every implicit reward would be 0")
        base = checkpoint_load.load(options.reference, tokenizer=options.tokenizer, mesh=mesh)
    longest = min(each.decoder.config.context for each in (loaded, base) if each is not None)
    return judges.Implicit(
        policy, None if base is None else _logprobs(base), loaded.tokenizer, template, min(longest, judges.LONGEST)
    )  # fmt: skip


def _named(template: Any, model: str) -> str:
    if not template or not isinstance(template, str):
        raise UserError(f"the chat template of {model} is not known; give it with --template, such as tulu")
    return template


def _logprobs(loaded: checkpoint_load.LoadedModel) -> Callable[..., list[list[judges.LogProbs]]]:
    return lambda encoded: judges.answer_logprobs(loaded.decoder, loaded.params, encoded, loaded.mesh)


def _asked(loaded: checkpoint_load.LoadedModel, template: str, options: Options) -> judges.Judge:
    if options.ask == "logits":
        return judges.LogitJudge(loaded.decoder, loaded.params, loaded.tokenizer, template, loaded.mesh, options.compat)
    local = Local(loaded, template)
    named = "system" in roles_of(template)
    ask = local if named else lambda questions: local([without_system(question) for question in questions])
    if options.ask == "ratings":
        return judges.RatingJudge(ask, options.compat)
    return judges.PairJudge(ask, seed=options.seed, order="random" if options.compat else "both", compat=options.compat)
