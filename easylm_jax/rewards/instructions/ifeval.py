"""IFEval's 25 instructions: keywords, language, length, content, case, start and end."""

from __future__ import annotations

import re
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import (
    Argument,
    choice,
    compare,
    first_of,
    instruction,
    integer,
    noun,
    nouns,
    prompt_text,
    relation,
    text,
)
from easylm_jax.rewards.instructions.pieces import STARS, filled, starred_pieces

_ifeval = partial(instruction, suite="ifeval")
_LANGUAGE_CODES = "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"
LANGUAGES = tuple(_LANGUAGE_CODES.split())
_ENDS = ("Is there anything else I can help with?", "That is all there is to say.", "Any other questions?")


def _quoted(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in words)


@_ifeval("keywords:existence", lambda keywords: f"Use the keywords {_quoted(keywords)}.", nouns("keywords", 2))
def existence(text: str, version: str, keywords: tuple[str, ...]) -> bool:
    """Every keyword is found, inside of words too."""
    return all(tokens.pattern(keyword, version).search(text) for keyword in keywords)


@_ifeval(
    "keywords:frequency",
    'Use the word "{keyword}" {relation} {frequency} times.',
    noun("keyword"),
    integer("frequency", 1, 3),
    relation(),
)
def frequency(text: str, version: str, keyword: str, frequency: int, relation: str) -> bool:
    """How often the keyword is found, inside of words too."""
    return compare(tokens.occurrences(keyword, text, version), relation, frequency)


@_ifeval(
    "keywords:forbidden_words",
    lambda forbidden_words: f"Do not use the words {_quoted(forbidden_words)}.",
    nouns("forbidden_words", 2),
)
def forbidden_words(text: str, version: str, forbidden_words: tuple[str, ...]) -> bool:
    """None of them is found as a whole word."""
    return not any(tokens.pattern(word, version, whole_word=True).search(text) for word in forbidden_words)


def _convert_letter(value: object) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError("a single character")
    return value.strip().lower()


LETTER = Argument("letter", _convert_letter, lambda rng, prompt, drawn: rng.choice("abcdefghijklmnopqrstuvwxyz"))
LETTER_TEXT = 'Use the letter "{letter}" {let_relation} {let_frequency} times.'


@_ifeval("keywords:letter_frequency", LETTER_TEXT, LETTER, integer("let_frequency", 1, 10), relation("let_relation"))
def letter_frequency(text: str, version: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """How often the letter occurs in any case. A character that is no letter is counted too."""
    return compare(text.lower().count(letter), let_relation, let_frequency)


@_ifeval(
    "language:response_language",
    'Write everything in the language whose ISO code is "{language}", and in no other.',
    choice("language", LANGUAGES),
)
def response_language(text: str, version: str, language: str) -> bool:
    """The language that langdetect finds. A text without one passes, but not in "fixed"."""
    return tokens.language(text) in ({language} if version == "fixed" else {language, None})


@_ifeval(
    "length_constraints:number_sentences",
    "Write {relation} {num_sentences} sentences.",
    integer("num_sentences", 1, 20),
    relation(),
)
def number_sentences(text: str, version: str, num_sentences: int, relation: str) -> bool:
    """How many sentences Punkt finds."""
    return compare(len(tokens.punkt_sentences(text)), relation, num_sentences)


@_ifeval(
    "length_constraints:number_paragraphs",
    "Write {num_paragraphs} paragraphs, divided by ***",
    integer("num_paragraphs", 1, 5),
)
def number_paragraphs(text: str, version: str, num_paragraphs: int) -> bool:
    """How many pieces *** makes; a blank one is left out at either end, and fails between others."""
    pieces = filled(starred_pieces(text, version))
    return pieces is not None and len(pieces) == num_paragraphs


@_ifeval(
    "length_constraints:number_words",
    "Write {relation} {num_words} words.",
    integer("num_words", 100, 500),
    relation(),
)
def number_words(text: str, version: str, num_words: int, relation: str) -> bool:
    """How many runs of word characters there are."""
    return compare(len(re.findall(r"\w+", text)), relation, num_words)


@_ifeval(
    "length_constraints:nth_paragraph_first_word",
    "Write {num_paragraphs} paragraphs with a blank line between them. "
    'Start paragraph {nth_paragraph} with "{first_word}".',
    integer("num_paragraphs", 1, 5),
    integer("nth_paragraph", 1, 5, minimum=1, draw=lambda rng, prompt, drawn: rng.randint(1, drawn["num_paragraphs"])),
    first_of("first_word"),
)
def nth_paragraph_first_word(text: str, version: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """As many paragraphs as asked, and the first word of one. As published, blank pieces shift which one that is."""
    pieces = text.split("\n\n")
    full = [piece for piece in pieces if piece.strip()]
    if version == "fixed":
        pieces = full
    if len(full) != num_paragraphs or nth_paragraph > len(full) or not pieces[nth_paragraph - 1].strip():
        return False
    word = pieces[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


@_ifeval("combination:two_responses", f"Give two different answers, with {STARS} between them.")
def two_responses(text: str, version: str) -> bool:
    """Two different pieces; blank ones at either end are left out."""
    pieces = filled(text.split(STARS))
    return pieces is not None and len(pieces) == 2 and pieces[0].strip() != pieces[1].strip()


@_ifeval(
    "combination:repeat_prompt",
    "First repeat this request word for word, then answer it: {prompt_to_repeat}",
    prompt_text(),
)
def repeat_prompt(text: str, version: str, prompt_to_repeat: str) -> bool:
    """The text starts with the prompt, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@_ifeval(
    "startend:end_checker",
    "End with exactly these words: {end_phrase}",
    text("end_phrase", lambda rng, prompt, drawn: rng.choice(_ENDS), strip=True),
)
def end_checker(text: str, version: str, end_phrase: str) -> bool:
    """The text ends with the phrase, in any case; quotation marks around the text are passed over."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@_ifeval("startend:quotation", "Put everything in double quotation marks.")
def quotation(text: str, version: str) -> bool:
    """The first and the last character are straight double quotes."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


@_ifeval(
    "change_case:capital_word_frequency",
    "Write {capital_relation} {capital_frequency} words in capital letters.",
    integer("capital_frequency", 1, 20),
    relation("capital_relation"),
)
def capital_word_frequency(text: str, version: str, capital_frequency: int, capital_relation: str) -> bool:
    """How many Treebank words are all capitals; "I" is one."""
    return compare(sum(map(str.isupper, tokens.treebank_words(text))), capital_relation, capital_frequency)


def _english(text: str, version: str) -> bool:
    return tokens.language(text) in ({"en"} if version == "fixed" else {"en", None})


@_ifeval("change_case:english_capital", "Write everything in English and in capital letters.")
def english_capital(text: str, version: str) -> bool:
    """No small letter, and English or no language that langdetect finds."""
    return text.isupper() and _english(text, version)


@_ifeval("change_case:english_lowercase", "Write everything in English and in small letters.")
def english_lowercase(text: str, version: str) -> bool:
    """No capital letter, and English or no language that langdetect finds."""
    return text.islower() and _english(text, version)


@_ifeval("punctuation:no_comma", "Use no commas.")
def no_comma(text: str, version: str) -> bool:
    """No ASCII comma."""
    return "," not in text
