"""Each danger has one door: nothing else binds, reads bodies, compares keys or opens CORS."""

import re
from pathlib import Path

import pytest

import qwen_edge.server

FOLDER = Path(qwen_edge.server.__file__).parent
DOORS = {
    r"\.bind\(|\.listen\(|create_server|uvicorn\.(run|Config|Server)\b": "listening.py",
    r"await \w*receive\(\)|[rR]equest\.(json|body|form|stream)\(": "request_body.py",
    r"compare_digest": "access.py",
    r"access-control-allow|CORSMiddleware": "http_guard.py",
}


@pytest.mark.parametrize(("pattern", "door"), DOORS.items(), ids=DOORS.values())
def test_there_is_one_door(pattern: str, door: str) -> None:
    files = sorted(FOLDER.rglob("*.py"))
    found = {file.name for file in files if re.search(pattern, file.read_text(encoding="utf-8"))}
    assert found == {door}


def test_no_program_may_ask_for_everybodys_pages_or_for_credentials() -> None:
    for file in FOLDER.rglob("*.py"):
        text = file.read_text(encoding="utf-8").lower()
        assert "allow-credentials" not in text, file
        assert not re.search(r"allow-origin.{0,20}[\"']\*", text), file
