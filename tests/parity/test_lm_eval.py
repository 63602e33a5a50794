"""lm-evaluation-harness gives this project's model the scores that it gives the same weights in its `hf` backend.

Three tasks from local files: options ranked by log-probability, a text generated up to a stop string, and perplexity of
texts that are longer than the context.
"""

import json
import subprocess
import sys

import jax
import pytest

import models
from easylm_jax.data import load_tokenizer, train_sentencepiece
from easylm_jax.data.tokenizer_export import write_tokenizer
from models.config import DecoderConfig

pytest.importorskip("torch")
pytest.importorskip("lm_eval", reason="needs the extra evals: pip install lm-eval[hf]")

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("default")]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

TASKS = {
    "ranked": """
task: ranked
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/ranked.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}} Answer:"
doc_to_target: label
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "generated": """
task: generated
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/ranked.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[label]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "texts": """
task: texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("lm-eval")
    texts = [" ".join(WORDS[(i * k) % 10] for k in range(1, 9)) for i in range(1, 60)]
    train_sentencepiece(iter([f"Question: {text} Answer: {text}" for text in texts]), 300, home)
    tokenizer = load_tokenizer(f"sp:{home / 'tokenizer.model'}")
    config = DecoderConfig(  # an id without a token is never sampled here, and is there
        "olmo2", layers=2, width=48, heads=4, ffn=96, vocab=tokenizer.vocab_size, context=64, qk_norm=True, bos_id=1,
        eos_id=2, pad_id=0,
    )  # fmt: skip
    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, params)  # far from uniform
    models.save_hf(model, params, home / "model")
    write_tokenizer(tokenizer, home / "model", template=None, add_bos=False, context=64)
    rows = [
        {"question": texts[i], "options": [" one two", " three", " four five six"], "label": i % 3} for i in range(20)
    ]  # fmt: skip
    (home / "ranked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = [{"text": " ".join(texts[i : i + 6])} for i in range(5)]
    (home / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (home / "tasks").mkdir()
    for name, text in TASKS.items():
        (home / "tasks" / f"{name}.yaml").write_text(text.replace("FOLDER", str(home)))
    return home


def scores(folder, *model):
    """What lm-eval's command line prints for a model, by task and metric; and the samples."""
    out = folder / model[1]
    command = [
        sys.executable, "-m", "easylm_jax.evaluate.lm_eval_model", "run", "--model", model[1], "--model_args", model[3],
        "--tasks", ",".join(TASKS), "--include_path", str(folder / "tasks"), "--output_path", str(out),
        "--log_samples", "--device", "cpu", "--batch_size", "4",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    file = next(out.rglob("results_*.json"))
    found = json.loads(file.read_text())["results"]
    samples = {
        name: [json.loads(line) for line in next(out.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in TASKS
    }  # fmt: skip
    return found, samples


def test_three_tasks_have_the_scores_of_the_hf_backend(folder):
    ours, our_samples = scores(folder, "--model", "easylm", "--model_args", f"path=hf:{folder / 'model'}")
    theirs, their_samples = scores(
        folder, "--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=float32,max_length=64"
    )  # fmt: skip
    for task, metrics in theirs.items():
        for name, value in metrics.items():
            if isinstance(value, float) and not name.endswith("stderr,none"):
                assert ours[task][name] == pytest.approx(value, rel=1e-4), (task, name)
                print(f"{task} {name}: {ours[task][name]:.6f} and {value:.6f}")
    generated = [[sample["resps"] for sample in samples["generated"]] for samples in (our_samples, their_samples)]
    assert generated[0] == generated[1]
