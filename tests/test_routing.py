"""Routing analyses: formulas on routings made by hand, and OLMoE's published counts through the same functions."""

import dataclasses
import gzip
import json

import jax
import numpy as np
import pytest
from data_kit import corpus, sentencepiece, write_jsonl

import models
from easylm_jax.checkpoint import load
from easylm_jax.checkpoint.checkpointer import Checkpointer, restore_params
from easylm_jax.checkpoint.store import Retention
from easylm_jax.cli import main
from easylm_jax.config import DecoderConfig, Source
from easylm_jax.data import load_tokenizer
from easylm_jax.evaluate import routing
from models.config import Experts
from models.families.olmoe import ARCHITECTURE
from models.moe import RoutingDecoder

# Two layers, four tokens, the two experts of each of three
BY_HAND = np.array(
    [
        [[0, 1], [0, 2], [1, 0], [2, 1]],
        [[2, 0], [2, 1], [2, 0], [2, 1]],
    ],
    np.uint8,
)


def test_counts_and_loads():
    np.testing.assert_array_equal(routing.expert_counts(BY_HAND, 3), [[3, 3, 2], [2, 2, 4]])
    np.testing.assert_array_equal(routing.expert_counts(BY_HAND, 3, k=1), [[2, 1, 1], [0, 0, 4]])
    np.testing.assert_allclose(routing.load(np.array([[3, 3, 2]])), [[9 / 8, 9 / 8, 6 / 8]])
    even, one = routing.load_entropy(np.array([[5, 5, 5, 5], [0, 20, 0, 0]]))
    assert (even, one) == (pytest.approx(np.log(4)), 0.0)


def test_saturation_is_the_share_of_experts_that_stay():
    later = np.array([[[1, 0], [1, 2], [2, 0], [2, 1]], [[2, 0]] * 4], np.uint8)
    np.testing.assert_allclose(routing.saturation(BY_HAND, later, 2), [(2 + 1 + 1 + 2) / 8, (2 + 1 + 2 + 1) / 8])
    np.testing.assert_allclose(routing.saturation(BY_HAND, later, 1), [1 / 4, 1])
    np.testing.assert_array_equal(routing.saturation(BY_HAND, BY_HAND, 2), [1, 1])
    random = np.random.default_rng(0)
    earlier, final = (np.argsort(random.random((1, 20_000, 64)))[..., :8] for _ in range(2))
    assert routing.saturation(earlier, final, 8)[0] == pytest.approx(8 / 64, rel=0.02)
    assert routing.saturation(earlier, final, 1)[0] == pytest.approx(1 / 64, rel=0.2)


def test_coactivation_counts_all_pairs_or_those_of_neighbouring_ranks():
    together = routing.coactivation(BY_HAND, 3)
    # layer 0: {0,1}, {0,2}, {1,0}, {2,1}: expert 0 has 3 tokens, with 1 twice and with 2 once
    np.testing.assert_allclose(together[0], [[0, 2 / 3, 1 / 3], [2 / 3, 0, 1 / 3], [1 / 2, 1 / 2, 0]])
    three = np.array([[[0, 1, 2], [2, 0, 1]]])
    np.testing.assert_allclose(routing.coactivation(three, 4)[0, 0], [0, 1, 1, 0])
    np.testing.assert_allclose(routing.coactivation(three, 4, adjacent=True)[0, 0], [0, 1, 1 / 2, 0])
    assert (routing.coactivation(three, 4)[0, 3] == 0).all()  # an expert without tokens


def test_domains_and_flows():
    shares = routing.domain_specialisation(routing.expert_counts(BY_HAND, 3), 2)
    np.testing.assert_allclose(shares, [[3 / 4, 3 / 4, 2 / 4], [2 / 4, 2 / 4, 4 / 4]])
    pairs = routing.layer_pairs(BY_HAND, 0, 1, 3)
    np.testing.assert_array_equal(pairs, [[0, 0, 2], [0, 0, 1], [0, 0, 1]])
    assert routing.cross_layer_flow(pairs) == [(0, 2, 0.5), (1, 2, 0.25), (2, 2, 0.25)]
    assert routing.cross_layer_flow(np.ones((4, 4))) == []


def test_vocabulary_specialisation():
    ids = np.array([7, 7, 9, 7])
    found = routing.vocabulary_specialisation(BY_HAND, ids, 3, k=1)
    np.testing.assert_array_equal(found.ids, [7, 9])
    np.testing.assert_array_equal(found.total, [3, 1])
    np.testing.assert_allclose(found.by_token, [[2 / 3, 1], [1, 1]])
    np.testing.assert_allclose(found.mean, [5 / 6, 1])
    np.testing.assert_allclose(found.weighted, [3 / 4, 1])
    assert routing.top_tokens(BY_HAND[0], ids, 0, 3, k=2, least=2) == [(7, 2 / 3, 3)]
    assert routing.top_tokens(BY_HAND[0], ids, 0, 3, k=2, least=1) == [(9, 1.0, 1), (7, 2 / 3, 3)]


