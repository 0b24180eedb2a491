"""Fixtures of the unit tests."""

import lzma
from pathlib import Path

import pytest

from qwen_edge.runtime.text_tokenizer import TextTokenizer

QWEN3_TOKENIZER = Path(__file__).parents[1] / "data" / "qwen3_tokenizer"


@pytest.fixture(scope="session")
def qwen3_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the real `tokenizer.json` of Qwen3, unpacked once per run."""
    path = tmp_path_factory.mktemp("qwen3") / "tokenizer.json"
    path.write_bytes(lzma.decompress((QWEN3_TOKENIZER / "tokenizer.json.xz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def qwen3_tokenizer(qwen3_tokenizer_file: Path) -> TextTokenizer:
    """Return Qwen3's tokenizer; tests must not change it."""
    return TextTokenizer.load(qwen3_tokenizer_file)
