"""This project as a model of lm-evaluation-harness: `lm_eval --model easylm --model_args path=MODEL --tasks …`.

The package registers it as the entry point `easylm` of the group `lm_eval.models`. Releases up to 0.4.13 do not read
that group; with them, `python -m easylm_jax.evaluate.lm_eval_model` takes the arguments of `lm_eval`.

| argument | meaning |
|---|---|
| `path` (or `pretrained`) | a stage's or checkpoint's folder, or `hf:FOLDER`, as `easylm generate` takes it |
| `tokenizer` | `sp:FILE` or `hf:FOLDER`; default: the model's own |
| `add_bos_token` | whether texts begin with the BOS token; default: as the model was trained |
| `template` | the chat template for `--apply_chat_template`; default: the one of the stage |
| `max_gen_toks` | most tokens of a response where a task does not say it |
| `seed` | of sampling |
"""

from __future__ import annotations

import functools
from typing import Any

from easylm_jax import decode
from easylm_jax.checkpoint.load import load
from easylm_jax.data import templates
from easylm_jax.data.tokenizer_template import resolve
from easylm_jax.decode.likelihood import loglikelihood
from easylm_jax.evaluate.asking import Encoder
from easylm_jax.evaluate.harness import response_text, rolling_logprobs, start_token
from models.errors import UserError


class _Requests:
    """The requests of lm-eval, answered by a model of this project; `EasyLM` adds the base class of lm-eval."""

    cache_hook: Any

    def __init__(
        self, path: str = "", pretrained: str = "", tokenizer: str | None = None, add_bos_token: bool | None = None,
        template: str | None = None, max_gen_toks: int = 256, seed: int = 0, **unused: Any,
    ):  # fmt: skip
        super().__init__()  # lm-eval's
        if not (path or pretrained):
            raise UserError("lm_eval: name the model with --model_args path=MODEL")
        self.model = load(path or pretrained, tokenizer=tokenizer)
        self.template = template or self.model.template
        self.max_gen_toks, self.seed = int(max_gen_toks), int(seed)
        self.encoder = Encoder(
            self.model.tokenizer, self.template, self.model.add_bos if add_bos_token is None else bool(add_bos_token)
        )
        self.rendered: dict[str, list[int]] = {}  # chat prompts as lm-eval holds them → their tokens

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self.model.decoder.config.context

    @property
    def _mesh(self):
        return self.model.mesh if self.model.mesh.size > 1 else None

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log P in nats, is greedy) of each request's continuation given its context."""
        pairs = [self._pair(*request.args) for request in requests]
        room = self.max_length + 1
        cut = [(context[max(0, len(context) + len(text) - room) :], text[-room + 1 :]) for context, text in pairs]
        scores = loglikelihood(self.model.decoder, self.model.params, cut, mesh=self._mesh)
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, score)
        return scores

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Σ log P of each text, in nats."""
        ids = [self.model.tokenizer.encode(request.args[0]) for request in requests]
        totals = [total for total, _ in rolling_logprobs(self.model, ids)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The response to each request, without what follows a stop string."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            answers = self._generate(
                [requests[number].args[0] for number in numbers], dict(requests[numbers[0]].args[1])
            )
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, by the chat template of the model."""
        if self.template is None:
            raise UserError("lm_eval: the chat template of the model is not known; give it with --model_args template=")
        if add_generation_prompt:
            pieces = templates.generation_prompt(resolve(self.template, self.model.tokenizer), chat_history)
        else:  # the last turn is the beginning of the response
            *turns, last = chat_history
            start = templates.Piece(last["content"], None, len(turns), False)
            pieces = [*templates.generation_prompt(resolve(self.template, self.model.tokenizer), turns), start]
        text = templates.rendered_text(pieces, self.model.tokenizer)[0]
        self.rendered[text] = templates.tokenize([pieces], self.model.tokenizer)[0][0].tolist()
        return text

    @property
    def tokenizer_name(self) -> str:
        """What tells cached requests of this tokenizer from others."""
        return f"{self.model.tokenizer.hash[:16]}-{self.template}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the chat template."""
        return self.template or ""

    def _tokens(self, text: str) -> list[int]:
        if text in self.rendered:
            return self.rendered[text]
        return self.encoder.plain(text) if text else []

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context in self.rendered:
            return self.rendered[context], self.model.tokenizer.encode(continuation)
        if not context:
            return [start_token(self.model)], self.model.tokenizer.encode(continuation)
        return self.encoder.pair(context, "", continuation)

    def _generate(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        new = int(options.get("max_gen_toks") or options.get("max_new_tokens") or self.max_gen_toks)
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample", True) else 0.0
        room = self.max_length - new
        if room < 1:
            raise UserError(f"lm_eval: {new} new tokens leave no room for a prompt in a context of {self.max_length}")
        prompts = [self._tokens(context)[-room:] for context in contexts]
        tokenizer, chat = self.model.tokenizer, self.template is not None
        done = decode.generate(
            self.model.decoder, self.model.params, prompts, max_new_tokens=new, temperature=temperature,
            top_p=options.get("top_p") if temperature else None, top_k=options.get("top_k") if temperature else None,
            eos_ids=templates.end_tokens(self.template if chat else None, tokenizer), stop_strings=stops,
            seed=self.seed, mesh=self._mesh, detokenize=functools.partial(tokenizer.decode, skip_special=True),
        )  # fmt: skip
        return [
            response_text(tokenizer, [] if contexts[row] in self.rendered else prompts[row],
                          done.tokens[row, :length].tolist(), stops)
            for row, length in enumerate(done.lengths)
        ]  # fmt: skip


@functools.cache
def _with_base() -> type:
    from lm_eval.api.model import LM

    return type("EasyLM", (_Requests, LM), {"__doc__": __doc__})


def __getattr__(name: str) -> Any:
    """`EasyLM`, made when it is first asked for: lm-eval is an extra."""
    if name == "EasyLM":
        return _with_base()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Makes `easylm` a model of lm-eval in this process, where its release does not read entry points."""
    import lm_eval.models  # noqa: F401 - registers the models of lm-eval itself
    from lm_eval.api.registry import model_registry

    if "easylm" not in model_registry:
        model_registry.register("easylm", target="easylm_jax.evaluate.lm_eval_model:EasyLM")


def main() -> None:
    """The command line of lm-eval, with this project among its models."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
