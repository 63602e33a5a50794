"""Runs the worked examples of docs/contributing.md at a tiny size, each on its own copy of the project.

`python contributing_examples.py NAME=FOLDER …` runs the function of each name with the copy in FOLDER in the place of
the project. The libraries are imported once and a process is forked for each example, so that none sees another's
files. The last line of each on stdout is a JSON object: the name, what it found, or the traceback.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path


def verifier():
    """Scores through the registry, with an option, and in an expression in the pool of processes."""
    from easylm_jax import rewards
    from easylm_jax.rewards.verify import ExpressionScorer

    record = {"keywords": ["ebb", "Flow"]}
    assert rewards.verifier("keywords")("ebb and flow", record) == 1
    assert rewards.verifier("keywords(ignore_case=False)")("ebb and flow", record) == 0.5
    scored = ExpressionScorer("2 * keywords")(["ebb and flow", "an ebb", "calm"], [record] * 3)
    assert scored.scores.tolist() == [2, 1, 0]
    return scored.scores.tolist()


def family():
    """Builds, initialises, runs, and comes back from a folder of Hugging Face as it went."""
    import models

    preset = models.preset("seed-oss-36b")
    assert models.build(preset).abstract_params()["layers"]["mlp"]["up"]["kernel"].shape == (64, 5120, 27648)
    return _round_trip(
        preset.replace(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, vocab_used=64)
    )


def family_with_new_mathematics():
    """The auxiliary loss and its gradients: with micro-batches, packed, and on eight devices, to 1e-6."""
    import jax
    import numpy as np

    import models
    from easylm_jax.objectives import language_modelling
    from easylm_jax.runtime import sharding
    from easylm_jax.runtime.mesh import make_mesh
    from easylm_jax.train.step import gradients
    from models.gated import WEIGHT

    small = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "ffn": 48, "vocab": 64}
    config = models.preset("gated-30m").replace(**small, vocab_used=64)
    _round_trip(config)
    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    params["layers"]["gate"]["kernel"] *= 40  # gates that differ from token to token
    documents = [np.random.default_rng(i).integers(1, 64, 3 + 2 * (i % 5)) for i in range(16)]

    def run(batch, accumulate=1, model=model, params=params):
        objective = language_modelling(model)
        step = jax.jit(lambda params, batch: gradients(objective, params, batch, jax.random.key(0), {}, accumulate))
        return jax.device_get(step(params, batch))

    def same(a, b):
        (grads, loss, metrics), (others, other, more) = a, b
        assert abs(loss - other) < 1e-6 and abs(metrics["opening"] - more["opening"]) < 1e-6
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), grads, others)

    alone = rows_of(documents, [[i] for i in range(16)], 12)
    whole = run(alone)
    grads, loss, metrics = whole
    assert abs(loss - metrics["cross_entropy"] - WEIGHT * metrics["opening"]) < 1e-6
    assert 0.05 < metrics["opening"] < 0.95 and np.abs(grads["layers"]["gate"]["kernel"]).max() > 1e-4
    assert metrics["tokens"] == sum(len(d) - 1 for d in documents)
    same(whole, run(alone, accumulate=4))
    packed = rows_of(documents, [[i, i + 4, i + 8, i + 12] for i in range(4)], 48)
    same(whole, run(packed))
    mesh = make_mesh("fsdp=4,tp=2")
    split = models.build(config, placement=sharding.placement_of(mesh))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.parameter_shardings(params, split.sharding_rules, mesh))
        batch = jax.device_put(alone, sharding.batch_sharding(mesh))
        same(whole, run(batch, 1, split, placed))
    return {"loss": float(loss), "opening": float(metrics["opening"])}


def objective():
    """Is chosen by a stage's `loss`, with its options, and training lowers it."""
    import dataclasses

    import jax

    import models
    from easylm_jax.config import SFT, DataSpec, OptimizerConfig, Source
    from easylm_jax.train.optimizer import make_optimizer
    from easylm_jax.train.step import make_train_step, new_state
    from models.errors import UserError

    data = DataSpec((Source("chats.jsonl"),), "sp:none", 8, kind="chat", template="tulu")
    stage = SFT("sft", model="olmo2-14m", data=data, batch=4, steps=8, optimizer=OptimizerConfig("1e-2"), loss="focal")
    model = models.build(_tiny("olmo2", qk_norm=True))
    batch = rows_of([range(1, 9), range(3, 11), range(20, 28), range(30, 38)], [[0], [1], [2], [3]], 8)
    params = jax.jit(model.init)(jax.random.key(0))
    optimizer = make_optimizer(stage.optimizer, stage.steps)

    def loss_of(text):
        chosen = dataclasses.replace(stage, loss=text).objective(model, training=True)
        result = jax.jit(lambda params: chosen(params, batch, jax.random.key(0), {}))(params)
        return float(result.total / result.denominator)

    plain = loss_of("language_modelling")
    assert abs(loss_of("focal(gamma=0.0)") - plain) < 1e-6
    for text, told in (("fokal", "no objective is called 'fokal'"), ("focal(beta=1)", "unexpected keyword")):
        try:
            loss_of(text)
        except UserError as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"{text} was accepted")
    step = make_train_step(stage.objective(model, training=True), optimizer)
    state = new_state(params, optimizer.init(params), seed=0)
    losses = []
    for _ in range(stage.steps):
        state, metrics = step(state, batch, {})
        losses.append(float(metrics["loss"]))
    assert 0 < losses[0] < 0.999 * plain and losses[-1] < 0.7 * losses[0], (plain, losses)
    return {"first": losses[0], "last": losses[-1]}


