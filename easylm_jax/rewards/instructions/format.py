"""IFBench's `format:` instructions on the marks, lines and lists of a response."""

from __future__ import annotations

import re
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, text
from easylm_jax.rewards.instructions.tokens import EDGE, PUNC, no_punctuation

_ifbench = partial(instruction, suite="ifbench")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_PARENTHESES_DEEP = 5
_QUOTES_DEEP = 3
_OPTIONS = ("yes/no/maybe", "I know or I don't know", "a), b), c), d)")
_SEPARATORS = ("...", "SEPARATOR", "!?!?", "-")
_LETTERED = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
_CURLY = str.maketrans("“”‘’", "\"\"''")
_MINOR_WORDS = "a an the and but or nor for so yet as at by in of off on per to up via if from into with"
_MINOR = frozenset(_MINOR_WORDS.split())
_TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")


@_ifbench("format:parentheses", "Nest (round), [square] and {{curly}} brackets at least five deep.")
def parentheses(text: str, version: str) -> bool:
    """Five openers in a row of nests, and a closer that fits; a closer that does not fit starts over."""
    stack: list[str] = []
    deepest = 0
    for mark in text:
        if mark in "([{":
            stack.append(mark)
            deepest = max(deepest, len(stack))
        elif mark in ")]}":
            if not stack or stack.pop() != _PAIRS[mark]:
                stack, deepest = [], 0
            elif deepest >= _PARENTHESES_DEEP:  # the stack is now shallower than its deepest
                return True
    return False


@_ifbench("format:quotes", "Put quotations into quotations, three deep at least, with \" and ' in turn.")
def quotes(text: str, version: str) -> bool:
    """Straight quotes, apostrophes among them: one like the innermost open one closes it, another opens one."""
    stack: list[str] = []
    deepest = 0
    for mark in text:
        if mark not in "\"'":
            continue
        if stack and stack[-1] == mark:
            stack.pop()
            if deepest - len(stack) >= _QUOTES_DEEP:
                return True
        else:
            stack.append(mark)
            deepest = max(deepest, len(stack))
    return False


@_ifbench(
    "format:options",
    "Answer with one of these options and nothing else: {options}",
    text("options", lambda rng, prompt, drawn: rng.choice(_OPTIONS)),
)
def options(text: str, version: str, options: str) -> bool:
    """One of the options; lettered ones (a, b, c) to the character, others whatever their case and outer marks."""
    separator = next((mark for mark in ("/", "or") if mark in options), ",")
    pieces = [piece.strip() for piece in options.split(separator)]
    if _LETTERED.match(options):
        return text in pieces
    return text.strip(EDGE).lower() in [piece.strip(EDGE).lower() for piece in pieces]


@_ifbench("format:newline", "Write each word on a line of its own.")
def newline(text: str, version: str) -> bool:
    """As many lines that are not empty as words. As published, a line of blanks alone is one."""
    bare = no_punctuation(text).strip()
    lines = [line for line in bare.split("\n") if (line.strip() if version == "fixed" else line)]
    return len(lines) == len(bare.split())


@_ifbench("format:emoji", "End every sentence with an emoji.")
def emoji(text: str, version: str) -> bool:
    """One of a sentence's last two characters, or the next sentence's first, is an emoji. Flags are none."""
    is_emoji = tokens.library("emoji").is_emoji
    sentences = [no_punctuation(sentence).strip() for sentence in tokens.sentences(text, version)]
    for sentence, after in zip(sentences, [*sentences[1:], ""], strict=True):
        if not sentence:
            return False
        if not any(map(is_emoji, sentence[-2:])) and not (after and is_emoji(after[0])):
            return False
    return True


@_ifbench("format:line_indent", "Indent each line by more blanks than the line before it.")
def line_indent(text: str, version: str) -> bool:
    """Leading blanks strictly increase. As published, every second of a run of blank lines counts as a line."""
    lines = text.split("\n")
    if version == "fixed":
        lines = [line for line in lines if line.strip()]
        if len(lines) < 2:
            return False
    else:
        lines = _without_some_blanks(lines)
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(before < after for before, after in zip(indents, indents[1:], strict=False))


def _without_some_blanks(lines: list[str]) -> list[str]:
    """What is left of `lines` when blank ones are removed from the very list that is walked through.

    Each removal takes the first line equal to the blank one, and makes the walk pass over the line after it.
    """
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        if not line.strip():
            places.setdefault(line, []).append(place)
    removed, taken, place = set(), dict.fromkeys(places, 0), 0
    while place < len(lines):
        line = lines[place]
        if line in places:
            removed.add(places[line][taken[line]])
            taken[line] += 1
            place += 1
        place += 1
    return [line for place, line in enumerate(lines) if place not in removed]