def published(shared_data, model, kind, domain, experts):
    """Counts of a domain for layers 0, 7 and 15: [3, E]."""
    path = shared_data / "routing" / "routing" / model / kind / f"{domain}.json.gz"
    layers = json.loads(gzip.decompress(path.read_bytes()))
    return np.array([[layer.get(str(expert), 0) for expert in range(experts)] for layer in layers])


def test_published_counts_show_that_experts_of_olmoe_specialise_in_domains_and_mixtrals_do_not(shared_data):
    """Figure 22: on arXiv and GitHub some experts of OLMoE get far more than 12.5 %; Mixtral stays near 25 %."""
    largest = {}
    for domain in ("arxiv", "github", "wikipedia", "c4"):
        counts = published(shared_data, "olmoe", "expert_counts", domain, 64)
        shares = routing.domain_specialisation(counts, 8)
        np.testing.assert_allclose(shares.sum(axis=1), 8)
        assert counts.sum(axis=1).max() == counts.sum(axis=1).min()  # every layer routes every token
        largest[domain] = shares.max()
    assert largest["arxiv"] > 0.5 and largest["github"] > 0.5
    assert largest["c4"] < largest["arxiv"]
    mixtral = [
        routing.domain_specialisation(published(shared_data, "mistral", "expert_counts", domain, 8), 2).max()
        for domain in ("arxiv", "github", "wikipedia", "c4")
    ]
    assert max(mixtral) < 0.45


def test_published_first_choices_agree_with_their_flows(shared_data):
    """The pairs of layers 0 and 7 add up to the first choices of either."""
    path = shared_data / "routing" / "routing" / "olmoe" / "expert_counts_crosslayer_top1" / "github.json.gz"
    pairs = np.zeros((64, 64), np.int64)
    for key, count in json.loads(gzip.decompress(path.read_bytes()))[0].items():
        pairs[tuple(map(int, key.split("|")))] = count
    first = published(shared_data, "olmoe", "expert_counts_top1", "github", 64)
    np.testing.assert_array_equal(pairs.sum(axis=1), first[0])
    np.testing.assert_array_equal(pairs.sum(axis=0), first[1])
    flows = routing.cross_layer_flow(pairs)
    assert flows and all(flow.share > 1.5 / 64**2 for flow in flows)
    np.testing.assert_allclose(routing.domain_specialisation(first, 1).sum(axis=1), 1)


