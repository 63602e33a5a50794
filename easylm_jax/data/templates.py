"""Renders conversations by chat templates: a list of pieces, each trained or not.

Loss masks come from these pieces, recorded while the text is rendered, and not from searching token ids. The content
of an assistant turn and the end token after it are trained; headers and separators are not. Contents are always
encoded as ordinary text, so a literal `</s>` in them cannot end a turn. The role markers of `tulu` are ordinary text,
so a user can imitate them; templates with special tokens for roles (llama3, qwen) do not allow that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from easylm_jax.config.chat_templates import CONTENT, Messages, Template, Token, get_template
from easylm_jax.data.tokenizer_template import TokenizerTemplate, resolve
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Piece:
    """A span of rendered text (`token` None) or one special token; `turn` is the index of its message, −1 for none."""

    text: str
    token: Token | None
    turn: int
    trained: bool


def _piece(part: str | Token, turn: int, trained: bool) -> Piece:
    return Piece("", part, turn, trained) if isinstance(part, Token) else Piece(part, None, turn, trained)


def _trained_turns(messages: Messages, train_on: str) -> set[int]:
    if train_on == "all":
        return set(range(len(messages)))
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return set(turns[-1:] if train_on == "last_assistant" else turns)


def render(
    template: str | Template, messages: Messages, *, train_on: str = "assistant", compat: str | None = None
) -> list[Piece]:
    """Renders a conversation as pieces.

    `train_on`: "assistant" trains the content and end token of each assistant turn, "last_assistant" of the last one
    only, "all" everything. `compat="tulu25"` adds the two places that the Tülu 2.5 code also trained (spec §3.3): the
    separator after the end token of a trained turn that is not the last, and the header of a trained turn that comes
    first or follows another trained turn.
    """
    template = get_template(template) if isinstance(template, str) else template
    if isinstance(template, TokenizerTemplate):
        return [Piece(*part) for part in template.pieces(messages, train_on=train_on)]
    offset = 0
    if template.default_system is not None and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": template.default_system}, *messages]
        offset = 1
    trained = _trained_turns(messages, train_on)
    everything, quirks = train_on == "all", compat == "tulu25"
    pieces = [_piece(part, -1, everything) for part in template.start]
    for turn, message in enumerate(messages):
        header_trained = everything or (quirks and turn in trained and (turn == 0 or turn - 1 in trained))
        separator_trained = everything or (quirks and turn in trained)
        place = "header"
        parts, content = template.turn(messages, turn)
        for part in parts:
            if part is CONTENT:
                pieces.append(Piece(content, None, turn - offset, turn in trained))
                place = "content"
            elif isinstance(part, Token):
                ends_turn = place == "content"
                mark = turn in trained if ends_turn else header_trained
                pieces.append(Piece("", part, turn - offset, mark))
                place = "separator" if ends_turn else place
            else:
                last = turn == len(messages) - 1 and message["role"] == "assistant"
                if place == "separator" and last and not template.separator_at_end:
                    continue
                mark = header_trained if place == "header" else separator_trained
                pieces.append(Piece(part, None, turn - offset, mark))
    return pieces


def generation_prompt(template: str | Template, messages: Messages) -> list[Piece]:
    """The conversation and the start of the response, which a model continues. No piece is trained."""
    template = get_template(template) if isinstance(template, str) else template
    if isinstance(template, TokenizerTemplate):
        return [Piece(*part) for part in template.generation_pieces(messages)]
    open_end = dataclasses.replace(template, separator_at_end=True)
    pieces = [dataclasses.replace(piece, trained=False) for piece in render(open_end, messages)]
    return pieces + [_piece(part, len(messages), False) for part in template.generation]


def token_id(token: Token, tokenizer: Tokenizer) -> int:
    """The id of a template's token; `UserError` when the vocabulary lacks it."""
    found = tokenizer.special(token.name)
    if found is None and token.otherwise is not None:
        found = tokenizer.special(token.otherwise)
    if found is None:
        raise UserError(
            f"data: the template needs the token {token.name!r}, which tokenizer {tokenizer.spec} does not have; "
            "choose another template or train the vocabulary with that symbol"
        )
    return found


def end_tokens(template: str | Template | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's EOS, and the tokens that the template puts after an assistant turn."""
    found = {tokenizer.eos_id}
    if template is not None:
        template = resolve(template, tokenizer)
        if isinstance(template, TokenizerTemplate):
            return tuple(sorted(found | {token_id(Token(name), tokenizer) for name in template.ends}))
        turn = template.turns["assistant"]
        after = turn[turn.index(CONTENT) + 1 :]
        found |= {token_id(part, tokenizer) for part in after if isinstance(part, Token)}
    return tuple(sorted(found))


def rendered_text(pieces: Iterable[Piece], tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and its trained spans, as (start, end) in characters."""
    text = ""
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        shown = tokenizer.token_text(token_id(piece.token, tokenizer)) if piece.token else piece.text
        if piece.trained and shown:
            if spans and spans[-1][1] == len(text):
                spans[-1] = (spans[-1][0], len(text) + len(shown))
            else:
                spans.append((len(text), len(text) + len(shown)))
        text += shown
    return text, spans


def tokenize(rendered: Sequence[Sequence[Piece]], tokenizer: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encodes rendered conversations as a list of (ids int32 [n], loss mask uint8 [n]).

    Text between two special tokens is encoded at once, as `transformers` does with the whole rendered text. A token is
    trained when all its characters are in trained pieces; a token that spans a header and content is not, since it
    could not be sampled after the header.
    """
    segments: list[str] = []
    layout: list[list[tuple[int, list[Piece]] | tuple[Token, bool]]] = []
    for pieces in rendered:
        plan: list = []
        run: list[Piece] = []
        for piece in [*pieces, None]:
            if piece is not None and piece.token is None:
                run.append(piece)
                continue
            text = "".join(part.text for part in run)
            if text:
                plan.append((len(segments), run))
                segments.append(text)
            run = []
            if piece is not None:
                plan.append((piece.token, piece.trained))
        layout.append(plan)
    leading = {plan[0][0] for plan in layout if plan and isinstance(plan[0][0], int)}
    encoded = tokenizer.encode_with_offsets(segments, continuation=[i not in leading for i in range(len(segments))])
    return [_assemble(plan, encoded, tokenizer) for plan in layout]


def _assemble(plan: list, encoded: list, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    ids: list[np.ndarray] = []
    trained: list[np.ndarray] = []
    for what, detail in plan:
        if isinstance(what, Token):
            ids.append(np.array([token_id(what, tokenizer)], np.int32))
            trained.append(np.array([detail], np.uint8))
            continue
        token_ids, starts, ends = encoded[what]
        lengths = [len(piece.text) for piece in detail]
        characters = np.repeat(np.array([piece.trained for piece in detail], np.int64), lengths)
        total = np.concatenate([[0], np.cumsum(characters)])
        # A token without characters of its own (a dummy space, the first bytes of a character) counts as the next one.
        starts = np.minimum(starts, len(characters) - 1)
        ends = np.maximum(ends, starts + 1)
        ids.append(token_ids)
        trained.append((total[ends] - total[starts] == ends - starts).astype(np.uint8))
    if not ids:
        return np.zeros(0, np.int32), np.zeros(0, np.uint8)
    return np.concatenate(ids), np.concatenate(trained)


def encode_prompt(template: str | Template, messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """Token ids of `generation_prompt`."""
    return tokenize([generation_prompt(resolve(template, tokenizer), messages)], tokenizer)[0][0].tolist()
