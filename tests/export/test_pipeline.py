"""The whole export: every recipe and architecture, loaded again, the same bytes every time."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.runtime
from qwen_edge.errors import CheckpointError, EdgeError, ParityError, ResourceError
from qwen_edge.export import ExportRequest, ExportResult, export
from qwen_edge.runtime.golden import run_golden_tokens
from qwen_edge.runtime.package import read_manifest, verify_package

CheckpointMaker = Callable[..., Path]
ROOT = Path(__file__).parents[2]

EXPORT = """
import datetime, itertools, os, sys, time
from pathlib import Path
source, output, cpus, start = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
os.cpu_count = lambda: cpus
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
if start:  # a clock of another year, which is set back all the time
    steps = itertools.count()
    time.time = lambda: start - 3_600.0 * next(steps)
    time.time_ns = lambda: int(time.time() * 1e9)

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Datetime
    for path in Path(source).iterdir():
        os.utime(path, (start, start))
from qwen_edge.export import ExportRequest, export
export(ExportRequest(source, "generic-x86", output=output, skip_quality=True, format="both"))
"""


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def run(source: Path, output: Path, recipe: str = "int4-awq", **options: Any) -> ExportResult:
    options = {"skip_quality": True} | options
    return export(
        ExportRequest(str(source), "generic-x86", recipe=recipe, output=output, **options)
    )


KINDS: dict[str, tuple[str, str, dict[str, object]]] = {
    "qwen3-tied-int8": ("qwen3", "int8", {}),
    "qwen2-untied-int8": ("qwen2", "int8", {"tie_word_embeddings": False}),
    "llama-tied-fp16": ("llama", "fp16", {}),
    "llama-untied-biases-int4": (
        "llama",
        "int4-awq",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2-tied-int4": ("qwen2", "int4", {}),
}


@pytest.mark.parametrize(("model_type", "recipe", "config"), KINDS.values(), ids=KINDS.keys())
def test_packages_load_and_answer_as_they_were_sealed(
    model_type: str,
    recipe: str,
    config: dict[str, object],
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
) -> None:
    source = make_checkpoint(tmp_path / "source", model_type, **config)
    result = run(source, tmp_path / "package", recipe)
    assert verify_package(result.folder).is_intact
    manifest = read_manifest(result.folder)
    assert manifest == result.manifest
    assert run_golden_tokens(result.folder, manifest) == manifest.golden.token_ids
    assert (manifest.model.model_type, manifest.recipe.name) == (model_type, recipe)
    assert (
        set(manifest.weights.bits)
        == {
            "fp16": {"16"},
            "int8": {"8"},
            "int4": {"4", "8"},
            "int4-awq": {"4", "8"},
        }[recipe]
    )
    with qwen_edge.runtime.load(result.folder, device="CPU", warm_up=False) as model:
        assert len(list(model.generate(manifest.golden.prompt_ids, max_new_tokens=3))) <= 3


def test_an_fp16_package_has_the_checkpoints_logits(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    torch = pytest.importorskip("torch", reason="torch, the reference, is not installed")
    transformers = pytest.importorskip("transformers")
    from qwen_edge.runtime.engine import import_openvino

    source = make_checkpoint(tmp_path / "source")
    folder = run(source, tmp_path / "package", "fp16").folder
    ov = import_openvino()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    compiled = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", exact)
    ids = np.array([[999, 272, 198, 820, 0, 718, 357, 1_023]], np.int64)
    found = compiled(
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.size)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    error = np.abs(found - expected).max()
    assert error < 1e-3 * np.abs(expected).max(), f"|Δlogit| {error:.2e}"
    assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_a_group_that_does_not_divide_is_told_in_manifest_report_and_card(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(
        tmp_path / "source", hidden_size=128, intermediate_size=192, head_dim=32
    )
    result = run(source, tmp_path / "package")
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    facts = result.manifest.weights.group_size_fallbacks
    assert [(f.tensor, f.width, f.group_size) for f in facts] == [(n, 192, 64) for n in names]
    assert [r.name for r in result.reports if r.is_fallback] == names
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`, 192 wide: group 64" in card for name in names)


def test_an_odd_width_still_loads(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    source = make_checkpoint(tmp_path / "source", intermediate_size=33)
    manifest = run(source, tmp_path / "package").manifest
    assert {f.width for f in manifest.weights.group_size_fallbacks} == {33, 64}


@pytest.mark.trust("T-EXP-16")
def test_the_same_bytes_in_one_process(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    source = make_checkpoint(tmp_path / "source", shards=2)
    first = run(source, tmp_path / "a").folder
    second = run(source, tmp_path / "größe 模型").folder
    assert hashes(first) == hashes(second)


@pytest.mark.trust("T-EXP-16", "T-EXP-17")
def test_the_same_bytes_in_fresh_processes(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    """With other languages, clocks, processors, folders for temporary files and orders of sets."""
    source = make_checkpoint(tmp_path / "source")
    settings = [
        ("1", "0", {"LANG": "C", "PYTHONHASHSEED": "1", "TZ": "UTC", "OMP_NUM_THREADS": "1"}),
        ("3", "978307200", {"LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}),
    ]
    found = []
    path = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    for cpus, start, environment in settings:
        output, temporary = tmp_path / f"package-{cpus}", tmp_path / f"tmp-{cpus}"
        temporary.mkdir()
        subprocess.run(
            [sys.executable, "-c", EXPORT, str(source), str(output), cpus, start],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary), **environment},
            check=True,
            timeout=120,
        )
        found.append(hashes(output))
        assert list(temporary.iterdir()) == []
    assert found[0] == found[1]
    assert "model.onnx" in found[0] and "openvino_model.xml" in found[0]


def test_nothing_of_this_machine_is_in_a_package(demo_package: Path) -> None:
    words = (str(demo_package.parent), str(Path.home()), platform.node(), "/site-packages")
    for path in demo_package.iterdir():
        content = path.read_bytes()
        assert not [w for w in words if w.encode() in content and len(w) > 5], path.name


@pytest.mark.trust("T-EXP-19")
def test_a_model_that_gives_nan_is_not_sealed(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    """All weights are finite, and the product of two of them is not."""

    def overflow(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays["model.norm.weight"][:] = 3e38
        arrays["model.layers.1.post_attention_layernorm.weight"][:] = 3e38

    source = make_checkpoint(tmp_path / "source", change=overflow)
    with pytest.raises(ParityError):
        run(source, tmp_path / "package", "fp16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def drop_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_bytes())
    del content["chat_template"]
    path.write_text(json.dumps(content), encoding="utf-8")


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), encoding="utf-8")

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-7])

    return change


BAD: dict[str, tuple[Callable[[Path], None], type[EdgeError], str]] = {
    "no-chat-template": (drop_template, CheckpointError, "no chat template"),
    "no-stop-token": (change_config(eos_token_id=None), CheckpointError, "no answer would end"),
    "cut-weights": (cut("model.safetensors"), CheckpointError, "not a whole safetensors file"),
    "cut-config": (cut("config.json"), CheckpointError, "'config.json' cannot be read"),
    "cut-tokenizer": (cut("tokenizer.json"), CheckpointError, "'tokenizer.json' cannot be read"),
    "another-shape": (change_config(hidden_size=128), CheckpointError, "expected [1024, 128]"),
    "small-vocabulary": (change_config(vocab_size=1_000), CheckpointError, "[1024, 64]"),
}


@pytest.mark.parametrize(("change", "kind", "expected"), BAD.values(), ids=BAD.keys())
@pytest.mark.trust("T-IN-06", "T-IN-14")
def test_bad_checkpoints_leave_nothing(
    change: Callable[[Path], None],
    kind: type[EdgeError],
    expected: str,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
) -> None:
    source = make_checkpoint(tmp_path / "source")
    change(source)
    with pytest.raises(kind) as caught:
        run(source, tmp_path / "package")
    assert expected in caught.value.problem
    assert caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_disk_that_fills_up_while_the_tokenizer_is_written(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own writer names no cause."""

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("qwen_edge.export.text_files.write_tokenizer_files", fail)
    source = make_checkpoint(tmp_path / "source")
    with pytest.raises(ResourceError, match=r"filled up"):
        run(source, tmp_path / "package")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.trust("T-IN-15")
