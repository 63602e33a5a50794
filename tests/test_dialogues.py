"""Self-directed dialogues and revisions with speakers that follow a script: rules, both sides, filters, pairs."""

import collections
import errno
import hashlib
import json

import pytest
from faulty_server import faulty_server

from easylm_jax.cli.main import main
from easylm_jax.config import Dialogues, Recipe, Revisions, Server, Source, Topics
from easylm_jax.config.dialogue_prompts import BROKEN, END, PROMPTS
from easylm_jax.experiment import Experiment
from easylm_jax.synthesize import dialogue_filters, dialogue_tables, opening, talk, topics
from easylm_jax.synthesize import dialogue_rules as rules
from easylm_jax.synthesize.dialogues import make_batch, released, sft_rows
from easylm_jax.synthesize.revisions import chosen_rows, pair_of, revise, revision_fault
from easylm_jax.synthesize.speakers import Said
from models.errors import UserError

TEXTS = ("Never insult the person you talk to.", "Do not invent facts.", "Give no advice on drugs.", "Stay honest.")
PRINCIPLES = [{"pid": f"p{i}", "text": text} for i, text in enumerate(TEXTS)]
GOALS = [{"gid": "g0", "text": "to learn"}, {"gid": "g1", "text": "to complain"}]
PERSONAS = [{"text": "a baker"}, {"text": "a nurse"}, {"text": "a pilot"}]
DOMAINS = [{"domain": f"d{i}", "subareas": [f"d{i}s{j}" for j in range(3)]} for i in range(5)]
SEEDS = {"principles": PRINCIPLES, "goals": GOALS, "personas": PERSONAS, "domains": DOMAINS}
FILE = Source("x.jsonl")


def stage(**options):
    seeds = {name: FILE for name in SEEDS}
    return Dialogues("d", init="hf:x", count=8, **{**seeds, "domain_share": 1.0, "goal_share": 1.0, **options})


def specs(count=8, seed=0, violate=0.5, most=8):
    return rules.make_specs(count, seed, violate, most, **SEEDS)


class Script:
    """Answers by a function of the last message and the ask; keeps what it was asked."""

    name = "script"

    def __init__(self, reply, slots=3):
        self.reply, self.slots, self.asked = reply, slots, []

    def answer(self, asks, manner):
        self.asked += [(slot, ask) for slot, ask in asks.items()]
        said = {slot: self.reply(ask) for slot, ask in asks.items()}
        return {
            slot: text if isinstance(text, Said) else Said(text, tokens_out=len(text.split()))
            for slot, text in said.items()
        }

    def summary(self):
        return {}


class Nothing:
    def phase(self, _):
        import contextlib

        return contextlib.nullcontext()


FULL = PROMPTS["full"]


def everyone(ask):
    """Planner, user, agent and judge in one; says what depends on the number alone."""
    last = ask.messages[-1]["content"]
    if last.startswith("You plan"):
        return f"1. The person asks about thing {ask.number}.\n2. The agent answers."
    if last.startswith("Below"):
        return f"CRITIQUE: it is what it is.\nPRINCIPLES VIOLATED: [{'1' if 'fool' in last else ''}]\nDONE"
    words = [f"w{ask.number * k % 9973}" for k in range(1, 30)]
    return " ".join(words)


def test_specs_are_balanced_and_the_same_for_a_seed():
    made = specs(60)
    assert made == specs(60) != specs(60, seed=1)
    for column, values in (("domain", 5), ("gid", 2), ("persona", 3), ("mode", 2)):
        counts = collections.Counter(spec[column] for spec in made)
        assert len(counts) == values and max(counts.values()) - min(counts.values()) <= 1
    pids = collections.Counter(pid for spec in made for pid in spec["pids"])
    assert max(pids.values()) - min(pids.values()) <= 1 + 3
    assert all(len(set(spec["pids"])) == len(spec["pids"]) <= 3 for spec in made)
    assert {spec["target_turns"] for spec in made} == {4, 6, 8}


