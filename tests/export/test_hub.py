"""Fetching from a hub over real HTTP: whole, interrupted, refused, lied to, offline."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants

from qwen_edge.errors import CheckpointError, ResourceError, SourceError, UsageError
from qwen_edge.export.hub import select_files
from qwen_edge.export.hub_refusals import asked_wait_s
from qwen_edge.export.source import FetchedSource, ResolvedSource, fetch_source, resolve_source
from qwen_edge.export.transfer import TransferLimits

ROOT = Path(__file__).parents[2]
QUICK = TransferLimits(max_attempts=3, first_wait_s=0.0, max_wait_s=2.0, timeout_s=10.0)
SHARD = bytes(range(256)) * 2048  # 512 kB
FILES = {
    "config.json": b'{"model_type": "qwen3"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}' + b" " * 5000,
    "model.safetensors": SHARD,
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "LICENSE": b"text",
    "modeling_tiny.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80pickle",
    "onnx/model.safetensors": b"another form",
    "consolidated.safetensors": b"the same again",
}
WANTED = {
    "LICENSE",
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
}


def _load_stand_in() -> ModuleType:
    path = ROOT / "tests" / "data" / "hub_stand_in.py"
    spec = importlib.util.spec_from_file_location("hub_stand_in", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while they are made.
    sys.modules["hub_stand_in"] = module
    spec.loader.exec_module(module)
    return module


STAND_IN = _load_stand_in()
Fault = STAND_IN.Fault
COMMIT: str = STAND_IN.COMMIT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, no token, no proxy."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in hub that `huggingface_hub` takes for the real one."""
    with STAND_IN.HubStandIn(dict(FILES)) as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        yield stand_in


@pytest.fixture(scope="module", autouse=True)
def closed_session() -> Iterator[None]:
    """Close the library's HTTP client at the end; making a new one takes 0.1 s."""
    yield
    huggingface_hub.close_session()


@dataclass
class Watch:
    """Keeps what was reported; can interrupt as Ctrl-C would."""

    stop_at_bytes: int | None = None
    reports: list[tuple[int, int, str]] = field(default_factory=list)

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None:
        self.reports.append((done_bytes, total_bytes, label))
        if self.stop_at_bytes is not None and done_bytes >= self.stop_at_bytes:
            raise KeyboardInterrupt


def get(
    model: str = "org/tiny",
    *,
    revision: str | None = None,
    offline: bool = False,
    watch: Callable[[int, int, str], None] | None = None,
    limits: TransferLimits = QUICK,
) -> FetchedSource:
    return fetch_source(resolve(model, revision, offline, limits), progress=watch, limits=limits)


def resolve(
    model: str = "org/tiny",
    revision: str | None = None,
    offline: bool = False,
    limits: TransferLimits = QUICK,
) -> ResolvedSource:
    return resolve_source(model, revision=revision, offline=offline, limits=limits)


