"""Tokenised shards read in place: windows, multiplicities, order and resumption beside an independent reading."""

import contextlib
import functools
import http.server
import json
import re
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from data_kit import sentencepiece

from easylm_jax.cli import main
from easylm_jax.data import DataSpec, Loader, Source, build_cache, byte_ranges, load_tokenizer, open_cache
from easylm_jax.data.filters import is_repetitive
from models.errors import UserError

S = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def wide_tokenizer(tmp_path_factory):
    """A vocabulary that needs 32 bits."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("wide")
    words = {"<|endoftext|>": 0, "<|pad|>": 1, **{f"w{i}": i for i in range(2, 70_000)}}
    Tokenizer(models.WordLevel(words, unk_token="w2")).save(str(folder / "tokenizer.json"))
    names = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return f"hf:{folder}"


def write_shards(folder, sizes, dtype="<u2", top=400, seed=0):
    """Random tokens from 4 to `top`, in files of the given sizes."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, size in enumerate(sizes):
        ids = random.integers(4, top, size).astype(dtype)
        ids.tofile(folder / f"part-{number:02d}.npy")
        made.append(ids)
    return made


def shard_spec(path, tokenizer, **changes):
    sources = changes.pop("sources", (Source(str(path)),))
    return DataSpec(sources, tokenizer, S, kind="tokens", **{"document_mask": False, **changes})


def everything(cache):
    return cache.read(np.arange(cache.rows))


