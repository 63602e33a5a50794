"""An encoder classifier of `transformers` (RoBERTa and its like) as a judge: it says yes or no about a text.

    easylm eval runs/quickstart/sft --task toxigen=prompts.jsonl --judge hf-classifier:tomh/toxigen_roberta

It reads what `Benchmark.classified` gives, not a conversation. The extra `classifiers` installs what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.errors import UserError

PREFIX = "hf-classifier:"
BATCH = 16  # texts in one pass
_OFFSET = 2  # RoBERTa's first two positions are no token's


class Classifier:
    """A classifier by name: `hf-classifier:<folder or hub name>`, with `#LABEL` for the label that means yes.

    Of two labels the second one (id 1) means yes unless another is named; where there is one label alone, a score above
    0 does. Texts beyond the classifier's context are cut at their end.

    Raises:
        UserError: torch or transformers is not installed, there is no such classifier, or its labels leave open which
            one means yes.
    """

    def __init__(self, name: str):
        self.identity = name
        path, _, label = name.removeprefix(PREFIX).partition("#")
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError:
            raise UserError(
                f"judge {name} needs torch and transformers; pip install 'easylm_jax[classifiers]'"
            ) from None
        self._torch = torch
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        except (OSError, ValueError) as error:
            raise UserError(f"judge {name}: there is no such classifier ({str(error).splitlines()[0]})") from None
        config = self.model.config
        self.yes = _yes_label(name, label, config.id2label)
        reserved = _OFFSET if "roberta" in config.model_type else 0
        self.longest = min(self.tokenizer.model_max_length, config.max_position_embeddings - reserved)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """ "yes" or "no" about each text."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # little padding
        replies = [""] * len(texts)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            logits = self.logits([texts[number] for number in part])
            one = logits.shape[1] == 1
            verdicts = logits[:, 0] > 0 if one else logits.argmax(axis=1) == self.yes
            for number, verdict in zip(part, verdicts.tolist(), strict=True):
                replies[number] = "yes" if verdict else "no"
        return replies

    def logits(self, texts: Sequence[str]) -> Any:
        """float32 [texts, labels]."""
        rows = self.tokenizer(
            list(texts), truncation=True, max_length=self.longest, padding=True, return_tensors="pt"
        )  # fmt: skip
        with self._torch.no_grad():
            return self.model(**rows).logits.float().numpy()


def _yes_label(name: str, label: str, labels: dict[int, str]) -> int:
    """The id of the label that means yes."""
    known = ", ".join(labels.values())
    if not label:
        if len(labels) > 2:
            raise UserError(f"judge {name}: it has {len(labels)} labels; say which one means yes behind a #: {known}")
        return len(labels) - 1
    found = [number for number, one in labels.items() if one == label]
    if not found:
        raise UserError(f"judge {name}: it has no label {label!r}; it has {known}")
    return int(found[0])
