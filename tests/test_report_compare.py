import json
import re
import xml.etree.ElementTree as ElementTree

import fake_run
import pytest
from test_report import cells, easylm
from test_report_page import SVG, Page, svgs

from easylm_jax import report
from easylm_jax.report import compare, compare_page, settings
from models.errors import UserError


@pytest.fixture
def runs(tmp_path):
    """Two runs of a recipe: in the second, GRPO has another learning rate, PPO another name, and one stage is new."""
    first, second = (fake_run.quickstart(tmp_path / name) for name in ("base", "changed"))
    for seed in (0, 1):
        fake_run.reinforced(second, f"grpo-{seed}", "GRPO", 8, optimizer={"lr": 1e-5}, seed=seed)
        fake_run.rename(second, f"ppo-{seed}", f"ppo-again-{seed}")
    fake_run.supervised(second, "new", "SFT", 4, loss=1.0, needs=(), init="hf:new")
    table = fake_run.table_of()
    table["rows"][2] |= {"method": "PPO again", "stages": ["ppo-again-0", "ppo-again-1"]}
    table["rows"][3] |= {"score": 0.8, "interval": [0.76, 0.84]}
    fake_run.evaluated(second, table)
    return first, second


def line_of(comparison, method):
    line = next(line for line in comparison.lines if line.method == method)
    return {run: [stage.name for stage in stages] for run, stages in line.stages.items()}


# Which stages belong together


def test_stages_of_one_name_are_lined_up_whatever_their_settings(runs):
    comparison = compare.compare(runs)
    assert line_of(comparison, "GRPO") == {"base": ["grpo-0", "grpo-1"], "changed": ["grpo-0", "grpo-1"]}
    assert line_of(comparison, "SFT") == {"base": ["sft"], "changed": ["sft"]}


def test_stages_of_equal_settings_are_lined_up_whatever_their_names(runs):
    comparison = compare.compare(runs)
    assert line_of(comparison, "PPO") == {"base": ["ppo-0", "ppo-1"], "changed": ["ppo-again-0", "ppo-again-1"]}
    assert line_of(comparison, "new") == {"changed": ["new"]}
    assert comparison.alone == {"changed": ["new"]}


def test_a_name_of_another_kind_is_not_lined_up(tmp_path):
    for name, kind in (("a", "SFT"), ("b", "DPO")):
        fake_run.supervised(tmp_path / name, "final", kind, 4, loss=1.0, needs=())
    comparison = compare.compare([tmp_path / "a", tmp_path / "b"])
    assert [(line.kind, list(line.stages)) for line in comparison.lines] == [("SFT", ["a"]), ("DPO", ["b"])]


def test_every_stage_of_every_run_is_in_one_line(runs):
    comparison = compare.compare(runs)
    for name, run in comparison.runs.items():
        listed = [stage.name for other, stage in comparison.stages if other == name]
        assert sorted(listed) == sorted(stage.name for stage in run.stages)


# Settings


def test_settings_that_differ_are_listed_for_each_method(runs):
    comparison = compare.compare(runs)
    found = {(one.method, one.setting): one.values for one in comparison.differences}
    assert found[("GRPO", "optimizer.lr")] == {"base": None, "changed": 1e-5}
    assert {method for method, _ in found} == {"GRPO"}
    text = compare.markdown(comparison)
    assert cells(text, "GRPO | optimizer.lr") == ["GRPO", "optimizer.lr", "–", "1e-05"]
    assert "Only in changed: new." in text


def test_other_seeds_and_meshes_are_differences_too(tmp_path):
    for name, seeds, mesh in (("a", (0, 1), "fsdp=-1"), ("b", (2,), "tp=4")):
        for seed in seeds:
            folder = fake_run.supervised(tmp_path / name, f"sft-{seed}", "SFT", 4, loss=1.0, needs=(), seed=seed)
            config = json.loads((folder / "config.json").read_text())
            fake_run.write_json(folder / "config.json", config | {"mesh": mesh})
    found = compare.compare([tmp_path / "a", tmp_path / "b"]).differences
    assert [(one.method, one.setting, one.values) for one in found] == [
        ("", "mesh", {"a": "fsdp=-1", "b": "tp=4"}),
        ("sft", "seed", {"a": "0, 1", "b": "2"}),
    ]


