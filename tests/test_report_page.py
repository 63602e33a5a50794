import json
import random
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import fake_run
import pytest

from easylm_jax import report
from easylm_jax.report import curves, figures, plots
from easylm_jax.report.plots import Series

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path):
    return fake_run.quickstart(tmp_path)


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, flags=re.S)]


# The page


class Page(HTMLParser):
    """Tags and attributes of a page, and whether every tag that was opened was closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag in ("rect", "circle", "polyline"):
            pass
        else:
            raise AssertionError(f"</{tag}> while {self.open[-3:]} are open")

    def handle_data(self, data):
        self.data.append(data)


def test_the_page_loads_nothing_and_runs_nothing(run):
    page = Page(report.write(run).read_text())
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form", "base"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcdoc") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "url(" not in "".join(page.data) and "@import" not in "".join(page.data)


def test_samples_names_and_settings_are_escaped(run):
    fake_run.stage(run, "evil", "MakeData", done={"files": ["<img src=x>"]}, function='"><script>alert(1)</script>')
    text = report.write(run).read_text()
    assert "<script" not in text and "<img" not in text
    assert "&lt;script&gt;alert(&#x27;PPO&#x27;)&lt;/script&gt;" in text
    assert "Say &lt;b&gt;no&lt;/b&gt; &amp; &lt;/pre&gt;." in text
    shown = "".join(Page(text).data)
    assert "PPO says 42 <script>alert('PPO')</script>" in shown


def test_every_figure_is_xml_with_all_points_inside_its_axes(run):
    drawn = svgs(report.html.page(report.collect(run)))
    assert len(drawn) > 12
    for svg in drawn:
        _, _, width, height = map(float, svg.get("viewBox").split())
        axis = [line for line in svg.iter(f"{SVG}line") if line.get("class") == "axis"]
        if not axis:  # a legend alone
            continue
        left, right, bottom = (float(axis[0].get(name)) for name in ("x1", "x2", "y1"))
        marks = [c for c in svg.iter(f"{SVG}circle") if c.find(f"{SVG}title") is not None]
        points = [(float(c.get("cx")), float(c.get("cy"))) for c in marks]
        points += [tuple(map(float, pair.split(","))) for line in svg.iter(f"{SVG}polyline")
                   for pair in line.get("points").split()]  # fmt: skip
        errors = [line for line in svg.iter(f"{SVG}line") if line.get("class").startswith("error")]
        points += [(float(e.get(f"x{i}")), float(e.get(f"y{i}"))) for e in errors for i in (1, 2)]
        assert all(left - 0.1 <= x <= right + 0.1 and 0 <= y <= bottom + 0.1 for x, y in points)
        assert 0 < left < right <= width and bottom < height


def test_the_page_has_every_section_and_the_responses_side_by_side(run):
    text = report.html.page(report.collect(run))
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings == [
        "Results", "Held-out score while training", "Reward against divergence", "Health of reinforcement learning",
        "Supervised stages: loss", "Responses side by side", "Stages", "Time", "Responses while training", "Settings",
        "Files",
    ]  # fmt: skip
    first = text[text.index('<div class="prompt"><div class="asked"><pre>What is 12 + 30?') :]
    first = first[: first.index('<div class="prompt">', 1)]
    assert re.findall(r'<div class="card"><b>(\w+)</b>', first) == ["SFT", "DPO", "PPO", "GRPO"]
    assert first.count('<span class="mark right">right</span>') == 4
    assert "<th class=words>beta</th><td class=words>0.1</td>" in text


def test_a_recipe_without_a_table_has_the_rest(run):
    (run / "table.json").unlink()
    for file in ("table.json", "samples.jsonl", "done.json", "config.json"):
        (run / "table" / file).unlink()
    text = report.write(run).read_text()
    assert "<h2>Results</h2>" not in text and "<h2>Health of reinforcement learning</h2>" in text
    assert "<title>quickstart</title>" in text


def test_scores_without_divergence_are_bars(run):
    table = fake_run.table_of()
    for row in table["rows"]:
        row["kl"] = row["kl_stderr"] = None
    fake_run.evaluated(run, table)
    figure = figures.results(report.collect(run))[0]
    bars = [rect for rect in ElementTree.fromstring(figure.svg).iter(f"{SVG}rect")]
    widths = [float(bar.get("width")) for bar in bars]
    scores = [row["score"] for row in table["rows"]]
    assert [w / widths[0] for w in widths] == pytest.approx([s / scores[0] for s in scores], abs=0.01)


# Figures


def test_a_method_keeps_its_colour_in_all_figures(run):
    data = report.collect(run)
    paint = figures.colours(data)
    assert paint == {"SFT": 0, "DPO": 1, "PPO": 2, "GRPO": 3}
    svg = ElementTree.fromstring(figures.held_out(figures.rl_groups(data))[0].svg)
    full = [line.get("class") for line in svg.iter(f"{SVG}polyline") if line.get("class").startswith("line")]
    assert full == ["line s2", "line s3"]


def test_panels_share_one_legend_of_the_methods_in_their_colours(run):
    text = report.html.page(report.collect(run))
    legends = re.findall(r'<div class="key">(.*?)</div>', text)
    assert len(legends) == 2
    for legend in legends:
        assert re.findall(r'class="line (\w+)".*?</svg>(\w+)</span>', legend) == [("s2", "PPO"), ("s3", "GRPO")]


def test_scores_of_different_judges_never_share_an_axis(run):
    data = report.collect(run)
    titles = [
        ElementTree.fromstring(figure.svg).find(f"{SVG}text").text
        for figure in figures.along_kl(figures.rl_groups(data))
    ]
    assert titles == ["Score by reward model reward", "Score by verifier recipes.arithmetic:check", "Held-out score"]


# Figures that are easy to read


def panel(run, title: str) -> tuple[ElementTree.Element, str]:
    """The figure of RL health with this title, and its caption."""
    shown, _ = figures.health(figures.rl_groups(report.collect(run)))
    return next((svg, figure.caption) for figure in shown
                if (svg := ElementTree.fromstring(figure.svg)).find(f"{SVG}text").text == title)  # fmt: skip


def change(run, stage: str, change_line) -> None:
    """Changes every metrics line of a stage: `change_line(step)` is what is new in it."""
    path = run / stage / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    fake_run.write_lines(path, [line | change_line(line["step"]) for line in lines])


def y_ticks(svg) -> list[float]:
    labels = [text.text for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    return [float(label.replace(",", "").replace("−", "-")) for label in labels]


def triangles(svg) -> list[str]:
    return [mark.find(f"{SVG}title").text for mark in svg.iter(f"{SVG}polygon") if mark.get("class").startswith("mark")]


@pytest.mark.parametrize("steps", [8, 100])
def test_an_outlier_is_marked_at_the_edge_and_does_not_stretch_the_axis(tmp_path, steps):
    run = fake_run.quickstart(tmp_path, steps=steps)
    change(run, "ppo-0", lambda step: {"kl": 5000.0} if step == 5 else {})
    svg, caption = panel(run, "KL to the reference")
    assert max(y_ticks(svg)) <= 6
    assert triangles(svg) == ["PPO (mean of 2): 5, 5000, beyond the axis"]
    assert caption == "A triangle marks a value beyond the axis: 5,000."
    corners = next(p.get("points") for p in svg.iter(f"{SVG}polygon") if p.get("class").startswith("mark"))
    grid = [line for line in svg.iter(f"{SVG}line") if line.get("class") == "grid"]
    top = min(float(line.get("y1")) for line in grid)
    assert min(float(corner.split(",")[1]) for corner in corners.split()) == pytest.approx(top, abs=0.11)


@pytest.mark.parametrize(
    ("curve", "shown"),
    [
        ([1.0, 2.0, 3.0] * 10, (1.0, 3.0)),
        ([*[1.0, 2.0, 3.0] * 10, -400.0], (1.0, 3.0)),
        ([*[1.0, 2.0, 3.0] * 10, 3.9], (1.0, 3.9)),  # a little beyond the others crushes nothing
        ([*[1.0, 2.0, 3.0] * 40, 20.0, 50.0, 90.0], (1.0, 90.0)),  # the end of a run that diverges
        ([0.0] * 29 + [5.0], (0.0, 5.0)),  # a count that is mostly 0: here the exception is what matters
        ([1.0, 2.0, 90.0], (1.0, 90.0)),  # too few to tell
        ([], (0.0, 0.0)),
    ],
)
def test_the_range_of_an_axis_leaves_out_only_isolated_values_that_crush_the_rest(curve, shown):
    assert curves.robust_range([curve]) == shown


def test_a_method_far_from_the_others_is_named_at_the_edge(run):
    table = fake_run.table_of()
    table["rows"].append(fake_run.row("pretrained", ["pretrain"], 0.0, kl=37.7))
    fake_run.evaluated(run, table)
    figure = figures.results(report.collect(run))[0]
    svg = ElementTree.fromstring(figure.svg)
    names = [text.text for text in svg.iter(f"{SVG}text") if text.get("class").startswith("name")]
    assert names == ["SFT", "DPO", "PPO", "GRPO", "pretrained, at 37.7"]
    assert max(y_ticks(svg)) < 100 and min(y_ticks(svg)) == 0
    assert "Triangles mark methods beyond the axis." in figure.caption


def test_a_panel_of_a_metric_that_is_always_zero_is_left_out_in_one_line(run):
    for name in ("ppo-0", "ppo-1", "grpo-0", "grpo-1"):
        change(run, name, lambda step: {"clip_fraction": 0.0, "verifier_timeouts": 0, "staleness": float(step == 3)})
    text = report.html.page(report.collect(run))
    assert '<p class="note">Always 0 and not shown: clipped tokens, verifier timeouts.</p>' in text
    assert ">Clipped tokens</text>" not in text and ">Verifier timeouts</text>" not in text
    assert ">Staleness of rollouts</text>" in text


def test_a_long_noisy_curve_is_a_moving_average_in_a_pale_band(tmp_path):
    run = fake_run.quickstart(tmp_path, steps=400)
    noise = random.Random(0)
    for name in ("ppo-0", "ppo-1"):
        change(run, name, lambda step: {"length": 10 + step / 100 + noise.gauss(0, 1.0)})
    svg, _ = panel(run, "Response length")
    line = next(line for line in svg.iter(f"{SVG}polyline") if line.get("class") == "line s2")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert len(points) <= 240
    up = [abs(b[1] - a[1]) for a, b in zip(points, points[1:], strict=False)]
    assert sum(up) < 3 * abs(points[-1][1] - points[0][1])  # the way along the line, against the way that it makes
    bands = [polygon.get("class") for polygon in svg.iter(f"{SVG}polygon")]
    assert bands == ["band s2", "band s3"]


def test_a_long_smooth_curve_is_drawn_as_it_is():
    smooth = [(float(i), 10 * 0.95**i) for i in range(200)]
    rough = [(float(i), float(i % 2)) for i in range(200)]
    assert not curves.is_noisy(smooth) and curves.is_noisy(rough) and not curves.is_noisy(rough[:50])


def test_a_moving_average_keeps_a_straight_line_and_its_ends():
    line = [(float(i), 3.0 * i) for i in range(100)]
    average = curves.smoothed(line)
    assert [x for x, _ in average] == [x for x, _ in line]
    assert [y for _, y in average[10:-10]] == pytest.approx([y for _, y in line[10:-10]])
    assert max(abs(a[1] - b[1]) for a, b in zip(average, line, strict=True)) <= 1.5


def test_a_band_holds_most_values_of_all_curves():
    noise = random.Random(1)
    drawn = [[(float(i), noise.gauss(0, 1)) for i in range(400)] for _ in range(3)]
    found = curves.band(drawn)
    assert (found[0][0], found[-1][0]) == (0.0, 399.0)
    means = [sum(edges) / len(found) for edges in list(zip(*found, strict=True))[1:]]
    assert means == pytest.approx([-1.28, 1.28], abs=0.1)  # the 10 % and 90 % quantiles of a normal distribution


def test_a_path_along_kl_is_one_line_of_a_method_from_pale_to_full(run):
    figure = figures.along_kl(figures.rl_groups(report.collect(run)))[0]
    svg = ElementTree.fromstring(figure.svg)
    lines = [line for line in svg.iter(f"{SVG}polyline")]
    opacity = [float(line.get("stroke-opacity", 1)) for line in lines]
    assert len(lines) == 7 and opacity == sorted(opacity) and opacity[0] < 0.4 and opacity[-1] == 1
    ends = [(line.get("points").split()[0], line.get("points").split()[-1]) for line in lines]
    assert all(end == start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))
    assert len(list(svg.iter(f"{SVG}circle"))) == 1


# Samples and phones


def test_expected_answers_and_reasons_stand_beside_the_verdicts(run):
    text = report.html.page(report.collect(run))
    asked = text[text.index('<div class="asked"><pre>Say &lt;b&gt;') :]
    asked = asked[: asked.index('<div class="prompt">')]
    assert '<p class="expected"><span>expected</span> Say &lt; → 42</p>' in asked
    assert asked.count('<span class="mark wrong">wrong</span>') == 4
    assert asked.count('<p class="reason">no &lt;b&gt;42&lt;/b&gt; in the answer</p>') == 4
    right = text[text.index('<div class="asked"><pre>What is 12') : text.index('<div class="asked"><pre>Say')]
    assert 'class="reason"' not in right
    assert text.count("no &lt;b&gt;42&lt;/b&gt; in the answer; cut at the length limit</p>") == 4


def test_responses_to_held_out_prompts_stand_side_by_side_before_and_after_training(run):
    for step, score in ((0, 0.0), (4, 0.5), (8, 1.0)):
        said = {"sample": 0, "score": score, "response": f"said at {step}", "ended": True, "reason": f"because {step}"}
        lines = [{"number": i, "prompt": f"held out {i}", "label": f"label {i}", **said} for i in range(9)]
        fake_run.write_lines(run / "grpo-0" / "samples" / "held_out" / f"{step}.jsonl", lines)
    text = report.html.page(report.collect(run))
    assert "<summary>grpo-0: held-out prompts, steps 0 and 8</summary>" in text
    assert "<summary>grpo-0: rollouts, steps 1 and 8</summary>" in text
    first = text[text.index("<pre>held out 0</pre>") : text.index("<pre>held out 1</pre>")]
    assert "<span>expected</span> label 0</p>" in first
    assert re.findall(r"<b>(step \d)</b>.*?>(wrong|right)<.*?<pre>(said at \d)</pre>.*?(because \d)", first) == [
        ("step 0", "wrong", "said at 0", "because 0"),
        ("step 8", "right", "said at 8", "because 8"),
    ]
    assert text.count("<pre>held out ") == 4 and "said at 4" not in text


def test_labels_may_be_lists_or_missing(run):
    for label, shown in ((["a", "b"], "[&quot;a&quot;, &quot;b&quot;]</p>"), ("x" * 5000, "x…</p>")):
        sample = {"method": "SFT", "task": "t", "prompt": "p", "response": "r", "score": 1.0, "label": label}
        fake_run.write_lines(run / "table" / "samples.jsonl", [sample])
        text = report.html.page(report.collect(run))
        assert shown in text and "x" * 1000 not in text
    fake_run.write_lines(run / "table" / "samples.jsonl", [sample | {"label": None}])
    assert 'class="expected"' not in report.html.page(report.collect(run))


def test_nothing_on_the_page_is_wider_than_a_phone(run):
    text = report.html.page(report.collect(run))
    boxes = text.count('<div class="scroll"><table')
    assert boxes == text.count("<table") > 4
    assert re.findall(r"minmax\((?!min\()", text) == []  # columns of grids are never wider than the screen
    wide = re.findall(r'<div class="wide">.*?</div><div class="narrow">(.*?)</div>', text, flags=re.S)
    assert len(wide) == 4
    drawn = svgs(re.sub(r'<div class="wide">.*?</svg></div>', "", text, flags=re.S))
    widths = [float(svg.get("viewBox").split()[2]) for svg in drawn]
    assert max(widths) == 400


def test_mean_of_seeds_is_taken_where_all_have_a_value():
    assert curves.mean_curve([[(1, 2.0), (2, 4.0)], [(2, 6.0), (3, 9.0)]]) == [(2, 5.0)]
    assert curves.mean_curve([[(1, 2.0)], []]) == []


def test_a_point_is_drawn_where_its_numbers_are():
    svg = ElementTree.fromstring(plots.line_chart([Series("a", [(0, 0.0), (10, 5.0), (5, 1.0)], look="both")],
                                                  x_label="x", y_label="y"))  # fmt: skip
    at = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle") if len(c)]
    (x0, y0), (x1, y1), (x2, y2) = at
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.11)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.2, abs=0.01)
    axis = next(line for line in svg.iter(f"{SVG}line") if line.get("class") == "axis")
    assert (x0, y0) == (float(axis.get("x1")), float(axis.get("y1")))


def test_bars_below_zero_and_their_intervals_stand_where_their_numbers_are():
    bars = [("a", [0.5]), ("b", [-0.25])]
    svg = ElementTree.fromstring(
        plots.bar_chart(bars, ["κ"], x_label="κ", values=["0.5", "−0.25"], intervals=[(0.25, 1.0), (-0.5, 0.0)])
    )
    first, second = svg.findall(f"{SVG}rect[@class='bar s0']")
    width = float(first.get("width")) * 2  # of 1 on the axis
    zero = float(first.get("x"))
    assert float(second.get("x")) == pytest.approx(zero - width / 4, abs=0.2)
    assert float(second.get("width")) == pytest.approx(width / 4, abs=0.2)
    ends = [[float(line.get(name)) for name in ("x1", "x2")] for line in svg.findall(f"{SVG}line[@class='whisker']")]
    assert ends[0] == pytest.approx([zero + width / 4, zero + width], abs=0.2)
    assert ends[1] == pytest.approx([zero - width / 2, zero], abs=0.2)


def test_a_point_with_equal_coordinates_lies_on_the_diagonal():
    drawn = plots.line_chart([Series("a", [(50.0, 50.0)], look="marks"), Series("b", [(80.0, 61.0)], look="marks")],
                             x_label="x", y_label="y", diagonal=True)  # fmt: skip
    svg = ElementTree.fromstring(drawn)
    line = [one for one in svg.findall(f"{SVG}line[@class='grid']") if one.get("x1") != one.get("x2")
            and one.get("y1") != one.get("y2")]  # fmt: skip
    ((x1, y1, x2, y2),) = ([float(one.get(name)) for name in ("x1", "y1", "x2", "y2")] for one in line)
    mark, below = svg.findall(f"{SVG}circle[@r='3']")[-2:]
    at = lambda x: y1 + (x - x1) / (x2 - x1) * (y2 - y1)  # noqa: E731
    assert float(mark.get("cy")) == pytest.approx(at(float(mark.get("cx"))), abs=0.2)
    assert float(below.get("cy")) > at(float(below.get("cx"))) + 5


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (47.7, 72.0, ["45", "50", "55", "60", "65", "70", "75"]),
        (0, 40000, ["0", "10,000", "20,000", "30,000", "40,000"]),
        (2.0e-7, 2.1e-7, ["2.00e−7", "2.02e−7", "2.04e−7", "2.06e−7", "2.08e−7", "2.10e−7"]),
        (-3.0, -3.0, ["−3.4", "−3.2", "−3.0", "−2.8", "−2.6"]),
    ],
)
def test_ticks_are_round_and_tell_values_apart(low, high, ticks):
    labels = plots.tick_labels(plots.nice_ticks(low, high, 5))
    assert labels == ticks


def test_long_curves_are_means_of_neighbours():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    short = curves.thinned(points, 100)
    assert len(short) == 100
    assert {y for _, y in short} == {0.5} and short[0][0] == 4.5


def test_values_that_are_not_finite_are_not_drawn(run):
    folder = fake_run.reinforced(run, "ppo-0", "PPO", 8)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    broken = json.loads(text[3]) | {"kl": "NaN", "entropy": "Infinity"}
    (folder / "metrics.jsonl").write_text("\n".join([*text[:3], json.dumps(broken), *text[4:]]) + "\n")
    page = report.html.page(report.collect(run))
    assert all("nan" not in p.get("points") and "inf" not in p.get("points")
               for svg in svgs(page) for p in svg.iter(f"{SVG}polyline"))  # fmt: skip
