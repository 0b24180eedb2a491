"""An IR that contradicts itself or its weights, refused before the engine follows it.

Without this, OpenVINO 2026.4.1 ended the process at a state without a name.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.errors import PackageError
from qwen_edge.runtime.backends import ir_file
from qwen_edge.runtime.backends.ir_file import check_ir

SOUND = """<?xml version="1.0"?>
<net name="decoder" version="11">
  <layers>
    <layer id="0" name="c" type="Const" version="opset1">
      <data element_type="f32" shape="2, 3" offset="8" size="24" />
      <output><port id="0" precision="FP32"><dim>2</dim><dim>3</dim></port></output>
    </layer>
    <layer id="1" name="s" type="ReadValue" version="opset6">
      <data variable_id="past" variable_type="f32" variable_shape="2,3" />
      <input><port id="0"><dim>2</dim></port></input>
      <output><port id="1"><dim>2</dim></port></output>
    </layer>
    <layer id="2" name="i" type="If" version="opset8">
      <input><port id="0" /></input>
      <then_body>
        <layers>
          <layer id="0" type="Const" version="opset1">
            <data element_type="u4" shape="3" offset="0" size="2" />
            <output><port id="0" /></output>
          </layer>
          <layer id="1" type="Result" version="opset1"><input><port id="0" /></input></layer>
        </layers>
        <edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0" /></edges>
      </then_body>
    </layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="1" to-port="0" />
    <edge from-layer="1" from-port="1" to-layer="2" to-port="0" />
  </edges>
</net>
"""
BIN_BYTES = 32
TO_STATE = (
    '<edge from-layer="0" from-port="0" to-layer="1" to-port="0" />\n    <edge from-layer="1"'
)


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], None]:
    """Return the check of a text beside weights of 32 bytes."""

    def run(text: str) -> None:
        path = tmp_path / "model.xml"
        path.write_text(text, encoding="utf-8")
        path.with_suffix(".bin").write_bytes(bytes(BIN_BYTES))
        check_ir(path)

    return run


def test_sound_one_passes(check: Callable[[str], None]) -> None:
    check(SOUND)


def test_that_of_the_export_passes(demo_package: Path) -> None:
    for path in sorted(demo_package.glob("openvino_model.xml")):
        check_ir(path)


@pytest.mark.trust("T-PKG-06", "T-PKG-07")
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("</net>", "", "it is no XML"),
        ('variable_id="past"', "", "names no state"),
        ('variable_id="past"', 'variable_id=""', "names no state"),
        ('offset="8"', 'offset="9"', "up to byte 33 of weights that have 32"),
        ('offset="8"', 'offset="18446744073709551608"', "of weights that have 32"),
        ('offset="8"', 'offset="-8"', "expected a number"),
        ('offset="8" ', "", "expected a number"),
        ('size="24"', 'size="20"', "not those of"),
        ('shape="2, 3"', 'shape="2, 1099511627776"', "not those of"),
        ('shape="2, 3"', 'shape="2, -1"', "expected numbers"),
        ('shape="2, 3"', 'shape="?"', "expected numbers"),
        ('element_type="f32" shape', 'element_type="string" shape', "no decoder has"),
        ('element_type="f32" shape', 'element_type="x" shape', "no decoder has"),
        ('id="1" name="s"', 'id="0" name="s"', "two layers '0'"),
        ('to-layer="2"', 'to-layer="7"', "ends at a port that is not there"),
        ('from-layer="1" from-port="1"', 'from-layer="7" from-port="1"', "begins at a port"),
        ('from-port="1"', 'from-port="5"', "begins at a port that is not there"),
        (TO_STATE, '<edge from-layer="1"', "layer '1' (ReadValue) has an input without an edge"),
        ("<edges>\n    <edge", '<edges><edge from-layer="0" from-port="0" to-layer="2" '
         'to-port="0" /><edge', "two edges end at one input of layer '2'"),
        (TO_STATE, TO_STATE.replace('"0" from-port="0"', '"1" from-port="1"'), "a circle"),
        ('to-layer="1" to-port="0" /></edges>', 'to-layer="9" to-port="0" /></edges>', "not there"),
        ('<port id="0" /></input>\n      <then', '<port id="0" /><port id="0" /></input><then',
         "two ports"),
        ("<layers>", "<net>", "where none belongs"),
        ("<layers>", "<data>" * 60 + "</data>" * 60 + "<layers>", "nested more than 48 deep"),
        ('<net name="decoder"', '<!DOCTYPE net [<!ENTITY a "b">]><net name="&a;"', "document type"),
        ("  <layers>", "  <layer><data /></layer><layers", "it is no XML"),
        ('to-port="0" />', "/>", "lacks 'to-port'"),
        ('type="If"', "", "lacks 'type'"),
        ('from-layer="1"', f'from-layer="{"1" * 5_000}"', "lacks 'from-layer'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(
    check: Callable[[str], None], old: str, new: str, words: str
) -> None:
    assert old in SOUND
    with pytest.raises(PackageError) as caught:
        check(SOUND.replace(old, new, 1))
    assert words in caught.value.problem
    assert "model.xml" in caught.value.problem


@pytest.mark.trust("T-PKG-07")
def test_text_without_end_is_not_read(
    check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ir_file, "MAX_XML_BYTES", 3_000)
    with pytest.raises(PackageError, match=r"more than 3\.0 kB|more than 3"):
        check(SOUND.replace("<layers>", f"<!--{'x' * 3_000}--><layers>"))


@pytest.mark.trust("T-PKG-06")
def test_many_layers_take_time_in_proportion(check: Callable[[str], None]) -> None:
    def chain(num_layers: int) -> str:
        layers = "".join(
            f'<layer id="{i}" type="Sqrt" version="opset1">'
            + ('<input><port id="0" /></input>' if i else "")
            + '<output><port id="1" /></output></layer>'
            for i in range(num_layers)
        )
        edges = "".join(
            f'<edge from-layer="{i}" from-port="1" to-layer="{i + 1}" to-port="0" />'
            for i in range(num_layers - 1)
        )
        return f"<net><layers>{layers}</layers><edges>{edges}</edges></net>"

    def measure(num_layers: int) -> float:
        text, best = chain(num_layers), float("inf")
        for _ in range(3):
            start_s = time.process_time()
            check(text)
            best = min(best, time.process_time() - start_s)
        return best

    assert measure(16_000) < 7 * measure(4_000)  # the square would be 16


def test_one_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"none\.xml' cannot be read"):
        check_ir(tmp_path / "none.xml")
