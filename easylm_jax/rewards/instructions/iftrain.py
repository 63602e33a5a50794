"""IFTrain's instructions on keywords, letters, words and counts."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from easylm_jax.rewards.instructions import ifeval, tokens
from easylm_jax.rewards.instructions.base import compare, first_of, instruction, integer, noun, relation, text
from easylm_jax.rewards.instructions.pieces import starred_pieces
from easylm_jax.rewards.instructions.tokens import EDGE

_iftrain = partial(instruction, suite="iftrain")
_LOWERCASE = re.compile(r"\b[a-z]+\b")
_NOT_WORD = re.compile(r"[^\w\s]")


@_iftrain("keywords:word_once", 'Use the keyword "{keyword}" exactly once.', noun("keyword"))
def word_once(text: str, version: str, keyword: str) -> bool:
    """The keyword is found once, inside of words too."""
    return tokens.occurrences(keyword, text, version) == 1


@_iftrain(
    "keywords:word_count_different_numbers",
    'Let the word "{keyword}" appear {relation} {frequency} times.',
    noun("keyword"),
    integer("frequency", 1, 3),
    relation(),
)
def word_count_different_numbers(text: str, version: str, keyword: str, frequency: int, relation: str) -> bool:
    """How often the keyword is found, inside of words too."""
    return compare(tokens.occurrences(keyword, text, version), relation, frequency)


def _draw_own_word(rng: random.Random, prompt: str, drawn: Mapping[str, Any]) -> str:
    return rng.choice(tokens.no_punctuation(prompt).split() or ["the"])


@_iftrain(
    "keywords:exclude_word_harder",
    'Do not use the word "{keyword}".',
    text("keyword", _draw_own_word, strip=True),
    text("instruction", required=False),
)
def exclude_word_harder(text: str, version: str, keyword: str, instruction: str = "") -> bool:
    """The keyword does not stand between blanks; in "fixed" it is nowhere a word, in any case.

    Published rows may carry the prompt that the keyword is from as `instruction`.
    """
    if version == "fixed":
        return re.search(rf"(?<!\w){re.escape(keyword)}(?!\w)", text, re.IGNORECASE) is None
    return f" {keyword} " not in text


@_iftrain(
    "letters:letter_counting2",
    ifeval.LETTER_TEXT,
    ifeval.LETTER,
    integer("let_frequency", 1, 10),
    relation("let_relation"),
)
def letter_counting2(text: str, version: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """How often the letter occurs in any case."""
    return ifeval.letter_frequency(text, version, letter, let_frequency, let_relation)


@_iftrain("letters:letter_counting", "Use {relation} {N} letters.", integer("N", 2, 3), relation())
def letter_counting(text: str, version: str, N: int, relation: str) -> bool:
    """How many letters a-z there are in either case."""
    return compare(sum(1 for c in text if c.isascii() and c.isalpha()), relation, N)


def _word(word: str, version: str) -> str:
    return (word.strip(EDGE) if version == "fixed" else word).lower()


def _bare(word: str) -> str:
    return _NOT_WORD.sub("", word).lower()


@_iftrain("first_word:first_word_sent", 'Start every sentence with the word "{first_word}".', first_of("first_word"))
def first_word_sent(text: str, version: str, first_word: str) -> bool:
    """The first word of every sentence; a mark on it counts, but not in "fixed"."""
    firsts = [sentence.split()[:1] for sentence in tokens.rule_sentences(text)]
    return all([_word(word, version) for word in first] == [_word(first_word, version)] for first in firsts)


@_iftrain("first_word:first_word_answer", 'Start with the word "{first_word}".', first_of("first_word"))
def first_word_answer(text: str, version: str, first_word: str) -> bool:
    """The first word of the text; a mark on it counts, but not in "fixed"."""
    return _word(text.split()[0], version) == _word(first_word, version)


@_iftrain("last_word:last_word_sent", 'End every sentence with the word "{last_word}".', first_of("last_word"))
def last_word_sent(text: str, version: str, last_word: str) -> bool:
    """The last word of every sentence, without its marks."""
    lasts = [sentence.split()[-1:] for sentence in tokens.rule_sentences(text)]
    return all([_bare(word) for word in last] == [last_word.lower()] for last in lasts)


@_iftrain("last_word:last_word_answer", 'End with the word "{last_word}".', first_of("last_word"))
def last_word_answer(text: str, version: str, last_word: str) -> bool:
    """The last word of the text, without its marks."""
    return _bare(text.split()[-1]) == last_word.lower()


@_iftrain("punctuation:punctuation_dot", "Use no full stops.")
def punctuation_dot(text: str, version: str) -> bool:
    """No dot; an ellipsis in one character is none."""
    return "." not in text


@_iftrain("punctuation:punctuation_exclamation", "Use no exclamation marks.")
def punctuation_exclamation(text: str, version: str) -> bool:
    """No exclamation mark."""
    return "!" not in text


@_iftrain("count:lowercase_counting", "Write no more than {N} words in small letters.", integer("N", 2, 3))
def lowercase_counting(text: str, version: str, N: int) -> bool:
    """How many words of a-z alone there are in all."""
    return len(_LOWERCASE.findall(text)) <= N


@_iftrain(
    "count:counting_composition",
    "Write three paragraphs divided by ***, each of exactly {n_sent} sentences of exactly {n_words} words.",
    integer("n_sent", 2, 3),
    integer("n_words", 2, 3),
)
def counting_composition(text: str, version: str, n_sent: int, n_words: int) -> bool:
    """Three pieces, n_sent sentences each, n_words words each. As published, an end mark is a word."""
    pieces = starred_pieces(text, version)
    if len(pieces) != 3:
        return False
    for sentences in map(tokens.rule_sentences, pieces):
        if len(sentences) != n_sent or any(_count_words(sentence, version) != n_words for sentence in sentences):
            return False
    return True


def _count_words(sentence: str, version: str) -> int:
    if version == "fixed":
        return len(tokens.plain_words(sentence))
    return len(tokens.treebank_words(sentence))


@_iftrain("count:count_unique", "Use no word twice.")
def count_unique(text: str, version: str) -> bool:
    """No Treebank word occurs twice. As published, marks are words and case tells words apart."""
    words = tokens.plain_words(text) if version == "fixed" else tokens.treebank_words(text)
    return len(set(words)) == len(words)


@_iftrain(
    "count:count_increment_word",
    'Use the keyword "{keyword1}" once and the keyword "{keyword2}" twice.',
    noun("keyword1"),
    noun("keyword2"),
)
def count_increment_word(text: str, version: str, keyword1: str, keyword2: str) -> bool:
    """The keywords are found once and twice, inside of words too."""
    return [tokens.occurrences(keyword, text, version) for keyword in (keyword1, keyword2)] == [1, 2]


@_iftrain("keywords:palindrome", "Use a word that reads the same backwards.")
def palindrome(text: str, version: str) -> bool:
    """A word equal to its reverse. As published "a" is one; "fixed" wants three letters, case and marks apart."""
    if version == "fixed":
        return any(len(word) > 2 and word == word[::-1] for word in tokens.plain_words(text))
    return any(word == word[::-1] for word in text.split())


@_iftrain(
    "keywords:keyword_specific_position",
    'Make "{keyword}" word {m} of sentence {n}.',
    first_of("keyword"),
    integer("n", 1, 20, minimum=1),
    integer("m", 1, 30, minimum=1),
)
def keyword_specific_position(text: str, version: str, keyword: str, n: int, m: int) -> bool:
    """Word m of sentence n. As published, marks are words and case counts."""
    sentences = tokens.rule_sentences(text)
    if len(sentences) < n:
        return False
    sentence = sentences[n - 1]
    words = tokens.treebank_words(sentence)
    if version == "fixed":
        words = tuple(word for word in (word.strip(EDGE).lower() for word in sentence.split()) if word)
        keyword = keyword.lower()
    return len(words) >= m and words[m - 1] == keyword


@_iftrain("keywords:start_end", "Start and end with the same word, without a mark behind the last.")
def start_end(text: str, version: str) -> bool:
    """The first Treebank word is the last, in any case; a mark at the end is a word."""
    words = tokens.treebank_words(text)
    return len(words) > 1 and words[0].lower() == words[-1].lower()


@_iftrain(
    "keywords:no_adjacent_consecutive",
    "No word may start with the letter of the alphabet that follows the last word's.",
)
def no_adjacent_consecutive(text: str, version: str) -> bool:
    """The first characters of neighbours are never one code point up, nor one that is two in small letters (İ)."""
    firsts = [word[0].lower() for word in text.split()]
    return all(len(a) == len(b) == 1 and ord(b) - ord(a) != 1 for a, b in pairwise(firsts))
