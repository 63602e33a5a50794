"""`easylm generate MODEL [PROMPT ...]`: generates responses with a trained model. Restores only parameters."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easylm_jax.cli import arguments as kinds
from easylm_jax.cli.parser import add_stop_and_seed
from models.errors import UserError

if TYPE_CHECKING:
    from easylm_jax.checkpoint.load import LoadedModel
    from easylm_jax.data.tokenizer import Tokenizer
    from easylm_jax.decode import ScoredCompletions
    from models.molmo.image import TokenizedImage

PyTree = Any
Messages = list[dict[str, str]]
DEFAULT_MAX_NEW_TOKENS = 256  # without --max-new-tokens, if the context is long enough
SLOTS = 64
COLUMNS = ("messages", "prompt", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `easylm generate`."""
    parser.add_argument(
        "model",
        type=kinds.NAME,
        metavar="MODEL",
        help="a stage's or checkpoint's folder, or hf:FOLDER (or hf:OWNER/NAME on the hub)",
    )
    parser.add_argument(
        "prompts",
        type=kinds.ANY,
        metavar="PROMPT",
        nargs="*",
        help="default: from --file, or one prompt per line from standard input",
    )
    parser.add_argument(
        "--file",
        type=kinds.INPUT_FILE,
        metavar="JSONL",
        help=f"JSON lines with a prompt in one of the columns {', '.join(COLUMNS)}",
    )
    parser.add_argument(
        "--image",
        type=kinds.INPUT_FILE,
        metavar="FILE",
        action="append",
        default=[],
        help="a picture that every prompt is about, for models that see (Molmo); several for several pictures",
    )
    parser.add_argument(
        "--draw", type=kinds.OUTPUT_FILE, metavar="PNG", help="write the picture with the points of the first response"
    )
    parser.add_argument(
        "--max-crops", type=kinds.COUNT, metavar="N",
        help="the most crops of a picture; more show more detail (default: as the model was trained)",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--template", metavar="NAME", help="chat template (default: the one the stage was trained with)")
    how.add_argument("--raw", action="store_true", help="continue the plain text, without a chat template")
    parser.add_argument(
        "--max-new-tokens", type=kinds.COUNT, metavar="N",
        help=f"maximum response length (default: {DEFAULT_MAX_NEW_TOKENS}, or what fits into the context)",
    )  # fmt: skip
    parser.add_argument(
        "--temperature",
        type=kinds.NON_NEGATIVE,
        metavar="T",
        default=1.0,
        help="sampling temperature; 0 is greedy (default: 1)",
    )
    parser.add_argument("--top-k", type=kinds.COUNT, metavar="K", help="sample from the K most likely tokens")
    parser.add_argument(
        "--top-p",
        type=kinds.SHARE,
        metavar="P",
        help="sample from the most likely tokens with total probability P",
    )
    parser.add_argument("--samples", type=kinds.COUNT, metavar="N", default=1, help="responses per prompt (default: 1)")
    add_stop_and_seed(parser)
    parser.add_argument(
        "--tokenizer", type=kinds.NAME, metavar="SPEC", help="sp:FILE or hf:FOLDER (default: the model's own)"
    )
    parser.add_argument(
        "--moderator", type=kinds.NAME, metavar="MODEL",
        help="refuse harmful prompts and responses by this moderator (docs/moderation.md)",
    )  # fmt: skip
    parser.add_argument(
        "--filter", choices=("prompt", "response", "both"), default="both",
        help="what the moderator stops: harmful prompts, harmful responses, or both (default)",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=kinds.OUTPUT_FILE, metavar="FILE", help="also write the responses as JSONL to FILE"
    )


def main(arguments: argparse.Namespace) -> int:
    """`easylm generate`: prints responses to standard output, and tokens and seconds to standard error."""
    from easylm_jax.checkpoint.load import load
    from easylm_jax.data import templates
    from models.molmo.batch import with_pictures

    if arguments.draw and len(arguments.image) != 1:
        raise UserError(f"--draw shows the points in one picture; {len(arguments.image)} are given with --image")
    conversations = _conversations(arguments)
    source = load(arguments.model, tokenizer=arguments.tokenizer)
    template = None if arguments.raw else arguments.template or source.template
    prompts = [encode(source, conversation, template, i) for i, conversation in enumerate(conversations, start=1)]
    pictures = _pictures(source, arguments)
    prompts = [with_pictures(prompt, pictures) for prompt in prompts]
    max_new_tokens = _max_new_tokens(source, prompts, arguments.max_new_tokens)
    moderator = None
    if arguments.moderator is not None:
        from easylm_jax.rewards.moderator import filtered, load_moderator

        moderator = load_moderator(arguments.moderator)
    began = time.perf_counter()
    done = complete(
        source, prompts, end_ids=templates.end_tokens(template, source.tokenizer), max_new_tokens=max_new_tokens,
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, samples=arguments.samples,
        stop_strings=arguments.stop, seed=arguments.seed, images=[pictures] * len(prompts) if pictures else None,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    records = list(_records(source.tokenizer, conversations, prompts, done, arguments.samples, template is not None))
    if moderator is not None:
        records = filtered(moderator, records, arguments.filter)
    for record in records:
        if len(records) > 1:
            print(f"> {_one_line(record['prompt'])}")
        print(record["response"] + ("\n" if len(records) > 1 else ""))
    tokens = int(done.lengths.sum())
    speed = f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.0f} tokens/s, compiling included)"
    print(f"{len(records)} response{'s' if len(records) > 1 else ''}, {speed}", file=sys.stderr)
    if arguments.json:
        _write(Path(arguments.json), records)
    if arguments.draw:
        _draw(arguments.image[0], records[0]["response"], Path(arguments.draw))
    return 0