def windows_of(files):
    """The windows of OLMo: those of each file, without its tail."""
    return np.concatenate([ids[: len(ids) // S * S].reshape(-1, S) for ids in files]).astype(np.int32)


def test_windows_are_those_of_each_file_without_its_tail(tmp_path, tokenizer):
    files = write_shards(tmp_path / "shards", (100, 16, 15, 0, 200))
    cache = build_cache(shard_spec(tmp_path / "shards", tokenizer), tmp_path / "cache")
    expected, batch = windows_of(files), everything(cache)
    np.testing.assert_array_equal(batch["tokens"], expected)
    np.testing.assert_array_equal(batch["targets"][:, :-1], expected[:, 1:])
    assert (batch["loss_weights"] == [1.0] * (S - 1) + [0.0]).all()  # the last token of a window has no target
    assert (batch["segment_ids"] == 1).all() and (batch["positions"] == np.arange(S)).all()
    facts = cache.manifest
    assert (facts["rows"], facts["tokens"], facts["trained_tokens"]) == (19, 19 * S, 19 * (S - 1))
    assert sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()) < 8000  # nothing is copied


def test_vocabularies_above_16_bits_are_read_as_32(tmp_path, wide_tokenizer):
    files = write_shards(tmp_path / "shards", (100, 90), "<u4", top=70_000)
    cache = build_cache(shard_spec(tmp_path / "shards" / "*.npy", wide_tokenizer), tmp_path / "cache")
    np.testing.assert_array_equal(everything(cache)["tokens"], windows_of(files))
    assert everything(cache)["tokens"].max() > 1 << 16


@pytest.mark.parametrize("name", ["mix.txt", "OLMo2.yaml"])
def test_a_list_gives_the_order_and_the_multiplicities(name, tmp_path, tokenizer):
    a, b = write_shards(tmp_path / "shards", (40, 50))
    lines = {
        "mix.txt": "# two passes of b\nweb,shards/part-01.npy\nshards/part-00.npy\n\nweb,shards/part-01.npy\n",
        "OLMo2.yaml": "data:\n  seed: 1\n  paths:\n"
        + "".join(f"    - {p}\n" for p in ("shards/part-01.npy", '"shards/part-00.npy"', "shards/part-01.npy # again")),
    }
    (tmp_path / name).write_text(lines[name])
    listed = build_cache(shard_spec(tmp_path / name, tokenizer), tmp_path / "cache")
    np.testing.assert_array_equal(everything(listed)["tokens"], windows_of([b, a, b]))
    source = Source(str(tmp_path / name), base=str(tmp_path), fraction=3)
    thrice = build_cache(shard_spec(None, tokenizer, sources=(source,)), tmp_path / "cache")
    np.testing.assert_array_equal(everything(thrice)["tokens"], windows_of([b, a, b] * 3))


def test_across_files_every_token_but_the_first_is_a_target_once(tmp_path, tokenizer):
    stream = np.concatenate(write_shards(tmp_path / "shards", (7, 0, 41, 3, 60)))
    cache = build_cache(shard_spec(tmp_path / "shards", tokenizer, packing="concat"), tmp_path / "cache")
    batch = everything(cache)
    trained = batch["loss_weights"] > 0
    np.testing.assert_array_equal(batch["targets"][trained], stream[1:])
    np.testing.assert_array_equal(batch["tokens"][trained], stream[:-1])
    assert cache.manifest["trained_tokens"] == len(stream) - 1 == trained.sum()
    assert cache.manifest["tokens"] == (batch["segment_ids"] > 0).sum()


def test_documents_end_with_their_end_token(tmp_path, tokenizer):
    eos = load_tokenizer(tokenizer).eos_id
    ids = np.array([5, 6, eos, 7, eos, eos, 8, *range(9, 18)] + [20] * 14 + [21, eos], "<u2")
    ids.tofile(tmp_path / "a.npy")
    cache = build_cache(shard_spec(tmp_path / "a.npy", tokenizer, document_mask=True), tmp_path / "cache")
    batch = everything(cache)
    assert batch["segment_ids"][0].tolist() == [1, 1, 1, 2, 2, 3] + [4] * 10
    assert batch["positions"][0].tolist() == [0, 1, 2, 0, 1, 0, *range(10)]
    assert batch["loss_weights"][0].tolist() == [1, 1, 0, 1, 0, 0] + [1] * 9 + [0]
    assert (batch["segment_ids"][1] == 1).all()
    assert [(s.start, s.length) for s in cache.documents(0)] == [(0, 3), (3, 2), (5, 1), (6, 10)]


def test_repetitive_windows_have_no_loss(tmp_path, tokenizer):
    size = 64
    ids = np.random.default_rng(1).integers(4, 400, 4 * size).astype("<u2")
    ids[size : size + 40] = 9
    ids.tofile(tmp_path / "a.npy")
    spec = DataSpec(Source(str(tmp_path / "a.npy")), tokenizer, size, kind="tokens", document_mask=False)
    filtered = DataSpec.from_dict({**spec.to_dict(), "repetition_filter": True})
    plain, cleaned = (everything(build_cache(each, tmp_path / "cache")) for each in (spec, filtered))
    repeats = [is_repetitive(row) for row in plain["tokens"]]
    assert repeats == [False, True, False, False]
    np.testing.assert_array_equal(cleaned["loss_weights"], plain["loss_weights"] * ~np.array(repeats)[:, None])


def test_skip_and_limit_count_windows(tmp_path, tokenizer):
    expected = windows_of(write_shards(tmp_path / "shards", (100, 100)))
    parts = [
        build_cache(shard_spec(None, tokenizer, sources=(Source(str(tmp_path / "shards"), **cut),)), tmp_path / "cache")
        for cut in ({"limit": 4}, {"skip": 4, "limit": 3}, {"skip": 7})
    ]
    np.testing.assert_array_equal(np.concatenate([everything(part)["tokens"] for part in parts]), expected)


def test_any_step_resumes_exactly_on_any_number_of_hosts(tmp_path, tokenizer):
    write_shards(tmp_path / "shards", (333, 1200, 77))
    cache = build_cache(shard_spec(tmp_path / "shards", tokenizer), tmp_path / "cache")
    loader = Loader(cache, 8, seed=3)
    seen = [loader.batch_at(step)["tokens"] for step in range(3 * loader.steps_per_epoch)]
    epoch = np.concatenate(seen[: loader.steps_per_epoch])
    whole = {tuple(row) for row in everything(cache)["tokens"].tolist()}
    assert len({tuple(row) for row in epoch.tolist()}) == len(epoch) and {tuple(r) for r in epoch.tolist()} <= whole
    for hosts in (1, 2, 4):
        step = 17 + hosts
        again = Loader(open_cache(cache.folder), 8, seed=3)
        share = 8 // hosts
        parts = [again.batch_at(step, slice(h * share, (h + 1) * share))["tokens"] for h in range(hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), seen[step])


def test_the_order_can_be_that_of_olmos_trainer(tmp_path, tokenizer):
    expected = windows_of(write_shards(tmp_path / "shards", (333, 1200)))
    cache = build_cache(shard_spec(tmp_path / "shards", tokenizer, order="olmo"), tmp_path / "cache")
    loader = Loader(cache, 8, seed=6198)
    for epoch in range(2):
        order = np.arange(len(expected), dtype=np.uint32)
        np.random.Generator(np.random.PCG64(6198 + epoch)).shuffle(order)
        for step in (0, 5, loader.steps_per_epoch - 1):
            got = loader.batch_at(epoch * loader.steps_per_epoch + step)["tokens"]
            np.testing.assert_array_equal(got, expected[order[step * 8 : step * 8 + 8]])


def test_weights_mix_sources_of_shards(tmp_path, tokenizer):
    for name, seed in (("a", 1), ("b", 2)):
        write_shards(tmp_path / name, (1600,), seed=seed)
    sources = (Source(str(tmp_path / "a"), 3.0), Source(str(tmp_path / "b"), 1.0))
    cache = build_cache(shard_spec(None, tokenizer, sources=sources), tmp_path / "cache")
    loader = Loader(cache, 64, seed=0)
    rows = np.concatenate([loader.rows_at(step) for step in range(64)])
    assert abs((rows < 100).mean() - 0.75) < 1e-3


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves a folder with byte ranges, and keeps what was asked for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder, asked, *arguments):
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        asked = urllib.parse.parse_qs(query)
        if path == "/storage/v1/b/bucket/o":
            return self._send(200, json.dumps({"items": [{"name": n} for n in self._names(asked)]}).encode())
        if path.rstrip("/") == "/bucket":
            listed = "".join(f"<Contents><Key>{n}</Key><Size>1</Size></Contents>" for n in self._names(asked))
            xml = f"<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"
            return self._send(200, f'<?xml version="1.0" encoding="UTF-8"?>{xml}'.encode())
        file = self.folder / re.sub(r"^/(storage/v1/b/\w+/o/|bucket/)?", "", path).replace("%2F", "/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.asked.append((self.path, wanted and int(wanted[2]) - int(wanted[1]) + 1))
        if not file.is_file():
            return self._send(404, b"")
        content = file.read_bytes()
        if wanted is None:
            return self._send(200, content)
        first, last = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
        if first >= len(content):
            return self._send(416, b"")
        self._send(206, content[first:last], f"bytes {first}-{last - 1}/{len(content)}")

    def _names(self, asked):
        names = (path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*.npy")))
        return [name for name in names if name.startswith(asked.get("prefix", [""])[0])]

    def _send(self, status, body, content_range=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def served(folder):
    asked = []
    handler = functools.partial(_Ranges, folder, asked)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("scheme", ["http", "gs", "s3"])
def test_shards_in_a_bucket_are_read_by_byte_ranges(scheme, tmp_path, tokenizer, monkeypatch):
    files = write_shards(tmp_path / "far" / "shards", (333, 1200))
    (tmp_path / "list.txt").write_text("shards/part-00.npy\nshards/part-01.npy\n")
    with served(tmp_path / "far") as (host, asked):
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://{host}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}/")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "stand-in")
        monkeypatch.setattr(byte_ranges, "_stores", {})
        base = f"http://{host}" if scheme == "http" else f"{scheme}://bucket"
        if scheme != "http":
            found = byte_ranges.find(f"{base}/shards/part-*.npy")
            assert found == [f"{base}/shards/part-00.npy", f"{base}/shards/part-01.npy"]
            asked.clear()
        spec = shard_spec(None, tokenizer, sources=(Source(str(tmp_path / "list.txt"), base=base),))
        cache = build_cache(spec, tmp_path / "cache")
        probes, asked[:] = len(asked), []
        assert probes < 2 * 60 + cache.rows
        reopened = build_cache(spec, tmp_path / "cache")
        assert not asked  # an index that exists is opened without a request
        loader = Loader(reopened, 8, seed=3)
        batch = loader.batch_at(5)["tokens"]
        assert [length for _, length in asked] == [2 * S] * 8
        np.testing.assert_array_equal(batch, windows_of(files)[loader.rows_at(5)])
        with pytest.raises(UserError, match="there is no file .*missing.npy"):
            byte_ranges.sizes([f"{base}/missing.npy"])


def test_verify_reads_every_token(tmp_path, tokenizer):
    ids = np.full(100 * S, 5, "<u2")
    ids[49 * S + 3] = 60_000  # in a window that the sample at the opening does not see
    ids.tofile(tmp_path / "a.npy")
    cache = build_cache(shard_spec(tmp_path / "a.npy", tokenizer), tmp_path / "cache")
    for found in (cache.verify, lambda: cache.read(np.array([49]))):
        with pytest.raises(UserError, match=rf"a.npy has token 60000 at {49 * S + 3}, outside the 420"):
            found()
    ids[:50].tofile(tmp_path / "a.npy")
    with pytest.raises(UserError, match="the index 3,200; build it again"):
        cache.verify()


def _odd(folder):
    (folder / "a.npy").write_bytes(b"123")


def _outside(folder):
    np.full(64, 50_000, "<u2").tofile(folder / "a.npy")


def _header(folder):
    np.save(folder / "a.npy", np.arange(64, dtype=np.uint16))


def _missing(folder):
    (folder / "a.txt").write_text("gone.npy\n")


def _short(folder):
    np.full(S - 1, 5, "<u2").tofile(folder / "a.npy")


def _empty(folder):
    (folder / "a.txt").write_text("# nothing\n")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (_odd, "has 3 bytes, which are not whole tokens of 16 bits"),
        (_outside, "has token 50000 at 0, outside the 420 of tokenizer"),
        (_header, "has a NumPy header"),
        (_missing, "cannot read .*gone.npy: No such file"),
        (_short, "gives no window of 16 tokens from 1 files"),
        (_empty, "names no .npy file"),
        (lambda folder: None, "no shard at"),
    ],
)
def test_bad_shards_are_one_line(make, line, tmp_path, tokenizer, capsys):
    make(tmp_path)
    path = next((str(p) for p in (tmp_path / "a.txt", tmp_path / "a.npy") if p.exists()), str(tmp_path / "*.npy"))
    build = ["data", "build", path, "--kind", "tokens", "--tokenizer", tokenizer, "--length", str(S)]
    assert main.main([*build, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and re.search(line, said[0]), said


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"packing": "best_fit"}, "packing of kind 'tokens' is 'files' or 'concat'"),
        ({"add_bos": True}, "shards are read as they are"),
        ({"sources": (Source("a.npy", fraction=0.5),)}, "fraction is a whole number"),
        ({"sources": (Source("a.npy", count=5),)}, "fraction is a whole number"),
        ({"sources": (Source("hf:a/b"),)}, "kind 'tokens' reads .npy shards"),
        ({"sources": (Source("a.npy", 1.0),), "order": "olmo"}, "leave out weights"),
        ({"kind": "text", "packing": "files"}, "packing 'files' is for kind 'tokens'"),
        ({"kind": "text", "order": "olmo"}, "order is for kind 'tokens'"),
        ({"kind": "text", "sources": (Source("a.txt", base="b"),)}, "base of source a.txt is for kind 'tokens'"),
    ],
)
def test_what_shards_cannot_give_is_refused(change, line):
    with pytest.raises(UserError, match=line):
        DataSpec(
            **{"sources": (Source("a.npy"),), "tokenizer": "sp:t", "sequence_length": S, "kind": "tokens"} | change
        )


