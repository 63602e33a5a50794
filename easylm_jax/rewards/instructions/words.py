"""IFBench's `words:` instructions on each word of a response."""

from __future__ import annotations

from collections import Counter
from functools import partial

from easylm_jax.rewards.instructions import tokens
from easylm_jax.rewards.instructions.base import instruction, integer, noun
from easylm_jax.rewards.instructions.tokens import CONSONANTS, EDGE, PUNC, VOWELS, no_punctuation
from easylm_jax.rewards.instructions.verbs import BASE_VERBS

_ifbench = partial(instruction, suite="ifbench")
_PRIMES = {n for n in range(2, 100) if all(n % d for d in range(2, n))}
_PALINDROMES = 10
_PALINDROME_LENGTH = 5


@_ifbench(
    "words:alphabet", "Start each word with the letter of the alphabet that follows the last word's; Z goes to A."
)
def alphabet(text: str, version: str) -> bool:
    """First letters run through the alphabet from any letter on. Anything but a-z breaks the run."""
    firsts = [word[0] for word in no_punctuation(text).lower().split()]
    places = [ord(first) - ord("a") for first in firsts]
    if not places or not all(0 <= place < 26 for place in places):
        return False
    return all(place == (before + 1) % 26 for before, place in zip(places, places[1:], strict=False))


@_ifbench("words:vowel", "Write one paragraph that uses no more than three of the vowels a, e, i, o and u.")
def vowel(text: str, version: str) -> bool:
    """One line with at most three different vowels in all."""
    stripped = text.strip()
    return "\n" not in stripped and len(VOWELS & set(stripped.lower())) <= 3


@_ifbench("words:consonants", "Every word has two consonants side by side.")
def consonants(text: str, version: str) -> bool:
    """Every word between blanks holds two adjacent consonants; y is one."""
    return all(
        any(a in CONSONANTS and b in CONSONANTS for a, b in zip(word, word[1:], strict=False))
        for word in text.lower().split()
    )


@_ifbench("words:palindrome", "Use at least ten words of five letters or more that read the same backwards.")
def palindrome(text: str, version: str) -> bool:
    """Ten palindromes of five characters or more, repeats counted."""
    words = no_punctuation(text).lower().split()
    return sum(1 for word in words if len(word) >= _PALINDROME_LENGTH and word == word[::-1]) >= _PALINDROMES


@_ifbench("words:prime_lengths", "Use only words whose number of letters is prime.")
def prime_lengths(text: str, version: str) -> bool:
    """The length of every word without punctuation is a prime below 100."""
    return all(len(word) in _PRIMES for word in no_punctuation(text).split())


@_ifbench("words:start_verb", "Start with a verb.")
def start_verb(text: str, version: str) -> bool:
    """The tagger says that the first word is a verb; in "fixed" a verb's base form is one whatever the tagger says."""
    words = list(tokens.treebank_words(text))
    if version == "fixed" and words and words[0].lower() in BASE_VERBS:
        return True
    return bool(words) and "VB" in tokens.first_tag(words)


@_ifbench("words:repeats", "Use no word more than {small_n} times.", integer("small_n", 1, 5))
def repeats(text: str, version: str, small_n: int) -> bool:
    """No word, punctuation and case apart, occurs more than small_n times."""
    return all(times <= small_n for times in Counter(no_punctuation(text.lower()).split()).values())


@_ifbench("words:odd_even_syllables", "Alternate between words of an odd and of an even number of syllables.")
def odd_even_syllables(text: str, version: str) -> bool:
    """The parity of syllables changes from word to word. A word with a digit has none."""
    count = tokens.library("syllapy").count
    parities = [count(word) % 2 for word in no_punctuation(text.lower()).split()]
    return all(a != b for a, b in zip(parities, parities[1:], strict=False))


@_ifbench("words:last_first", "Start each sentence with the last word of the sentence before it.")
def last_first(text: str, version: str) -> bool:
    """The last word of a sentence is the first of the next. As published, a mark on the inner side ("Rain,") counts."""
    sentences = tokens.sentences(text, version)
    if version == "fixed" and len(sentences) < 2:
        return False
    for before, after in zip(sentences, sentences[1:], strict=False):
        last, first = before.lower().rstrip(EDGE).split()[-1:], after.lower().lstrip(EDGE).split()[:1]
        if version == "fixed":
            last, first = [word.strip(EDGE) for word in last], [word.strip(EDGE) for word in first]
        if not last or last != first:
            return False
    return True


@_ifbench("words:paragraph_last_first", "End each paragraph, one to a line, with the word that it starts with.")
def paragraph_last_first(text: str, version: str) -> bool:
    """In every line that has a word, the first is the last. "fixed" looks past marks on their inner sides."""
    for line in text.lower().split("\n"):
        words = line.strip().strip(EDGE).split()
        if version == "fixed":
            words = [word.strip(EDGE) for word in words]
        if words and words[0] != words[-1]:
            return False
    return True


@_ifbench("words:no_consecutive", "No two words side by side may start with the same letter.")
def no_consecutive(text: str, version: str) -> bool:
    """Neighbours differ in their first character."""
    firsts = [word[0] for word in no_punctuation(text.lower()).split()]
    return all(a != b for a, b in zip(firsts, firsts[1:], strict=False))


@_ifbench(
    "words:keywords_specific_position",
    'Make "{keyword}" word {m} of sentence {n}.',
    noun("keyword"),
    integer("n", 20, 30, minimum=1),
    integer("m", 30, 40, minimum=1),
)
def keywords_specific_position(text: str, version: str, keyword: str, n: int, m: int) -> bool:
    """Word m of sentence n. Words are Treebank's: those with a letter or digit, or in r25 all, case and all.

    In "fixed", words are what stands between blanks, punctuation taken off.
    """
    sentences = tokens.sentences(text, version)
    if len(sentences) < n:
        return False
    words = _words(sentences[n - 1], version)
    if version != "r25":
        words = [word.lower() for word in words if any(c.isalnum() for c in word)]
        keyword = keyword.lower()
    return len(words) >= m and words[m - 1] == keyword


@_ifbench(
    "words:words_position",
    'Make "{keyword}" the second word, and the last word but one.',
    noun("keyword"),
)
def words_position(text: str, version: str, keyword: str) -> bool:
    """The second word and the last but one, one end mark apart. r25 counts the end mark, and case."""
    words = _words(text, version)
    last = -2
    if version == "fixed":
        words = [word for word in words if word]
    if version == "r26" and words and words[-1] in PUNC:
        last = -3
    if len(words) < -last:
        return False
    found = [words[1], words[last]]
    if version == "r25":
        return found == [keyword, keyword]
    return [word.lower() for word in found] == [keyword.lower()] * 2


def _words(text: str, version: str) -> list[str]:
    if version == "fixed":
        return [word.strip(EDGE) for word in text.split()]
    return list(tokens.treebank_words(text))