def test_nothing_of_the_source_is_run_or_copied_unasked(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source", auto_map={"AutoConfig": "code.Config"})
    (source / "code.py").write_text(
        f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Config: ...\n", encoding="utf-8"
    )
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (source / "LICENSE").write_text("Mine.\n", encoding="utf-8")
    folder = run(source, tmp_path / "package").folder
    assert not (tmp_path / "canary").exists()
    names = {path.name for path in folder.iterdir()}
    assert "LICENSE" in names
    assert not {"code.py", "pytorch_model.bin"} & names


def test_the_context_asked_for_bounds_every_device(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source")
    manifest = run(source, tmp_path / "package", max_context_tokens=300).manifest
    assert manifest.model.max_context_tokens == 300
    static = [d for d in manifest.devices if d.max_prompt_tokens is not None]
    assert {d.max_context_tokens for d in manifest.devices if d not in static} == {300}
    # A device of fixed shapes shares it out to prompt and answer, in powers of two.
    for entry in static:
        assert (entry.max_prompt_tokens, entry.min_response_tokens) == (128, 128)
        assert entry.max_context_tokens == 256
        assert entry.properties["NPUW_LLM_MAX_PROMPT_LEN"] == 128
        assert entry.properties["NPUW_LLM_PREFILL_CHUNK_SIZE"] == 128


def test_progress_begins_and_ends_every_step(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source")
    seen: dict[str, list[tuple[int, int]]] = {}
    export(
        ExportRequest(str(source), "generic-x86", output=tmp_path / "p", skip_quality=True),
        lambda step, done, total: seen.setdefault(step, []).append((done, total)),
    )
    assert list(seen) == [
        "compress weights",
        "write model",
        "convert tokenizer",
        "try the package",
        "hash source",
        "hash files",
    ]
    for steps in seen.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1]