def _conversations(arguments: argparse.Namespace) -> list[Messages]:
    """The prompts as conversations; a plain text is one user turn."""
    if arguments.prompts and arguments.file:
        raise UserError("prompts are given both as arguments and with --file; give one of the two")
    if arguments.file:
        found = _from_file(Path(arguments.file))
    elif arguments.prompts:
        found = [_turn(text) for text in arguments.prompts]
    else:
        if sys.stdin.isatty():
            print("enter one prompt per line; Ctrl-D ends", file=sys.stderr)
        found = [_turn(line.rstrip("\n")) for line in _standard_input() if line.strip()]
    if not found:
        raise UserError(
            f"no prompt in {arguments.file or 'standard input'}; give one as an argument, a line or a record"
        )
    for number, messages in enumerate(found, start=1):
        if not messages[-1]["content"].strip():
            raise UserError(f"prompt {number} is empty; give it some text")
        for message in messages:
            try:
                message["content"].encode("utf-8")
            except UnicodeEncodeError:
                raise UserError(f"prompt {number} holds half of a surrogate pair, which is not a character") from None
    return found


def _standard_input() -> Iterator[str]:
    """The lines of standard input; `UserError` where it is not UTF-8, whatever the locale of the shell."""
    if not hasattr(sys.stdin, "buffer"):  # replaced, such as by a notebook
        yield from sys.stdin
        return
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input, line {number}, is not UTF-8 text: {error.reason} at byte {error.start + 1}"
            ) from None


