"""Where the three versions of a verifier part: the tables of quirks and of differences, and the shared tokenisers."""

import pytest

from easylm_jax.rewards import check_instruction
from easylm_jax.rewards.instructions import tokens, use_nltk_data

NAME = {"keyword": "ebb"}
SPAN = {"prompt_to_repeat": "one two three four", "n_start": 1, "n_end": 2}
PHRASE = {"phrase": "Slow tides move boats", "small_n": 2}
BOATS = {"prompt_to_repeat": "List two boats."}
# id, arguments, text, and its verdicts in r26, r25, fixed
CASES = [
    # r25 to r26
    ("ratio:sentence_type", {}, "Wait... What? Yes. No.", True, False, True),
    ("count:person_names", {"N": 1}, "Avaline", False, True, False),
    ("sentence:keyword", {"word": "pier", "N": 1}, "The PIERS shook.", False, True, False),
    ("sentence:keyword", {"word": "a.c", "N": 1}, "The abc.", False, False, False),
    ("count:pronouns", {"N": 1}, "What is that?", True, False, True),
    ("count:pronouns", {"N": 1}, "I'm", True, False, True),
    ("words:keywords_specific_position", {**NAME, "n": 1, "m": 2}, "Oh, ebb.", True, False, True),
    ("words:keywords_specific_position", {**NAME, "n": 1, "m": 3}, "Oh, ebb.", False, True, False),
    ("words:keywords_specific_position", {**NAME, "n": 1, "m": 3}, "Don't ebb.", True, True, False),
    ("words:words_position", NAME, "An ebb is an Ebb again.", True, False, True),
    ("words:words_position", NAME, "An ebb is an ebb again", True, True, True),
    ("words:words_position", NAME, "An ebb now ebb.", False, True, False),
    ("words:words_position", NAME, "Don't ebb (not ebb) yet...", False, False, True),
    ("repeat:repeat_change", BOATS, "Mist two boats.", True, True, True),
    ("repeat:repeat_change", BOATS, "Name two boats.", True, False, True),
    ("repeat:repeat_span", SPAN, "ne", True, False, False),
    ("repeat:repeat_span", SPAN, "two", False, True, False),
    ("repeat:repeat_span", SPAN, " Two  three\n", False, False, True),
    ("format:quote_unquote", {}, "They call it “ebb”.", True, False, False),
    ("format:title_case", {}, "Only a Tide", False, True, True),
    (
        "custom:sentence_alphabet",
        {},
        " ".join(f"{c}xyz ab?!" for c in "abcdefghijklmnopqrstuvwxyz"),
        False,
        False,
        False,
    ),
    # repaired
    ("words:start_verb", {}, "Write three lines about gulls.", False, False, True),
    ("format:title_case", {}, "Don't Turn at Dawn", False, False, True),
    ("format:title_case", {}, "Turn dawn", False, False, False),
    ("ratio:sentence_type", {}, "Gulls cry!", True, True, False),
    ("ratio:sentence_type", {}, 'Gulls cry. He said "boats rock." (Who sails?)', False, True, True),
    ("ratio:sentence_balance", {}, "no mark", True, True, False),
    ("ratio:sentence_words", {}, "Gulls cry. Gulls cry. Gulls cry.", True, True, False),
    ("ratio:sentence_words", {}, "Gulls cry. Boats ebb. Tides run.", True, True, True),
    ("format:sub-bullets", {}, "no list", True, True, False),
    ("format:sub-bullets", {}, "* a **bold** word\n  - sub", False, False, True),
    ("format:sub-bullets", {}, "* well-known", True, True, False),
    ("sentence:increment", {"small_n": 1}, "Gulls cry.", True, True, False),
    ("words:last_first", {}, "One sentence.", True, True, False),
    ("words:last_first", {}, "We watch rain. Rain, it falls.", False, False, True),
    ("words:paragraph_last_first", {}, "Rain, it is rain.", False, False, True),
    ("format:line_indent", {}, "one line", True, True, False),
    ("format:line_indent", {}, "a\n b\n\n\n  c", False, False, True),
    ("count:words_japanese", {"N": 5}, "Gulls cry", True, True, False),
    ("format:no_bullets_bullets", {}, "Tides rise. Tides fall.\n\n\n* ebb\n\n* flow\n", False, False, True),
    ("format:no_bullets_bullets", {}, "Who? Me!\n* ebb\n* flow", True, True, False),
    ("format:newline", {}, "Gulls\n  \ncry", False, False, True),
    ("format:list", {"sep": "-"}, "a well-known in-word", True, True, False),
    ("format:list", {"sep": "-"}, "- a\n - b", True, True, True),
    ("format:thesis", {}, "Text first. <i>Thesis.</i> Text.", True, True, False),
    ("format:thesis", {}, "# One\n<em>A.</em> Text.\n# Two\n<i>B.</i> Text.", True, True, True),
    ("format:thesis", {}, "# One\n<i>A.</i> Text.\n# Two\nText.", True, True, False),
    ("format:thesis", {}, "<em></em>", True, True, False),
    ("count:conjunctions", {"small_n": 3}, "And and and,", True, True, False),
    ("count:unique_word_count", {"N": 2}, "fog --", True, True, False),
    # of IFTrain and IFEval
    ("new:copy_span_idx", {"prompt_to_repeat": "Name one", "n_start": 0, "n_end": 3}, "nam", True, True, False),
    ("new:copy_span_idx", {"prompt_to_repeat": "Name one", "n_start": 0, "n_end": 3}, "name", False, False, True),
    (
        "count:counting_composition",
        {"n_sent": 1, "n_words": 2},
        "Ebb came.\n* * *\nIt went.\n***\nFog is.",
        False,
        False,
        True,
    ),
    ("count:count_unique", {}, "Ebb. Flow.", False, False, True),
    ("count:count_unique", {}, "Ebb ebb", True, True, False),
    ("keywords:exclude_word_harder", {"keyword": "boat"}, "Boat!", True, True, False),
    ("keywords:palindrome", {}, "I sank", True, True, False),
    ("keywords:palindrome", {}, "the Level, sank", False, False, True),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "flow"},
        "Ebb.\n\n\n\nFlow.",
        False,
        False,
        True,
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "---", True, True, False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* a", True, True, True),
    ("detectable_format:json_format", {}, "7", True, True, False),
    ("detectable_format:json_format", {}, "[NaN]", True, True, False),
    ("language:response_language", {"language": "fr"}, "1234", True, True, False),
    ("copy:repeat_phrase", PHRASE, "Slow tides move boats. Slow fogs move boats", True, True, False),
    ("copy:repeat_phrase", PHRASE, "Slow fogs move boats. Slow tides move boats", False, False, False),
    ("copy:repeat_phrase", PHRASE, "Slow fogs move boats. Slow tides lift boats", True, True, True),
    ("copy:repeat_phrase", PHRASE, "Slow boats. Slow fogs move boats. Slow tides lift boats", False, False, False),
    ("keywords:no_adjacent_consecutive", {}, "İ x", False, False, False),
    ("keywords:frequency", {"keyword": " ebb ", "frequency": 1, "relation": "at least"}, "ebb", True, True, True),
    ("last_word:last_word_answer", {"last_word": "ebb "}, "ebb", True, True, True),
    ("detectable_format:bigram_wrapping", {}, "word", True, True, False),
    ("detectable_format:sentence_hyphens", {}, "Ebb came.-Flow went.- It is.", False, False, False),
    ("keywords:start_end", {}, "Tide after tide.", False, False, False),
    ("first_word:first_word_answer", {"first_word": "ebb"}, "Ebb, then", False, False, True),
    ("keywords:keyword_specific_position", {**NAME, "n": 1, "m": 2}, "Oh, Ebb!", False, False, True),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[]", True, True, False),
    ("detectable_format:constrained_response", {}, "My answer is no. Or My answer is yes.", True, True, False),
]


