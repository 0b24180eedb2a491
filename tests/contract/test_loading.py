"""Loading a package: what is wrong with it is said before, during and after compilation."""

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.loading import load
from qwen_edge.runtime.package import read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
Seal = Callable[..., None]


def test_model_answers_as_its_table_says(package: Path) -> None:
    with load(package) as model:
        assert list(model.generate([5, 6], max_new_tokens=3)) == [7, 8, 9]
        assert model.max_context_tokens == 256
        assert isinstance(model.device_choice, Choice)
        assert model.device_choice.value.device == "CPU"
        assert "first in order of preference" in model.device_choice.reason


@pytest.mark.trust("T-EMB-09")
def test_closed_model_releases_its_files(package: Path) -> None:
    """On Windows a mapped file can be neither deleted nor replaced."""
    model = load(package, warm_up=False)
    list(model.generate([1], max_new_tokens=1))
    model.close()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(package / "openvino_model.bin") not in maps.read_text(encoding="utf-8")
    (package / "openvino_model.bin").unlink()
    with pytest.raises(UsageError, match="closed"):
        list(model.generate([1]))


@pytest.mark.trust("T-PKG-04")
def test_first_load_hashes_and_the_second_does_not(package: Path, cache_dir: Path) -> None:
    hashed: list[int] = []
    load(package, progress=hashed.append).close()
    assert sum(hashed) == sum(f.size_bytes for f in read_manifest(package).files.values())
    assert len(list((cache_dir / "verified").iterdir())) == 1
    hashed.clear()
    load(package, progress=hashed.append).close()
    assert hashed == []
    load(package, verify="always", progress=hashed.append).close()
    assert hashed


def change_a_byte(path: Path) -> None:
    facts = path.stat()
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))


def test_changed_byte_is_found_at_the_next_load(package: Path) -> None:
    """OpenVINO loads such a file without a word."""
    load(package).close()
    change_a_byte(package / "openvino_model.bin")
    with pytest.raises(PackageError, match=r"'openvino_model\.bin' has other contents"):
        load(package)
    load(package, verify="sizes").close()


@pytest.mark.trust("T-PKG-05")
@pytest.mark.parametrize("verify", ["first", "always", "sizes"])
def test_truncated_weights_are_refused_however_little_is_checked(
    package: Path, verify: str
) -> None:
    path = package / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(PackageError, match=r"'openvino_model\.bin' is cut off at"):
        load(package, verify=verify)


@pytest.mark.trust("T-PKG-05")
def test_truncation_between_check_and_mapping_never_kills_the_process(package: Path) -> None:
    """A mapped file that shrinks is a bus error, rc -7: sizes are looked at right before.

    On a file system without leases; with them the writer would have to wait, see
    `test_mapped_files.py`.
    """
    program = """
import sys
from pathlib import Path
from qwen_edge.errors import PackageError
from qwen_edge.runtime import loading
from qwen_edge.runtime.backends import mapped_files
from qwen_edge.runtime.devices import openvino_opening
mapped_files._take_lease = lambda path: None
weights = Path(sys.argv[1]) / "openvino_model.bin"
real_probe = openvino_opening.probe_devices
def truncate_and_probe():
    with weights.open("r+b") as stream:
        stream.truncate(100)
    return real_probe()
openvino_opening.probe_devices = truncate_and_probe
try:
    loading.load(sys.argv[1])
except PackageError as error:
    print(error.problem)
"""
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(package)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": roots, "PYTHONUTF8": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'openvino_model.bin' is cut off at 100 bytes" in done.stdout


@pytest.mark.trust("T-PKG-05")
def test_package_changed_while_it_is_compiled_is_refused(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_compile = compile_model

    def compile_and_touch(*args: Any) -> Any:
        compiled = real_compile(*args)
        os.utime(package / "openvino_model.bin")
        return compiled

    monkeypatch.setattr(
        "qwen_edge.runtime.devices.openvino_opening.compile_model", compile_and_touch
    )
    with pytest.raises(PackageError, match="was changed while it was being loaded"):
        load(package)


@pytest.mark.trust("T-PKG-06")
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<?xml version='1.0'?>\n<html></html>",
        b"\x08\x07\x12\x04onnx",
        b"<?xml version='1.0'?>\n<!DOCTYPE net [<!ENTITY a 'b'>]>\n<net name='x'></net>",
        b"<?xml version='1.0'?>\n<net name='x' version='11'><layers>",
        b"<?xml version='1.0'?>\n<net name='x' version='11'></net>",
    ],
    ids=["empty", "html", "onnx", "entity", "cut", "hollow"],
)
def test_ir_that_is_none_is_named(
    package: Path, text: bytes, capfd: pytest.CaptureFixture[str], seal: Seal
) -> None:
    """Readers of other formats are not tried on it: they print, and can be made to crash."""
    (package / "openvino_model.xml").write_bytes(text)
    seal(package)
    with pytest.raises(PackageError, match=r"openvino_model\.xml") as caught:
        load(package)
    assert caught.value.fix
    assert capfd.readouterr().err == ""


