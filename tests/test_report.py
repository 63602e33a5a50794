import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fake_run
import pytest

from easylm_jax import report
from easylm_jax.cli import main
from easylm_jax.report import numbers, settings, stage_tables, tables
from models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def easylm(capsys, *arguments):
    status = main.main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def run(tmp_path):
    return fake_run.quickstart(tmp_path)


def cells(text: str, row: str) -> list[str]:
    """The cells of a Markdown table's row, by its first one."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# Tables


def test_the_ablation_table_says_what_table_json_says(run):
    text = tables.markdown(report.collect(run))
    assert cells(text, "SFT") == ["SFT", "51.2 ± 1.8", "47.7 to 54.8", "–", "0.00 ± 0.00", "14.2", "99.0", "1"]
    table = json.loads((run / "table.json").read_text())
    for row in table["rows"][1:]:
        shown = cells(text, row["method"])
        over = row["over"]
        assert shown[1] == f"{100 * row['score']:.1f} ± {100 * row['stderr']:.1f}"
        assert shown[2] == " to ".join(f"{100 * edge:.1f}" for edge in row["interval"])
        assert shown[3] == f"+{100 * over['difference']:.1f} ± {100 * over['stderr']:.1f}"
        assert shown[4] == f"{row['kl']:.2f} ± {row['kl_stderr']:.2f}"
        assert shown[-1] == "2"
    assert "problems, 600 held-out prompts" in text


def test_published_numbers_stand_beside_ours_under_their_own_heading(run):
    table = fake_run.table_of()
    table["rows"][2]["published"] = {"Average": 62.2, "Coding": 47.7}
    cited = [{"method": "PPO", "column": "Average", "value": 62.2, "source": "arXiv 2406.09279, Table 2"}]
    fake_run.evaluated(run, table, published=cited)
    data = report.collect(run)
    text = tables.markdown(data)
    heading = cells(text, "method")
    assert heading[4:6] == ["paper: Average", "paper: Coding"]
    assert [name.partition(":")[0] for name in heading[1:4]] == ["ours"] * 3
    assert cells(text, "PPO")[4:6] == ["62.2", "47.7"]
    assert cells(text, "DPO")[4:6] == ["–", "–"]
    assert "arXiv 2406.09279, Table 2" in text
    page = report.html.page(data)
    assert re.search(r'<th class="group named" colspan="2">paper</th>', page)


def test_a_published_method_that_was_not_run_has_the_papers_numbers_and_no_others(run):
    cited = [{"method": "Llama 2 base", "column": "Average", "value": 43.1, "source": "Table 1"}]
    fake_run.evaluated(run, fake_run.table_of(), published=cited)
    text = tables.markdown(report.collect(run))
    column = cells(text, "method").index("paper: Average")
    shown = cells(text, "Llama 2 base")
    assert shown[column] == "43.1" and set(shown[1:column] + shown[column + 1 :]) == {"–"}
    assert cells(text, "PPO")[column] == "–"


def test_several_tasks_have_a_column_each(run):
    table = fake_run.table_of()
    for row in table["rows"]:
        row["scores"] = {"sums": {"score": 0.25, "stderr": 0.01}, "lists": {"score": 0.75, "stderr": 0.02}}
    fake_run.evaluated(run, table)
    text = tables.markdown(report.collect(run))
    assert cells(text, "method")[3:5] == ["sums (%)", "lists (%)"]
    assert cells(text, "GRPO")[3:5] == ["25.0 ± 1.0", "75.0 ± 2.0"]


def test_methods_that_start_from_different_ones_say_from_which(run):
    table = fake_run.table_of()
    table["rows"][3]["over"]["method"] = "PPO"
    fake_run.evaluated(run, table)
    assert cells(tables.markdown(report.collect(run)), "GRPO")[3] == "+17.2 ± 2.1 (PPO)"


def compared(*rows: tuple[str, str, float, float]) -> dict:
    """A table with these rows: (method, base, difference, standard error)."""
    return {"title": "t", "rows": [
        fake_run.row(method, [method], 0.5, over={"method": base, "difference": apart, "stderr": error})
        for method, base, apart, error in rows
    ]}  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [("DPO", "SFT", 0.010, 0.009), ("PPO", "SFT", 0.123, 0.02), ("GRPO", "SFT", 0.101, 0.02)],
            "PPO and GRPO beat SFT by 12.3 and 10.1 points (each more than two standard errors); the difference of DPO "
            "from SFT, +1.0 points, is within two standard errors.",
        ),
        ([("a", "B", -0.2, 0.05)], "a falls behind B by 20.0 points (more than two standard errors)."),
        (
            [("A", "B", -0.2, 0.1), ("C", "B", 0.0, 0.0)],  # exactly two standard errors are not more than two
            "The differences of A and C from B, −20.0 and +0.0 points, are within two standard errors.",
        ),
        (
            [("SFT", "base", 0.4, 0.01), ("A", "SFT", 0.1, 0.01), ("B", "SFT", 0.2, 0.01), ("C", "SFT", 0.3, 0.01)],
            "SFT beats base by 40.0 points (more than two standard errors); A, B and C beat SFT by 10.0, 20.0 and 30.0 "
            "points (each more than two standard errors).",
        ),
    ],
)
def test_one_sentence_says_which_differences_are_more_than_two_standard_errors(rows, sentence):
    assert tables.finding(compared(*rows)) == sentence


def test_a_table_that_compares_nothing_has_no_sentence():
    table = {"title": "t", "rows": [fake_run.row("SFT", ["sft"], 0.5)]}
    assert tables.finding(table) == "" and tables.ablation(table).finding == ""


def test_the_same_sentence_ends_the_terminals_last_table_and_follows_the_pages_first(run):
    data = report.collect(run)
    sentence = tables.finding(data.tables[0][0])
    assert sentence.startswith("DPO, PPO and GRPO beat SFT by ") or "within two standard errors" in sentence
    assert tables.text(data).endswith(f"\n\n{sentence}\n")
    page = report.html.page(data)
    assert (
        f"</table></div><p>{report.html.safe(sentence)}</p>" in page
        and page.count("<table>", 0, page.index(sentence)) == 1
    )
    assert tables.markdown(data).index(sentence) < tables.markdown(data).index("## Stages")


def test_stage_tables_tell_kind_state_and_last_values(run):
    data = report.collect(run)
    text = tables.markdown(data)
    stage = next(stage for stage in data.stages if stage.name == "ppo-0")
    assert cells(text, "ppo-0")[1:4] == ["PPO", "sft", "done, 8 steps"]
    assert cells(text, "answers")[-1] == "3,000 prompts, 1,846 pairs; score 0.520, best 0.810 ± 0.010"
    assert cells(text, "tokenizer")[-1] == "vocabulary of 512"
    rl = next(table for table in stage_tables.stage_tables(data) if table.title == "Reinforcement learning")
    row = dict(zip([column.name for column in rl.columns], rl.rows[0], strict=True))
    last = stage.metrics[-1]
    assert row["held-out score"] == f"{100 * last['validation_score']:.1f} ± 2.6"
    assert row["KL"] == f"{last['kl']:.2f}"
    assert row["sampler gap"].endswith("e−7")
    assert row["sampling"] == "104.5"  # (101 + … + 108) / 8, all of equal length


def test_a_majority_vote_says_how_many_labels_there_are_and_how_good(run):
    votes = {"prompts": 1200, "labelled": 1150, "correct": 0.42, "correct_stderr": 0.014, "agreement": 0.61}
    fake_run.stage(run, "votes", "MajorityVote", done={"files": ["votes.jsonl"], "metrics": votes})
    text = tables.markdown(report.collect(run))
    assert cells(text, "votes")[-1] == "1,150 of 1,200 prompts; 42.0 ± 1.4 % right, 61.0 % agree"


def test_text_lines_up_and_holds_the_same_numbers(run):
    data = report.collect(run)
    table = tables.ablations(data)[0]
    lines = tables.as_text(table).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("─"))
    body = lines[rule + 1 : rule + 1 + len(table.rows)]
    assert len({len(line) for line in body}) == 1
    assert [line.split("  ")[0].strip() for line in body] == ["SFT", "DPO", "PPO", "GRPO"]
    assert lines[rule - 1].split() == ["%", "%", "points", "nats", "tokens", "%"]


def test_a_step_written_twice_counts_once(run):
    folder = fake_run.reinforced(run, "ppo-0", "PPO", 8)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[-1]) | {"score": 7.125, "rollout_seconds": 2.0}
    (folder / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    stage = next(stage for stage in report.collect(run).stages if stage.name == "ppo-0")
    assert [line["step"] for line in stage.metrics] == list(range(1, 9))
    assert stage.metrics[-1]["score"] == 7.125
    assert stage.clocks["rollout"] == pytest.approx(7 * 1.2 + 2.0)


def test_markdown_of_a_method_with_marks_stays_one_cell(run):
    table = fake_run.table_of()
    table["rows"][1]["method"] = "DPO | <b>*x*</b>"
    fake_run.evaluated(run, table)
    text = tables.markdown(report.collect(run))
    assert "| DPO \\| \\<b\\>\\*x\\*\\</b\\> |" in text


def test_numbers_that_are_not_finite_are_shown_as_they_are():
    assert numbers.decimal(float("nan"), 1, 2) == "nan"
    assert numbers.decimal(None, 1, 2) == "–"
    assert numbers.decimal(-0.5, 100, 1) == "−50.0"
    assert numbers.duration(5.04) == "5.0 s" and numbers.duration(3 * 3600 + 120) == "3 h 02 min"


# Seeds of one method


def grouped(run: Path, family: str) -> dict[str, list[str]]:
    """The names of the stages of each method."""
    data = report.collect(run)
    return {method: [stage.name for stage in stages] for method, stages in data.methods(data.of_family(family)).items()}


def supervised_with(run: Path, name: str, kind: str = "SFT", needs=(), **fields) -> None:
    fake_run.supervised(run, name, kind, 4, loss=1.0, needs=needs, **fields)


def test_two_learning_rates_are_two_methods(tmp_path):
    for rate in ("1e-3", "1e-5"):
        fake_run.reinforced(tmp_path, f"grpo-lr-{rate}", "GRPO", 4, optimizer={"lr": float(rate)})
    assert grouped(tmp_path, "rl") == {name: [name] for name in ("grpo-lr-1e-3", "grpo-lr-1e-5")}
    page = report.html.page(report.collect(tmp_path))
    assert "(mean of" not in page and "seeds" not in page


def test_two_sizes_are_two_methods(tmp_path):
    for size in (7, 13):
        supervised_with(tmp_path, f"rm-{size}", "RewardModel", init=f"hf:allenai/tulu-2-{size}b")
    assert grouped(tmp_path, "train") == {"rm-7": ["rm-7"], "rm-13": ["rm-13"]}


def test_three_seeds_of_one_setting_are_one_method_for_each_setting(tmp_path):
    names = {rate: [f"grpo-lr-{rate}-seed-{seed}" for seed in (0, 1, 10)] for rate in ("1e-3", "1e-5")}
    for rate, stages in names.items():
        for seed, name in enumerate(stages):
            fake_run.reinforced(tmp_path, name, "GRPO", 4, optimizer={"lr": float(rate)}, seed=seed)
    assert grouped(tmp_path, "rl") == {f"grpo-lr-{rate}": stages for rate, stages in names.items()}


def test_inputs_that_differ_only_in_their_seed_are_of_one_method(tmp_path):
    """A chain of reward model and PPO, once for each seed; one more reward model is trained on other pairs."""
    for name, seed, limit in (("rm-0", 0, None), ("rm-1", 1, None), ("rm-2", 0, 100)):
        supervised_with(tmp_path, name, "RewardModel", seed=seed, data={"seed": seed, "limit": limit})
        fake_run.reinforced(tmp_path, f"ppo-{name[-1]}", "PPO", 4, reward=name, seed=seed)
    assert grouped(tmp_path, "rl") == {"ppo": ["ppo-0", "ppo-1"], "ppo-2": ["ppo-2"]}
    assert grouped(tmp_path, "train") == {"rm": ["rm-0", "rm-1"], "rm-2": ["rm-2"]}


def test_files_of_stages_that_differ_only_in_their_seed_are_the_same_input(tmp_path):
    for seed in (0, 1):
        fake_run.stage(tmp_path, f"data-{seed}", "MakeData", done={}, seed=seed, function="recipes.arithmetic:write")
        source = {"path": f"stage:data-{seed}/sft.jsonl"}
        supervised_with(tmp_path, f"sft-{seed}", needs=(f"data-{seed}",), data={"sources": [source]})
    supervised_with(tmp_path, "sft-2", needs=("data-0",), data={"sources": [{"path": "stage:data-0/other.jsonl"}]})
    assert grouped(tmp_path, "train") == {"sft": ["sft-0", "sft-1"], "sft-2": ["sft-2"]}


def test_two_needed_stages_are_not_one_used_twice(tmp_path):
    for seed in (0, 1):
        supervised_with(tmp_path, f"sft-{seed}", seed=seed)
    for name, reference in (("dpo-0", "sft-0"), ("dpo-1", "sft-1")):
        supervised_with(tmp_path, name, "DPO", needs=dict.fromkeys(("sft-0", reference)), init="sft-0",
                        reference=reference)  # fmt: skip
    assert grouped(tmp_path, "train") == {"sft": ["sft-0", "sft-1"], "dpo-0": ["dpo-0"], "dpo-1": ["dpo-1"]}


def test_methods_of_different_settings_never_share_a_name(tmp_path):
    for rate, names in ((1e-3, ("a-0", "a-1")), (1e-4, ("a-2", "a-3")), (1e-5, ("a",))):
        for seed, name in enumerate(names):
            supervised_with(tmp_path, name, optimizer={"lr": rate}, seed=seed)
    assert sorted(grouped(tmp_path, "train").values()) == [["a"], ["a-0", "a-1"], ["a-2", "a-3"]]


def test_a_row_of_stages_with_different_settings_says_so_and_has_no_common_curve(run):
    fake_run.reinforced(run, "grpo-1", "GRPO", 8, optimizer={"lr": 1e-5}, seed=1)
    fake_run.evaluated(run, fake_run.table_of())
    text = tables.markdown(report.collect(run))
    assert cells(text, "GRPO")[-1] == "2 settings" and cells(text, "PPO")[-1] == "2"
    assert "GRPO is the mean of grpo-0 and grpo-1, which differ in optimizer.lr." in text
    assert grouped(run, "rl") == {"PPO": ["ppo-0", "ppo-1"], "grpo-0": ["grpo-0"], "grpo-1": ["grpo-1"]}


def test_differences_of_settings_name_the_stage_that_they_belong_to(tmp_path):
    for name, rate in (("rm-a", 1e-4), ("rm-b", 1e-5)):
        supervised_with(tmp_path, name, "RewardModel", optimizer={"lr": rate})
        fake_run.reinforced(tmp_path, f"ppo-{name[-1]}", "PPO", 4, reward=name, kl=0.1 if name == "rm-a" else None)
    chosen = report.collect(tmp_path).of_family("rl")
    assert settings.differences([stage.settings for stage in chosen]) == {
        "kl": [0.1, None],
        "rm-a.optimizer.lr": [1e-4, 1e-5],
    }


# Order and state


def test_stages_stand_behind_those_that_they_need(run):
    data = report.collect(run)
    names = [stage.name for stage in data.stages]
    for stage in data.stages:
        assert all(names.index(need) < names.index(stage.name) for need in stage.needs)
    assert names[-1] == "table"


def test_seeds_of_a_method_stand_together(run):
    data = report.collect(run)
    grouped = data.methods(data.of_family("rl"))
    assert {method: [stage.name for stage in stages] for method, stages in grouped.items()} == {
        "PPO": ["ppo-0", "ppo-1"],
        "GRPO": ["grpo-0", "grpo-1"],
    }
    (run / "table.json").unlink()
    (run / "table" / "table.json").unlink()
    data = report.collect(run)
    assert list(data.methods(data.of_family("rl"))) == ["ppo", "grpo"]


def test_unfinished_run_says_what_is_not_done(tmp_path, capsys):
    run = tmp_path / "cut"
    fake_run.supervised(run, "sft", "SFT", 6, loss=0.7, needs=(), init="hf:some/model")
    fake_run.reinforced(run, "ppo", "PPO", 40, reached=5)
    with open(run / "ppo" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "sco')  # the line that a kill cut short
    status, out, err = easylm(capsys, run)
    assert (status, err) == (0, "")
    assert re.search(r"^ppo +PPO +sft +not done, step 5 of 40 ", out, flags=re.M)
    assert re.search(r"^reward +– +– +not begun", out, flags=re.M)
    assert "Not done: ppo, reward (not begun)." in out
    page = (run / "report.html").read_text()
    assert "This run is not finished: ppo (not done, step 5 of 40), reward (not begun)." in page
    assert "Results" not in page and page.count("<svg") > 8


def test_an_evaluation_that_has_just_written_its_table_counts_as_done(run):
    (run / "table" / "done.json").unlink()
    data = report.collect(run)
    assert data.unfinished == [] and len(data.tables) == 1


def test_a_table_older_than_the_evaluation_that_runs_is_not_its_own(run):
    (run / "table" / "done.json").unlink()
    begun = (run / "table" / "table.json").stat().st_mtime + 10
    os.utime(run / "table" / "config.json", (begun, begun))
    assert [stage.name for stage in report.collect(run).unfinished] == ["table"]


def test_time_of_a_resumed_stage_is_at_least_that_of_its_steps(run):
    fake_run.write_json(run / "ppo-0" / "done.json", {"stage": "ppo-0", "kind": "PPO", "seconds": 1.0, "step": 8})
    stage = next(stage for stage in report.collect(run).stages if stage.name == "ppo-0")
    assert stage.seconds == pytest.approx(8 * 2.4)


# The command and its errors


def test_command_prints_the_tables_and_writes_page_and_json(run, capsys, tmp_path):
    status, out, err = easylm(capsys, run, "--html", tmp_path / "page.html", "--json", tmp_path / "run.json")
    assert (status, err) == (0, "")
    assert out.startswith(f"quickstart: {run}\n") and out.endswith(f"wrote {tmp_path / 'page.html'}\n")
    assert not (run / "report.html").exists()
    written = json.loads((tmp_path / "run.json").read_text())
    assert written["tables"] == [json.loads((run / "table.json").read_text())]
    stages = {stage["name"]: stage for stage in written["stages"]}
    assert {name for name, stage in stages.items() if stage["method"] == "PPO"} == {"ppo-0", "ppo-1"}
    assert stages["ppo-1"]["done"] and stages["ppo-1"]["metrics"]["validation_stderr"] == 0.026
    status, out, _ = easylm(capsys, run, "--markdown")
    assert out.startswith("# quickstart\n\n## Quickstart: one SFT model, three ways on\n\n| method | score (%) |")
    assert (run / "report.html").is_file() and "wrote" not in out


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda run: "nowhere", r"argument RUN: 'nowhere' does not exist; give the path of a folder"),
        (lambda run: run / "sft", r"sft holds no stage .*; it is .* of a stage; give the run's folder, .*quickstart$"),
        (lambda run: run.parent, r"holds no stage .*; did you mean .*/quickstart\?$"),
        (lambda run: (run / "sft/config.json").write_text("{"), r"quickstart/sft/config\.json is damaged"),
        (lambda run: (run / "sft/config.json").write_text("{}"), r"sft/config\.json is damaged .stage should be"),
        (lambda run: (run / "sft/done.json").write_text("[]"), r"quickstart/sft/done\.json is damaged"),
        (lambda run: (run / "table/table.json").write_text('{"rows": [{}]}'), r"table\.json is damaged .rows.0. has"),
        (lambda run: (run / "table/samples.jsonl").write_text("x\n"), r"table/samples\.jsonl, line 1, is damaged"),
        (lambda run: (run / "sft/metrics.jsonl").write_text("x\n{}\n"), r"sft/metrics\.jsonl, line 1, is damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_that_names_it(run, capsys, break_it, message):
    broken = break_it(run)
    status, out, err = easylm(capsys, broken if isinstance(broken, str | Path) else run)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and re.search(message, err.strip())
    assert not (run / "report.html").exists()


def test_a_place_that_cannot_be_written_is_told(run, capsys):
    status, _, err = easylm(capsys, run, "--html", run / "no" / "page.html")
    assert status == 2 and err.startswith(f"easylm: error: cannot write {run / 'no' / 'page.html'}: No such file")


def test_write_raises_for_a_folder_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        report.write(tmp_path / "none")


def test_reporting_needs_no_jax(run):
    code = (
        "import sys\nfrom easylm_jax import report\n"
        f"path = report.write({str(run)!r})\n"
        "print(path.stat().st_size > 10000, sorted({'jax', 'numpy', 'tensorflow', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "True []", done.stderr