@pytest.fixture(autouse=True, scope="module")
def nltk_data(shared_data):
    if not (shared_data / "nltk_data").is_dir():
        pytest.skip(f"no NLTK data in {shared_data}")
    use_nltk_data(str(shared_data / "nltk_data"))


@pytest.mark.parametrize("constraint_id, kwargs, text, r26, r25, fixed", CASES)
def test_versions_part_where_they_should(constraint_id, kwargs, text, r26, r25, fixed):
    found = [check_instruction(constraint_id, text, kwargs, version) for version in ("r26", "r25", "fixed")]
    assert found == [r26, r25, fixed]


@pytest.mark.parametrize(
    "text, punkt, rule",
    [
        ("Really?! Yes.", 2, 3),
        ("A. B. C?", 3, 1),
        ("First.Second", 1, 2),
        ("Wait... What?", 1, 2),
        ("Mr. Fog went to example.com at 3.5 knots.", 1, 1),
        ("She has a Ph.D. in fog. It helps.", 2, 2),
        ("He works for Tide Inc. They sail.", 2, 2),
        ("The U.S. He left.", 2, 2),
        ("one line\nanother line", 1, 1),
    ],
)
def test_the_two_ways_to_cut_sentences(text, punkt, rule):
    assert [len(tokens.punkt_sentences(text)), len(tokens.rule_sentences(text))] == [punkt, rule]


def test_a_closing_quote_stays_or_goes_before_the_mark():
    text = 'He said "yes." She left.'
    assert tokens.punkt_sentences(text) == ('He said "yes."', "She left.")
    assert tokens.rule_sentences(text) == ('He said "yes".', "She left.")


def test_words_are_treebanks():
    assert tokens.treebank_words("Don't say \"I'm\".") == ("Do", "n't", "say", "``", "I", "'m", "''", ".")


def test_the_first_tag_is_that_of_the_whole_sentence():
    words = list(tokens.treebank_words("Fix the old boat before the tide comes in. Then row."))
    assert tokens.first_tag(words) == tokens._tagger().tag(words)[0][1]


def test_blank_lines_go_as_they_do_from_a_list_that_is_walked_through():
    from easylm_jax.rewards.instructions.format import _without_some_blanks

    for text in ("a\n\n\n\nb", "\n\n \n \n\na\n\n", "\n \n\n \n\n \nx\n\n", " ", "a\n\n b\n \n \n\n  c"):
        lines = text.split("\n")
        for line in lines:
            if not line.strip():
                lines.remove(line)
        assert _without_some_blanks(text.split("\n")) == lines


def test_language_is_the_same_every_time():
    text = "La marée monte the tide rises die Flut steigt"
    assert len({tokens.language(text) for _ in range(20)}) == 1
