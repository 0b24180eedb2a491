"""Names and files of a stranger's checkpoint: nothing outside is opened, nothing waited for."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trust_rows import Cases

import qwen_edge.export
from qwen_edge.errors import CheckpointError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.tensor_files import INDEX_FILE, list_tensors
from qwen_edge.export.tokenizer_files import write_tokenizer_files

ROOT = Path(__file__).parents[2]
DEMO = Path(qwen_edge.export.__file__).parent / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


class Openings:
    """Every path that Python, or the reader of safetensors, was asked to open."""

    def __init__(self) -> None:
        self.is_on = False
        self.paths: list[str] = []
        sys.addaudithook(self._hear)
        self._read = safetensors.safe_open

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]  # or a number, of what is open already; or None, for "."
            self.paths.append("." if path is None or isinstance(path, int) else os.fsdecode(path))

    def _open(self, path: Path, *arguments: Any, **options: Any) -> Any:
        self.paths.append(os.fsdecode(path))
        return self._read(path, *arguments, **options)

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Yield the paths that are opened within."""
        self.paths, self.is_on = [], True
        safetensors.safe_open = self._open
        try:
            yield self.paths
        finally:
            self.is_on = False
            safetensors.safe_open = self._read


@pytest.fixture(scope="module")
def openings() -> Openings:
    """Return what hears every opening; such a hook stays until the process ends."""
    return Openings()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder `model` beside and below others that hold a file of safetensors each."""
    root = tmp_path_factory.mktemp("place")
    for folder in ("", "a", "model", "model/sub", "modelled"):
        (root / folder).mkdir(exist_ok=True)
        shutil.copyfile(DEMO / "model.safetensors", root / folder / "x.safetensors")
    (root / "model" / "x.safetensors").unlink()
    return root


PARTS = st.sampled_from(
    ["..", ".", "", "/", "\\", "a", "sub", "x.safetensors", "modelled", "C:", "\\\\host\\share",
     "%2e%2e", "%2f", "~", "\0", "\n", "․․", "／", "..\u200b", "\ud800", "...", " ", "NUL",
     "file://", "x" * 300, "$HOME", "//", "model.safetensors/", "/etc/passwd", "/dev/zero"]
)  # fmt: skip
NAMES = st.lists(PARTS, max_size=7).map("".join) | st.lists(PARTS, max_size=5).map("/".join)


@pytest.mark.trust("T-IN-03")
def test_no_name_of_an_index_leads_out_of_its_folder(
    place: Path, openings: Openings, cases: Cases
) -> None:
    folder, tried = place / "model", 0

    @settings(max_examples=300)
    @given(name=NAMES | st.text(max_size=40) | st.just("x" * 5_000))
    @example(name="../x.safetensors")
    @example(name="a/../../x.safetensors")
    @example(name=str(place / "x.safetensors"))
    @example(name="sub/x.safetensors")
    @example(name="../model/sub/x.safetensors")
    def check(name: str) -> None:
        nonlocal tried
        tried += 1
        text = json.dumps({"weight_map": {"w": name}})
        (folder / INDEX_FILE).write_text(text, encoding="utf-8")
        with openings.watched() as opened, pytest.raises(CheckpointError) as caught:
            list_tensors(folder)
        assert opened == [str(folder / INDEX_FILE)]
        assert len(caught.value.problem) < 1_000

    check()
    cases(tried)


@pytest.mark.trust("T-IN-03")
def test_what_is_heard_is_what_is_opened(place: Path, openings: Openings) -> None:
    """The test above would be blind otherwise."""
    index, shard = place / INDEX_FILE, place / "x.safetensors"
    names = json.dumps({"weight_map": {"model.norm.weight": shard.name}})
    index.write_text(names, encoding="utf-8")
    with openings.watched() as opened:
        list_tensors(place)
    assert opened == [str(index), str(shard), str(shard)]  # by Python, and by safetensors


def make_tokenizer(root: Path) -> Path:
    """Make a folder with the demo's tokenizer, beside one with another tokenizer; return it."""
    source, other = root / "source", root / "other"
    for folder in (source, other, root / "package"):
        folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(DEMO / name, source / name)
    content = json.loads((source / "tokenizer.json").read_bytes()) | {"normalizer": None}
    (other / "tokenizer.4.0.json").write_text(json.dumps(content), encoding="utf-8")
    return source