@_ifbench("format:quote_unquote", "Follow each quotation with an explanation that is not quoted.")
def quote_unquote(text: str, version: str) -> bool:
    """No quotation ends the text or touches another. Curly quotes are read as straight ones, but not in r26."""
    if version != "r26":
        text = text.translate(_CURLY)
    bare = "".join(text.replace("'\"'", "").split())
    if '""' in bare:
        return False
    return not bare.strip("0123456789" + PUNC.replace('"', "")).endswith('"')


@_ifbench(
    "format:list",
    "Write a list, each of its points marked by {sep}",
    text("sep", lambda rng, prompt, drawn: rng.choice(_SEPARATORS)),
)
def list_marked(text: str, version: str, sep: str) -> bool:
    """The mark occurs twice, anywhere; in "fixed" at the start of two lines."""
    if version == "fixed":
        return sum(1 for line in text.split("\n") if line.lstrip().startswith(sep)) >= 2
    return text.count(sep) >= 2


_ITALICS = re.compile(r"<(i|em)>(.*?)</\1>", re.DOTALL)
_HEADING = re.compile(r"^(?:#{1,6}\s.*|\*\*[^*\n]+\*\*:?[ \t]*|<h\d>.*</h\d>[ \t]*)$", re.MULTILINE)


@_ifbench("format:thesis", "Begin each section with a thesis statement in italics of HTML.")
def thesis(text: str, version: str) -> bool:
    """An italic span with text in it and after it. "fixed" wants one at the start of every section."""
    if version == "fixed":
        sections = [section.strip() for section in _HEADING.split(text) if section.strip()]
        return bool(sections) and all(_starts_in_italics(section) for section in sections)
    start = text.find("<i>") if "<i>" in text else text.find("<em>")
    if start < 0:
        return False
    rest = text[start:]
    end = rest.find("</i>") if "</i>" in rest else rest.find("</em>")
    return end >= 0 and bool(rest[3:end].strip()) and bool(rest[end + 4 :].strip())


def _starts_in_italics(section: str) -> bool:
    if not section.startswith(("<i>", "<em>")):
        return False
    span = _ITALICS.match(section)
    return span is not None and bool(span[2].strip()) and bool(section[span.end() :].strip())


@_ifbench("format:sub-bullets", "Write bullet points marked *, each with at least one sub-bullet marked -.")
def sub_bullets(text: str, version: str) -> bool:
    """A hyphen follows each * before the next one; in "fixed" both stand at the start of lines."""
    if version != "fixed":
        return all("-" in piece for piece in text.split("*")[1:])
    subs: list[int] = []
    for line in text.split("\n"):
        start = line.lstrip()
        if start.startswith("*") and not start.startswith("**"):
            subs.append(0)
        elif start.startswith("-") and subs:
            subs[-1] += 1
    return bool(subs) and all(subs)


@_ifbench(
    "format:no_bullets_bullets",
    "Write at least two sentences that end in a full stop, and then at least two bullet points marked *.",
)
def no_bullets_bullets(text: str, version: str) -> bool:
    """Two sentences, then bullets alone. As published, a blank line ends the sentences, and a second one all."""
    count, bullets, in_sentences = 0, 0, True
    for line in (line.strip() for line in text.split("\n")):
        if line.startswith("*"):
            in_sentences = False
            if count < 2:
                return False
            bullets += 1
        elif version == "fixed" and not line:
            continue
        elif in_sentences:
            found = tokens.sentences(line, version) if line else ()
            if version == "fixed":
                found = tuple(sentence for sentence in found if sentence.endswith("."))
            count += len(found)
            in_sentences = bool(line)
        else:
            return False
    return bullets >= 2


@_ifbench("format:title_case", "Write everything in title case: a capital at the start of each major word.")
def title_case(text: str, version: str) -> bool:
    """No word starts with a small letter, unless capitals and small ones mix after it ("iPhone").

    As published, articles must have capitals and "n't" is a word. "fixed" lets minor words inside be small.
    """
    if version == "fixed":
        words = [word.strip(EDGE) for word in text.split()]
        words = [word for word in words if word and word[0].isalpha()]
        return all(
            not word[0].islower() or (place > 0 and word in _MINOR) or (len(word) > 1 and word[1].isupper())
            for place, word in enumerate(words)
        )
    return not any(_fails_title_case(word, version) for word in tokens.treebank_words(text))


def _fails_title_case(word: str, version: str) -> bool:
    if not word[0].isalpha() or not word[0].islower():
        return False
    rest = word[1:]
    return rest.islower() or rest.isupper() if rest else version != "r25"


@_ifbench(
    "format:output_template",
    "Answer in this form: My Answer: [answer] My Conclusion: [conclusion] Future Outlook: [outlook]",
)
def output_template(text: str, version: str) -> bool:
    """The three labels, in any order and with anything around them."""
    return all(label in text for label in _TEMPLATE)


@_ifbench("format:no_whitespace", "Use no whitespace.")
def no_whitespace(text: str, version: str) -> bool:
    """No Unicode whitespace anywhere."""
    return not any(map(str.isspace, text))
