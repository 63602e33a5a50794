import dataclasses
import errno
import functools
import io
import json
import os
import shutil
from types import SimpleNamespace

import data_kit
import jax
import numpy as np
import pytest

import models
from easylm_jax.checkpoint import load
from easylm_jax.checkpoint.checkpointer import Checkpointer
from easylm_jax.cli import generate, main
from easylm_jax.data import load_tokenizer
from easylm_jax.data.templates import encode_prompt
from easylm_jax.decode import Engine
from easylm_jax.runtime import mesh
from easylm_jax.runtime.mesh import make_mesh
from models.config import DecoderConfig

CONFIG = DecoderConfig(
    family="olmo2", layers=2, width=32, heads=4, kv_heads=2, ffn=64, vocab=424, context=96, qk_norm=True
)
QUESTION = data_kit.sentence(3, 6)


@functools.cache
def random_params(config):
    """Far from uniform, so that greedy answers do not hang on rounding."""
    params = jax.jit(models.build(config).init)(jax.random.key(1))
    return jax.tree.map(lambda leaf: np.asarray(leaf) * (4 if leaf.ndim > 1 else 1), params)


def stage(folder, config, tokenizer, data, **more):
    """A stage's folder with one checkpoint, of random parameters."""
    params = random_params(config)
    meta = {"model": dataclasses.asdict(config), "tokenizer": tokenizer.spec, "tokenizer_hash": tokenizer.hash,
            "config": {"data": {"tokenizer": "stage:tokenizer", "template": None, **data}, **more}}  # fmt: skip
    with Checkpointer(folder / "checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(1, {"params": params, "opt": {"mu": np.zeros(3)}}, meta)
    return params


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """A mesh of one of the simulated devices, which compiles faster; the tests marked so use all eight."""
    if "all_devices" not in request.fixturenames:
        monkeypatch.setattr(mesh, "make_mesh", lambda text: make_mesh(text, jax.devices()[:1]))


@pytest.fixture
def all_devices():
    return jax.device_count()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a vocabulary and the same parameters as a chat stage, a text stage, and a reward model's."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer = load_tokenizer(data_kit.sentencepiece(folder / "tokenizer"))
    params = stage(folder / "sft", CONFIG, tokenizer, {"template": "tulu"})
    stage(folder / "pretrain", CONFIG, tokenizer, {})
    stage(folder / "reward", CONFIG.replace(scalar_head=True), tokenizer, {"template": "tulu"})
    stage(folder / "adapter", CONFIG, tokenizer, {"template": "tulu"}, lora={"rank": 4})
    (folder / "data").mkdir()
    (folder / "data/done.json").write_text('{"stage": "data", "files": []}')
    return SimpleNamespace(folder=folder, tokenizer=tokenizer, params=params)


def easylm(capsys, *arguments):
    status = main.main(["generate", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def greedy(run, ids, new=12):
    """What the engine says to these ids, on one device."""
    engine = Engine(models.build(CONFIG), slots=4)
    return engine.generate(
        run.params, [ids], max_new_tokens=new, temperature=0, eos_ids=(run.tokenizer.eos_id,), scores=True
    )


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_greedy_is_what_the_engine_says_to_the_same_ids_under_the_recorded_template(run, capsys, tmp_path):
    file = tmp_path / "answers.jsonl"
    status, out, err = easylm(
        capsys, run.folder / "sft", QUESTION, "--temperature", 0, "--max-new-tokens", 12, "--json", file
    )
    assert status == 0
    ids = encode_prompt("tulu", [{"role": "user", "content": QUESTION}], run.tokenizer)
    expected = greedy(run, ids)
    length = int(expected.lengths[0])
    text = run.tokenizer.decode(expected.tokens[0, :length].tolist(), skip_special=True)
    assert out == text + "\n" and text.strip()
    (answer,) = answers(file)
    logprob = pytest.approx(float(expected.logprobs[0, :length].sum()), abs=1e-3)
    assert answer == {"prompt": QUESTION, "sample": 0, "response": text, "logprob": logprob, "length": length,
                      "ended": bool(expected.ended[0])}  # fmt: skip
    assert err.startswith(f"1 response, {length} tokens in ")


def test_raw_text_and_a_text_stage_are_continued_as_they_are(run, capsys, tmp_path):
    ids = run.tokenizer.encode(QUESTION)
    expected = greedy(run, ids)
    tokens = expected.tokens[0, : expected.lengths[0]].tolist()
    whole = run.tokenizer.decode([*ids, *tokens], skip_special=True)
    for arguments in ([run.folder / "sft", "--raw"], [run.folder / "pretrain"]):
        status, out, _ = easylm(capsys, *arguments, QUESTION, "--temperature", 0, "--max-new-tokens", 12)
        assert status == 0
        assert QUESTION + out.removesuffix("\n") == whole


def test_rows_are_split_over_all_devices_there_are(run, all_devices):
    source = load.load(str(run.folder / "sft"))
    assert all_devices == source.mesh.size == 8
    ids = encode_prompt("tulu", [{"role": "user", "content": QUESTION}], run.tokenizer)
    done = generate.complete(source, [ids], end_ids=(run.tokenizer.eos_id,), max_new_tokens=12, temperature=0)
    np.testing.assert_array_equal(done.tokens, greedy(run, ids).tokens)


def test_a_template_can_be_named(run):
    source = load.load(str(run.folder / "pretrain"))
    messages = [{"role": "user", "content": QUESTION}]
    assert source.template is None
    assert generate.encode(source, messages, "tulu") == encode_prompt("tulu", messages, run.tokenizer)
    bos = run.tokenizer.eos_id if run.tokenizer.bos_id is None else run.tokenizer.bos_id
    assert generate.encode(source, messages, "plain") == [bos, *run.tokenizer.encode(QUESTION)]
    assert generate.encode(source, messages, None) == run.tokenizer.encode(QUESTION)


def test_prompts_of_a_file_are_conversations_or_texts(run, capsys, tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    prompts = data_kit.write_jsonl(tmp_path / "prompts.jsonl", [
        {"messages": [*chat, {"role": "assistant", "content": "the answer, left off"}]}, {"prompt": QUESTION},
        {"text": QUESTION},
    ])  # fmt: skip
    file = tmp_path / "answers.jsonl"
    status, out, _ = easylm(capsys, run.folder / "sft", "--file", prompts, "--temperature", 0, "--max-new-tokens", 8,
                            "--json", file)  # fmt: skip
    assert status == 0
    first, second, third = answers(file)
    assert first["prompt"] == chat and second["prompt"] == third["prompt"] == QUESTION
    assert second["response"] == third["response"]
    expected = greedy(run, encode_prompt("tulu", chat, run.tokenizer), new=8)
    assert first["response"] == run.tokenizer.decode(expected.tokens[0, : expected.lengths[0]].tolist(), True)
    assert [line for line in out.splitlines() if line.startswith("> ")] == [f"> {QUESTION}"] * 3


def test_lines_of_standard_input_are_prompts(run, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\n{data_kit.sentence(5, 4)}\n"))
    file = tmp_path / "answers.jsonl"
    status, _, _ = easylm(capsys, run.folder / "sft", "--max-new-tokens", 4, "--samples", 2, "--json", file)
    assert status == 0
    found = answers(file)
    assert [answer["prompt"] for answer in found] == [QUESTION] * 2 + [data_kit.sentence(5, 4)] * 2
    assert [answer["sample"] for answer in found] == [0, 1, 0, 1]


def test_seed_decides_the_samples(run, capsys, tmp_path):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
        file = tmp_path / f"{i}.jsonl"
        how = ["--samples", 3, "--max-new-tokens", 8, "--seed", seed, "--top-k", 20]
        easylm(capsys, run.folder / "sft", QUESTION, *how, "--json", file)
        texts.append([answer["response"] for answer in answers(file)])
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1


def test_a_stop_text_ends_the_answer(run, capsys, tmp_path):
    long, short = tmp_path / "long.jsonl", tmp_path / "short.jsonl"
    common = [run.folder / "sft", QUESTION, "--temperature", 0, "--max-new-tokens", 12, "--json"]
    easylm(capsys, *common, long)
    whole = answers(long)[0]["response"]
    stop = whole[len(whole) // 2 - 2 : len(whole) // 2]
    easylm(capsys, *common, short, "--stop", stop)
    answer = answers(short)[0]
    assert answer["ended"] and stop in answer["response"] and whole.startswith(answer["response"])
    assert answer["length"] < answers(long)[0]["length"]


def test_left_out_the_longest_answer_is_what_the_context_has_room_for(run):
    source = load.load(str(run.folder / "sft"))
    assert generate._max_new_tokens(source, [[1] * 90, [1] * 3], None) == 6
    wide = dataclasses.replace(source, decoder=models.build(CONFIG.replace(context=4096)))
    assert generate._max_new_tokens(wide, [[1] * 90], None) == generate.DEFAULT_MAX_NEW_TOKENS


def test_a_hugging_face_folder_brings_its_tokenizer(run, capsys, tmp_path):
    config = CONFIG.replace(vocab=416, vocab_used=416)
    models.save_hf(models.build(config), models.build(config).init(jax.random.key(0)), tmp_path / "hf")
    data_kit.hf_tokenizer(tmp_path / "hf")
    status, out, _ = easylm(capsys, f"hf:{tmp_path / 'hf'}", QUESTION, "--max-new-tokens", 4, "--temperature", 0)
    assert status == 0 and out.endswith("\n")
    assert load.load(str(tmp_path / "hf")).tokenizer.hash == load_tokenizer(f"hf:{tmp_path / 'hf'}").hash
    path = tmp_path / "hf" / "tokenizer_config.json"
    assert load.load(f"hf:{tmp_path / 'hf'}").add_bos is False
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True, "bos_token": "<|endoftext|>"}))
    source = load.load(f"hf:{tmp_path / 'hf'}")
    ids = generate.encode(source, [{"role": "user", "content": QUESTION}], None)
    assert ids == [source.tokenizer.bos_id, *source.tokenizer.encode(QUESTION)]


def test_a_run_that_was_moved_still_finds_its_vocabulary(run, capsys, tmp_path):
    shutil.copytree(run.folder, tmp_path / "moved")
    source = load.load(str(tmp_path / "moved" / "sft" / "checkpoints" / "1"))
    assert source.tokenizer.spec == f"sp:{tmp_path / 'moved' / 'tokenizer' / 'tokenizer.model'}"
    assert source.template == "tulu" and source.tokenizer.hash == run.tokenizer.hash


def test_another_vocabulary_than_the_trained_one_is_refused(run, capsys, tmp_path):
    other = data_kit.sentencepiece(tmp_path, vocab=400)
    status, _, err = easylm(capsys, run.folder / "sft", QUESTION, "--tokenizer", other, "--max-new-tokens", 2)
    assert status == 2 and len(err.splitlines()) == 1
    assert f"{run.folder / 'sft'} was trained with another tokenizer than {other}: token " in err


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"fine\n\xff\xfe\n", "standard input, line 2, is not UTF-8 text: invalid start byte at byte 1"),
        ('{"text": "\\ud800"}', "prompt 1 holds half of a surrogate pair"),
        ('{"text": ' + "[" * 100_000, "line 1, is not JSON"),
    ],
)
def test_prompts_that_are_not_text_are_one_line(capsys, tmp_path, monkeypatch, lines, says):
    options = []
    if isinstance(lines, bytes):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    else:
        (tmp_path / "prompts.jsonl").write_text(lines)
        options = ["--file", tmp_path / "prompts.jsonl"]
    status, _, err = easylm(capsys, tmp_path, *options)
    assert status == 2 and says in err and len(err.splitlines()) == 1


