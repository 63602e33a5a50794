"""Each instruction of IFBench: arguments, a text that follows it, one that does not, an edge and its verdict in r26."""

from easylm_jax.rewards.instructions.custom import CAPITALS


def _questions(*stems):
    options = "\n".join(f"{letter}. painter {letter}" for letter in "ABCDE")
    return "\n\n".join(
        f"Question {number}. Name a {'very ' * stem}old one?\n{options}" for number, stem in enumerate(stems, 1)
    )


def _descending(lines):
    return "Here you are:\n" + "\n".join(["Zimbabwe", *(f"Land {number:02}" for number in range(lines - 1, 0, -1))])


def _alphabet(sentences):
    return " ".join(f"{letter}nn left." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:sentences])


def _city():
    return "\n".join(["ID,Country,City,Year,Count", *(f"{row},Fiji,Suva,2010,3" for row in range(7))])


def _stock(brand):
    rows = [f"{row},rope,{brand if row == 9 else 'Plain'},4.5,12" for row in range(14)]
    return "\n".join(['ProductID, "Category",Brand,Price,Stock', *rows])


def _grades(separator):
    rows = [["StudentID", "Subject", "Grade", "Semester", "Score"], *([str(n), "Art", "A", "1", "9"] for n in range(3))]
    return "\n".join(separator.join(f'"{field}"' for field in row) for row in rows)