@pytest.mark.parametrize(
    "critique, found",
    [("PRINCIPLES VIOLATED: [1,2]", [1, 2]), ("PRINCIPLES VIOLATED: [ ]", []), ("PRINCIPLES VIOLATED: [9]", None),
     ("it broke rule 1", None), ("principles violated: [1-3]", [1, 2, 3]), ("PRINCIPLES VIOLATED: [2 4]", [2, 4]),
     ("PRINCIPLES VIOLATED: [1]\nPRINCIPLES VIOLATED: [3]", [3]), ("PRINCIPLES VIOLATED: [none]", []),
     ("PRINCIPLES VIOLATED: [x]", None), ("PRINCIPLES VIOLATED: [0]", None), ("", None)],
)  # fmt: skip
def test_critiques_are_read_or_not(critique, found):
    assert rules.violations_of(critique, 5) == found


@pytest.mark.parametrize(
    "text, fault",
    [("", "empty"), ("USER: hello", "role label"), ("well\nAgent: hi", "role label"), ("x <|assistant|>", "role label"),
     ("one two three four five six " * 4, "loop"), ("hello there", "repeats a turn"), ("fine", None),
     ("so the person asks about cheap bread and then leaves now", "plan")],
)  # fmt: skip
def test_turns_with_a_fault_are_found(text, fault):
    assert rules.turn_fault(text, "1. The person asks about cheap bread and then leaves now", ["hello there"]) == fault


def test_plans_with_a_fault_are_found():
    assert rules.plan_fault("1. asks\n2. answers", []) is None and rules.plan_fault("", []) == "empty"
    assert rules.plan_fault("asks, answers", []) == "no beats"
    assert rules.plan_fault("1. x\nUSER: hi", []) == "dialogue in it"
    rule = "never say a bad word to the person that you talk to"
    assert rules.plan_fault(f"1. it will {rule}", [rule]) == "copies a principle"


def test_principles_that_are_the_same_or_too_long_are_one_line():
    rules.check_principles(PRINCIPLES)
    with pytest.raises(UserError, match="p9 says what p3 says"):
        rules.check_principles([*PRINCIPLES, {"pid": "p9", "text": "stay HONEST"}])
    with pytest.raises(UserError, match="p9 has 41 words"):
        rules.check_principles([{"pid": "p9", "text": "word " * 41}])


