"""Small files, vocabularies and specifications that the tests of the data layer share."""

import json
from pathlib import Path

from easylm_jax.data import DataSpec, Source, build_cache, train_sentencepiece

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "small",
    "cats",
    "watch",
    "from",
    "12",
    "warm",
    "roofs",
    "near",
    "the",
    "river",
]  # noqa: SIM905
MARKERS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def sentence(number: int, words: int) -> str:
    """Made-up text that differs with `number`."""
    return " ".join(WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(words)) + f" {number}."


def corpus(count: int = 60) -> list[str]:
    return [sentence(i, 3 + (i * 13) % 40) for i in range(count)]


def conversations(count: int = 40) -> list[list[dict[str, str]]]:
    """Conversations of 1 to 3 exchanges, every third with a system turn."""
    made = []
    for i in range(count):
        turns = [{"role": "system", "content": sentence(i, 4)}] if i % 3 == 0 else []
        for j in range(1 + i % 3):
            turns.append({"role": "user", "content": sentence(i + j, 3 + i % 7)})
            turns.append({"role": "assistant", "content": sentence(i - j + 100, 2 + i % 11)})
        made.append(turns)
    return made


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def sentencepiece(folder: Path, **options) -> str:
    """Spec of a small SentencePiece vocabulary; the same for every folder."""
    texts = [*corpus(200), "<|user|>\n<|assistant|>\n<|system|>\n"] * 2
    return f"sp:{train_sentencepiece(texts, options.pop('vocab', 420), folder, **options)}"


def hf_tokenizer(folder: Path, *, metaspace: str | None = None) -> str:
    """Spec of a small `tokenizer.json` folder: byte-level BPE as in OLMo and Qwen, or Metaspace as in Llama 2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = ["<|endoftext|>", "<|pad|>", *MARKERS]
    if metaspace:
        model = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace)
        model.decoder = decoders.Metaspace(prepend_scheme=metaspace)
        specials = ["<unk>", *specials]
        alphabet: list[str] = ["\n", *"<|>"]
    else:
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(corpus(200), trainer)
    model.add_tokens([AddedToken("<tool_call>", special=False)])
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    names = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return f"hf:{folder}"


def text_spec(folder: Path, tokenizer: str, **changes) -> DataSpec:
    """A text spec over the corpus, written below `folder`."""
    path = write_jsonl(folder / "texts.jsonl", [{"text": text} for text in corpus()])
    return DataSpec(**{"sources": (Source(str(path)),), "tokenizer": tokenizer, "sequence_length": 32, **changes})


def chat_spec(folder: Path, tokenizer: str, **changes) -> DataSpec:
    """A chat spec over the conversations, written below `folder`."""
    path = write_jsonl(folder / "chats.jsonl", [{"messages": turns} for turns in conversations()])
    defaults = {"kind": "chat", "template": "tulu", "packing": "best_fit", "sequence_length": 256}
    return DataSpec(**{"sources": (Source(str(path)),), "tokenizer": tokenizer, **defaults, **changes})


def cache_of(spec: DataSpec, folder: Path):
    return build_cache(spec, folder / "cache")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def pairs(count=40):
    """Pairs of 1 to 3 exchanges that share all but the last answer; every second one has a margin."""
    made = []
    for i, turns in enumerate(conversations(count)):
        record = {"chosen": turns, "rejected": [*turns[:-1], assistant(sentence(i + 500, 1 + i % 9))]}
        made.append({**record, "margin": i / 4} if i % 2 else record)
    return made


def pair_spec(folder, tokenizer, records=None, **changes):
    path = write_jsonl(folder / "pairs.jsonl", pairs() if records is None else records)
    defaults = {"kind": "preference", "template": "tulu", "sequence_length": 512, "train_on": "last_assistant"}
    source = Source(str(path), **changes.pop("source", {}))
    return DataSpec(**{"sources": (source,), "tokenizer": tokenizer, **defaults, **changes})


def pair_cache(folder, tokenizer, records=None, **changes):
    return build_cache(pair_spec(folder, tokenizer, records, **changes), folder / "cache")