def test_runs_of_the_same_settings_say_so(tmp_path):
    pair = [fake_run.quickstart(tmp_path / name) for name in "ab"]
    text = compare.text(compare.compare(pair))
    assert "The methods that all runs have were run with the same settings." in text


def test_pairs_of_names_and_values_are_fields():
    assert dict(settings.flat({"arguments": [["pages", 8], ["tasks", "short"]]})) == {
        "arguments.pages": 8,
        "arguments.tasks": "short",
    }
    assert dict(settings.flat({"stages": ["a", "b"]})) == {"stages": "a, b"}


# Tables


def test_a_row_for_each_method_and_run_with_the_difference_from_the_first(runs):
    text = compare.markdown(compare.compare(runs))
    heading = cells(text, "method | run")
    column = heading.index("over base (points)")
    assert cells(text, "GRPO | base")[column] == "–"
    shown = cells(text, "GRPO | changed")
    assert shown[2] == "80.0 ± 1.8"
    assert shown[column] == "+11.6 ± 2.5"  # 80.0 − 68.43; √(1.8² + 1.8²)
    assert cells(text, "PPO again | changed")[column] == "–"  # the first run has no such method
    rows = re.findall(r"^\| (SFT|DPO|PPO|GRPO|PPO again) \| (base|changed) \|", text, flags=re.M)
    assert rows[:6] == [("SFT", "base"), ("SFT", "changed"), ("DPO", "base"), ("DPO", "changed"), ("PPO", "base"),
                        ("GRPO", "base")]  # fmt: skip


def test_a_difference_is_not_shown_where_the_runs_were_asked_other_prompts(runs):
    table = json.loads((runs[1] / "table.json").read_text())
    table["tasks"][0]["prompts"] = 50
    fake_run.evaluated(runs[1], table)
    text = compare.markdown(compare.compare(runs))
    assert cells(text, "GRPO | changed")[cells(text, "method | run").index("over base (points)")] == "–"
    assert "base: Tasks: problems, 600 held-out prompts" in text
    assert "changed: Tasks: problems, 50 held-out prompts" in text


def test_tables_of_stages_have_a_column_for_the_run(runs):
    text = compare.markdown(compare.compare(runs))
    assert cells(text, "ppo-again-0 | changed")[2:5] == ["PPO", "sft", "done, 8 steps"]
    assert cells(text, "new | changed")[2] == "SFT"


def test_what_is_not_done_is_told_of_each_run(tmp_path):
    fake_run.supervised(tmp_path / "a", "sft", "SFT", 4, loss=1.0, needs=())
    fake_run.reinforced(tmp_path / "b", "ppo", "PPO", 40, reached=5)
    comparison = compare.compare([tmp_path / "a", tmp_path / "b"])
    assert "b: Not done: ppo, sft (not begun), reward (not begun)." in compare.text(comparison)
    assert '<p class="warning">Not finished: b.</p>' in compare_page.page(comparison)


# The page


def test_a_figure_shows_a_method_of_all_runs_in_the_colours_of_the_runs(runs):
    text = compare_page.page(compare.compare(runs))
    assert Page(text).open == []
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == ["Results", "Settings that differ", "Held-out score while training", "Reinforcement learning",
                        "Supervised stages: loss", "Responses side by side", "Stages", "Time", "Runs"]  # fmt: skip
    methods = text[text.index("<h2>Reinforcement learning") : text.index("<h2>Supervised stages: loss")]
    assert re.findall(r"<h3>(.*?)</h3>", methods) == ["PPO", "GRPO"]
    for legend in re.findall(r'<div class="key">(.*?)</div>', methods):
        assert re.findall(r'class="line (\w+)".*?</svg>([\w-]+)</span>', legend) == [("s0", "base"), ("s1", "changed")]
    panels = [svg for svg in svgs(methods) if svg.find(f"{SVG}text") is not None]
    for svg in panels:
        drawn = {line.get("class") for line in svg.iter(f"{SVG}polyline") if line.get("class").startswith("line")}
        assert drawn == {"line s0", "line s1"}, svg.find(f"{SVG}text").text