def benchmark():
    """`easylm eval` asks a tiny model the problems of a local file."""
    import jax

    import models
    from easylm_jax.cli.main import main
    from easylm_jax.data import train_sentencepiece

    texts = [f"<|user|>\none two {i}\n<|assistant|>\nit is {i}" for i in range(120)]
    train_sentencepiece(iter(texts), 290, Path("."))
    model = models.build(_tiny("olmo2", qk_norm=True, vocab=320))
    models.save_hf(model, jax.jit(model.init)(jax.random.key(0)), "tiny")
    _lines("problems.jsonl", [{"question": f"one two {i}", "answer": str(i)} for i in range(4)])
    options = ("--task", "gsm_plus=problems.jsonl", "--max-new-tokens", "3", "--longest-prompt", "40")
    vocabulary = ("--tokenizer", "sp:tokenizer.model", "--template", "tulu")
    assert main(["eval", "hf:tiny", *options, *vocabulary, "--json", "results.json"]) == 0
    (task,) = json.loads(Path("results.json").read_text())["tasks"]
    assert (task["task"], task["title"], task["n"]) == ("gsm_plus", "GSM-Plus", 4)
    return task["score"]


def stage_kind():
    """Runs from a recipe and leaves done.json; runs again as done."""
    from easylm_jax import experiment

    _lines("texts.jsonl", [{"text": "ebb and flow"}, {"text": "ebb and tide"}])
    Path("recipe.py").write_text(
        "from easylm_jax.config import Recipe, Source\n"
        "from easylm_jax.data.count_words import CountWords\n"
        "recipe = Recipe('words', (CountWords('count', sources=(Source('texts.jsonl'),), top=2),))\n"
    )
    assert experiment.run("recipe.py") == 0
    done = json.loads(Path("runs/words/count/done.json").read_text())
    assert done["kind"] == "CountWords" and done["metrics"] == {"words": 6}
    words = [json.loads(line) for line in Path("runs/words/count/words.jsonl").read_text().splitlines()]
    assert words == [{"word": "ebb", "count": 2}, {"word": "and", "count": 2}]
    before = Path("runs/words/count/done.json").stat().st_mtime_ns
    assert experiment.run("recipe.py") == 0 and Path("runs/words/count/done.json").stat().st_mtime_ns == before
    return done["metrics"]


