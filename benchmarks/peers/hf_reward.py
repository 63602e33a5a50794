"""The peer `hf`: a padded loop over `AutoModelForSequenceClassification`, as a worker of benchmarks/preferences.py.

Runs in `.peers/hf`, on the weights that this project exported. The second argument is the batch size.
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

WARM_UP = 64  # sequences


def main() -> None:
    spec, size = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(spec["weights"], dtype=torch.float32).eval()
    rows = [[*prompt, *answer] for prompt, *answers in spec["pairs"] for answer in answers]

    def score(count: int = len(rows)) -> float:
        scores = []
        with torch.inference_mode():
            for start in range(0, count, size):
                batch = rows[start : start + size]
                longest = max(map(len, batch))
                ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch])
                mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
                scores += model(ids, attention_mask=mask).logits[:, 0].double().tolist()
        return sum(scores) / len(scores)

    began = time.perf_counter()
    score(min(WARM_UP, len(rows)))  # nothing is compiled
    about = {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "first_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(score, steps)}, CHANNEL)


if __name__ == "__main__":
    main()