def _turn(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _from_file(path: Path) -> list[Messages]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a record may hold other line separators
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a JSONL file with --file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a JSONL file with --file") from None
    return [_record(text, f"{path}, line {i}") for i, text in enumerate(lines, start=1) if text.strip()]


def _record(text: str, where: str) -> Messages:
    """The conversation of one line, without the response at its end."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}, is not JSON: {error}") from None
    column = next((name for name in COLUMNS if isinstance(record, dict) and record.get(name)), None)
    if column is None:
        columns = f"; it has {', '.join(record)}" if isinstance(record, dict) and record else ""
        raise UserError(f"{where}: no prompt in a column {', '.join(COLUMNS)}{columns}")
    value = record[column]
    if isinstance(value, str):
        return _turn(value)
    turns: list[Any] = value if isinstance(value, list) else [None]
    for turn in turns:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(name), str) for name in ("role", "content")):
            raise UserError(f"{where}: {column} must be a text or a list of turns with a role and a content")
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"{where}: the conversation must end with a user turn (or the response to it)")
    return messages


def encode(source: LoadedModel, messages: Messages, template: str | None, number: int = 1) -> list[int]:
    """Token ids of a prompt: the conversation up to the start of the response, or its plain text without a template."""
    from easylm_jax.data import templates, tokenizer_template

    if template is not None:
        roles = tokenizer_template.roles_of(template)
        unknown = next((turn["role"] for turn in messages if turn["role"] not in roles), None)
        if unknown is not None:
            raise UserError(f"prompt {number} has the role {unknown!r}; template {template} has {', '.join(roles)}")
        return templates.encode_prompt(template, messages, source.tokenizer)
    if len(messages) > 1:
        raise UserError(f"prompt {number} is a conversation; name its chat template with --template")
    start = [source.tokenizer.bos_id] if source.add_bos and source.tokenizer.bos_id is not None else []
    return start + source.tokenizer.encode(messages[0]["content"])


def _draw(picture: str, response: str, path: Path) -> None:
    """Writes the picture with the points of a response as PNG."""
    from easylm_jax.evaluate import pointing

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pointing.draw(picture, pointing.read(response)).save(path, "PNG")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file with --draw") from error


def _pictures(source: LoadedModel, arguments: argparse.Namespace) -> list[TokenizedImage]:
    """The pictures of `--image`, as the model reads them."""
    vision = source.decoder.config.vision
    if vision is None:
        if arguments.image or arguments.max_crops:
            raise UserError(f"{arguments.model} sees no pictures; leave --image and --max-crops out")
        return []
    from models.molmo.image import tokenize

    return [tokenize(path, arguments.max_crops or vision.max_crops, vision) for path in arguments.image]


def _max_new_tokens(source: LoadedModel, prompts: Sequence[Sequence[int]], requested: int | None) -> int:
    """The maximum response length: as requested, by default 256 or what fits into the context."""
    context = source.decoder.config.context
    longest = max(map(len, prompts))
    number = [len(prompt) for prompt in prompts].index(longest) + 1
    if longest + (requested or 1) > context:
        wanted = f" and {requested} new ones" if requested else ""
        raise UserError(
            f"prompt {number} is too long: its {longest} tokens{wanted} exceed the model's context of {context}; "
            f"shorten it{' or ask for fewer with --max-new-tokens' if requested and longest < context else ''}"
        )
    return requested if requested is not None else min(DEFAULT_MAX_NEW_TOKENS, context - longest)


def complete(
    source: LoadedModel, prompts: Sequence[Sequence[int]], *, end_ids: Sequence[int], samples: int = 1, **options: Any
) -> ScoredCompletions:
    """`decode.generate` with the model's own tokenizer for stop strings. `end_ids` are the tokens that end a response;
    `options` are passed on."""
    from easylm_jax import decode

    done = decode.generate(
        source.decoder, source.params, prompts, samples=samples, eos_ids=end_ids, slots=SLOTS, scores=True,
        detokenize=functools.partial(source.tokenizer.decode, skip_special=True),
        mesh=source.mesh if source.mesh.size > 1 else None, **options,
    )  # fmt: skip
    assert isinstance(done, decode.ScoredCompletions)
    return done


def _records(
    tokenizer: Tokenizer, conversations: Sequence[Messages], prompts: Sequence[Sequence[int]],
    done: ScoredCompletions, samples: int, chat: bool,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """One record per response. `logprob` is the sum of the model's log-probabilities at temperature 1, in nats."""
    assert done.logprobs_untruncated is not None
    for row, length in enumerate(done.lengths):
        number, sample = divmod(row, samples)
        messages = conversations[number]
        tokens = done.tokens[row, :length].tolist()
        yield {
            "prompt": messages[0]["content"] if len(messages) == 1 else messages,
            "sample": sample,
            "response": _text(tokenizer, [] if chat else prompts[number], tokens),
            "logprob": float(done.logprobs_untruncated[row, :length].sum(dtype="float64")),
            "length": int(length),
            "ended": bool(done.ended[row]),
        }


def _text(tokenizer: Tokenizer, before: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of a response. It is decoded together with the tokens before it, because many tokenizers drop a space at
    the start of a text."""
    start, whole = (tokenizer.decode(ids, skip_special=True) for ids in (before, [*before, *tokens]))
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(tokens, skip_special=True)


def _one_line(prompt: str | Messages) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return " ".join(text.split())


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file with --json") from error
