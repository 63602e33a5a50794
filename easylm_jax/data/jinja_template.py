"""Chat templates in the form that `transformers` and inference servers read: Jinja."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from easylm_jax.config.chat_templates import CONTENT, EOS, Template, Token
from easylm_jax.data.templates import token_id
from easylm_jax.data.tokenizer_template import TokenizerTemplate, resolve

if TYPE_CHECKING:
    from easylm_jax.data.tokenizer import Tokenizer

Parts = Sequence[str | Token]


def to_jinja(template: str | Template, tokenizer: Tokenizer) -> str:
    """The Jinja source of a template, with the control tokens of `tokenizer` written by name.

    It renders what `templates.render` renders, and with `add_generation_prompt` what `templates.generation_prompt`
    renders. One thing it cannot express: `transformers` encodes the name of a control token in a message to that token.
    """
    template = resolve(template, tokenizer)
    return template.source if isinstance(template, TokenizerTemplate) else _Writer(template, tokenizer).source()


class _Writer:
    def __init__(self, template: Template, tokenizer: Tokenizer):
        self.template, self.tokenizer = template, tokenizer

    def source(self) -> str:
        """Every tag strips the white space before it, so line breaks between tags render as nothing."""
        template = self.template
        lines = []
        if template.default_system is not None:
            turn = f"[{{'role': 'system', 'content': {_literal(template.default_system)}}}]"
            lines += [
                "{%- if messages and messages[0]['role'] != 'system' %}",
                f"{{%- set messages = {turn} + messages %}}",
                "{%- endif %}",
            ]
        lines += self._print(template.start)
        lines.append("{%- for message in messages %}")
        for number, (role, parts) in enumerate(template.turns.items()):
            lines.append(f"{{%- {'elif' if number else 'if'} message['role'] == {_literal(role)} %}}")
            lines += self._turn(role, parts)
        unknown = _literal(f"this chat template has the roles {', '.join(template.turns)}, not ")
        lines += [
            "{%- else %}",
            f"{{{{- raise_exception({unknown} + message['role']) }}}}",
            "{%- endif %}",
            "{%- endfor %}",
        ]
        if template.generation:
            lines += ["{%- if add_generation_prompt %}", *self._print(template.generation), "{%- endif %}"]
        return "\n".join(lines)

    def _turn(self, role: str, parts: Parts) -> list[str]:
        content = "message['content']"
        if not (self.template.thinks and role == "assistant"):
            return self._print_turn(role, parts, content)
        last = f"({content}[7:] if {content}.startswith('<think>') else {content})"
        return [
            "{%- if loop.last %}",
            *self._print_turn(role, (*self.template.generation, CONTENT, EOS), last),
            "{%- else %}",
            *self._print_turn(role, parts, f"{content}.split('</think>')[-1]"),
            "{%- endif %}",
        ]

    def _print_turn(self, role: str, parts: Parts, content: str) -> list[str]:
        """A turn; the text after the end token of a last assistant turn is left out where the template says so."""
        if self.template.strip:
            content = f"({content} | trim)"
        if self.template.lead and role == "assistant":
            content = f"({_literal(self.template.lead)} + {content})"
        if self.template.separator_at_end or role != "assistant":
            return self._print(parts, content)
        at = list(parts).index(CONTENT)
        ends = [i for i, part in enumerate(parts) if i > at and isinstance(part, Token)]
        stop = ends[-1] + 1 if ends else len(parts)
        separator = self._print(parts[stop:])
        if separator:
            separator = ["{%- if not loop.last or add_generation_prompt %}", *separator, "{%- endif %}"]
        return [*self._print(parts[:stop], content), *separator]

    def _print(self, parts: Parts, content: str = "") -> list[str]:
        """A tag that prints the parts; `content` is the expression for the content of the turn."""
        terms: list[str] = []
        text = ""
        for part in [*parts, None]:
            if isinstance(part, str):
                text += part
            elif part is None or part is CONTENT:
                terms += [_literal(text)] if text else []
                terms += [content] if part is CONTENT else []
                text = ""
            else:
                text += self.tokenizer.token_text(token_id(part, self.tokenizer))
        return [f"{{{{- {' + '.join(terms)} }}}}"] if terms else []


def _literal(text: str) -> str:
    """A string of Jinja, which has the escapes of Python."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"