def partials(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.partial"))


# --- the whole way


def test_resolve_asks_once_and_writes_nothing(hub: Any, cache: Path) -> None:
    source = resolve()
    assert len(hub.requests) == 1
    assert not cache.exists()
    assert source.kind == "hub"
    assert source.revision == COMMIT
    assert {file.name for file in source.files} == WANTED
    assert source.total_bytes == sum(len(FILES[name]) for name in WANTED)
    assert source.download_bytes == source.total_bytes
    assert source.card.license == "apache-2.0"
    by_name = {file.name: file for file in source.files}
    assert by_name["model.safetensors"].sha256 == hashlib.sha256(SHARD).hexdigest()
    assert by_name["config.json"].git_oid is not None


def test_fetch_brings_exactly_the_wanted_files(hub: Any, cache: Path) -> None:
    watch = Watch()
    fetched = get(watch=watch)
    assert fetched.folder == cache / "models--org--tiny" / "snapshots" / COMMIT
    assert {path.name for path in fetched.folder.iterdir()} == WANTED
    assert all((fetched.folder / name).read_bytes() == FILES[name] for name in WANTED)
    assert not any(path.is_symlink() for path in fetched.folder.iterdir())
    assert partials(cache) == []
    assert {r.headers["accept-encoding"] for r in hub.asked("/resolve/")} == {"identity"}
    done = [report[0] for report in watch.reports]
    total = sum(len(FILES[name]) for name in WANTED)
    assert done == sorted(done)
    assert watch.reports[-1][:2] == (total, total)


def test_second_fetch_downloads_nothing(hub: Any) -> None:
    get()
    hub.requests.clear()
    assert resolve().download_bytes == 0
    get()
    assert hub.asked("/resolve/") == []


def test_a_cached_commit_needs_no_network_at_all(hub: Any) -> None:
    get()
    hub.requests.clear()
    assert get(revision=COMMIT).revision == COMMIT
    assert hub.requests == []


@pytest.mark.trust("T-SUP-04")
def test_all_files_are_of_one_commit(hub: Any) -> None:
    """The branch may move during a download; every address names the commit."""
    get(revision="v1")
    assert len(hub.asked("/resolve/")) == len(WANTED)
    assert all(f"/resolve/{COMMIT}/" in request.path for request in hub.asked("/resolve/"))


@pytest.mark.trust("T-SUP-04")
def test_a_branch_that_moves_while_files_come(hub: Any) -> None:
    """Somebody pushes between the listing and the first file, and again before the last."""
    moves = iter(["e" * 40, "f" * 40])

    def move(done_bytes: int, total_bytes: int, label: str) -> None:
        hub.commit = next(moves, hub.commit)

    source = resolve(revision="main")
    hub.commit, hub.earlier = "d" * 40, {COMMIT}
    fetched = fetch_source(source, progress=move, limits=QUICK)
    assert fetched.revision == COMMIT and COMMIT in str(fetched.folder)
    assert hub.commit == "f" * 40
    assert {COMMIT in request.path for request in hub.asked("/resolve/")} == {True}
    assert get(revision="main").revision == "f" * 40


def test_the_library_finds_what_was_fetched(hub: Any, cache: Path) -> None:
    get()
    found = huggingface_hub.try_to_load_from_cache("org/tiny", "config.json", cache_dir=cache)
    assert isinstance(found, str)
    assert Path(found).read_bytes() == FILES["config.json"]
    folder = huggingface_hub.snapshot_download("org/tiny", cache_dir=cache, local_files_only=True)
    assert Path(folder).name == COMMIT
    info = huggingface_hub.scan_cache_dir(cache)
    assert [repo.repo_id for repo in info.repos] == ["org/tiny"]
    assert not info.warnings


def make_library_cache(cache: Path, *, damage: bytes | None = None) -> Path:
    """Lay the cache out as `huggingface_hub` does: blobs named after their content, and links."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    for name in WANTED:
        content = FILES[name]
        blob = hashlib.sha256(content).hexdigest()
        if not name.endswith((".safetensors", "tokenizer.json")):
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if damage is not None and name == "model.safetensors":
            content = damage
        (repository / "blobs" / blob).write_bytes(content)
        try:
            (snapshot / name).symlink_to(Path("..", "..", "blobs", blob))
        except OSError:
            pytest.skip("this system lets only administrators make symbolic links")
    return snapshot


def test_what_the_library_fetched_is_used(hub: Any, cache: Path) -> None:
    snapshot = make_library_cache(cache)
    assert get().folder == snapshot
    assert hub.asked("/resolve/") == []


def test_what_the_library_fetched_is_used_offline(hub: Any, cache: Path) -> None:
    snapshot = make_library_cache(cache)
    fetched = get(offline=True)
    assert (fetched.folder, fetched.license) == (snapshot, "apache-2.0")
    assert fetched.files["model.safetensors"].sha256 == hashlib.sha256(SHARD).hexdigest()
    assert hub.requests == []


@pytest.mark.trust("T-IN-02")
def test_damaged_content_behind_a_link_is_replaced(
    hub: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_library_cache(cache, damage=bytes(len(SHARD)))
    watch = Watch()
    fetched = get(watch=watch)
    assert all(0 <= done <= total > 0 for done, total, _ in watch.reports)
    assert "checking model.safetensors" in {label for _, _, label in watch.reports}
    assert (fetched.folder / "model.safetensors").read_bytes() == SHARD
    assert "has the SHA-256" in caplog.text
    assert len(hub.asked("model.safetensors", "cdn")) == 1


def test_a_new_commit_with_the_same_weights_downloads_only_the_difference(hub: Any) -> None:
    """Most new commits of a model change its README; the gigabytes stay the same."""
    get()
    hub.commit = "f" * 40
    hub.files["README.md"] += b"A new line.\n"
    hub.requests.clear()
    fetched = get()
    assert [Path(request.path).name for request in hub.asked("/resolve/")] == ["README.md"]
    assert (fetched.folder / "model.safetensors").read_bytes() == SHARD


@pytest.mark.trust("T-IN-02")
def test_a_changed_shard_in_the_cache_is_noticed(hub: Any) -> None:
    """A file swapped for another of the same size must not be exported."""
    shard = get().folder / "model.safetensors"
    shard.write_bytes(bytes(len(SHARD)))
    os.utime(shard, ns=(1, 1))
    assert (get().folder / "model.safetensors").read_bytes() == SHARD


# --- interruption and resumption


@pytest.mark.trust("T-SUP-05")
@pytest.mark.parametrize("cut_after", [0, 1, 100_000, len(SHARD) - 1])
def test_a_cut_connection_is_resumed(hub: Any, cut_after: int) -> None:
    hub.faults.append(Fault("cdn:/model", cut_after=cut_after))
    fetched = get()
    assert (fetched.folder / "model.safetensors").read_bytes() == SHARD
    first, second = hub.asked("model.safetensors", "cdn")
    assert first.range is None
    assert second.range == (f"bytes={cut_after}-" if cut_after else None)
    assert first.sent_bytes + second.sent_bytes == len(SHARD)


def test_ctrl_c_keeps_the_part_and_the_next_run_continues(hub: Any, cache: Path) -> None:
    """huggingface_hub 1.33 deletes the unfinished file, so a shard would start again."""
    hub.files["model.safetensors"] = big = SHARD * 8
    with pytest.raises(KeyboardInterrupt):
        get(watch=Watch(stop_at_bytes=2 << 20))
    (partial,) = partials(cache)
    have = partial.stat().st_size
    assert 0 < have < len(big)
    hub.requests.clear()
    fetched = get()
    assert (fetched.folder / "model.safetensors").read_bytes() == big
    (request,) = hub.asked("model.safetensors", "cdn")
    assert request.range == f"bytes={have}-"
    assert request.sent_bytes == len(big) - have


def test_a_server_without_ranges_starts_again(hub: Any) -> None:
    hub.faults += [Fault("cdn:/model", cut_after=1000), Fault("cdn:/model", ignore_range=True)]
    fetched = get()
    assert (fetched.folder / "model.safetensors").read_bytes() == SHARD
    assert hub.asked("model.safetensors", "cdn")[1].range == "bytes=1000-"


def test_a_range_that_was_not_asked_for_is_refused(hub: Any) -> None:
    wrong = Fault(
        "cdn:/model", status=206, headers={"Content-Range": "bytes 5-9/10"}, body=b"12345"
    )
    hub.faults += [Fault("cdn:/model", cut_after=1000), wrong]
    with pytest.raises(SourceError, match="answered with the range 'bytes 5-9/10'"):
        get()


@pytest.mark.trust("T-SUP-05")
def test_a_server_that_always_cuts_is_given_up(hub: Any, cache: Path) -> None:
    hub.faults.append(Fault("cdn:/model", cut_after=1000, times=99))
    with pytest.raises(SourceError, match="in 3 attempts without progress") as caught:
        get()
    assert len(hub.asked("model.safetensors", "cdn")) == QUICK.max_attempts
    assert "3.0 kB of 524.3 kB have arrived and are kept" in caught.value.problem
    assert "goes on where it stopped" in caught.value.fix
    assert [path.stat().st_size for path in partials(cache)] == [3000]


def test_a_large_step_forward_counts_as_progress(hub: Any) -> None:
    """A flaky line that brings megabytes each time must reach the end of a large file."""
    hub.files["model.safetensors"] = SHARD * 16
    hub.faults.append(Fault("cdn:/model", cut_after=(1 << 20) + 7, times=7))
    assert (get().folder / "model.safetensors").stat().st_size == 16 * len(SHARD)


@pytest.mark.trust("T-SUP-05")
def test_a_silent_server_is_asked_again(hub: Any) -> None:
    hub.faults.append(Fault("cdn:/model", stall_s=2.5))
    limits = TransferLimits(max_attempts=3, first_wait_s=0.0, max_wait_s=2.0, timeout_s=1.0)
    watch = Watch()
    assert (get(limits=limits, watch=watch).folder / "model.safetensors").read_bytes() == SHARD
    assert len(hub.asked("model.safetensors", "cdn")) == 2
    assert any("trying again in 0 s" in label for _, _, label in watch.reports)


# --- refusals


@dataclass(frozen=True)
class Refusal:
    name: str
    status: int
    code: str
    problem: str
    fix: str


REFUSALS = [
    Refusal("no-such-model", 401, "RepoNotFound", "has no such model", "spelling of org/name"),
    Refusal("no-such-model-signed-in", 404, "RepoNotFound", "has no such model", "spelling"),
    Refusal("gated", 401, "GatedRepo", "terms must be accepted first", "hf auth login"),
    Refusal("gated-not-approved", 403, "GatedRepo", "terms must be accepted first", "HF_TOKEN"),
    Refusal("forbidden", 403, "", "the token may not read this model", "ask for access"),
    Refusal("no-such-revision", 404, "RevisionNotFound", "not this revision", "a full commit hash"),
    Refusal("odd", 418, "", "HTTP 418", "HF_ENDPOINT"),
]


@pytest.mark.trust("T-SUP-03")
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
@pytest.mark.parametrize("where", ["/api/models/", "/resolve/"])
def test_refusals_say_what_to_do_and_are_not_repeated(
    hub: Any, refusal: Refusal, where: str
) -> None:
    headers = {"X-Error-Code": refusal.code} if refusal.code else {}
    hub.faults.append(Fault(where, status=refusal.status, headers=headers, body=b"{}", times=99))
    with pytest.raises(SourceError) as caught:
        get()
    assert refusal.problem in caught.value.problem
    assert refusal.fix in caught.value.fix
    assert "'org/tiny'" in caught.value.problem
    assert caught.value.exit_code == 5
    assert caught.value.facts["status"] == refusal.status
    assert len(hub.asked(where)) == 1


def test_a_revision_that_does_not_exist(hub: Any) -> None:
    with pytest.raises(SourceError, match="revision 'v9'"):
        resolve(revision="v9")


def test_a_rejected_token(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    hub.faults.append(Fault("/api/", status=401, body=b"{}"))
    with pytest.raises(SourceError, match="does not accept the token") as caught:
        resolve()
    assert "hf_old" not in str(caught.value) + repr(caught.value.facts)


@pytest.mark.trust("T-SUP-05")
def test_the_token_opens_a_private_model_and_goes_nowhere_else(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.needs_token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get()
    assert all(r.headers["authorization"] == "Bearer hf_secret" for r in hub.asked("", "hub"))
    assert len(hub.asked("", "cdn")) == 2
    assert not any("authorization" in r.headers for r in hub.asked("", "cdn"))


def test_no_word_about_this_machine_is_sent(hub: Any) -> None:
    get()
    agents = {request.headers["user-agent"] for request in hub.asked("", "hub")}
    assert agents == {f"qwen-edge; hf_hub/{huggingface_hub.__version__}"}
    assert hub.asked("agent-harnesses") == []


@pytest.mark.trust("T-SUP-05")
@pytest.mark.parametrize("where", ["/api/models/", "cdn:/model"])
def test_a_full_hub_is_asked_again_after_the_wait_it_wants(hub: Any, where: str) -> None:
    hub.faults.append(Fault(where, status=429, headers={"Retry-After": "1"}))
    started = time.perf_counter()
    get()
    assert time.perf_counter() - started >= 1.0
    assert len(hub.asked("/api/models/")) + len(hub.asked("/model.safetensors", "cdn")) == 3


@pytest.mark.trust("T-SUP-05")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(hub: Any, status: int) -> None:
    hub.faults += [Fault("/api/models/", status=status, times=2)]
    hub.faults += [Fault("config.json", status=status, times=2)]
    get()
    assert len(hub.asked("/api/models/")) == 3


@pytest.mark.trust("T-SUP-05")
@pytest.mark.parametrize("where", ["/api/models/", "cdn:/model"])
@pytest.mark.parametrize("status", [429, 503])
def test_lasting_failures_are_given_up(hub: Any, where: str, status: int) -> None:
    hub.faults.append(Fault(where, status=status, times=99))
    with pytest.raises(SourceError, match=f"3 attempts .* HTTP {status}"):
        get()
    assert 99 - hub.faults[0].times == QUICK.max_attempts


def test_a_wait_beyond_the_limit_is_an_error_at_once(hub: Any) -> None:
    """huggingface_hub sleeps for as long as it is told to, without a word."""
    hub.faults.append(Fault("cdn:/model", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SourceError, match=r"asks to wait 3,600 s \(HTTP 429") as caught:
        get()
    assert caught.value.facts == {"wait_s": 3600.0, "max_wait_s": 2.0}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": formatdate(0)}, 0.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
    ],
)
def test_asked_wait(headers: dict[str, str], expected: float | None) -> None:
    assert asked_wait_s(httpx.Response(429, headers=headers)) == expected


# --- lies


@pytest.mark.trust("T-SUP-05", "T-IN-01")
def test_a_length_that_is_not_the_listed_one(hub: Any, cache: Path) -> None:
    hub.listed["config.json"] = {"size": 5000}
    with pytest.raises(SourceError) as caught:
        get()
    assert "should have 5,000 bytes" in caught.value.problem
    assert "sends 23 bytes" in caught.value.problem
    assert caught.value.facts["actual_bytes"] == 23
    assert [path for path in partials(cache) if path.stat().st_size] == []


def test_an_announced_length_that_never_comes(hub: Any) -> None:
    hub.faults.append(Fault("cdn:/model", content_length=len(SHARD), cut_after=0, times=99))
    with pytest.raises(SourceError, match="attempts without progress"):
        get()


def test_an_announced_length_that_is_too_long(hub: Any) -> None:
    hub.faults.append(Fault("cdn:/model", content_length=1 << 40, times=99))
    with pytest.raises(SourceError, match="sends 1,099,511,627,776 bytes"):
        get()


@pytest.mark.trust("T-SUP-05", "T-IN-02")
def test_a_wrong_content_is_removed_and_the_next_run_works(hub: Any, cache: Path) -> None:
    hub.files["model.safetensors"] = wrong = SHARD[:-1] + b"!"
    hub.listed["model.safetensors"] = {
        "lfs": {"sha256": hashlib.sha256(SHARD).hexdigest(), "size": len(SHARD)}
    }
    with pytest.raises(SourceError) as caught:
        get()
    assert "'model.safetensors' of 'org/tiny' arrived" in caught.value.problem
    assert hashlib.sha256(wrong).hexdigest() in caught.value.problem
    assert hashlib.sha256(SHARD).hexdigest() in caught.value.problem
    assert partials(cache) == []
    hub.files["model.safetensors"] = SHARD
    assert (get().folder / "model.safetensors").read_bytes() == SHARD


@pytest.mark.trust("T-SUP-05", "T-IN-02")
def test_a_wrong_small_file_is_found_by_its_git_id(hub: Any) -> None:
    hub.listed["config.json"] = {"blobId": "a" * 40}
    with pytest.raises(SourceError, match=r"has the git object id .* where a{40} is expected"):
        get()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_compressed_answer_is_understood(hub: Any, name: str) -> None:
    hub.faults.append(Fault(name, compress=True))
    assert (get().folder / name).read_bytes() == FILES[name]


@pytest.mark.trust("T-IN-10")
def test_a_compression_bomb_stops_at_the_listed_size(hub: Any, cache: Path) -> None:
    hub.files["model.safetensors"] = bytes(1 << 22)
    hub.listed["model.safetensors"] = {"lfs": {"sha256": "a" * 64, "size": 1000}}
    hub.faults.append(Fault("cdn:/model", compress=True, times=99))
    with pytest.raises(SourceError, match=r"should have 1,000 bytes .* the server sends more"):
        get()
    assert partials(cache) == []


@pytest.mark.trust("T-SUP-05")
@pytest.mark.parametrize("where", ["/api/models/", "config.json"])
def test_a_login_page_instead_of_an_answer(hub: Any, where: str) -> None:
    page = Fault(where, body=b"<html>sign in</html>", headers={"Content-Type": "text/html"})
    hub.faults.append(page)
    with pytest.raises(SourceError) as caught:
        get()
    assert "text/html" in caught.value.problem or "sends 20 bytes" in caught.value.problem


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sha": "main"}, "'sha' is 'main'"),
        ({"siblings": None}, "'siblings', the list of files, is missing"),
        (
            {"siblings": [{"rfilename": "config.json"}, {"rfilename": "model.safetensors"}]},
            "the size of 'config.json' is None",
        ),
        (
            {
                "siblings": [
                    {"rfilename": n, "size": -1} for n in ("config.json", "model.safetensors")
                ]
            },
            "the size of 'config.json' is -1",
        ),
    ],
)
def test_listings_without_sense(hub: Any, change: dict[str, object], expected: str) -> None:
    body = json.dumps(hub.listing("main") | change).encode()
    hub.faults.append(Fault("/api/models/", body=body))
    with pytest.raises(SourceError) as caught:
        resolve()
    assert expected in caught.value.problem


@pytest.mark.parametrize("body", [b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.trust("T-IN-10")
def test_answers_that_are_no_listing(hub: Any, body: bytes) -> None:
    hub.faults.append(Fault("/api/models/", body=body))
    with pytest.raises(SourceError):
        resolve()


@pytest.mark.trust("T-SUP-04")
def test_another_commit_than_the_pinned_one_is_refused(hub: Any) -> None:
    body = json.dumps(hub.listing("main") | {"sha": "e" * 40}).encode()
    hub.faults.append(Fault("/api/models/", body=body))
    with pytest.raises(SourceError, match=f"asked for the commit {COMMIT}, got e+"):
        resolve(revision=COMMIT)


# --- what is taken


@pytest.mark.trust("T-IN-03")
def test_only_plain_names_are_taken() -> None:
    names = [
        "config.json",
        "../model.safetensors",
        "/model.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "a/model.safetensors",
        "model\0.safetensors",
        "-rf.safetensors",
        ".safetensors",
        "x" * 5000 + ".safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "auto_map.py",
    ]
    assert select_files(names) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_weights_with_other_names_are_taken_when_there_are_no_usual_ones() -> None:
    names = [
        "config.json",
        "weights.safetensors",
        "../weights.safetensors",
        "..\\weights.safetensors",
        "C:weights.safetensors",
        "a/weights.safetensors",
        "weights\0.safetensors",
        "-rf.safetensors",
        "x" * 5000 + ".safetensors",
    ]
    assert select_files(names) == ["config.json", "weights.safetensors"]


@pytest.mark.trust("T-IN-15")
def test_pickled_weights_are_refused_before_anything_is_fetched(hub: Any, cache: Path) -> None:
    for name in list(hub.files):
        if name.endswith(".safetensors"):
            del hub.files[name]
    with pytest.raises(CheckpointError, match="no weights in the safetensors format") as caught:
        resolve()
    assert "convert the weights to safetensors" in caught.value.fix
    assert len(hub.requests) == 1
    assert not cache.exists()


@pytest.mark.parametrize("revision", ["../main", "a b", "-x", "a..b", "x" * 300])
def test_odd_revisions_are_refused_before_any_request(hub: Any, revision: str) -> None:
    with pytest.raises(UsageError, match="cannot be a revision"):
        resolve(revision=revision)
    assert hub.requests == []


@pytest.mark.trust("T-SUP-03")
@pytest.mark.parametrize(
    ("card", "license_", "name", "link", "base"),
    [
        ({}, "unknown", None, None, None),
        ({"license": 7}, "unknown", None, None, None),
        (
            {"license": "other", "license_name": "x-research", "license_link": "LICENSE"},
            "other",
            "x-research",
            "LICENSE",
            None,
        ),
        ({"license": "mit", "base_model": ["a/b", "c/d"]}, "mit", None, None, "a/b, c/d"),
    ],
)
def test_the_card_is_carried_word_for_word(
    hub: Any,
    card: dict[str, object],
    license_: str,
    name: str | None,
    link: str | None,
    base: str | None,
) -> None:
    hub.card = card
    source = resolve()
    stated = (source.card.license, source.card.license_name, source.card.license_link)
    assert (*stated, source.card.base_model) == (license_, name, link, base)
    assert bool(source.notices) == (license_ == "unknown")


# --- offline and no network


def test_offline_with_nothing_cached(hub: Any) -> None:
    with pytest.raises(SourceError, match="the cache holds nothing of 'org/tiny'") as caught:
        get(offline=True)
    assert "local folder" in caught.value.fix
    assert hub.requests == []


@pytest.mark.parametrize("by_environment", [False, True])
def test_offline_uses_the_cache(
    hub: Any, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    online = get()
    hub.requests.clear()
    if by_environment:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = resolve(offline=not by_environment)
    assert "taken to be commit 0123456789ab" in source.notices[-1]
    assert fetch_source(source) == online
    assert hub.requests == []


def test_offline_with_a_shard_missing(hub: Any) -> None:
    (get().folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="does not hold all of 'org/tiny'") as caught:
        get(offline=True)
    assert caught.value.facts["missing"] == ["model.safetensors"]


def test_no_network(hub: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"Could not connect to '127\.0\.0\.1'") as caught:
        resolve()
    assert "--offline" in caught.value.fix
    assert "local folder" in caught.value.fix
    assert not cache.exists()


def test_no_network_but_a_cached_copy(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    get()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="The cache holds commit 0123456789ab") as caught:
        resolve()
    assert caught.value.fix.startswith("add --offline")


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://127.0.0.1", "http://127.0.0.1:x"])
def test_an_endpoint_that_is_no_address(
    hub: Any, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(SourceError, match="is not an address") as caught:
        resolve()
    assert "HF_ENDPOINT" in caught.value.fix


@pytest.mark.trust("T-SUP-05")
def test_redirects_without_end(hub: Any) -> None:
    hub.faults.append(Fault("/api/", location="/api/again", times=999))
    with pytest.raises(SourceError, match="went wrong"):
        resolve()


# --- disk and neighbours


@pytest.mark.trust("T-EXP-05")
def test_a_small_disk_is_noticed_before_the_first_byte(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ResourceError, match=r"has 1\.0 kB free") as caught:
        fetch_source(source, limits=QUICK)
    assert caught.value.facts["needed_bytes"] == source.download_bytes
    assert hub.asked("/resolve/") == []


def test_a_cache_that_cannot_be_written(hub: Any, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    with pytest.raises(SourceError, match="cannot be written") as caught:
        get()
    assert "HF_HOME" in caught.value.fix


def test_a_second_process_waits_for_the_first(hub: Any, cache: Path) -> None:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    source = resolve()
    state = cache / "models--org--tiny" / ".qwen-edge"
    state.mkdir(parents=True)
    watch = Watch()
    with WeakFileLock(state / "lock"):
        thread = threading.Thread(target=lambda: fetch_source(source, progress=watch, limits=QUICK))
        thread.start()
        while not any("waiting for it" in label for _, _, label in watch.reports):
            time.sleep(0.01)
        time.sleep(0.2)
        assert hub.asked("/resolve/") == []
    thread.join(timeout=20)
    assert len(hub.asked("/resolve/")) == len(WANTED)


SCRIPT = """
import sys
from qwen_edge.export.source import fetch_source, resolve_source
source = resolve_source("org/tiny")
def progress(done, total, label):
    sys.stderr.write(f"{done} {label}\\n")
print(fetch_source(source, progress=progress).folder)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to one process is a matter of POSIX")
def test_environment_interruption_and_resumption_in_a_fresh_process(
    hub: Any, tmp_path: Path
) -> None:
    """HF_ENDPOINT and HF_HOME are read at import, so they are tested from outside."""
    hub.files["model.safetensors"] = big = SHARD * 8
    hub.faults.append(Fault("cdn:/model", cut_after=3 << 20))
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles")),
    }
    command = [sys.executable, "-c", SCRIPT]
    first = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    for line in first.stderr:
        if "trying again" in line:
            first.send_signal(signal.SIGINT)
            break
    _, errors = first.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    folder = Path(second.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert (folder / "model.safetensors").read_bytes() == big
    assert hub.asked("model.safetensors", "cdn")[-1].range == f"bytes={3 << 20}-"
