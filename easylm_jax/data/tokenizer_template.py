"""The chat template that a Hugging Face tokenizer carries (`template="tokenizer"`), rendered in jinja2's sandbox.

A template is a program of strangers: it sees the messages and the names of the tokenizer's control tokens, and nothing
else. Calls, ranges and repetitions are counted, so that a template that loops ends in an error.

The trained parts of a conversation are what stands inside `{% generation %} … {% endgeneration %}`. A template without
that tag is rendered up to each assistant turn and behind it: what the turn adds is trained, up to its last control
token. Control tokens in the rendered text are single tokens, except inside a message, where they stay text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easylm_jax.config.chat_templates import Messages, Template, Token, get_template
from easylm_jax.data.tokenizer import Tokenizer, load_tokenizer
from models import reading
from models.errors import UserError

NAME = "tokenizer"  # of `DataSpec.template`
MOST_STEPS = 200_000  # calls and elements of ranges in one rendering
MOST_CHARACTERS = 16_000_000  # of a repeated text or list
_BEGIN, _END, _GUARD = "\ue0f0", "\ue0f1", "\ue0f2"  # private characters: around trained text, inside names in messages
ROLES = ("system", "user", "assistant")


def template_file(folder: Path) -> str | None:
    """The source of the chat template in a tokenizer's folder; None where there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    found = reading.read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


@functools.lru_cache(maxsize=8)
def tokenizer_template(tokenizer: Tokenizer) -> TokenizerTemplate:
    """The chat template beside a tokenizer's file.

    Raises:
        UserError: there is none, or it is no valid template.
    """
    source = template_file(tokenizer.path.parent)
    if source is None:
        raise UserError(f"data: tokenizer {tokenizer.spec} carries no chat template; name one, such as template='tulu'")
    return TokenizerTemplate({role: () for role in ROLES}, (), source=source, tokenizer=tokenizer)


