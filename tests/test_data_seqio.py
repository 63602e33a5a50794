"""seqio Tasks and Mixtures: declared over our sources, read back into a cache, mixed at their rates."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from data_kit import conversations, corpus, sentencepiece, write_jsonl

from easylm_jax.data import DataSpec, Loader, Source, build_cache, load_tokenizer
from easylm_jax.data.seqio_read import mixture_rates
from easylm_jax.data.seqio_tasks import declare_mixture, declare_task
from easylm_jax.data.templates import render, tokenize
from models.errors import UserError

# What TensorFlow and seqio themselves warn about on import is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")
seqio = pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("seqio")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return sentencepiece(folder)


@pytest.fixture(scope="module")
def tasks(folder, tokenizer):
    """Three tasks: text in two splits, conversations, and conversations as token ids."""
    texts = [{"text": text} for text in corpus(30)]
    path = str(write_jsonl(folder / "texts.jsonl", texts))
    declare_task("kit_text", {"train": Source(path, skip=10), "validation": Source(path, limit=10)})
    few = str(write_jsonl(folder / "few.jsonl", texts[:5]))
    declare_task("kit_few", Source(few))
    chats = Source(str(write_jsonl(folder / "chats.jsonl", [{"messages": turns} for turns in conversations(12)])))
    declare_task("kit_chat", chats, kind="chat")
    spec = DataSpec((chats,), tokenizer, 256, kind="chat", template="olmo", packing="best_fit")
    declare_task("kit_tokens", chats, kind="chat", encode=spec)


def test_a_declared_task_is_an_ordinary_seqio_task(tasks):
    task = seqio.get_mixture_or_task("kit_text")
    found = [e["text"].decode() for e in task.get_dataset(None, "validation", shuffle=False).as_numpy_iterator()]
    assert found == corpus(30)[:10]
    assert set(task.splits) == {"train", "validation"}


def test_a_declared_task_with_a_template_holds_the_tokens_a_model_sees(tasks, tokenizer):
    dataset = seqio.get_mixture_or_task("kit_tokens").get_dataset(None, "train", shuffle=False)
    encoded = tokenize([render("olmo", turns) for turns in conversations(12)], load_tokenizer(tokenizer))
    count = 0
    for example, (ids, trained) in zip(dataset.as_numpy_iterator(), encoded, strict=True):
        np.testing.assert_array_equal(example["targets"], ids)
        np.testing.assert_array_equal(example["loss_weights"], trained)
        count += 1
    assert count == 12


def test_a_cache_from_a_task_equals_the_cache_from_its_file(tasks, folder, tokenizer):
    direct = DataSpec((Source(str(folder / "texts.jsonl"), skip=10),), tokenizer, 64)
    through = DataSpec((Source("seqio:kit_text:train"),), tokenizer, 64)
    caches = [build_cache(spec, folder / "equal") for spec in (direct, through)]
    rows = np.arange(caches[0].rows)
    for name, array in caches[0].read(rows).items():
        np.testing.assert_array_equal(caches[1].read(rows)[name], array)


def test_conversations_come_through_a_task(tasks, folder, tokenizer):
    spec = DataSpec((Source("seqio:kit_chat"),), tokenizer, 256, kind="chat", template="tulu", packing="best_fit")
    cache = build_cache(spec, folder / "chat")
    assert cache.manifest["sources"][0]["records"]["kept"] == 12


def test_a_foreign_task_of_token_ids_is_decoded_by_its_own_vocabulary(folder, tokenizer):
    """What others register often holds `inputs` and `targets` as ids, with or without the text they came from."""
    import tensorflow as tf

    vocabulary = seqio.SentencePieceVocabulary(tokenizer.removeprefix("sp:"))
    feature = seqio.Feature(vocabulary, add_eos=False)
    pairs = [{"inputs": f"the fox {i}", "targets": f" seven cats {i}"} for i in range(4)]

    def dataset(split, shuffle_files=False, seed=None):
        return tf.data.Dataset.from_generator(
            lambda: iter(pairs), output_signature={k: tf.TensorSpec((), tf.string) for k in ("inputs", "targets")}
        )

    source = seqio.FunctionDataSource(dataset_fn=dataset, splits=("train",))
    for name, copy in (("kit_foreign_ids", False), ("kit_foreign_text", True)):
        seqio.TaskRegistry.add(
            name, source=source, output_features={"inputs": feature, "targets": feature}, metric_fns=[],
            preprocessors=[lambda ds, output_features, c=copy: seqio.preprocessors.tokenize(
                ds, output_features, copy_pretokenized=c)],
        )  # fmt: skip
        spec = DataSpec((Source(f"seqio:{name}"),), tokenizer, 64, kind="chat", template="plain", packing="none")
        cache = build_cache(spec, folder / name)
        ours = load_tokenizer(tokenizer)
        batch = cache.read(np.arange(4))
        texts = [ours.decode(t[s > 0]) for t, s in zip(batch["tokens"], batch["segment_ids"], strict=True)]
        assert texts == [f"<s>the fox {i} seven cats {i}</s>" for i in range(4)]


def test_a_mixture_is_drawn_at_its_rates(tasks, folder, tokenizer):
    declare_mixture("kit_mixture", {"kit_text": 3.0, "kit_few": 1.0})
    cache = build_cache(DataSpec((Source("seqio:kit_mixture"),), tokenizer, 512, packing="none"), folder / "mixture")
    assert [part["rate"] for part in cache.manifest["parts"]] == [0.25, 0.75]  # sorted by name
    assert [part["rows"] for part in cache.manifest["parts"]] == [5, 20]
    rows = np.concatenate([Loader(cache, 32, seed=0).rows_at(step) for step in range(128)])
    assert (rows >= 5).mean() == pytest.approx(0.75, abs=0.001)


def test_rates_are_numbers_of_examples_flattened_by_temperature(tasks):
    declare_mixture("kit_natural", ["kit_text", "kit_few"])
    assert mixture_rates("kit_natural", None) == {"kit_text": 20.0, "kit_few": 5.0}
    declare_mixture("kit_flat", ["kit_text", "kit_few"], temperature=2.0)
    assert mixture_rates("kit_flat", None) == pytest.approx({"kit_text": 20**0.5, "kit_few": 5**0.5})
    assert mixture_rates("kit_text", None) == {}


def test_the_module_that_registers_a_task_is_imported_first(folder, tokenizer, monkeypatch):
    code = f"""