OPENING = """
import json, resource, sys, time
from easylm_jax.data import DataSpec, Loader, build_cache
spec = DataSpec.from_dict(json.loads(sys.argv[1]))
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
from easylm_jax.data import load_tokenizer; load_tokenizer(spec.tokenizer); import tensorstore
before, began = memory(), time.perf_counter()
loader = Loader(build_cache(spec, sys.argv[2]), 64, seed=3)
batch = loader.batch_at(1234)
took = {"seconds": time.perf_counter() - began, "MB": memory() - before}
print(json.dumps({**took, "first": batch["tokens"][0, :8].tolist()}))
"""


@pytest.mark.slow
def test_two_gigabytes_in_fifty_files_are_opened_with_little_memory(tmp_path, tokenizer):
    """Windows, multiplicities and order beside an independent reading; the print has the seconds of the opening."""
    size, length = 20_000_003, 2048
    folder = tmp_path / "shards"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(50):
        random.integers(4, 400, size, "u2").tofile(folder / f"{number:02d}.npy")
    listed = [f"{number:02d}.npy" for number in [*range(50), 7, 7, 31]]
    (folder / "list.txt").write_text("\n".join(listed))
    spec = DataSpec(Source(str(folder / "list.txt")), tokenizer, length, kind="tokens", document_mask=False)
    command = [sys.executable, "-c", OPENING, json.dumps(spec.to_dict()), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened = json.loads(done.stdout)
    print(opened)
    assert opened["MB"] < 200
    cache = build_cache(spec, tmp_path / "cache")
    each = size // length
    assert cache.rows == 53 * each
    loader = Loader(cache, 64, seed=3)
    for step in (0, 1234, 5000, loader.steps_per_epoch + 77):
        batch, rows = loader.batch_at(step)["tokens"], loader.rows_at(step)
        for row, tokens in zip(rows, batch, strict=True):
            file, window = divmod(int(row), each)
            raw = np.fromfile(folder / listed[file], "<u2", length, offset=2 * length * window)
            np.testing.assert_array_equal(tokens, raw)
    assert loader.batch_at(1234)["tokens"][0, :8].tolist() == opened["first"]
