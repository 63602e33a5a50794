"""Greedy generation gives the tokens that `transformers` gives, prompts of different lengths in one batch."""

import numpy as np
import pytest
from tiny_models import CASES, VOCAB, random_params

import models
from easylm_jax.decode import generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
NEW = 40  # longer than every sliding window


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)


@pytest.mark.parametrize("name", CASES)
def test_greedy_is_that_of_transformers_token_by_token(name, tmp_path):
    model = models.build(CASES[name])
    params = random_params(model)
    if model.config.tie_embeddings:  # or each token's own embedding is its likeliest successor
        params["embed"]["table"] *= np.float32(0.2)
    models.save_hf(model, params, tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    ).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, n).tolist() for n in (1, 6, 13, 24)]
    out = generate(model, params, prompts, max_new_tokens=NEW, temperature=0, slots=4)
    for prompt, tokens, logprobs in zip(prompts, out.tokens, out.logprobs, strict=True):
        with torch.no_grad():
            want = reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                max_new_tokens=NEW, eos_token_id=None, pad_token_id=0, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        assert tokens.tolist() == want.sequences[0, len(prompt) :].tolist()
        theirs = torch.log_softmax(torch.cat(want.logits), dim=-1).numpy()[np.arange(NEW), tokens]
        assert np.abs(logprobs - theirs).max() <= 1e-4
    assert len(set(out.tokens.ravel().tolist())) > 5, "a model that repeats itself shows little"
