"""The tokenisers and word lists that the checks share. NLTK, its data and langdetect load when first used.

Names in the comments are those of the description of IFBench: PUNC, WS (`str.split`), WT (Treebank words), SENT_P
(Punkt sentences), SENT_R (sentences by rule).
"""

from __future__ import annotations

import importlib
import os
import re
import string
import unicodedata
from functools import cache, lru_cache
from typing import Any

from models.errors import UserError

PUNC = string.punctuation  # the 32 of ASCII
EDGE = PUNC + " "
VOWELS = set("aeiou")
CONSONANTS = set(string.ascii_lowercase) - VOWELS
_DELETE_PUNC = str.maketrans("", "", PUNC)
_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "stopwords": "corpora/stopwords",
}


def no_punctuation(text: str) -> str:
    """`text` with every ASCII punctuation mark deleted."""
    return text.translate(_DELETE_PUNC)


def ascii_letters(text: str) -> str:
    """`text` with accents taken off and everything else outside ASCII dropped."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def plain_words(text: str) -> list[str]:
    """Lower-case words between blanks without any punctuation, Unicode's too; what is left empty is dropped."""
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return kept.split()


def library(name: str) -> Any:
    """An optional package of the extra `instructions`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this instruction needs the package {name}: pip install 'easylm_jax[instructions]'") from None


@cache
def _data(name: str) -> None:
    """Makes sure that NLTK finds `name`, in NLTK_DATA as it is now too. Nothing is ever downloaded."""
    data = library("nltk").data
    folders = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    data.path[:0] = [folder for folder in folders if folder not in data.path]
    try:
        data.find(_DATA[name])
    except LookupError:
        raise UserError(
            f"NLTK's data {name!r} was not found; run `python -m nltk.downloader {' '.join(_DATA)}`, or name the "
            "folder that holds it in NLTK_DATA"
        ) from None


def use_nltk_data(folder: str) -> None:
    """Looks for NLTK's data in `folder` first."""
    if not os.path.isdir(folder):
        raise UserError(f"no folder of NLTK's data at {folder}")
    paths = library("nltk").data.path
    if folder not in paths:
        paths.insert(0, folder)


@cache
def _punkt() -> Any:
    _data("punkt_tab")
    return library("nltk.tokenize.punkt").PunktTokenizer("english")


@cache
def _treebank() -> Any:
    return library("nltk.tokenize.destructive").NLTKWordTokenizer()


@cache
def stop_words() -> frozenset[str]:
    """NLTK's English stop words."""
    _data("stopwords")
    return frozenset(library("nltk.corpus").stopwords.words("english"))


@cache
def _tagger() -> Any:
    _data("averaged_perceptron_tagger_eng")
    return library("nltk.tag.perceptron").PerceptronTagger()


def first_tag(words: list[str]) -> str:
    """The part of speech of the first word. The tagger looks at two words after it, and at no more."""
    return _tagger().tag(words[:3])[0][1]


@lru_cache(maxsize=16)
def punkt_sentences(text: str) -> tuple[str, ...]:
    """SENT_P: NLTK's English Punkt model. Newlines are no boundaries."""
    return tuple(_punkt().tokenize(text))


@lru_cache(maxsize=16)
def treebank_words(text: str) -> tuple[str, ...]:
    """WT: Treebank words of each Punkt sentence: clitics and end marks are words of their own."""
    return tuple(word for sentence in punkt_sentences(text) for word in _words_of(sentence))


@lru_cache(maxsize=4096)
def _words_of(sentence: str) -> tuple[str, ...]:
    return tuple(_treebank().tokenize(sentence))


def sentences(text: str, version: str) -> tuple[str, ...]:
    """The sentences that IFBench's checks count: by rule in "r25", Punkt's since."""
    return rule_sentences(text) if version == "r25" else punkt_sentences(text)


# Characters that no text has: a dot that ends nothing, and the end of a sentence.
_DOT, _END = "\ufdd0", "\ufdd1"
_STARTER = r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
_RULES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"(Mr|St|Mrs|Ms|Dr)\."), rf"\g<1>{_DOT}"),
    (re.compile(r"\.(com|net|org|io|gov|edu|me)"), rf"{_DOT}\g<1>"),
    (re.compile(r"([0-9])\.([0-9])"), rf"\g<1>{_DOT}\g<2>"),
    (re.compile(r"\.{2,}"), lambda match: _DOT * len(match.group()) + _END),
    (re.compile(r"Ph\.D\."), f"Ph{_DOT}D{_DOT}"),
    (re.compile(r"\s([A-Za-z])\. "), rf" \g<1>{_DOT} "),
    (re.compile(rf"([A-Z]\.[A-Z]\.(?:[A-Z]\.)?) {_STARTER}"), rf"\g<1>{_END} \g<2>"),
    (re.compile(r"([A-Za-z])\.([A-Za-z])\.([A-Za-z])\."), rf"\g<1>{_DOT}\g<2>{_DOT}\g<3>{_DOT}"),
    (re.compile(r"([A-Za-z])\.([A-Za-z])\."), rf"\g<1>{_DOT}\g<2>{_DOT}"),
    (re.compile(rf" (Inc|Ltd|Jr|Sr|Co)\. {_STARTER}"), rf" \g<1>{_END} \g<2>"),
    (re.compile(r" (Inc|Ltd|Jr|Sr|Co)\."), rf" \g<1>{_DOT}"),
    (re.compile(r" ([A-Za-z])\."), rf" \g<1>{_DOT}"),
    (re.compile(r"\.”"), "”."),
    (re.compile(r'\."'), '".'),
    (re.compile(r'!"'), '"!'),
    (re.compile(r'\?"'), '"?'),
    (re.compile(r"([.?!])"), rf"\g<1>{_END}"),
]


@lru_cache(maxsize=16)
def rule_sentences(text: str) -> tuple[str, ...]:
    """SENT_R: cut after every . ? ! that is not part of an abbreviation, a number, a name of a site or dots in a row.

    A closing quotation mark is moved before the mark that it follows. One empty last piece is dropped.
    """
    marked = f" {text}  ".replace("\n", " ")
    for pattern, replacement in _RULES:
        marked = pattern.sub(replacement, marked)
    pieces = [piece.strip() for piece in marked.replace(_DOT, ".").split(_END)]
    return tuple(pieces if pieces[-1] else pieces[:-1])


def language(text: str) -> str | None:
    """The ISO code of the language that langdetect finds, always the same for a text; None where it finds none."""
    langdetect = library("langdetect")
    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


def pattern(keyword: str, version: str, *, whole_word: bool = False) -> re.Pattern[str]:
    """A keyword as the checks search it: an unescaped regular expression, taken as it stands in "fixed".

    One that is no regular expression is searched as it stands in every version.
    """
    edge = r"\b" if whole_word else ""
    if version != "fixed":
        try:
            return re.compile(f"{edge}{keyword}{edge}", re.IGNORECASE)
        except (re.error, OverflowError, RecursionError):  # such as "a{99999999999}"
            pass
    return re.compile(f"{edge}{re.escape(keyword)}{edge}", re.IGNORECASE)


def occurrences(keyword: str, text: str, version: str) -> int:
    """How often `keyword` occurs in `text`, without regard to case or to word boundaries."""
    return sum(1 for _ in pattern(keyword, version).finditer(text))