def recipe():
    """Loads, lists its stage, and is printed as its line of docs/recipes.md."""
    from easylm_jax.cli.main import main
    from easylm_jax.config.load import load_recipe
    from recipes.__main__ import FOLDER, recipe_files, stages, summary

    path = FOLDER / "toy" / "corpus_30m.py"
    loaded = load_recipe(str(path))
    assert loaded.stage("stage1").model == "olmo2-30m" and path in recipe_files()
    assert main(["run", str(path), "--list"]) == 0
    line = f"| `recipes/toy/corpus_30m.py` | {summary(path)} | {stages(loaded)} |"
    lines = (FOLDER.parent / "docs" / "recipes.md").read_text().splitlines()
    at = lines.index(line)
    assert lines[at - 1] < line < lines[at + 1]  # the table is sorted
    return line


def optimiser():
    """Steps: each update is the learning rate times a sign, and a quadratic falls."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from easylm_jax.config import OptimizerConfig
    from easylm_jax.train.optimizer import make_optimizer

    optimizer = make_optimizer(OptimizerConfig("1e-2", name="signum", b1=0.5, weight_decay=0.0), 10)
    params = {"layers": {"kernel": jnp.linspace(-1, 1, 8).reshape(1, 2, 4)}}
    state, values = optimizer.init(params), []
    for step in range(4):
        value, grads = jax.value_and_grad(lambda p: (p["layers"]["kernel"] ** 2).sum())(params)
        new, state, _ = optimizer.update(grads, value, state, params, step)
        moved = np.abs(new["layers"]["kernel"] - params["layers"]["kernel"])
        np.testing.assert_allclose(moved, 1e-2, atol=1e-6)
        params, values = new, [*values, float(value)]
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    return values


def _tiny(family, **more):
    from models.config import DecoderConfig

    shape = {"layers": 2, "width": 32, "heads": 4, "ffn": 48, "vocab": 64, "context": 64}
    return DecoderConfig(family, **{**shape, **more})


def _round_trip(config):
    """A fresh model's logits before it is saved as a Hugging Face folder and after it is loaded again."""
    import jax
    import numpy as np

    import models

    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(1))
    tokens = np.arange(12).reshape(2, 6)
    models.save_hf(model, params, "folder")
    loaded, again = models.load_hf("folder")
    assert loaded.config == config and type(loaded) is type(model), loaded.config
    logits = jax.jit(lambda params: models.logits(model, params, tokens))
    before, after = np.asarray(logits(params)), np.asarray(logits(again))
    assert before.shape == (2, 6, config.vocab) and np.isfinite(before).all() and before.std() > 0
    np.testing.assert_array_equal(before, after)
    return before.shape


def rows_of(documents, rows, length):
    """Documents packed into rows: `rows` lists the documents of each."""
    import numpy as np

    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: np.zeros((len(rows), length), np.int32) for name in names}
    batch["loss_weights"] = np.zeros((len(rows), length), np.float32)
    for row, members in enumerate(rows):
        at = 0
        for number, member in enumerate(members, start=1):
            document = np.asarray(documents[member])
            here = (row, slice(at, at + len(document) - 1))
            batch["tokens"][here], batch["targets"][here] = document[:-1], document[1:]
            batch["segment_ids"][here], batch["loss_weights"][here] = number, 1
            batch["positions"][here] = np.arange(len(document) - 1)
            at += len(document) - 1
    return batch


def _lines(path, records):
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


def _child(name, folder):
    """Runs one example below its copy; returns the exit status."""
    try:
        sys.path.insert(0, str(folder))
        work = folder / "work"
        work.mkdir()
        os.chdir(work)
        import easylm_jax

        assert Path(easylm_jax.__file__).is_relative_to(folder), easylm_jax.__file__
        found = {"example": name, "found": globals()[name](), "cpu_seconds": time.process_time()}
    except BaseException:
        found = {"example": name, "error": traceback.format_exc()}
    print(f"\n{json.dumps(found)}", flush=True)
    return int("error" in found)


def main(arguments):
    for module in ("jax", "flax.linen", "numpy", "orbax.checkpoint", "sentencepiece", "safetensors.numpy"):
        importlib.import_module(module)
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # tiny programs: most of their time is compilation
    status = 0
    for argument in arguments:
        name, _, folder = argument.partition("=")
        pid = os.fork()  # nothing has touched a device yet
        if pid == 0:
            code = _child(name, Path(folder))
            sys.stderr.flush()
            os._exit(code)
        status |= os.waitpid(pid, 0)[1]
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
