"""Real text: C4, Dolma and GSM8K from the folder of shared data, through a vocabulary trained on them."""

import numpy as np
import pytest

from easylm_jax.data import DataSpec, Loader, Source, build_cache, load_tokenizer, train_sentencepiece
from easylm_jax.data.filters import is_repetitive
from easylm_jax.data.sources import read_records
from easylm_jax.data.texts import source_texts


@pytest.fixture(scope="module")
def sources(shared_data):
    return {
        "c4": Source(str(shared_data / "c4_sample" / "c4-train-*.parquet")),
        "dolma": Source(str(shared_data / "dolma_sample")),
        "gsm8k": Source(
            str(shared_data / "gsm8k" / "train.jsonl"), limit=600, fields={"user": "question", "assistant": "answer"}
        ),
    }


@pytest.fixture(scope="module")
def tokenizer(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return f"sp:{train_sentencepiece(source_texts(sources.values()), 2048, folder)}"


def test_web_text_becomes_full_windows_and_reads_back(sources, tokenizer, tmp_path):
    spec = DataSpec((sources["c4"], sources["dolma"]), tokenizer, 256)
    cache = build_cache(spec, tmp_path)
    facts, vocabulary = cache.manifest, load_tokenizer(tokenizer)
    assert facts["fill_rate"] > 0.99
    assert [source["records"]["kept"] for source in facts["sources"]] == [200, 20]
    assert 5.0 < facts["unigram_entropy_nats"] < 7.0
    texts = [record["text"] for source in spec.sources for record, _ in read_records(source)]
    batch = cache.read(np.arange(cache.rows))
    stream = batch["tokens"][batch["segment_ids"] > 0]
    ends = np.flatnonzero(stream == vocabulary.eos_id)
    assert len(ends) == len(texts) == 220
    for text, start, end in zip(texts, [0, *(ends + 1)], ends, strict=False):
        assert vocabulary.decode(stream[start:end]) == text
    assert not is_repetitive(stream)


def test_questions_and_answers_train_the_answers_alone(sources, tokenizer, tmp_path):
    spec = DataSpec((sources["gsm8k"],), tokenizer, 512, kind="chat", template="olmo", packing="best_fit")
    cache = build_cache(spec, tmp_path)
    assert cache.manifest["fill_rate"] > 0.95
    vocabulary = load_tokenizer(tokenizer)
    records = [record for record, _ in read_records(sources["gsm8k"])]
    checked = 0
    for row in range(cache.rows):
        batch = {name: array[0] for name, array in cache.read(np.array([row])).items()}
        for number, segment in enumerate(cache.documents(row), 1):
            mine = batch["segment_ids"] == number
            record = records[segment.document]
            trained = vocabulary.decode(batch["targets"][mine & (batch["loss_weights"] > 0)])
            text = f"<s><|user|>\n{record['question']}\n<|assistant|>\n{record['answer']}</s>"
            if segment.length < 512:  # a few are longer and cut
                assert trained == record["answer"] + "</s>"
                assert vocabulary.decode(batch["tokens"][mine]) == text
                checked += 1
    assert checked > 590


def test_a_mixture_of_real_sources_is_drawn_at_its_rates(sources, tokenizer, tmp_path):
    import dataclasses

    mixed = tuple(dataclasses.replace(sources[name], weight=w) for name, w in (("c4", 0.4), ("dolma", 0.6)))
    cache = build_cache(DataSpec(mixed, tokenizer, 128), tmp_path)
    border = cache.manifest["parts"][1]["first_row"]
    loader = Loader(cache, 64, seed=1)
    rows = np.concatenate([loader.rows_at(step) for step in range(64)])
    assert (rows >= border).mean() == pytest.approx(0.6, abs=1e-3)


def test_held_out_parquet_is_another_cache(sources, shared_data, tokenizer, tmp_path):
    held = Source(str(shared_data / "c4_sample" / "c4-validation-*.parquet"))
    caches = [build_cache(DataSpec((source,), tokenizer, 128), tmp_path) for source in (sources["c4"], held)]
    assert caches[0].fingerprint != caches[1].fingerprint and caches[1].rows > 10
