"""The peer `hf`: `generate` of `transformers`' OLMo 2, as a worker of benchmarks/decode.py.

Runs in `.peers/hf`, on the parameters that this project exported; SDPA attention, float32, plain sampling. A second
argument "static" asks for its static cache instead of the one that grows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import torch  # noqa: E402 - after standard output is redirected
import transformers  # noqa: E402


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    cache = {"cache_implementation": sys.argv[2]} if len(sys.argv) > 2 else {}
    model = transformers.Olmo2ForCausalLM.from_pretrained(
        spec["weights"], dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    prompts = torch.tensor(spec["prompts"])
    everything = torch.ones_like(prompts)
    torch.manual_seed(0)

    def generate() -> float:
        with torch.inference_mode():
            out = model.generate(
                prompts, attention_mask=everything, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=spec["new"], eos_token_id=None, pad_token_id=0, **cache,
            )  # fmt: skip
        assert out.shape[1] == prompts.shape[1] + spec["new"]
        return float(out[0, -1])

    began = time.perf_counter()
    generate()
    about = {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "first_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(generate, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