from easylm_jax.data import Source
from easylm_jax.data.seqio_tasks import declare_task
declare_task("kit_from_module", Source({json.dumps(str(write_jsonl(folder / "m.jsonl", [{"text": "the fox"}])))}))
"""
    (folder / "kit_tasks_module.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(UserError, match="no seqio task or mixture is called 'kit_from_module'; name the module"):
        build_cache(DataSpec((Source("seqio:kit_from_module"),), tokenizer, 16), folder / "module")
    spec = DataSpec((Source("seqio:kit_from_module", module="kit_tasks_module"),), tokenizer, 16)
    assert build_cache(spec, folder / "module").rows == 1


def test_what_is_wrong_with_a_task_is_one_line(tasks, folder, tokenizer):
    text = Source("seqio:kit_text:test")
    with pytest.raises(UserError, match="'kit_text' has no split 'test'; it has train, validation"):
        build_cache(DataSpec((text,), tokenizer, 16), folder / "wrong")
    with pytest.raises(UserError, match="module 'no_such_module' of source seqio:x cannot be imported"):
        build_cache(DataSpec((Source("seqio:x", module="no_such_module"),), tokenizer, 16), folder / "wrong")
    with pytest.raises(UserError, match="cannot register the seqio task 'kit_text'"):
        declare_task("kit_text", Source("x.jsonl"))


def test_tfds_sets_are_read_by_name(folder, tokenizer, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    wanted = []

    def load(name, split, shuffle_files):
        wanted.append((name, split, shuffle_files))
        return tf.data.Dataset.from_tensor_slices({"text": corpus(6)})

    monkeypatch.setattr(tfds, "load", load)
    cache = build_cache(DataSpec((Source("tfds:kit/set:train[:50%]"),), tokenizer, 64), folder / "tfds")
    assert wanted == [("kit/set", "train[:50%]", False)]
    assert cache.manifest["sources"][0]["records"]["kept"] == 6


def test_a_tfds_set_that_cannot_be_loaded_is_one_line(folder, tokenizer):
    with pytest.raises(UserError, match="cannot load tfds:no_such_set_at_all"):
        build_cache(DataSpec((Source("tfds:no_such_set_at_all"),), tokenizer, 64), folder / "tfds")


def test_the_published_mixtures_are_read_by_seqio_alone_as_by_a_cache(folder, tokenizer):
    """The sources are small copies of the repositories; names, rates and fractions are those of the tables."""
    from recipes import mixes, seqio_mixtures

    for number, (repository, subset) in enumerate(
        sorted({(mix.repository, part.subset) for mix in mixes.MIXES.values() for part in mix.parts})
    ):
        place = folder / "copies" / repository / "data" / subset
        place.mkdir(parents=True)
        write_jsonl(place / "a.jsonl", [{"text": f"{text} {number}"} for text in corpus(40)])
    for repository in mixes.CHATS.values():
        place = folder / "copies" / repository / "data"
        place.mkdir(parents=True)
        write_jsonl(place / "a.jsonl", [{"messages": turns} for turns in conversations(3)])
    seqio_mixtures.register("kit_", str(folder / "copies"))
    _check_conversations(folder, tokenizer)
    for name in ("dolmino_1124_100b", "olmoe_mix_0924"):
        mix = mixes.MIXES[name]
        total = sum(part.rate for part in mix.parts)
        mixture = seqio.get_mixture_or_task(f"kit_{name}")
        rates = {task.name: mixture.get_rate(task) / total for task in mixture.tasks}
        cache = build_cache(DataSpec((Source(f"seqio:kit_{name}"),), tokenizer, 512, packing="none"), folder / name)
        ours = load_tokenizer(tokenizer)
        for part, place in zip(mix.parts, map(_place_of(cache, mix), mix.parts), strict=True):
            task = f"kit_{seqio_mixtures.task_name(mix, part)}"
            examples = seqio.get_mixture_or_task(task).get_dataset(None, "train", shuffle=False).as_numpy_iterator()
            texts = [example["text"].decode() for example in examples]
            assert len(texts) == round(40 * (part.fraction or 1.0))
            rows = cache.read(np.arange(place["first_row"], place["first_row"] + place["rows"]))
            documents = [
                ours.decode(ids[marks > 0][:-1]) for ids, marks in zip(rows["tokens"], rows["segment_ids"], strict=True)
            ]
            assert documents == texts
            assert place["rate"] == pytest.approx(rates[task])
    assert seqio.get_mixture_or_task("dolmino_1124_300b_table13")  # registered by the import, on the hub


def _check_conversations(folder, tokenizer):
    """The recipe's rows are what seqio alone gives, rendered, cut at the recipe's length, one conversation a row."""
    from recipes import mixes
    from recipes.tulu3.base import mixture

    spec = dataclasses.replace(mixture(tokenizer), sources=(Source("seqio:kit_tulu3_sft"),), sequence_length=64)
    cache = build_cache(spec, folder / "tulu3")
    found = seqio.get_mixture_or_task("kit_tulu3_sft").get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    turns = [json.loads(example["messages"]) for example in found]
    assert [[turn["content"] for turn in one] for one in turns] == [
        [turn["content"] for turn in one] for one in conversations(3)
    ]
    rows = cache.read(np.arange(cache.rows))
    encoded = tokenize([render("tulu", one) for one in turns], load_tokenizer(tokenizer))
    for row, (ids, trained) in enumerate(encoded):
        size = int((rows["segment_ids"][row] > 0).sum())
        np.testing.assert_array_equal(rows["tokens"][row, :size], ids[:size])
        np.testing.assert_array_equal(rows["loss_weights"][row, : size - 1], np.float32(trained[1:size]))
    local = Source(str(folder / "copies" / mixes.CHATS["tulu3_sft"] / "data" / "a.jsonl"))
    direct = build_cache(dataclasses.replace(spec, sources=(local,)), folder / "tulu3")
    for name, array in direct.read(np.arange(direct.rows)).items():
        np.testing.assert_array_equal(rows[name], array)


def test_the_needs_of_a_mixture_are_its_repositories(tasks, folder):
    from easylm_jax.checkpoint.needs import DATA, Need, _of
    from recipes import mixes

    found = set(_of(mixes.source("dolmino_1124_50b"), DATA))
    assert found == {Need(DATA, "allenai/dolmino-mix-1124")}
    assert list(_of(mixes.source("tulu3_sft"), DATA)) == [Need(DATA, "allenai/tulu-3-sft-mixture")]
    assert list(_of(Source("seqio:kit_text"), DATA)) == []  # files of this machine


def test_real_conversations_through_seqio_give_the_rows_of_their_file(shared_data, folder, tokenizer):
    """Dolly's rows in the schema of Tülu 3's mixture."""
    path = shared_data / "curation" / "dolly" / "dolly_sample151.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    chats = [
        {
            "id": f"dolly_{number}",
            "messages": [
                {"role": "user", "content": f"{row['context']}\n{row['instruction']}".strip()},
                {"role": "assistant", "content": row["response"]},
            ],
            "source": "dolly",
        }
        for number, row in enumerate(rows)
    ]
    local = Source(str(write_jsonl(folder / "dolly.jsonl", chats)))
    declare_task("kit_dolly", local, kind="chat")
    spec = DataSpec((local,), tokenizer, 2048, kind="chat", template="tulu", packing="none", on_bad="skip")
    through = dataclasses.replace(spec, sources=(Source("seqio:kit_dolly"),))
    caches = [build_cache(each, folder / "dolly") for each in (spec, through)]
    assert caches[0].rows > 140
    for name, array in caches[0].read(np.arange(caches[0].rows)).items():
        np.testing.assert_array_equal(caches[1].read(np.arange(caches[1].rows))[name], array)


def _place_of(cache, mix):
    from recipes import seqio_mixtures

    parts = {part["sources"][0]: part for part in cache.manifest["parts"]}
    return lambda part: parts[f"seqio:kit_{seqio_mixtures.task_name(mix, part)}"]