def test_published_counts_are_drawn_by_the_command(shared_data, tmp_path, capsys):
    """Figures 22 and 35: shares of every domain by expert, and the flow of first choices between layers 0, 7 and 15."""
    folder = shared_data / "routing" / "routing" / "olmoe"
    assert main.main(["eval", "--routing", str(folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "routing-olmoe" / "routing.json").read_text())
    assert (result["experts"], result["active"], result["layers"]) == (64, 8, 3)
    assert set(result["domains"]) == {"arxiv", "book", "c4", "github", "tulu", "wikipedia"}
    arxiv = result["domains"]["arxiv"]
    counts = published(shared_data, "olmoe", "expert_counts", "arxiv", 64)
    np.testing.assert_allclose(arxiv["shares"]["8"], routing.domain_specialisation(counts, 8))
    assert arxiv["tokens"] == 208_896 and 0.97 < arxiv["shares"]["8"][0][0] < 0.98  # expert 0 of layer 0
    assert "arxiv, 208,896 tokens: the most used expert gets layer 1 97.7%" in said
    page = (tmp_path / "routing-olmoe" / "routing.html").read_text()
    assert page.count("<svg") == 3 * 2 + 5  # a heat map and a chart for each layer; flows of all domains but Tulu
    flows = arxiv["flows"]["1-2"]
    assert flows[0][2] == max(flow[2] for flow in flows) and f"{int(flows[0][0])} to {int(flows[0][1])}: " in page


def counts_folder(folder, **files):
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("counts", "first", "options", "line"),
    [
        ('[{"0": 4, "1": 2}]', None, [], "give --active"),
        ('[{"0": 4, "1": 2}]', '[{"0": 2, "1": 1}]', ["--active", "3"], "not those of 3 active experts"),
        ('[{"0": 4, "1": 2}]', '[{"0": 4, "2": 2}]', [], "'2' is none of 2 experts"),
        ('[{"0": 4, "1": 2}]', None, ["--active", "1", "--steps", "all"], "has counts, not checkpoints"),
        ("[{}]", None, ["--active", "1"], "it has a layer without tokens"),
        ('[{"0": 4, "x": 2}]', None, ["--active", "1"], "'x': 2 is no count of an expert"),
        ('[{"0": "4"}]', None, ["--active", "1"], "should be a whole number"),
    ],
)
def test_bad_counts_are_one_line(counts, first, options, line, tmp_path, capsys):
    folder = counts_folder(tmp_path / "counts", **{"expert_counts/web": counts})
    if first:
        counts_folder(folder, **{"expert_counts_top1/web": first})
    assert main.main(["eval", "--routing", str(folder), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and line in said[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small mixture with three checkpoints, on the way from one set of parameters to another, and two texts."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = sentencepiece(folder / "tokenizer")
    config = DecoderConfig(
        "olmoe", layers=2, width=16, heads=2, ffn=8, vocab=420, context=32, experts=Experts(8, 2), **ARCHITECTURE
    )
    meta = {
        "model": dataclasses.asdict(config),
        "tokenizer": tokenizer,
        "tokenizer_hash": load_tokenizer(tokenizer).hash,
    }
    first, last = (jax.jit(models.build(config).init)(jax.random.key(seed)) for seed in (0, 1))
    with Checkpointer(folder / "moe" / "checkpoints", Retention(latest=3), asynchronous=False) as checkpointer:
        for step, share in ((1, 0.0), (50, 0.7), (100, 1.0)):
            mixed = jax.tree.map(lambda a, b, s=share: (1 - s) * a + s * b, first, last)
            checkpointer.save(step, {"params": mixed}, meta)
    write_jsonl(folder / "empty.jsonl", [])
    for name, turn in (("a", 1), ("b", -1)):
        write_jsonl(folder / f"{name}.jsonl", [{"text": text[::turn]} for text in corpus(60)])
    return folder


def test_a_run_is_analysed_step_by_step(run, tmp_path):
    from easylm_jax.evaluate import routing_page, routing_run

    sources = {name: Source(str(run / f"{name}.jsonl")) for name in "ab"}
    result = routing_run.analyse(str(run / "moe"), "all", sources, 300, tmp_path, tmp_path / "cache")
    assert [step["step"] for step in result["steps"]] == [1, 50, 100]
    ends = [step["saturation"]["2"] for step in result["steps"]]
    assert ends[2] == [1.0, 1.0] and all(a < b < 1 for a, b in zip(ends[0], ends[1], strict=True))
    assert all(np.log(8) * 0.9 < entropy <= np.log(8) for entropy in result["steps"][0]["router_entropy"])
    for domain in result["domains"].values():
        np.testing.assert_allclose(np.sum(domain["shares"]["2"], axis=1), 2)
        assert domain["tokens"] >= 300 - 32
    assert json.loads((tmp_path / "routing.json").read_text())["steps"] == result["steps"]
    text, page = routing_page.text(result), (tmp_path / "routing.html").read_text()
    assert "100.0%" in text and page.count("<svg") == 2 + 1 + 2 + 2 * 2 + 2
    chosen = reference_choice(run)
    counts = routing.expert_counts(chosen, 8)
    np.testing.assert_allclose(result["steps"][-1]["load_max"], routing.load(counts).max(axis=1), rtol=1e-6)


def reference_choice(run):
    """The choices of the last step on the first text, by the reports of the layers in one pass over all rows."""
    from easylm_jax.evaluate import routing_run

    folder = routing_run.checkpoints_of(str(run / "moe"), "100")[0][1]
    cache = routing_run.text_cache(folder, Source(str(run / "a.jsonl")), 300, run / "cache")
    batch = cache.read(np.arange(-(-300 // 32)))
    model = RoutingDecoder(load.model_of(str(folder)))
    place = {name: batch[name] for name in ("positions", "segment_ids")}
    chosen = model(restore_params(folder), batch["tokens"], **place).aux["chosen"]
    return np.asarray(chosen)[:, batch["loss_weights"] > 0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--steps", "7"], "has no checkpoint of step '7'; it has 1, 50, 100"),
        (["--steps", "all", "--texts", "nameless"], "'nameless' must read NAME=FILE"),
        (["--texts", "a=a.jsonl", "--texts", "a=b.jsonl"], "names 'a' twice"),
        (["--texts", "a=gone.jsonl"], "no file at gone.jsonl"),
        (["--active", "2"], "--active is for a folder of counts"),
        (["--texts", "a=a.jsonl", "--texts", "nothing=empty.jsonl"], "source empty.jsonl gave nothing to train on"),
    ],
)
def test_bad_options_are_one_line(options, line, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(run)
    command = ["eval", "--routing", "moe", "--tokens", "100", "--out", str(tmp_path), *options]
    if "--texts" not in options:
        command += ["--texts", "a=a.jsonl"]
    assert main.main(command) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and line in said[0]