def test_a_done_stage_is_read_where_done_json_says(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "tiny")
    done = tmp_path / "tiny" / "adapter"
    shutil.copytree(tmp_path / "tiny/sft/checkpoints", done / "merged/checkpoints")
    (done / "done.json").write_text(json.dumps({"checkpoint": "merged/checkpoints/1"}))
    assert load.load(str(done)).template == "tulu"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{run}/none", "hello"], "/none; give a stage's folder or one of its checkpoints/<step>"),
        (["{run}/reward", "hello"], "reward is a reward model (scalar head), which cannot generate; give the"),
        (["{run}/adapter", "hello"], "holds only a LoRA adapter; give the folder of its finished stage"),
        (["{run}/data", "hello"], "data has no model; give the folder of a stage that trains one"),
        (["hf:no/such/model", "hello"], "is neither a folder nor a hub name"),
        (["{run}/sft", " "], "prompt 1 is empty; give it some text"),
        (["{run}/sft", "hi", "word " * 200], "prompt 2 is too long: its 8"),
        (["{run}/sft", "hello", "--max-new-tokens", "95"], "or ask for fewer with --max-new-tokens"),
        (["{run}/sft", "hello", "--max-new-tokens", "0"], "--max-new-tokens: '0' is not a whole number of at least 1"),
        (["{run}/sft", "hello", "--temperature", "-1"], "argument --temperature: '-1' is not a number of at least 0"),
        (["{run}/sft", "hello", "--temperature", "nan"], "argument --temperature: 'nan' is not a number of at least 0"),
        (["{run}/sft", "hello", "--top-k", "0"], "argument --top-k: '0' is not a whole number of at least 1"),
        (["{run}/sft", "hello", "--top-p", "0"], "argument --top-p: '0' is not a number above 0 and at most 1"),
        (["{run}/sft", "hello", "--samples", "two"], "argument --samples: 'two' is not a whole number"),
        (["{run}/sft", "hello", "--seed", str(2**40)], f"argument --seed: '{2**40}' is not a whole number from 0 to"),
        (["{run}/sft", "hello", "--stop", ""], "argument --stop: an empty value is not a text"),
        (["{run}/sft", "hello", "--template", "tulip"], "unknown template 'tulip'; use one of tulu"),
        (["{run}/sft", "hello", "--template", "tulu", "--raw"], "not allowed with argument --template"),
        (["{run}/sft", "hello", "--file", __file__], "prompts are given both as arguments and with --file"),
        (["{run}/sft", "--file", "x.jsonl"], "argument --file: 'x.jsonl' does not exist; give the path of a file"),
        (["{run}/sft", "hello", "--tokenizer", "sp:none.model"], "no SentencePiece model at none.model"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(run, capsys, arguments, message):
    status, out, err = easylm(capsys, *(text.replace("{run}", str(run.folder)) for text in arguments))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err


def test_answers_are_printed_before_their_file_fails(run, capsys, tmp_path, monkeypatch):
    lost = tmp_path / "no" / "a.jsonl"
    arguments = (run.folder / "sft", QUESTION, "--max-new-tokens", 4, "--json")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        status, out, err = easylm(capsys, *arguments, lost)
    assert status == 2 and out.strip()
    assert err.splitlines()[-1].startswith(f"easylm: error: cannot write {lost}: No space left on device; give another")
    assert easylm(capsys, *arguments, lost)[0] == 0 and lost.is_file()  # its folder is made
    status, out, err = easylm(capsys, *arguments, tmp_path)  # told before the work
    assert status == 2 and not out and "is a folder; give the path of a file" in err


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1, is not JSON"),
        ('{"question": "hello"}', "line 1: no prompt in a column messages, prompt, text; it has question"),
        ('{"prompt": 3}', "line 1: prompt must be a text or a list of turns with a role and a content"),
        ('{"messages": [{"role": "user"}]}', "must be a text or a list of turns with a role and a content"),
        ('{"messages": [{"role": "system", "content": "x"}]}', "the conversation must end with a user turn"),
        ('{"messages": [{"role": "tool", "content": "x"}, {"role": "user", "content": "y"}]}', "has the role 'tool'"),
        ('{"prompt": "  "}', "prompt 1 is empty"),
        ("", "no prompt in"),
    ],
)
def test_a_record_that_is_no_prompt_is_named(run, capsys, tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    status, out, err = easylm(capsys, run.folder / "sft", "--file", tmp_path / "p.jsonl")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and message in err


def test_a_conversation_needs_a_template(run, capsys, tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    path = data_kit.write_jsonl(tmp_path / "p.jsonl", [{"messages": chat}])
    status, _, err = easylm(capsys, run.folder / "pretrain", "--file", path)
    assert status == 2 and "prompt 1 is a conversation; name its chat template with --template" in err


def test_a_checkpoint_without_a_tokenizer_asks_for_one(run, capsys, tmp_path):
    with Checkpointer(tmp_path / "bare/checkpoints", asynchronous=False) as checkpointer:
        checkpointer.save(0, {"params": run.params}, {"model": dataclasses.asdict(CONFIG)})
    status, _, err = easylm(capsys, tmp_path / "bare", "hello")
    assert status == 2 and "is not known; give it with --tokenizer" in err
    status, out, _ = easylm(
        capsys, tmp_path / "bare", "hello", "--tokenizer", run.tokenizer.spec, "--max-new-tokens", 2
    )
    assert status == 0


def test_a_vocabulary_that_is_too_large_is_refused(run, capsys, tmp_path):
    big = data_kit.sentencepiece(tmp_path, vocab=450)
    status, _, err = easylm(capsys, run.folder / "sft", "hello", "--tokenizer", big)
    assert status == 2 and "has 450 tokens, the model only 424; give the model's own with --tokenizer" in err