def test_roles_alternate_and_each_side_sees_its_own_view_with_a_growing_prompt():
    speaker = Script(everyone)
    made = specs(7)
    held = talk.hold(stage(), speaker, speaker, [(spec, f"1. plan {spec['id']}") for spec in made])
    for each in held:
        roles = [message["role"] for message in each.messages]
        assert roles == ["user", "assistant"] * (each.spec["target_turns"] // 2) and each.ended == "last beat"
    views = collections.defaultdict(list)
    for _, ask in speaker.asked:
        views[ask.number // 64, ask.messages[0]["role"] == "system"].append(ask.messages)
    for (_, is_user), asked in views.items():
        for before, after in zip(asked, asked[1:], strict=False):
            assert after[: len(before)] == before  # what was computed for a turn serves the next
            assert after[-1]["role"] == "user"
        assert all(("plan" in str(view)) == is_user for view in asked)  # a blind agent never sees the plan


def test_a_dialogue_alone_is_what_it_is_among_others():
    planned = [(spec, f"1. plan {spec['id']}") for spec in specs(9)]
    together = talk.hold(stage(), Script(everyone), Script(everyone), planned)
    (alone,) = talk.hold(stage(), Script(everyone), Script(everyone, slots=1), planned[4:5])
    assert alone.messages == together[4].messages


def test_faults_are_sampled_again_twice_and_then_end_the_dialogue():
    tries = collections.Counter()

    def faulty(ask):
        tries[ask.number] += 1
        if ask.number // 64 == 1 and ask.number % 64 >= 6:
            return "USER: I speak for both"
        return "" if ask.number % 3 == 0 and ask.number // 64 == 0 else everyone(ask)

    held = talk.hold(stage(), Script(faulty), Script(everyone), [(spec, "1. plan") for spec in specs(2)])
    assert set(tries.values()) == {1} and held[0].resampled["empty"] > 0 and held[0].ended == "last beat"
    assert held[1].ended == "turn: role label" and held[1].resampled["role label"] == 3
    assert held[1].messages[-1]["role"] == "assistant"


def test_what_ends_a_dialogue():
    def run(user, agent, **options):
        (held,) = talk.hold(
            stage(**options), Script(user), Script(agent), [(specs(40)[3] | {"target_turns": 8}, "1. plan")]
        )
        return held

    held = run(lambda ask: f"bye {ask.number} {END}", everyone)
    assert held.ended == "end marker" and len(held.messages) == 2 and END not in held.messages[0]["content"]
    held = run(everyone, lambda ask: Said(everyone(ask), cut=True))
    assert held.ended == "a turn was cut" and held.truncated
    held = run(lambda ask: f"goodbye {ask.number}", lambda ask: f"take care {ask.number}")
    assert held.ended == "farewell" and len(held.messages) == 2
    held = run(everyone, lambda ask: Said("", failed="too long"))
    assert held.ended == "no answer: too long" and held.messages == []
    held = run(everyone, lambda ask: f"{everyone(ask)}\n{BROKEN}", talk="informed")
    assert held.marker and BROKEN not in str(held.messages)


def test_a_batch_is_judged_filtered_counted_and_becomes_pairs():
    def reply(ask):
        text = everyone(ask)
        if ask.messages[-1]["content"].startswith("Below") and "Write that message anew" in ask.messages[-1]["content"]:
            last = ask.messages[-1]["content"].partition("LAST MESSAGE OF THE AGENT: ")[2].partition("\n")[0]
            return last.replace("fool", "friend").replace("you are a dull", "let us go on as a good")
        is_agent = ask.messages[0]["role"] == "user" and not ask.messages[-1]["content"].startswith(
            ("You plan", "Below")
        )
        return f"{text} you are a dull fool" if is_agent and ask.number // 64 % 2 and len(ask.messages) >= 3 else text

    made = make_batch(stage(), Script(reply), Script(reply), None, specs(8), Nothing())
    dialogue_filters.apply(stage(), made, [{"text": made[0]["messages"][0]["content"]}])
    reasons = collections.Counter(row["dropped"] for row in made)
    assert reasons["contaminated"] == 1 and sum(reasons.values()) == 8 and reasons[None] == 7
    kept = [row for row in made if row["dropped"] is None]
    assert {row["id"] % 2 for row in kept if row["is_violation"]} == {1}
    assert all(row["judged"] == [row["pids"][0]] for row in kept if row["is_violation"])
    assert all(row["plan"] not in str(each) for row in kept for each in sft_rows([row]))
    assert set(released(kept[0])) == {
        "domain",
        "subarea",
        "principle",
        "goal",
        "messages",
        "is_violation",
        "is_truncated",
    }
    statistics = dialogue_tables.of_dialogues(made)
    assert statistics["size"]["kept"] == 7 and "| kept | 7 |" in dialogue_tables.text("T", statistics)
    assert dialogue_tables.reading_sheet(kept, 0).count("Judged:") == 7

    revising = Revisions("r", init="hf:x", dialogues=FILE, controls=0.5)
    chosen = chosen_rows(kept, 0.5)
    revised = revise(revising, Script(reply), chosen)
    accepted = [row for row in revised if row["accepted"]]
    assert accepted and {row["control"] for row in accepted} == {False}  # nothing changes in what violated nothing
    assert {row["reject_reason"] for row in revised if row["control"]} == {"unchanged"}
    for row in accepted:
        pair = pair_of(row)
        assert pair["chosen"][:-1] == pair["rejected"][:-1] and "fool" in pair["rejected"][-1]["content"]
        assert "fool" not in pair["chosen"][-1]["content"] and row["plan"] not in str(pair)


@pytest.mark.parametrize(
    "revision, fault",
    [("", "empty"), ("I'm sorry, I can't help with that.", "bare refusal"),
     ("Here is the revised message", "speaks of revising"),
     ("apples " * 60, "length"), ("quite another matter of seas and ships", "topic"), ("USER: no", "not a turn"),
     ("eat three apples a day you fool", "unchanged"), ("eat three apples on a good day", None)],
)  # fmt: skip
def test_revisions_that_are_none_are_not_used(revision, fault):
    messages = [
        {"role": "user", "content": "how many apples?"},
        {"role": "assistant", "content": "eat three apples a day you fool"},
    ]
    if revision.startswith("apples"):
        revision = " ".join(f"apples{i}" for i in range(60))
    assert revision_fault({"messages": messages, "revision": revision, "plan": ""}, 0.1) == fault


def test_near_duplicates_keep_the_longest_and_caps_hold():
    def row(i, text, domain="d"):
        return {"id": i, "messages": [{"role": "user", "content": text}], "domain": domain}

    base = " ".join(f"w{i}" for i in range(60))
    rows = [row(0, base), row(1, base + " and more"), row(2, "something else " * 3)]
    assert [each["id"] for each in dialogue_filters.near_duplicates(rows, 0.8)] == [0]
    rows = [row(i, "x", domain="ab"[i > 6]) for i in range(10)]
    assert [each["id"] for each in dialogue_filters.over_cap(rows, "domain", 0.3)] == [3, 4, 5, 6]
    rows = [{**row(i, "x"), "pids": ["p", "q"] if i in (2, 7) else ["p"]} for i in range(10)]
    assert [each["id"] for each in dialogue_filters.uneven(rows, 3.0)] == [6, 7, 8, 9]


def reply_to(body):
    """All roles in one; what is said depends on the conversation and the seed."""
    last = body["messages"][-1]["content"]
    digest = hashlib.sha256(json.dumps(body["messages"]).encode() + str(body["seed"]).encode()).digest()
    if last.startswith("You plan"):
        return "1. The person asks.\n2. The agent answers."
    if "Answer in this form" in last:
        said = last.partition("LAST MESSAGE OF THE AGENT: ")[2]
        return f"CRITIQUE: so.\nPRINCIPLES VIOLATED: [{'1' if said[0] in '01234567' else ''}]\nDONE"
    if last.startswith("Below"):
        return "revised " + last.partition("LAST MESSAGE OF THE AGENT: ")[2].partition("\n")[0][: 5 * 16]
    return " ".join(digest.hex()[at : at + 4] for at in range(0, 64, 3))


def test_stages_over_a_server_that_fails_and_resume_without_asking_twice(tmp_path):
    for name, rows in SEEDS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seeds = {name: Source(str(tmp_path / f"{name}.jsonl")) for name in SEEDS}

    def run(out, server):
        where = Server(url=server.url, model="m", concurrency=2, attempts=2)
        recipe = Recipe("talk", stages=(
            Dialogues("talk", server=where, count=6, batch=3, slots=2, max_messages=4, domain_share=1.0,
                      goal_share=1.0, **seeds),
            Revisions("revise", server=where, dialogues=Source("stage:talk/dialogues.jsonl"), batch=2, rounds=1),
        ))  # fmt: skip
        experiment = Experiment(recipe, tmp_path / out)
        for stage_ in experiment.in_order():
            experiment.run(stage_)

    with faulty_server(reply_to, whole=True) as server:
        run("whole", server)
        asked = len(server.asked)
    with faulty_server(reply_to, whole=True) as server:
        server.forbidden_after = asked // 2
        with pytest.raises(UserError, match="status 401"):
            run("stopped", server)
        answered, server.forbidden_after = server.forbidden_after, None
        server.asked.clear()
        run("stopped", server)
        assert len(server.asked) == asked - answered
    pairs = [json.loads(line) for line in (tmp_path / "whole/talk/revise/pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["chosen"][-1]["content"].startswith("revised ") for pair in pairs)
    files = ["talk/dialogues.jsonl", "talk/dropped.jsonl", "talk/sft.jsonl", "talk/released.jsonl", "talk/tables.md",
             "talk/reading.md", "revise/revisions.jsonl", "revise/pairs.jsonl"]  # fmt: skip
    for name in files:
        assert (tmp_path / "whole/talk" / name).read_bytes() == (tmp_path / "stopped/talk" / name).read_bytes(), name


def test_topics_are_distinct_and_no_head_noun_has_more_than_its_share():
    stage_ = Topics("t", init="hf:x", fields=FILE, count=100, noun_share=0.02)
    listed = topics.items_of(
        "Sure:\n1. Growing apples\n2) growing Apples!\n- 'Steam engines'\n3. \nno item\n* steam ENGINES"
    )
    assert listed == ["Growing apples", "growing Apples!", "Steam engines", "steam ENGINES"]
    assert topics.distinct(listed) == ["Growing apples", "Steam engines"]
    kept, dropped = topics.chosen(
        stage_, [*listed, "the steam engines", "Roman fruit", "wild fruit", "dried fruit", "x"]
    )
    assert kept == ["Growing apples", "Steam engines", "Roman fruit", "wild fruit", "x"]
    assert [row["dropped"] for row in dropped] == ["repeated", "repeated", "similar", "head noun"]


def test_tables_show_every_label_its_agreement_and_what_revisions_change():
    made = make_batch(stage(), Script(everyone), Script(everyone), None, specs(8), Nothing())
    for number, row in enumerate(made):
        row["judged"], row["is_violation"] = row["pids"][: number % 2], bool(number % 2)
        harmful = {"response_harmfulness": "harmful" if number % 2 else "unharmful", "response_refusal": "compliance"}
        row["moderator"], row["dropped"] = harmful, None
    found = dialogue_tables.of_dialogues(made, {"other": [{"messages": made[0]["messages"]}]})
    assert found["violations"]["labels"] == {
        "planned no, judged no, moderator no": 4, "planned yes, judged yes, moderator yes": 4,
    }  # fmt: skip
    assert found["agreement"]["judged, moderator"] == {"kappa": 1.0, "low": 1.0, "high": 1.0, "n": 8}
    assert found["beside"]["other"]["conversations"] == 1
    assert sum(found["length"]["dialogues by messages"].values()) == 8
    after = {"response_harmfulness": "unharmful", "response_refusal": "compliance"}
    new = {"control": False, "accepted": True, "reject_reason": None, "rounds": 1, "revision": "short and sweet"}
    rows = [{**row, **new, "revision_moderator": after} for row in made]
    revised = dialogue_tables.of_revisions(rows, [1.0, 3.0])
    assert revised["moderator: harmful"]["before"]["share"] == 0.5 and revised["reward margin"]["mean"] == 2.0
    assert revised["moderator: harmful"]["after"]["share"] == 0 < revised["moderator: harmful"]["after"]["high"] < 0.4
    assert "| judged, moderator | 1.000 | 1.000 | 1.000 | 8 |" in dialogue_tables.text("T", found)


def test_what_a_model_writes_wrongly_is_counted_and_never_a_row():
    """Plans that never end, empty turns, role markers in a text, and a judge that answers prose."""

    def reply(ask):
        last, dialogue = ask.messages[-1]["content"], ask.number // 64
        if last.startswith("You plan"):
            return Said("1. and then and then", cut=True) if dialogue == 0 else everyone(ask)
        if last.startswith("Below"):
            return "I would not say so." if dialogue == 3 else everyone(ask)
        if dialogue == 1:
            return "  \n "
        return "of course <|user|> tell me" if dialogue == 2 else everyone(ask)

    made = make_batch(stage(), Script(reply), Script(reply), None, specs(6), Nothing())
    dialogue_filters.apply(stage(), made, [])
    assert [row["dropped"] for row in made] == ["plan: cut", "turn: empty", "turn: role label", None, None, None]
    assert [row["messages"] for row in made[:3]] == [[], [], []]
    assert [row["parse_error"] for row in made[3:]] == [True, False, False] and made[3]["judged"] is None
    found = dialogue_tables.of_dialogues(made)
    assert sum(found["dropped"].values()) + found["size"]["kept"] == found["size"]["specs"] == 6
    assert found["violations"]["parse errors"] == 1 and found["resampled"] == {"empty": 3, "role label": 3}


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(tmp_path, monkeypatch, capfd):
    for name, rows in SEEDS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with faulty_server(reply_to, whole=True) as server:
        (tmp_path / "recipe.py").write_text(
            "from easylm_jax.config import Dialogues, Recipe, Server, Source\n"
            f"seeds = {{name: Source(f'{tmp_path}/{{name}}.jsonl') for name in {tuple(SEEDS)}}}\n"
            f"talk = Dialogues('talk', server=Server(url='{server.url}', model='m'), count=4, batch=2, slots=2,\n"
            "                 max_messages=4, domain_share=1.0, goal_share=1.0, **seeds)\n"
            "recipe = Recipe('talk', (talk,))\n"
        )
        command = ["run", str(tmp_path / "recipe.py"), "--out", str(tmp_path / "runs")]
        write, calls = opening.files.write_lines, []

        def full(path, rows):
            calls.append(path)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            write(path, rows)

        monkeypatch.setattr(opening.files, "write_lines", full)
        assert main(command) == 2
        err = capfd.readouterr().err.splitlines()
        assert len([line for line in err if line.startswith("easylm: error: ")]) == 1
        assert "No space left on device" in err[-1] and "--out" in err[-1] and calls[1].name == "000001.jsonl"
        monkeypatch.setattr(opening.files, "write_lines", write)
        asked = len(server.asked)
        assert main(command) == 0 and len(server.asked) == asked  # all answers were in the journal
    rows = (tmp_path / "runs/talk/talk/dialogues.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in rows}) == len(rows) > 0


def test_a_dialogue_can_be_written_in_one_call():
    written = (
        "Sure.\nUSER: hello there\nAGENT: good day\nto you\n**USER:** and you?\nAGENT: fool\n[BROKEN]\nDONE\nUSER: x"
    )
    messages, whole = rules.script_of(written)
    assert whole and [message["content"] for message in messages[:3]] == ["hello there", "good day\nto you", "and you?"]
    assert rules.script_of("AGENT: a\nUSER: b\nUSER: c") == ([{"role": "user", "content": "b"}], False)
    scripted = stage(talk="script")
    faulty = "USER: a b\nAGENT: c\nUSER: <|user|>\nAGENT: d\nDONE"
    tries = Script(lambda ask: written if ask.number % 64 == 4 or ask.number < 64 else faulty)
    held = talk.hold(scripted, tries, tries, [(spec, "1. plan") for spec in specs(2)])
    assert [each.ended for each in held] == ["last beat"] * 2 and [each.marker for each in held] == [True, True]
    assert held[1].messages == held[0].messages and held[1].resampled == {"role label": 1}
    assert held[0].messages[-1] == {"role": "assistant", "content": "fool"}
    assert talk.row_of(held[0], scripted, "m", "1")["talk_mode"] == "script"
    (cut,) = talk.hold(scripted, tries, Script(lambda ask: Said("USER: a\nAGENT: b\nUSER: c", cut=True)),
                       [(specs(1)[0], "1. plan")])  # fmt: skip
    assert cut.truncated and len(cut.messages) == 2
