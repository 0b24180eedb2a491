"""Model repositories in the cache of `huggingface_hub`: look up, fetch, check.

Owns the layout of the cache and the check of every file that arrives. What a repository
has is in `hub.py`; how bytes travel is in `transfer.py`.

The cache is the usual one (HF_HOME, HF_HUB_CACHE): models that other tools have fetched
are used, and what is fetched here is found by them. Files are laid down as plain files
in `snapshots/<commit>/`, the documented layout where links are not possible, so that
the same happens on every system. Beside it, `.qwen-edge/` keeps the listing of each
commit, the unfinished files, and which files have been hashed.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qwen_edge.errors import ResourceError, SourceError, format_bytes, join_problems
from qwen_edge.export.hub import (
    HubRepository,
    check_revision,
    hub_headers,
    is_commit,
    is_sha256,
    select_files,
)
from qwen_edge.export.hub_records import read_json_file, write_json_file
from qwen_edge.export.integrity import SourceFile, describe_mismatch
from qwen_edge.export.source_card import SourceCard, read_card
from qwen_edge.export.transfer import RemoteFile, TransferLimits, download_file
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.files.replacing import replace_content
from qwen_edge.runtime.files.writing import copy_file, make_folder, remove_file, rename

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Cache:
    """The places of one repository in the cache of `huggingface_hub`."""

    folder: Path

    @classmethod
    def of(cls, repo_id: str, cache_dir: Path | None) -> "_Cache":
        from huggingface_hub import constants

        root = cache_dir if cache_dir is not None else Path(constants.HF_HUB_CACHE)
        return cls(root / f"models--{repo_id.replace('/', '--')}")

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def listing(self, commit: str) -> Path:
        return self.folder / ".qwen-edge" / f"{commit}.json"

    def partial(self, file: SourceFile) -> Path:
        return self.folder / ".qwen-edge" / f"{file.content_id or file.name}.partial"

    @property
    def checked(self) -> Path:
        return self.folder / ".qwen-edge" / "checked.json"


def find_cached(repo_id: str, *, revision: str, cache_dir: Path | None) -> HubRepository | None:
    """Return what the cache knows of a revision, without any network; None if nothing.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit. A branch means the commit it meant when fetched.
        cache_dir: The hub's cache folder, or None for the usual one.
    """
    check_revision(revision)
    cache = _Cache.of(repo_id, cache_dir)
    commit = revision
    if not is_commit(revision):
        ref = inside(cache.folder / "refs", revision)
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""
    if not is_commit(commit):
        return None
    stored = read_json_file(cache.listing(commit))
    if stored is not None:
        try:
            files = tuple(SourceFile(**entry) for entry in stored["files"])
            for file in files:
                inside(cache.snapshot(commit), file.name)
            card = SourceCard(**stored["card"])
            canonical_id = str(stored["canonical_id"])
            return HubRepository(repo_id, canonical_id, revision, commit, files, card)
        except (KeyError, TypeError, ValueError):
            _log.warning("%s is not a listing and is ignored", cache.listing(commit))
    snapshot = cache.snapshot(commit)
    if not snapshot.is_dir():
        return None
    files = tuple(
        _file_of_snapshot(inside(snapshot, name))
        for name in select_files(entry.name for entry in snapshot.iterdir() if entry.is_file())
    )
    card = read_card(snapshot)
    return HubRepository(repo_id, repo_id, revision, commit, files, card, is_complete=False)


def snapshot_folder(repository: HubRepository, cache_dir: Path | None) -> Path:
    """Return the folder in the cache where the files of this commit are or will be."""
    return _Cache.of(repository.id, cache_dir).snapshot(repository.commit)


def missing_files(repository: HubRepository, cache_dir: Path | None) -> list[SourceFile]:
    """Return the files that are not in the cache with the right size. Reads no content."""
    folder = snapshot_folder(repository, cache_dir)
    return [f for f in repository.files if _size_or_none(inside(folder, f.name)) != f.size_bytes]


def fetch_repository(
    repository: HubRepository,
    *,
    cache_dir: Path | None,
    is_offline: bool,
    limits: TransferLimits,
    progress: Progress,
) -> Path:
    """Bring every file of the listing into the cache, checked, and return the folder.

    Args:
        repository: The listing.
        cache_dir: The hub's cache folder, or None for the usual one.
        is_offline: Use what is cached; never connect.
        limits: Patience of the transfers.
        progress: Called with (bytes done, bytes in total, label).

    Returns:
        `snapshots/<commit>` of the cache. It belongs to the cache: read only.

    Raises:
        SourceError: A file is not there offline, cannot be fetched, or is not what
            the hub says it is (it is then removed).
        ResourceError: The disk is too small.

    State:
        After an interruption the unfinished file stays and is continued next time.
    """
    cache = _Cache.of(repository.id, cache_dir)
    job = _Fetch(repository, cache, limits, progress)
    missing = job.check_present()
    if missing and is_offline:
        names = [file.name for file in missing]
        raise SourceError(
            f"Offline, and the cache does not hold all of {repository.id!r} at commit "
            f"{repository.commit[:12]}: {join_problems(names)}.",
            "run once without --offline, or give a local folder",
            missing=names,
        )
    try:
        if missing:
            job.download(missing)
    except OSError as exc:
        raise _disk_error(exc, cache.folder) from exc
    return cache.snapshot(repository.commit)


class _Fetch:
    """One run of `fetch_repository`: checks what is there, downloads what is not."""

    def __init__(
        self,
        repository: HubRepository,
        cache: _Cache,
        limits: TransferLimits,
        progress: Progress,
    ) -> None:
        self._repository = repository
        self._cache = cache
        self._limits = limits
        self._progress = progress
        self._folder = cache.snapshot(repository.commit)
        self._stamps: dict[str, Any] = read_json_file(cache.checked) or {}

    def check_present(self) -> list[SourceFile]:
        """Return the files that are absent or wrong; wrong ones are removed and logged."""
        total = sum(file.size_bytes for file in self._repository.files)
        missing, done = [], 0
        for file in self._repository.files:
            if not self._is_good(file, done, total):
                missing.append(file)
            done += file.size_bytes
        return missing

    def download(self, missing: list[SourceFile]) -> None:
        """Fetch the missing files one after the other, under a lock."""
        # Public by use (transformers, datasets), though not marked as re-exported.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        make_folder(self._cache.checked.parent)
        make_folder(self._folder)
        total = sum(file.size_bytes for file in missing)
        lock = self._cache.checked.with_name("lock")
        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.05))
            except TimeoutError:
                label = "another process is fetching this model; waiting for it"
                _log.warning("%s: %s", self._repository.id, label)
                self._progress(0, total, label)
                stack.enter_context(WeakFileLock(lock))
            self._check_space(missing)
            self._write_listing()
            done = 0
            for file in missing:
                self._obtain(file, done, total)
                done += file.size_bytes
            self._write_ref()

    def _is_good(self, file: SourceFile, done: int, total: int) -> bool:
        path = inside(self._folder, file.name)
        stamp = _stamp(path, file)
        if stamp is None:
            return False
        if self._stamps.get(self._stamp_key(file)) == stamp:
            return True
        self._progress(done, total, f"checking {file.name}")
        mismatch = describe_mismatch(path, file)
        if mismatch is None:
            self._remember(file, stamp)
            return True
        _log.warning("%s in the cache %s; it was removed", file.name, mismatch)
        _remove_from_cache(path, self._cache.folder)
        return False

    def _obtain(self, file: SourceFile, done: int, total: int) -> None:
        """Put one checked file in its place: from another commit, or from the hub."""
        path = inside(self._folder, file.name)
        if path.exists() and self._is_good(file, done, total):
            return
        partial = self._cache.partial(file)
        if not self._adopt(file, partial):
            remote = RemoteFile(file.name, self._url(file), file.size_bytes)

            def report(have: int, label: str) -> None:
                self._progress(done + have, total, label)

            try:
                download_file(
                    remote, partial, headers=hub_headers(), limits=self._limits, report=report
                )
            except SourceError as exc:
                problem = f"{exc.problem} Fetching {self._repository.id!r}."
                raise SourceError(problem, exc.fix, **exc.facts) from exc
            self._check_arrived(file, partial)
        rename(partial, path)
        self._remember(file, _stamp(path, file))

    def _check_arrived(self, file: SourceFile, partial: Path) -> None:
        mismatch = describe_mismatch(partial, file)
        if mismatch is None:
            return
        remove_file(partial)
        raise SourceError(
            f"{file.name!r} of {self._repository.id!r} arrived, but it {mismatch}. It was removed.",
            "run the same command again; if it stays so, check the proxy or mirror in HF_ENDPOINT",
            file=file.name,
            expected=file.content_id,
        )

    def _adopt(self, file: SourceFile, partial: Path) -> bool:
        """Use the same content from another commit of this repository, if it is there.

        A new commit often changes a README only; gigabytes need not travel again.
        """
        if file.content_id is None:
            return False
        candidates = [inside(self._cache.folder / "blobs", file.content_id)]
        candidates += sorted(self._cache.folder.glob(f"snapshots/*/{file.name}"))
        for candidate in candidates:
            if candidate.parent == self._folder or describe_mismatch(candidate, file) is not None:
                continue
            remove_file(partial)
            try:
                os.link(candidate.resolve(), partial)
            except OSError:
                # Some file systems know no hard links.
                copy_file(candidate, partial)
            return True
        return False

    def _check_space(self, missing: list[SourceFile]) -> None:
        needed = sum(
            file.size_bytes - (_size_or_none(self._cache.partial(file)) or 0) for file in missing
        )
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise ResourceError(
                f"Fetching {self._repository.id!r} needs {format_bytes(needed)} more in the cache, "
                f"but its disk has {format_bytes(free)} free.",
                "free space, or set HF_HOME to a folder on a larger disk",
                needed_bytes=needed,
                free_bytes=free,
            )

    def _url(self, file: SourceFile) -> str:
        from huggingface_hub import constants

        repository = self._repository
        return (
            f"{constants.ENDPOINT}/{repository.id}/resolve/{repository.commit}/{quote(file.name)}"
        )

    def _write_listing(self) -> None:
        write_json_file(
            self._cache.listing(self._repository.commit),
            {
                "canonical_id": self._repository.canonical_id,
                "files": [asdict(file) for file in self._repository.files],
                "card": asdict(self._repository.card),
            },
        )

    def _write_ref(self) -> None:
        """Record what a branch or tag stood for, as `huggingface_hub` does."""
        if is_commit(self._repository.revision):
            return
        ref = inside(self._cache.folder / "refs", self._repository.revision)
        make_folder(ref.parent)
        replace_content(ref, self._repository.commit.encode("ascii"))

    def _stamp_key(self, file: SourceFile) -> str:
        return f"{self._repository.commit}/{file.name}"

    def _remember(self, file: SourceFile, stamp: list[object] | None) -> None:
        """Note that this file was hashed, so that the next run looks at its date only."""
        if stamp is None:
            return
        self._stamps[self._stamp_key(file)] = stamp
        try:
            write_json_file(self._cache.checked, self._stamps)
        except OSError as exc:
            _log.info("The check of %s cannot be remembered: %s", file.name, exc)


def _file_of_snapshot(path: Path) -> SourceFile:
    """Describe a file that another tool cached: a link's target is named after its content."""
    name = path.resolve().name
    return SourceFile(
        path.name,
        path.stat().st_size,
        sha256=name if is_sha256(name) else None,
        git_oid=name if is_commit(name) else None,
    )


def _stamp(path: Path, file: SourceFile) -> list[object] | None:
    """Return what changes when a file changes; None if it is absent or of another size."""
    if not path.is_file():
        return None
    status = path.stat()
    if status.st_size != file.size_bytes:
        return None
    return [file.content_id, status.st_size, status.st_mtime_ns]


def _remove_from_cache(path: Path, cache_folder: Path) -> None:
    """Remove a wrong file, and the wrong content behind it when it is a link of the cache."""
    target = path.resolve()
    remove_file(path)
    if target.parent == (cache_folder / "blobs").resolve():
        remove_file(target)


def _disk_error(exc: OSError, folder: Path) -> ResourceError | SourceError:
    where = str(folder)
    if exc.errno == errno.ENOSPC:
        return ResourceError(
            f"The disk of the cache folder {where!r} is full. What has arrived is kept.",
            "free space and run the same command again, or set HF_HOME to a larger disk",
            folder=where,
        )
    problem = f"The cache folder {where!r} cannot be written: {exc.strerror or exc}."
    return SourceError(problem, "set HF_HOME to a folder that you may write", folder=where)


def _size_or_none(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
