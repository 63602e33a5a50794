"""The peer `hf`: a model of `transformers` trained by plain torch, as a worker of benchmarks/train.py.

    hf_train.py SPEC [EXPERTS]      EXPERTS: how a mixture computes its experts (`experts_implementation`)

Runs in `.peers/hf`. SDPA attention, fused AdamW, gradients clipped by torch's own function, float32 throughout. The
parameters come from a folder that this project exported, so both sides start from the same numbers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import burst, serve, take_stdout, timed

CHANNEL = take_stdout()

import torch  # noqa: E402 - after standard output is redirected
import transformers  # noqa: E402


def train_step(spec: dict[str, Any], experts: str | None):
    """A function that performs one update and returns its loss, for a mixture with that of its routers."""
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    if experts is not None:
        settings |= {"experts_implementation": experts, "output_router_logits": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["weights"], **settings)
    model.train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in model.named_parameters() if "embed_tokens" not in n]},
            {"params": [p for n, p in model.named_parameters() if "embed_tokens" in n], "weight_decay": 0.0},
        ],
        lr=spec["lr"], betas=(spec["b1"], spec["b2"]), eps=spec["eps"], weight_decay=spec["weight_decay"], fused=True,
    )  # fmt: skip
    rows = torch.tensor(spec["tokens"], dtype=torch.long)
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def step() -> float:
        # Targets are already shifted: all positions are trained, as on our side.
        loss = model(input_ids=tokens, labels=targets, shift_labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def products(shapes: list[list[int]], times: int) -> dict[str, Any]:
    """Seconds of y = x Wᵀ, dx = dy W and dW = dyᵀ x for every [tokens, inputs, outputs], as a Linear runs them."""
    found = []
    for m, k, n in shapes:
        x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
        runs = (lambda x=x, w=w: x @ w.T, lambda dy=dy, w=w: dy @ w, lambda dy=dy, x=x: dy.T @ x)
        found.append([timed(run, times) for run in runs])
    return {"seconds": found}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    step = train_step(spec, sys.argv[2] if len(sys.argv) > 2 else None)
    first_loss = step()
    about = {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "first_loss": first_loss, "ready_seconds": time.perf_counter() - began,
    }  # fmt: skip
    serve(about, {"burst": lambda steps: burst(step, steps), "products": products}, CHANNEL)


if __name__ == "__main__":
    main()