def test_losses_of_two_runs_share_a_figure_and_cards_name_their_run(runs):
    text = compare_page.page(compare.compare(runs))
    losses = svgs(text[text.index("<h2>Supervised stages: loss") : text.index("<h2>Responses side by side")])
    titles = [svg.find(f"{SVG}text").text for svg in losses]
    assert titles == ["pretrain", "SFT", "reward", "DPO, 2 seeds", "new (changed)"]
    texts = [[text.text for text in svg.iter(f"{SVG}text")] for svg in losses[:2]]
    assert all("base" in shown and "changed" in shown for shown in texts)
    first = text[text.index('<div class="asked"><pre>What is 12 + 30?') :]
    first = first[: first.index('<div class="prompt">', 1)]
    assert re.findall(r'<div class="card"><b>(.*?)</b>', first) == [
        "SFT, base", "SFT, changed", "DPO, base", "DPO, changed", "PPO, base", "GRPO, base", "GRPO, changed",
        "PPO again, changed",
    ]  # fmt: skip


def test_results_of_runs_are_points_with_names_inside_the_figure(runs):
    text = compare_page.page(compare.compare(runs))
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", text, flags=re.S)[0])
    names = [label for label in svg.iter(f"{SVG}text") if label.get("class").startswith("name")]
    assert {label.text for label in names} >= {"GRPO, base", "GRPO, changed", "PPO, base", "PPO again, changed"}
    axis = next(line for line in svg.iter(f"{SVG}line") if line.get("class") == "axis")
    assert all(float(label.get("y")) < float(axis.get("y1")) + 6 for label in names)


# Names and the command


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("x/a", "x/b"), ["a", "b"]),
        (("x/a/quickstart", "x/b/quickstart"), ["a", "b"]),
        (("one/a", "two/a", "two/b"), ["one/a", "two/a", "two/b"]),
    ],
)
def test_runs_are_called_by_what_tells_their_folders_apart(tmp_path, folders, names):
    for folder in folders:
        fake_run.supervised(tmp_path / folder, "sft", "SFT", 4, loss=1.0, needs=())
    assert list(compare.compare([tmp_path / folder for folder in folders]).runs) == names


def test_the_command_compares_several_runs(runs, capsys, tmp_path):
    status, out, err = easylm(capsys, *runs, "--json", tmp_path / "both.json")
    assert (status, err) == (0, "")
    assert out.startswith("Comparison of base, changed\n") and out.endswith(f"wrote {runs[0] / 'comparison.html'}\n")
    assert not (runs[0] / "report.html").exists()
    written = json.loads((tmp_path / "both.json").read_text())
    assert list(written["runs"]) == ["base", "changed"]
    assert written["runs"]["base"] == json.loads(json.dumps(report.as_json(report.collect(runs[0]))))
    assert [(row["method"], row["run"]) for row in written["tables"][0]["rows"]][:2] == [
        ("SFT", "base"),
        ("DPO", "base"),
    ]
    assert written["settings"] == [
        {"method": "GRPO", "setting": "optimizer.lr", "values": {"base": None, "changed": 1e-5}}
    ]
    lined = {one["method"]: one["stages"] for one in written["methods"]}
    assert lined["PPO"]["changed"] == ["ppo-again-0", "ppo-again-1"]
    status, out, _ = easylm(capsys, *runs, "--markdown", "--html", tmp_path / "both.html")
    assert out.startswith("# Comparison of base, changed\n\n## Runs\n") and "wrote" not in out
    assert (tmp_path / "both.html").is_file()


def test_three_runs_are_compared_with_the_first(runs, tmp_path):
    third = fake_run.quickstart(tmp_path / "third")
    comparison = compare.compare([*runs, third])
    text = compare.markdown(comparison)
    assert [cells(text, f"GRPO | {run}")[1] for run in ("base", "changed", "third")] == ["base", "changed", "third"]
    assert Page(compare_page.page(comparison)).open == []


def test_a_run_given_twice_is_an_error(runs, capsys):
    status, out, err = easylm(capsys, runs[0], runs[1], runs[0].parent / "quickstart")
    assert (status, out) == (2, "")
    assert err.endswith("is given twice; name each run once\n") and err.count("\n") == 1
    with pytest.raises(UserError, match="no such folder"):
        compare.compare([runs[0], runs[0] / "none"])