@functools.lru_cache(maxsize=8)
def of_spec(spec: str) -> TokenizerTemplate:
    """The chat template of the tokenizer `spec` (`load_tokenizer`)."""
    return tokenizer_template(load_tokenizer(spec))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerTemplate(Template):
    """A chat template in Jinja with the tokenizer that carries it."""

    source: str = ""
    tokenizer: Tokenizer | None = None

    @functools.cached_property
    def compiled(self) -> Any:
        """The compiled template; `UserError` for a syntax error."""
        from jinja2 import TemplateError

        try:
            return _environment().from_string(self.source)
        except TemplateError as error:
            raise UserError(f"data: the chat template of {self._owner} is not valid: {error}") from None

    @property
    def _owner(self) -> str:
        return "the tokenizer" if self.tokenizer is None else self.tokenizer.spec

    def text(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The conversation as text, with trained parts between private characters.

        Raises:
            UserError: the template raises an error, or does not end.
        """
        names = {} if self.tokenizer is None else {
            f"{role}_token": "" if token is None else self.tokenizer.token_text(token)
            for role, token in (
                ("bos", self.tokenizer.bos_id), ("eos", self.tokenizer.eos_id), ("pad", self.tokenizer.pad_id)
            )
        }  # fmt: skip
        guarded = [{**message, "content": self._guarded(message["content"])} for message in messages]
        template = self.compiled
        template.environment.steps = 0
        try:
            return template.render(messages=guarded, add_generation_prompt=add_generation_prompt, **names)
        except RecursionError:
            raise UserError(f"data: the chat template of {self._owner} does not end: it calls itself") from None
        except Exception as error:  # whatever the template does; it is not a program of this project
            raise UserError(f"data: the chat template of {self._owner}: {error or type(error).__name__}") from None

    def pieces(self, messages: Messages, *, train_on: str) -> list[tuple[str, Token | None, int, bool]]:
        """(text, control token, turn, trained) of a conversation's parts; the turn is not known (−1)."""
        if train_on == "all":
            return list(self._split(self.text(messages, add_generation_prompt=False), everything=True))
        if self.marks_trained:
            text = self.text(messages, add_generation_prompt=False)
            if train_on == "last_assistant" and text.count(_BEGIN) > 1:
                head, _, last = text.rpartition(_BEGIN)
                text = head.replace(_BEGIN, "").replace(_END, "") + _BEGIN + last
        else:
            text = self._marked(messages, train_on)
        return list(self._split(text))

    def generation_pieces(self, messages: Messages) -> list[tuple[str, Token | None, int, bool]]:
        """The parts of a conversation and of the start of the response; none is trained."""
        text = self.text(messages, add_generation_prompt=True)
        return list(self._split(text.replace(_BEGIN, "").replace(_END, "")))

    @property
    def marks_trained(self) -> bool:
        """Whether the template says itself what is trained."""
        return "endgeneration" in self.source

    @functools.cached_property
    def ends(self) -> tuple[str, ...]:
        """Names of the control tokens that follow an assistant's content."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        text = self.text(probe, add_generation_prompt=False)
        after = text.rpartition("answer")[2].replace(_BEGIN, "").replace(_END, "")
        return tuple(dict.fromkeys(token.name for _, token, _, _ in self._split(after) if token is not None))[:1]

    def _marked(self, messages: Messages, train_on: str) -> str:
        """The conversation with what each assistant turn adds between private characters."""
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        text = self.text(messages, add_generation_prompt=False)
        spans = []
        for number in turns[-1:] if train_on == "last_assistant" else turns:
            before = self.text(messages[:number], add_generation_prompt=True)
            behind = self.text(messages[: number + 1], add_generation_prompt=False)
            if not (behind.startswith(before) and text.startswith(behind.rstrip())):
                raise UserError(
                    f"data: the chat template of {self._owner} does not render turn {number} as a continuation of the "
                    "turns before it, so that what it trains is not known; mark it with {% generation %}"
                )
            spans.append((len(before), len(before) + self._trained_length(behind[len(before) :])))
        for start, end in reversed(spans):
            text = text[:start] + _BEGIN + text[start:end] + _END + text[end:]
        return text

    def _trained_length(self, added: str) -> int:
        """Characters of a turn up to its last control token; all where it has none."""
        last = max((added.rfind(name) + len(name) for name in self._names if name in added), default=0)
        return last if last and not added[last:].strip() else len(added)

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        """The control tokens' texts, longest first."""
        assert self.tokenizer is not None
        texts = {self.tokenizer.token_text(token) for token in self.tokenizer.special_ids}
        return tuple(sorted(filter(None, texts), key=lambda text: (-len(text), text)))

    def _guarded(self, content: str) -> str:
        """A message in which the name of a control token is not found."""
        for private in (_BEGIN, _END, _GUARD):
            content = content.replace(private, "")
        for name in self._names if self.tokenizer is not None else ():
            content = content.replace(name, name[:1] + _GUARD + name[1:])
        return content

    def _split(self, text: str, everything: bool = False) -> Iterator[tuple[str, Token | None, int, bool]]:
        """The text cut at control tokens and where trained parts begin and end."""
        trained = everything
        stops = "|".join(map(re.escape, (*self._names, _BEGIN, _END)))
        for part in re.split(f"({stops})", text):
            if part in (_BEGIN, _END):
                trained = everything or part == _BEGIN
            elif part in self._names:
                yield "", Token(part), -1, trained
            elif part:
                yield part.replace(_GUARD, ""), None, -1, trained


@functools.cache
def _environment() -> Any:
    """The sandbox that templates are rendered in, with what `transformers` offers them."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}`: marks what it prints as trained."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return _BEGIN + caller() + _END

    class Sandbox(ImmutableSandboxedEnvironment):
        """Counts calls and elements of ranges, and bounds repetitions."""

        intercepted_binops = frozenset({"*", "**"})
        steps = 0

        def count(self, number: int = 1) -> None:
            self.steps += number
            if self.steps > MOST_STEPS:
                raise TemplateError(f"it does not end: more than {MOST_STEPS:,} calls and repetitions")

        def call(self, context: Any, *arguments: Any, **named: Any) -> Any:
            self.count()
            return super().call(context, *arguments, **named)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(x) for x in (left, right) if isinstance(x, (str, list, tuple))]
            times = [x for x in (left, right) if isinstance(x, int)]
            if operator == "**" or (sizes and times and sizes[0] * max(times) > MOST_CHARACTERS):
                raise TemplateError(f"it repeats more than {MOST_CHARACTERS:,} characters")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def counted_range(*bounds: int) -> range:
        numbers = range(*bounds)
        environment.count(len(numbers))
        return numbers

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": raise_exception, "range": counted_range}
    return environment


def resolve(template: str | Template, tokenizer: Tokenizer) -> Template:
    """The template by its name; `tokenizer` is the one that carries "tokenizer"."""
    if isinstance(template, Template):
        return template
    return tokenizer_template(tokenizer) if template == NAME else get_template(template)


def roles_of(template: str) -> Sequence[str]:
    """The roles that a template has turns for; those of a tokenizer's are known only when it is rendered."""
    return ROLES if template == NAME else tuple(get_template(template).turns)
