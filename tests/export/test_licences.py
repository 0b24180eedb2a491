"""Licences go from a checkpoint to its package and on to a bundle, word for word, never guessed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from qwen_edge.bundle.licences import describe_model_licence
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.hub import select_files
from qwen_edge.export.licence_files import copy_licence_texts
from qwen_edge.export.source_card import find_contradiction
from qwen_edge.runtime.licence_names import is_licence_text
from qwen_edge.runtime.package import read_manifest, verify_package

pytestmark = pytest.mark.trust("T-SUP-03")
CheckpointMaker = Callable[..., Path]
MIT = "MIT License\n\nCopyright (c) somebody\n"
APACHE = "  Apache License\n  Version 2.0, January 2004\n"
CARD = """---
license: other
license_name: tiny-research-licence-1.1
license_link: https://example.org/licence
base_model: someone/something
---
# A model
"""
TEXTS = {
    "LICENSE": "Mine, ü, and\r\nnobody else's.\n".encode(),
    "LICENSE.rst": b"Also mine.\n",
    "NOTICE": b"Made by me.\n",
    "Notice.txt": "Gr\xfc\xdfe in another code page".encode("latin-1"),
    "USE_POLICY.md": b"# Do no harm\n",
    "COPYING": b"Copy it.\n",
}


def fill(folder: Path, texts: dict[str, bytes]) -> Path:
    """Write files."""
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_licence_of_ones_own_is_carried_word_for_word(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source")
    fill(source, {**TEXTS, "README.md": CARD.encode(), "LICENSE.pdf": b"%PDF\xff"})
    request = ExportRequest(
        str(source), "generic-x86", recipe="int8", output=tmp_path / "package", skip_quality=True
    )
    result = export(request)
    assert verify_package(result.folder).is_intact
    manifest = read_manifest(result.folder)
    stated = manifest.source
    assert (stated.license, stated.license_name) == ("other", "tiny-research-licence-1.1")
    assert stated.license_link == "https://example.org/licence"
    for name, content in TEXTS.items():
        kept = "LICENSE.rst.txt" if name.endswith(".rst") else name
        assert (result.folder / kept).read_bytes() == content and kept in manifest.files
    assert not (result.folder / "LICENSE.pdf").exists()
    [note] = [text for text in result.notes if "LICENSE.pdf" in text]
    assert "give it along yourself" in note
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    found = yaml.safe_load(card.split("---")[1])
    assert found["license"] == "other" and found["license_name"] == "tiny-research-licence-1.1"
    assert found["license_link"] == "https://example.org/licence"
    assert "| licence | other (tiny-research-licence-1.1), https://example.org/licence |" in card
    # And from there into a bundle, with a text of Apache's only where there is no own.
    texts = {t.name: t.content for t in describe_model_licence(manifest, result.folder, b"Apache")}
    told = texts.pop("LICENCE.txt").decode()
    assert "states it: other\nIts name: tiny-research-licence-1.1\n" in told
    assert texts["source/LICENSE"] == TEXTS["LICENSE"] and "Apache-2.0.txt" not in texts
    assert set(texts) == {f"source/{name}" for name in manifest.files if is_licence_text(name)}


def test_unknown_stays_unknown_and_is_said(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source")
    (source / "LICENSE").write_text("A licence nobody has heard of.\n", encoding="utf-8")
    request = ExportRequest(
        str(source), "generic-x86", recipe="int8", output=tmp_path / "package", skip_quality=True
    )
    folder = export(request).folder
    manifest = read_manifest(folder)
    assert (manifest.source.license, manifest.source.license_name) == ("unknown", None)
    assert manifest.source.license_link == "LICENSE"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert "| licence | unknown: its source states none; ask its makers" in card
    [told, own] = describe_model_licence(manifest, folder, b"Apache")
    assert b"does not say under which licence" in told.content and own.name == "source/LICENSE"


@pytest.mark.parametrize(
    ("stated", "text", "is_told"),
    [
        ("mit", APACHE, True),
        ("apache-2.0", MIT, True),
        ("mit", MIT, False),
        ("apache-2.0", APACHE, False),
        ("unknown", MIT, False),
        ("other", MIT, True),
        ("mit", "Something else\n", False),
        ("mit", None, False),
    ],
)
def test_a_card_and_a_text_that_contradict_each_other(
    tmp_path: Path, stated: str, text: str | None, is_told: bool
) -> None:
    """Neither is preferred: the card's word and the text are both carried, and that is said."""
    source, package = tmp_path / "source", tmp_path / "package"
    source.mkdir()
    package.mkdir()
    if text is not None:
        (source / "LICENCE.txt").write_text(text, encoding="utf-8")
    notes = copy_licence_texts(source, package, stated=stated)
    assert bool(notes) is is_told
    assert notes == ((find_contradiction(source, stated),) if is_told else ())
    assert [path.name for path in package.iterdir()] == ([] if text is None else ["LICENCE.txt"])
    if is_told:
        assert f"licence {stated!r}, its 'LICENCE.txt' is " in notes[0]


def test_which_files_are_taken_from_a_hub() -> None:
    names = ["LICENSE", "LICENCE.md", "Notice", "COPYING.LESSER", "use-policy.txt", "TERMS.md"]
    others = ["licensed.py", "notices", "terms_of.safetensors.py.bak/x", "my_LICENSE"]
    assert select_files([*names, *others]) == sorted(names)
