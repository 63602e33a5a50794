"""Language models as judges of answers side by side or one by one: questions and the parsing of verdicts.

The labels in the questions and the verdict tokens are those of RewardBench and M-RewardBench (spec m_rewardbench §3.3);
the wording is this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from models.errors import UserError

Messages = Sequence[Mapping[str, str]]
LETTERS = "ABCD"

_PAIR_SYSTEM = (
    "You are an impartial judge of answers that AI assistants gave to a user. Decide which answer serves the user "
    "better and follows what was asked. Weigh helpfulness, relevance, accuracy, depth, creativity and level of detail. "
    "First compare the answers in a few sentences. Do not let their order, their length or the assistants' names "
    "influence you. Be as objective as you can. {languages}Then give your verdict in exactly this form: {verdicts}."
)
_LANGUAGES = "The question is in {source}. The answers should be in {target}. "
_RATING_PARTS = (
    "Task Description:\nJudge how good the response to the query is, from 1 (poor) to 10 (excellent). Weigh whether it "
    "is helpful, relevant, accurate, deep, creative and detailed.\n\nNotes:\n- Judge the response alone; its length is "
    "no merit.\n{note}- Reason briefly, then end with a line that holds only a whole number from 1 to 10."
)
_TIES_NOTE = "- A short correct answer is as good as a long one; depth and detail are not needed.\n"

_VERDICT = re.compile(r"\[\[\s*([A-D])\s*\]\]")
_BEFORE_RATING = re.compile(r"^.*[:=]\s*(?=[*_\[\s]*\d)")
_RATING = re.compile(r"(10|[1-9])(?:\s*/\s*10)?")


def pair_question(
    conversation: Messages, answers: Sequence[str], *, source: str | None = None, target: str | None = None
) -> list[dict[str, str]]:  # fmt: skip
    """The messages of a judge that compares `answers` (two, or four for rankings) to the end of `conversation`.

    Args:
        conversation: the messages up to the user's last turn; one or two user turns.
        source, target: names of the languages of question and answers; None leaves them out.

    Raises:
        UserError: there are more than two user turns, or another number of answers.
    """
    if not 2 <= len(answers) <= len(LETTERS):
        raise UserError(f"judge: {len(answers)} answers; it compares two to four")
    letters = LETTERS[: len(answers)]
    users = [turn["content"] for turn in conversation if turn["role"] == "user"]
    if not 1 <= len(users) <= 2:
        raise UserError(f"judge: a conversation of {len(users)} user turns; it judges one or two")
    verdicts = ", ".join(f'"[[{letter}]]" if assistant {letter} is better' for letter in letters)
    if len(answers) > 2:
        verdicts = verdicts.replace("is better", "is best")
    languages = _LANGUAGES.format(source=source, target=target) if source and target else ""
    system = _PAIR_SYSTEM.format(languages=languages, verdicts=verdicts)
    blocks = [_block(letter, conversation, users, answer) for letter, answer in zip(letters, answers, strict=True)]
    start = f"[User Question]\n{users[0]}\n\n" if len(users) == 1 else ""
    return [{"role": "system", "content": system}, {"role": "user", "content": start + "\n\n".join(blocks)}]


def _block(letter: str, conversation: Messages, users: Sequence[str], answer: str) -> str:
    if len(users) == 1:
        return f"[The Start of Assistant {letter}'s Answer]\n{answer}\n[The End of Assistant {letter}'s Answer]"
    first = next((turn["content"] for turn in conversation if turn["role"] == "assistant"), "")
    turns = [("User", users[0]), (f"Assistant {letter}", first), ("User", users[1]), (f"Assistant {letter}", answer)]
    body = "\n\n".join(f"### {who}:\n{text}" for who, text in turns)
    start, end = f"<|The Start of Assistant {letter}'s Conversation with User|>", (
        f"<|The End of Assistant {letter}'s Conversation with User|>"
    )  # fmt: skip
    return f"{start}\n\n{body}\n\n{end}"


def rating_question(query: str, response: str, *, ties: bool = False) -> list[dict[str, str]]:
    """The message of a judge that rates one response from 1 to 10 (RewardBench 2, ratings)."""
    parts = _RATING_PARTS.format(note=_TIES_NOTE if ties else "")
    return [{"role": "user", "content": f"{parts}\n\n[Query]\n{query}\n\n[Response]\n{response}\n\n[Your judgement]\n"}]


def without_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For models without a system role: the system text stands before the user's."""
    if messages[0]["role"] != "system":
        return [dict(turn) for turn in messages]
    return [{"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}]


def parse_verdict(text: str, letters: str = "AB", compat: str | None = None) -> str | None:
    """The letter of a judge's verdict, None where it cannot be parsed.

    The last verdict token counts. If its line holds different ones ("[[A]] or [[B]]"), there is no verdict, and neither
    if its letter is not among `letters`. `compat="mrb"` is the published parser: the first of [[A]], [[B]] ... that
    occurs anywhere, tried in the order of the letters.
    """
    if compat == "mrb":
        return next((letter for letter in letters if f"[[{letter}]]" in text), None)
    lines = [found for line in text.splitlines() if (found := _VERDICT.findall(line))]
    if not lines or len(set(lines[-1])) > 1:
        return None
    return lines[-1][-1] if lines[-1][-1] in letters else None


def parse_rating(text: str, compat: str | None = None) -> int | None:
    """The whole number from 1 to 10 on the last line of a rating, None where there is none.

    "8", "8/10", "**8**", "8." and "Rating: 8" are ratings; decimals are not. `compat="rb2"` is the published parser:
    whatever ends in 1 to 10, so that "8/10" is 10, "8.5" is 5 and "7." is none.
    """
    if compat == "rb2":
        match = re.search(r"(10|[1-9])\s*$", text)
        return int(match[1]) if match else None
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    value = _BEFORE_RATING.sub("", line).strip(" \t*_`[]").removesuffix(".").strip(" \t*_`[]")
    match = _RATING.fullmatch(value)
    return int(match[1]) if match else None