@pytest.mark.trust("T-PKG-06")
def test_weights_that_do_not_fit_the_ir_are_refused(package: Path, seal: Seal) -> None:
    path = package / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:100])
    seal(package)
    with pytest.raises(PackageError, match=r"cannot read '.*openvino_model\.xml'"):
        load(package)


@pytest.mark.trust("T-PKG-06")
def test_ir_of_another_kind_of_model_is_refused(
    package: Path, seal: Seal, make_table_model: Callable[[int], Any]
) -> None:
    ov = import_openvino()
    model = make_table_model(1000)
    ov.save_model(model, package / "openvino_model.xml")
    seal(package)
    with pytest.raises(
        PackageError, match=r"logits have shape \[\?,\?,1000\], expected \[\?,\?,1024\]"
    ):
        load(package)


@pytest.mark.trust("T-TOK-05")
def test_tokenizer_with_more_tokens_than_the_model_is_refused(package: Path, seal: Seal) -> None:
    """The engine would read past its table for the surplus ids."""
    seal(package)
    manifest = read_manifest(package)
    smaller = dataclasses.replace(manifest.model, vocab_size=1003)
    write_manifest(package, dataclasses.replace(manifest, model=smaller))
    with pytest.raises(PackageError, match=r"has 1,024 tokens, but the model knows 1,003"):
        load(package)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_broken_text_files_are_named(package: Path, name: str, seal: Seal) -> None:
    (package / name).write_bytes(b"\xff{% if %}")
    seal(package)
    with pytest.raises(PackageError, match=name.replace(".", r"\.")):
        load(package)


def test_broken_template_releases_the_engine(package: Path, seal: Seal) -> None:
    (package / "chat_template.jinja").write_bytes(b"{% if %}")
    seal(package)
    with pytest.raises(PackageError):
        load(package)


def test_base_model_without_a_template_generates_but_does_not_chat(
    package: Path, seal: Seal
) -> None:
    (package / "chat_template.jinja").unlink()
    seal(package)
    with load(package, warm_up=False) as model:
        assert list(model.generate([5], max_new_tokens=1)) == [6]
        with pytest.raises(UsageError, match="base model without a chat template"):
            model.session().ask("Hello")


def test_missing_folder_and_bad_manifest(tmp_path: Path, package: Path) -> None:
    with pytest.raises(PackageError, match="There is no folder"):
        load(tmp_path / "none")
    (package / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(PackageError, match="is not JSON"):
        load(package)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "opnvino"}, r"backend is 'opnvino'\. Did you mean 'openvino'\?"),
        ({"verify": "never"}, "verify is 'never'"),
        ({"threads": 0}, "threads is 0; expected 1 or more"),
        ({"threads": 1.5}, r"threads is 1\.5; expected 1 or more"),
        ({"device": "TPU"}, "Unknown device 'TPU'"),
    ],
    ids=["backend", "verify", "threads", "half a thread", "device"],
)
def test_impossible_option_is_named(package: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        load(package, **options)


def test_threads_reach_the_engine(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real_compile = compile_model

    def remember(model: Any, device: str, properties: dict[str, Any]) -> Any:
        seen.update(properties)
        return real_compile(model, device, properties)

    monkeypatch.setattr("qwen_edge.runtime.devices.openvino_opening.compile_model", remember)
    load(package, threads=1).close()
    assert seen == {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def test_warm_up_runs_in_the_background_and_is_waited_for(
    package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with load(package) as model:
        model.wait_until_warm()
        assert "Warmed up in" in caplog.text
        assert list(model.generate([1], max_new_tokens=2)) == [2, 3]
    caplog.clear()
    with load(package, warm_up=False) as model:
        assert list(model.generate([1], max_new_tokens=2)) == [2, 3]
    assert "Warmed up" not in caplog.text