def name_in_config(source: Path, **settings: object) -> None:
    path = source / "tokenizer_config.json"
    content = json.loads(path.read_bytes()) | settings
    path.write_text(json.dumps(content), encoding="utf-8")


def name_a_tokenizer(source: Path) -> None:
    name_in_config(source, tokenizer_file=str(source.parent / "other" / "tokenizer.4.0.json"))


def name_versions(source: Path) -> None:
    name_in_config(source, fast_tokenizer_files=["../other/tokenizer.4.0.json"])


def name_in_special_tokens(source: Path) -> None:
    settings = {"tokenizer_file": str(source.parent / "other" / "tokenizer.4.0.json")}
    (source / "special_tokens_map.json").write_text(json.dumps(settings), encoding="utf-8")


def name_everything(source: Path) -> None:
    pipe = str(source.parent / "other" / "pipe")
    os.mkfifo(pipe)
    kinds = ("gguf_file", "vocab_file", "merges_file", "spm_file", "added_tokens_file")
    name_in_config(source, **dict.fromkeys(kinds, pipe), tokenizer_file=pipe, init_inputs=[pipe])


def add_a_template_without_end(source: Path) -> None:
    (source / "additional_chat_templates").mkdir()
    os.mkfifo(source / "additional_chat_templates" / "rag.jinja")


def name_a_pattern_without_end(source: Path) -> None:
    (source / ("a" * 60)).touch()
    name_in_config(source, fast_tokenizer_files=["(a+)+$tokenizer.4.0.json"])


NAMED = [name_a_tokenizer, name_versions, name_in_special_tokens]
ENDLESS = [name_everything, add_a_template_without_end, name_a_pattern_without_end]
TOKENIZE = """
import sys
from pathlib import Path
from qwen_edge.export.tokenizer_files import write_tokenizer_files
for root in map(Path, sys.argv[1:]):
    write_tokenizer_files(root / "source", root / "package", vocab_size=1024)
"""


def run_python(code: str, *arguments: Path | str) -> str:
    """Run Python with the project's sources in a process of its own; it must end well."""
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr[-3_000:]
    return run.stdout