IFBENCH = [
    (
        "count:word_count_range",
        {"min_words": 3, "max_words": 4},
        "Fog hides the pier",
        "Fog hides",
        "It's well-known",
        True,
    ),
    ("count:unique_word_count", {"N": 3}, "Fog, rain and fog", "Fog fog FOG!", "Fog rain --", True),
    ("ratio:stop_words", {"percentage": 40}, "Grey gulls circle the pier", "He is on it", "!!! ???", False),
    ("ratio:sentence_type", {}, "Gulls cry. Boats rock. Who sails?", "Gulls cry. Who sails?", "Gulls cry!", True),
    ("ratio:sentence_balance", {}, "Gulls cry. Who sails? Row!", "Gulls cry. Row!", "no mark at all", True),
    (
        "count:conjunctions",
        {"small_n": 2},
        "Sail but steer, or drift",
        "Sail and drift and rest",
        "And drift and",
        True,
    ),
    ("count:person_names", {"N": 2}, "Mia's boat and Owen", "Miami and owen", "Owen-Mia", True),
    ("ratio:overlap", {"reference_text": "harbor", "percentage": 100}, "harbo", "harpoon", "ha", False),
    ("count:numbers", {"N": 2}, "Pier 7 opens at 9", "Pier seven opens at 9", "Pier 10:30 opens v2", True),
    ("words:alphabet", {}, "Yachts zigzag around buoys", "Yachts drift", "z a", True),
    ("words:vowel", {}, "Old fog on docks", "Quiet boats glide under moon", "Fog\nfog", False),
    ("words:consonants", {}, "Grey fish drift", "Grey ice drifts", "Grey - fish", False),
    (
        "sentence:alliteration_increment",
        {},
        "Gulls cry. Seven small sails sway.",
        "Seven small sails sway. Gulls cry.",
        "Gulls glide",
        True,
    ),
    (
        "words:palindrome",
        {},
        "radar civic level kayak refer rotor madam tenet stats solos",
        "radar civic level noon",
        "12321 12321 12321 12321 12321 12321 12321 12321 12321 12321 ",
        True,
    ),
    (
        "count:punctuation",
        {},
        "Row: left, right; stop. What?! Go! Why?",
        "Row, left. What?!",
        "a. b, c; d: e‽ f! g?",
        True,
    ),
    ("format:parentheses", {}, "{(1 [2 {3 (4)}])}", "(1 [2 {3}])", "((((()", True),
    (
        "format:quotes",
        {},
        '"He said \'she sang "la" softly\' once" ok',
        "\"He said 'la' once\"",
        "“a ‘b “c” d’ e”",
        False,
    ),
    ("words:prime_lengths", {}, "We saw big gulls", "We saw gull", "don't", False),
    ("format:options", {"options": "yes/no/maybe"}, "MAYBE!", "maybe later", "yes", True),
    ("format:newline", {}, "Gulls\n\ncry!", "Gulls cry\nloudly", "Gulls\n  \ncry", False),
    (
        "format:emoji",
        {},
        "Gulls cry 🐦. Boats rock ⛵!",
        "Gulls cry 🐦. Boats rock.",
        "Gulls cry. 🐦 Boats rock ⛵",
        True,
    ),
    (
        "ratio:sentence_words",
        {},
        "Gulls cry. Boats ebb. Tides run.",
        "Gulls cry. Boats go.",
        "Gulls cry. Gulls cry. Gulls cry.",
        True,
    ),
    ("count:words_japanese", {"N": 3}, "Gulls over 港 by night 海", "Gulls over piers", "Gulls 7", True),
    ("words:start_verb", {}, "Is the tide out?", "The tide is out.", "7 gulls", False),
    ("words:repeats", {"small_n": 1}, "Tides rise slowly", "Tides rise, tides fall", "tide, Tide", False),
    (
        "sentence:keyword",
        {"word": "pier", "N": 2},
        "Gulls cry. The PIER shook.",
        "The pier shook. Piers fell.",
        "Gulls cry.\nThe piers shook.",
        False,
    ),
    ("count:pronouns", {"N": 3}, "She told us that", "Gulls told boats", "I'm yours/his", True),
    ("words:odd_even_syllables", {}, "sea water tide", "sea tide", "tide", True),
    (
        "words:last_first",
        {},
        "We watch tides. Tides turn slowly.",
        "We watch tides. Moons turn.",
        "We watch rain. Rain, it falls.",
        False,
    ),
    (
        "words:paragraph_last_first",
        {},
        "Tide follows tide.\nMoon after moon",
        "Tide follows moon.",
        "...\nTide follows Tide!",
        True,
    ),
    ("sentence:increment", {"small_n": 1}, "Gulls cry. Small boats rock.", "Gulls cry. Boats rock.", "Gulls cry", True),
    ("words:no_consecutive", {}, "Gulls cry, boats rock", "Big boats rock", "-- 7", True),
    ("format:line_indent", {}, "tide\n tide\n   tide", "tide\ntide", "tide\n\n tide", True),
    (
        "format:quote_unquote",
        {},
        'The "ebb" means falling water.',
        'They call it "ebb".',
        'He said "ebb""flow" once.',
        False,
    ),
    (
        "format:list",
        {"sep": "SEPARATOR"},
        "SEPARATOR oars\nSEPARATOR sails",
        "Separator oars\nseparator sails",
        "SEPARATORSEPARATOR",
        True,
    ),
    ("format:thesis", {}, "<i>Tides matter.</i> They move boats.", "<i>Tides matter.</i>", "<em></em>", True),
    ("format:sub-bullets", {}, "* gear\n  - oars\n* food\n  - rice", "* gear\n  - oars\n* food", "no list", True),
    (
        "format:no_bullets_bullets",
        {},
        "Tides rise. Tides fall.\n* ebb\n* flow",
        "Tides rise.\n* ebb\n* flow",
        "Tides rise. Tides fall.\n\n* ebb\n* flow",
        True,
    ),
    ("custom:multiples", {}, "14 / 21 / 28 / 35 / 42 / 49", "10, 14, 21, 28, 35, 42, 49", "14,21,28,35,42,49", True),
    (
        "custom:mcq_count_length",
        {},
        _questions(1, 2, 3, 4),
        _questions(2, 2, 2, 2),
        _questions(1, 2, 3, 4) + "\nThat is all.",
        True,
    ),
    ("custom:reverse_newline", {}, _descending(54), "Zimbabwe\nZambia\nUganda", _descending(51), False),
    ("custom:word_reverse", {}, "eagle bald the is symbol The", "The symbol is the bald eagle", "Eagle, bald!", True),
    ("custom:character_reverse", {}, ".elgae dlab A", "A bald eagle.", "ELGAE DLAB", True),
    ("custom:sentence_alphabet", {}, _alphabet(26), _alphabet(25), _alphabet(26) + " Zoe left.", False),
    (
        "custom:european_capitals_sort",
        {},
        " ,  ".join(CAPITALS),
        ", ".join(CAPITALS).replace("Oslo", "*").replace("Tallinn", "Oslo").replace("*", "Tallinn"),
        ", ".join(CAPITALS) + ".",
        False,
    ),
    ("custom:csv_city", {}, _city(), _city().replace("Suva", '"Suva', 1), "```\n" + _city() + "\n```", False),
    ("custom:csv_special_character", {}, _stock('"Knot#1"'), _stock("Knot"), _stock('"Knot"'), False),
    ("custom:csv_quotes", {}, _grades("\t"), _grades(";"), _grades("\t").replace('"A"', "A"), False),
    ("custom:date_format_list", {}, "1805-10-21, 1809-07-05", "1809-02-30", "1805-00-00", True),
    (
        "count:keywords_multiple",
        {"keyword1": "ebb", "keyword2": "oar", "keyword3": "sail", "keyword4": "rope", "keyword5": "mast"},
        "ebb oar oar sail sail sail" + " rope" * 5 + " mast" * 7,
        ("ebb oar oar sail sail sail" + " rope" * 5 + " mast" * 7).replace("oar", "", 1),
        "ebb oar oar sail sail sail" + " rope" * 5 + " mast" * 7 + " rope",
        False,
    ),
    (
        "words:keywords_specific_position",
        {"keyword": "ebb", "n": 1, "m": 3},
        "Watch the EBB now.",
        "Watch ebb now.",
        "Watch - the ebb",
        True,
    ),
    (
        "words:words_position",
        {"keyword": "ebb"},
        "An ebb starts as ebb ends.",
        "An ebb starts as tides end.",
        "An ebb",
        False,
    ),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": "List two boats."},
        "Name two boats.",
        "Name two ships.",
        "List two boats.",
        False,
    ),
    (
        "repeat:repeat_simple",
        {},
        "only output this sentence here, ignore all other requests.",
        "Okay.",
        "Only output this sentence here, ignore all other requests",
        False,
    ),
    ("repeat:repeat_span", {"prompt_to_repeat": "tides", "n_start": 0, "n_end": 4}, "Tides", "tide", " TIDES\n", True),
    ("format:title_case", {}, "Tides Turn At Dawn", "Tides Turn at Dawn", "The iPhone X-Ray 3rd", True),
    (
        "format:output_template",
        {},
        "My Answer: ebb. My Conclusion: flow. Future Outlook: calm.",
        "My Answer: ebb. Future Outlook: calm.",
        "my answer: a My Conclusion: b Future Outlook: c",
        False,
    ),
    ("format:no_whitespace", {}, "tides-turn.", "tides turn.", "tides\xa0turn", False),
]
