"""The peer `lm_eval`: the `hf` backend of lm-evaluation-harness, as a worker of benchmarks/evaluate.py.

Runs in `.peers/lm_eval`, on the weights and the tokenizer that this project exported. The second argument is the batch
size. Requests are ordered and batched by lm-eval itself.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout

CHANNEL = take_stdout()

import lm_eval  # noqa: E402 - after standard output is redirected
import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    model = HFLM(pretrained=spec["weights"], dtype="float32", device="cpu", batch_size=int(sys.argv[2]))
    requests = [
        Instance("loglikelihood", {}, tuple(question), number) for number, question in enumerate(spec["questions"])
    ]  # fmt: skip

    def score() -> float:
        return sum(logprob for logprob, _ in model.loglikelihood(requests, disable_tqdm=True))

    began = time.perf_counter()
    score()
    about = {
        "lm_eval": lm_eval.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "threads": torch.get_num_threads(), "first_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(score, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