def check_is_the_checkpoints(root: Path) -> None:
    source, package = root / "source", root / "package"
    assert (package / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert not (package / ".tokenizer").exists()


@pytest.mark.trust("T-IN-03")
@pytest.mark.parametrize("name_files", NAMED, ids=lambda change: change.__name__)
def test_settings_of_a_tokenizer_name_no_other_file(
    name_files: Callable[[Path], None], tmp_path: Path
) -> None:
    """transformers took another tokenizer than that of the checkpoint, wherever it lay."""
    source = make_tokenizer(tmp_path)
    name_files(source)
    other = tmp_path / "other" / "tokenizer.4.0.json"
    os.utime(other, (0, other.stat().st_mtime))  # so that reading it is seen, where times are kept
    report = write_tokenizer_files(source, tmp_path / "package", vocab_size=1_024)
    assert report.disagreements == ()  # the other one has no normaliser: rare texts differ
    assert other.stat().st_atime == 0
    check_is_the_checkpoints(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.trust("T-IN-04")
def test_settings_of_a_tokenizer_name_nothing_without_end(tmp_path: Path, cases: Cases) -> None:
    """A pattern in them kept an export busy for ever; in a process that can be ended."""
    roots = [tmp_path / change.__name__ for change in ENDLESS]
    for root, change in zip(roots, ENDLESS, strict=True):
        change(make_tokenizer(root))
    run_python(TOKENIZE, *roots)
    for root in roots:
        check_is_the_checkpoints(root)
    cases(len(roots))


KINDS = """
import json, os, shutil, socket, sys, time
from pathlib import Path
from qwen_edge.errors import CheckpointError
from qwen_edge.export import ExportRequest, export

root = Path(sys.argv[1])

def make_socket(path):
    os.chdir(path.parent)  # its name has a limit of 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)

KINDS = {
    "pipe": os.mkfifo,
    "link to a pipe": lambda path: (os.mkfifo(root / f"p{time.time_ns()}"), path.symlink_to(
        max(root.glob("p[0-9]*")))),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
    "folder": Path.mkdir,
    "link to a folder": lambda path: path.symlink_to("/etc"),
    "loop": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}

def attempt(base, name, kind, *, adapter=None):
    folder = Path(shutil.copytree(base, root / "tried"))
    path = folder / name
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    source, adapters = (adapter, (str(folder),)) if adapter else (folder, ())
    request = ExportRequest(str(source), "generic-x86", output=root / "out", adapters=adapters,
                            skip_quality=True)
    started, refusal = time.monotonic(), "none"
    try:
        export(request)
    except CheckpointError as error:
        refusal = error.problem
    seconds = time.monotonic() - started
    assert not (root / "out").exists(), (name, kind)
    print(json.dumps([name, kind, seconds, refusal]), flush=True)
    os.chdir(root)
    shutil.rmtree(folder)

single, shards, adapter = root / "single", root / "shards", root / "adapter"
for kind in KINDS:
    for name in sys.argv[2].split():
        attempt(single, name, kind)
    for name in ("model.safetensors.index.json", "model-00002-of-00002.safetensors"):
        attempt(shards, name, kind)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        attempt(adapter, name, kind, adapter=single)
"""
FILES = (
    *TOKENIZER_FILES, "model.safetensors", "generation_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt",
    "README.md", "LICENSE", "NOTICE.txt",
)  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.trust("T-IN-04")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, cases: Cases) -> None:
    """In a process of its own, which can be ended where one of them is waited for."""
    for folder in ("single", "shards", "adapter"):
        (tmp_path / folder).mkdir()
    for name in (*TOKENIZER_FILES, "model.safetensors"):
        shutil.copyfile(DEMO / name, tmp_path / "single" / name)
        if name != "model.safetensors":
            shutil.copyfile(DEMO / name, tmp_path / "shards" / name)
    shard = "model-00001-of-00002.safetensors"
    shutil.copyfile(DEMO / "model.safetensors", tmp_path / "shards" / shard)
    for name in (shard, "model-00002-of-00002.safetensors"):
        text = json.dumps({"weight_map": {"a": shard, "b": name}})
        (tmp_path / "shards" / INDEX_FILE).write_text(text, encoding="utf-8")
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(DEMO / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    lines = run_python(KINDS, tmp_path, " ".join(FILES)).splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == 8 * (len(FILES) + 4)
    for name, kind, seconds, refusal in found:
        assert name in refusal, (name, kind, refusal)
        assert "not a regular file" in refusal or "holds no" in refusal, (name, kind, refusal)
        assert seconds < 1.0, (name, kind, seconds)
    cases(len(found))


@pytest.mark.trust("T-IN-15")
def test_neither_code_nor_pickles_of_a_checkpoint_are_opened(
    tmp_path: Path, openings: Openings
) -> None:
    """Each of them would leave a file behind if it were run, or be heard if it were opened."""
    source, canary = tmp_path / "source", tmp_path / "canary"
    source.mkdir()
    for name in (*TOKENIZER_FILES, "model.safetensors"):
        shutil.copyfile(DEMO / name, source / name)
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    code = f"open({str(canary)!r}, 'w')\n" + "".join(f"class {name}: ...\n" for name in classes)
    modules = ("modeling_qwen3.py", "tokenization.py", "configuration.py", "sitecustomize.py",
               "__init__.py", "conftest.py", "torch.py", "setup.py", "tokenizers.py")  # fmt: skip
    for name in modules:
        (source / name).write_text(code, encoding="utf-8")
    pickles = ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "training_args.bin",
               "optimizer.pt", "rng_state.pkl", "model.ckpt")  # fmt: skip
    for name in pickles:
        (source / name).write_bytes(pickle.dumps(Canary(str(canary))))
    auto_map = {name: f"modeling_qwen3.{name}" for name in classes}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((source / name).read_bytes()) | {"auto_map": auto_map}
        (source / name).write_text(json.dumps(content), encoding="utf-8")
    request = ExportRequest(
        str(source), "generic-x86", output=tmp_path / "package", recipe="int8", skip_quality=True
    )
    with openings.watched() as opened:
        folder = export(request).folder
    assert not canary.exists()
    heard = {Path(path).name for path in opened if Path(path).parent == source}
    assert "config.json" in heard
    assert not heard & {*modules, *pickles}
    assert not {path.name for path in folder.iterdir()} & {*modules, *pickles}
    pickle.loads((source / "model.pt").read_bytes()).close()
    assert canary.exists()


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self._path, "w")
