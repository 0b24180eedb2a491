"""Files of a stranger's checkpoint that claim too much: refused at once, with little memory."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from trust_rows import Cases

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is limited and measured as Linux does"
)

# Runs the cases of a table one after the other with 1.5 GB of addresses more than it has, and tells
# what came of each: its name, seconds of work, megabytes on top, the error's kind and text.
CHILD = r"""
import json, os, re, resource, shutil, struct, sys, time
from pathlib import Path
import qwen_edge.export
from qwen_edge.errors import EdgeError
from qwen_edge.export.checkpoint import check_tensors, open_checkpoint
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.package_facts import generation_facts, read_json_object
from qwen_edge.export.tensor_files import list_tensors, read_header
from qwen_edge.export.tokenizer_files import write_tokenizer_files

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
ENTRY = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}
MB = 1_000_000

def status(name):
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def sparse(path, start, size):
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)

def header(path, text, data=b"\0" * 32):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)

def entries(number):
    one = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(one % i for i in range(number)) + "}").encode()

def folder_of(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(DEMO / name, path / name)
    return path

root = Path(sys.argv[1])
CASES = {}
exec(sys.stdin.read())

read_warm = root / "warm.safetensors"
header(read_warm, {"a": ENTRY})
list(read_header(read_warm))
limit = status("VmSize") + 1_500 * MB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name, (make, attempt) in CASES.items():
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the greatest memory is measured from here
    before, started, kind, text = status("VmRSS"), time.process_time(), "", ""
    try:
        attempt(folder)
    except Exception as error:
        kind = "ours" if isinstance(error, EdgeError) else type(error).__name__
        text = str(error)
    grown = (status("VmHWM") - before) / MB
    print(json.dumps([name, time.process_time() - started, grown, kind, text[:2_000]]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    name: str
    seconds: float
    grown_mb: float
    kind: str
    text: str


def run_cases(tmp_path: Path, table: str) -> list[Outcome]:
    """Run a table of cases in a process of its own, which must live to its end."""
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        input=table,
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-3_000:], run.stdout[-500:])
    return [Outcome(*json.loads(line)) for line in run.stdout.splitlines()]


def check_refused(found: list[Outcome], *, seconds: float, grown_mb: float) -> None:
    for outcome in found:
        assert outcome.kind == "ours", outcome
        assert len(outcome.text) < 1_000, outcome
        assert outcome.seconds < seconds, outcome
        assert outcome.grown_mb < grown_mb, outcome


LENGTHS = r"""
def claims(claimed, size):
    def make(folder):
        sparse(folder / "model.safetensors", struct.pack("<Q", claimed) + b"{}", size)
    return make

def attempt(folder):
    list_tensors(folder)

for claimed, size in [
    (1 << 40, 16), (1 << 63, 16), ((1 << 64) - 1, 16), (100_000_001, 16), (0, 8), (0, 16),
    (1, 9), (8, 10), (100_000_000, 100_000_008), (100_000_001, 200_000_000),
    (16_000_001, 20_000_000), (15_999_990, 16_000_000), (1 << 33, 1 << 34), (2, 1 << 30),
]:
    CASES[f"claims {claimed:,} in {size:,}"] = (claims(claimed, size), attempt)
for size in range(8):
    def write(folder, size=size):
        (folder / "model.safetensors").write_bytes(b"\x02" * size)
    CASES[f"{size} bytes"] = (write, attempt)
"""


@pytest.mark.trust("T-IN-05")
def test_lengths_of_headers(tmp_path: Path, cases: Cases) -> None:
    """Sparse files: some claim a header of gigabytes, and have them."""
    found = run_cases(tmp_path, LENGTHS)
    assert len(found) == 22
    check_refused(found, seconds=2.0, grown_mb=50.0)
    cases(len(found))


SHAPES = r"""
def make(entry):
    def write(folder):
        header(folder / "model.safetensors", {"model.norm.weight": {**ENTRY, **entry}})
        shutil.copyfile(DEMO / "config.json", folder / "config.json")
    return write

def attempt(folder):  # what an export does before it reads weights
    spec = read_spec(read_json_object(folder / "config.json"))
    check_tensors(open_checkpoint(folder), spec.tensor_shapes(), is_tied=spec.is_tied)

big = 1 << 63
for entry in [
    {"shape": [1 << 32, 1 << 32, 8]}, {"shape": [1 << 64, 8]}, {"shape": [(1 << 64) - 1, 8]},
    {"shape": [big, 2, 8]}, {"shape": [1 << 61, 8]}, {"shape": [1 << 62]}, {"shape": [10**30]},
    {"shape": [0, big], "data_offsets": [0, 0]}, {"shape": [0, 1 << 64]}, {"shape": [-8, -1]},
    {"shape": [-8]}, {"shape": [8.0]}, {"shape": ["8"]}, {"shape": [True] * 3 + [8]},
    {"shape": [None]}, {"shape": 8}, {"shape": {}}, {"shape": [[8]]}, {"shape": [1e400]},
    {"shape": [1] * 1_000_000 + [8]}, {"shape": [2] * 100_000}, {"shape": [1 << 31] * 3},
    {"data_offsets": [0, 1 << 64]}, {"data_offsets": [big, big + 32]}, {"data_offsets": [0]},
    {"data_offsets": [0, 32, 64]}, {"data_offsets": [0.0, 32.0]}, {"data_offsets": "32"},
    {"data_offsets": [-32, 0]}, {"data_offsets": [32, 64]}, {"data_offsets": [0, 33]},
    {"data_offsets": [0, 10**9], "shape": [250_000_000]}, {"dtype": "F4", "shape": [64]},
    {"dtype": None}, {"dtype": "BOOL", "shape": [32]}, {"dtype": "x" * 100_000},
]:
    CASES[str(entry)[:70] + str(len(CASES))] = (make(entry), attempt)
"""


@pytest.mark.trust("T-IN-06", "T-IN-07")
def test_shapes_and_offsets_beyond_all_bounds(tmp_path: Path, cases: Cases) -> None:
    found = run_cases(tmp_path, SHAPES)
    assert len(found) == 36
    check_refused(found, seconds=3.0, grown_mb=150.0)
    cases(len(found))


MANY = r"""
def single(number):
    return lambda folder: header(folder / "model.safetensors", entries(number), b"")

def index(folder, number=300_000):
    names = ",".join(f'"{i}":"a.safetensors"' for i in range(number))
    (folder / "model.safetensors.index.json").write_text('{"weight_map":{' + names + "}}")
    header(folder / "a.safetensors", {"a": ENTRY})

def shards(folder):
    names = {str(i): f"{i}.safetensors" for i in range(50_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

def attempt(folder):
    shutil.copyfile(DEMO / "config.json", folder / "config.json")
    spec = read_spec(read_json_object(folder / "config.json"))
    check_tensors(open_checkpoint(folder), spec.tensor_shapes(), is_tied=spec.is_tied)

CASES["a million tensors"] = (single(1_000_000), attempt)
CASES["as many as are read"] = (single(270_000), attempt)
CASES["300,000 names"] = (index, attempt)
CASES["50,000 shards"] = (shards, attempt)
"""


@pytest.mark.trust("T-IN-09")
def test_a_million_tensors(tmp_path: Path, cases: Cases) -> None:
    """A header of 64 MB is not read; the longest that is takes seconds, not minutes."""
    found = run_cases(tmp_path, MANY)
    check_refused(found, seconds=10.0, grown_mb=500.0)
    by_name = {outcome.name: outcome for outcome in found}
    million = by_name["a million tensors"]
    assert "more than 16,000,000" in million.text
    assert million.seconds < 1.0 and million.grown_mb < 50.0, million
    assert "270," in by_name["as many as are read"].text  # so many were read, and do not fit
    cases(len(found))


JSON_FILES = r"""
def put(name, content):
    def make(folder):
        folder_of(folder)
        if isinstance(content, int):
            sparse(folder / name, b"{", content)
        else:
            (folder / name).write_bytes(content)
    return make

def config(folder):
    read_spec(read_json_object(folder / "config.json"))

def generation(folder):
    generation_facts(folder, read_json_object(folder / "config.json"), 1_024)

def tokenizer(folder):
    output = folder / "package"
    output.mkdir()
    write_tokenizer_files(folder, output, vocab_size=1_024, for_openvino=False)

def index(folder):
    list_tensors(folder)

READERS = {
    "config.json": config, "generation_config.json": generation, "tokenizer.json": tokenizer,
    "tokenizer_config.json": tokenizer, "special_tokens_map.json": tokenizer,
    "added_tokens.json": tokenizer, "model.safetensors.index.json": index,
}
NUMBERS = {
    "config.json": b'{"hidden_size": %s}', "generation_config.json": b'{"top_k": %s}',
    "tokenizer.json": b'{"model": {"type": "BPE", "vocab": {"a": %s}, "merges": []}}',
    "model.safetensors.index.json": b'{"weight_map": {"a": %s}}',
}
for name, read in READERS.items():
    path = DEMO / name
    sound = path.read_bytes() if path.exists() else b'{"weight_map": {"a": "a.safetensors"}}'
    contents = {
        "nested lists": b"[" * 200_000, "nested objects": b'{"a":' * 200_000,
        "closed nests": b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "UTF-16": sound.decode().encode("utf-16"), "UTF-32": sound.decode().encode("utf-32"),
        "more behind": sound + b"}", "twice": sound * 2, "cut": sound[:-2], "empty": b"",
        "zeros": b"\0" * 5_000, "gzip": b"\x1f\x8b\x08\0" + b"\0" * 50, "null": b"null",
        "a number": b"7", "a list": b"[]", "a gigabyte": 1_000_000_000,
    }
    if name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        contents |= {
            "BOM": b"\xef\xbb\xbf" + sound, "NaN": b'{"a": NaN}', "1e400": b'{"a": 1e400}',
            "a key twice": b'{"a": 1, "a": 2}',
        }
    if name in NUMBERS:
        digits = {"10**400": b"1" + b"0" * 400, "10**5000": b"9" * 5_001, "1e999": b"1e999"}
        contents |= {word: NUMBERS[name].replace(b"%s", text) for word, text in digits.items()}
    for word, content in contents.items():
        CASES[f"{name}: {word}"] = (put(name, content), read)
for name in ("chat_template.jinja", "chat_template.json"):
    CASES[f"{name}: a gigabyte"] = (put(name, 1_000_000_000), tokenizer)

tokenizer(folder_of(root / "loaded"))  # what is imported for it is not its memory
"""


@pytest.mark.trust("T-IN-10")
def test_json_that_is_none_or_too_much(tmp_path: Path, cases: Cases) -> None:
    found = run_cases(tmp_path, JSON_FILES)
    assert len(found) > 120
    check_refused(found, seconds=5.0, grown_mb=150.0)
    cases(len(found))
