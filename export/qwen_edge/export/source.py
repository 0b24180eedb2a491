"""Where a checkpoint comes from: the embedded demo model, a local folder, or a hub.

Two steps. `resolve_source` says what a name stands for: files, sizes, licence, commit;
it writes nothing, so that a plan can be shown before gigabytes travel. `fetch_source`
then makes all of it local and checked. It does not read what is in the files; see
`checkpoint.py`. Hubs are in `hub.py` and `hub_cache.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edge.errors import CheckpointError, SourceError, UsageError, did_you_mean
from qwen_edge.export.hub import (
    REPO_ID,
    HubRepository,
    check_has_weights,
    is_commit,
    list_repository,
    select_files,
)
from qwen_edge.export.hub_cache import (
    Progress,
    fetch_repository,
    find_cached,
    missing_files,
    snapshot_folder,
)
from qwen_edge.export.integrity import SourceFile
from qwen_edge.export.source_card import UNKNOWN_LICENSE, SourceCard, read_card
from qwen_edge.export.transfer import TransferLimits

SourceKind = Literal["hub", "folder", "embedded"]

DEMO_NAME = "demo"
# Only for suggestions: ids that people mean when they write a part of one.
_FAMILIAR_IDS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-4B-Thinking-2507",
    "Qwen/Qwen3-8B",
)
_MAX_SHOWN = 200  # longer than any hub id
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:")
_HUB_ADDRESS = re.compile(r"(?:https?://[^/]+/|hf://)(?:models/)?([^/?#]+/[^/?#@]+)")


@dataclass(frozen=True)
class ResolvedSource:
    """What a model name stands for, before anything is fetched.

    Attributes:
        kind: "hub", "folder" or "embedded".
        id: `org/name`, the folder's own name without its path, or "demo".
        revision: The hub's commit, 40 hexadecimal digits; None for other kinds.
        folder: Where the files are, or will be after `fetch_source`.
        card: Licence and ancestry as stated.
        files: The files that an export needs.
        download_bytes: How much of them is not on this machine yet.
        notices: What a person should be told: sentences.
        repository: The hub's listing, for `fetch_source`; None for other kinds.
        is_offline: Nothing may be fetched.
        cache_dir: The hub's cache folder, or None for the usual one.
    """

    kind: SourceKind
    id: str
    revision: str | None
    folder: Path
    card: SourceCard
    files: tuple[SourceFile, ...]
    download_bytes: int = 0
    notices: tuple[str, ...] = ()
    repository: HubRepository | None = None
    is_offline: bool = False
    cache_dir: Path | None = None

    @property
    def total_bytes(self) -> int:
        """The length of all files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class FetchedSource:
    """A checkpoint that is on this machine, complete and, from a hub, checked.

    Attributes:
        kind: "hub", "folder" or "embedded".
        id: `org/name`, the folder's own name without its path, or "demo".
        revision: The hub's commit; None for other kinds.
        folder: Where the files are. Read only: it belongs to the user or the cache.
        license: The card's identifier word for word, or "unknown".
        license_name: The licence's own name beside the identifier "other", or None.
        license_link: Where the text is, or None.
        base_model: What this model was made from, or None.
        files: By name; the SHA-256 is None where the source gives none.
    """

    kind: SourceKind
    id: str
    revision: str | None
    folder: Path
    license: str
    license_name: str | None
    license_link: str | None
    base_model: str | None
    files: Mapping[str, SourceFile]


def resolve_source(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    cache_dir: Path | None = None,
    limits: TransferLimits | None = None,
) -> ResolvedSource:
    """Find out what a model name stands for: at most one request, nothing written.

    Args:
        model: "demo", a folder, or a hub id `org/name`. An existing folder wins.
        revision: For a hub: branch, tag or commit; None is "main".
        offline: Never connect; take what the cache holds. HF_HUB_OFFLINE means the same.
        cache_dir: The hub's cache folder; None is the usual one (HF_HOME, HF_HUB_CACHE).
        limits: Patience with the network; None is the default.

    Returns:
        The files with sizes, the commit, the licence, and how much is to be fetched.

    Raises:
        UsageError: The name is neither a folder nor a hub id.
        CheckpointError: The place has no config.json or no safetensors weights.
        SourceError: The hub cannot be reached or refuses, or nothing is cached offline.
    """
    folder = _path_of(model)
    if model == DEMO_NAME:
        _check_no_revision(revision, "The embedded model 'demo'")
        return _resolve_folder(Path(__file__).parent / "demo", "embedded", DEMO_NAME)
    if folder is not None and folder.is_dir():
        _check_no_revision(revision, f"The local folder {model!r}")
        return _resolve_folder(folder, "folder", folder.resolve().name)
    _check_hub_id(model, folder)
    return _resolve_hub(
        model, revision or "main", offline=offline, cache_dir=cache_dir, limits=limits
    )


def fetch_source(
    source: ResolvedSource,
    *,
    progress: Progress | None = None,
    limits: TransferLimits | None = None,
) -> FetchedSource:
    """Make a resolved source local: fetch what is missing, check what came from a hub.

    Args:
        source: What `resolve_source` returned.
        progress: Called with (bytes done, bytes to fetch, label), often.
        limits: Patience with the network; None is the default.

    Raises:
        SourceError: A file cannot be fetched, or is not what the hub says it is.
        ResourceError: The disk is too small.

    State:
        Writes to the hub's cache only. After an interruption, Ctrl-C included, the
        unfinished file is kept and continued by the next call.
    """
    folder = source.folder
    if source.repository is not None:
        folder = fetch_repository(
            source.repository,
            cache_dir=source.cache_dir,
            is_offline=source.is_offline,
            limits=limits or TransferLimits(),
            progress=progress or _ignore_progress,
        )
    return FetchedSource(
        kind=source.kind,
        id=source.id,
        revision=source.revision,
        folder=folder,
        license=source.card.license,
        license_name=source.card.license_name,
        license_link=source.card.license_link,
        base_model=source.card.base_model,
        files={file.name: file for file in source.files},
    )


def _resolve_folder(folder: Path, kind: SourceKind, source_id: str) -> ResolvedSource:
    where = f"The folder {str(folder)!r}" if kind == "folder" else "The embedded model"
    names = []
    for entry in folder.iterdir():
        if entry.is_file():
            names.append(entry.name)
        elif select_files([entry.name]):
            # A pipe or a device would block or never end; a dangling link or a folder is nothing.
            raise CheckpointError(
                f"{entry.name!r} in {str(folder)!r} is not a regular file.",
                "replace it by the file itself",
                file=entry.name,
            )
    check_has_weights(names, where)
    files = tuple(SourceFile(n, (folder / n).stat().st_size) for n in select_files(names))
    card = read_card(folder)
    return ResolvedSource(
        kind, source_id, None, folder, card, files, notices=_license_notices(card)
    )


def _resolve_hub(
    repo_id: str,
    revision: str,
    *,
    offline: bool,
    cache_dir: Path | None,
    limits: TransferLimits | None,
) -> ResolvedSource:
    from huggingface_hub import constants

    offline = offline or constants.is_offline_mode()
    cached = find_cached(repo_id, revision=revision, cache_dir=cache_dir)
    if offline:
        if cached is None:
            raise SourceError(
                f"Offline, and the cache holds nothing of {repo_id!r} at revision {revision!r}.",
                "run once without --offline and without HF_HUB_OFFLINE, or give a local folder",
                model=repo_id,
                revision=revision,
            )
        check_has_weights([file.name for file in cached.files], f"The cached copy of {repo_id!r}")
        return _resolved(cached, cache_dir, is_offline=True)
    if cached is not None and cached.is_complete and is_commit(revision):
        # A commit never changes: with all of it here there is nothing to ask.
        here = _resolved(cached, cache_dir, is_offline=False)
        if here.download_bytes == 0:
            return here
    try:
        repository = list_repository(repo_id, revision=revision, limits=limits or TransferLimits())
    except SourceError as exc:
        if cached is None or "status" in exc.facts:
            raise
        raise SourceError(
            f"{exc.problem} The cache holds commit {cached.commit[:12]} of it.",
            "add --offline to use the cached copy, or check the network, the proxy and HF_ENDPOINT",
            **exc.facts,
        ) from exc
    return _resolved(repository, cache_dir, is_offline=False)


def _resolved(
    repository: HubRepository, cache_dir: Path | None, *, is_offline: bool
) -> ResolvedSource:
    missing = missing_files(repository, cache_dir)
    notices = list(_license_notices(repository.card))
    if is_offline and not is_commit(repository.revision):
        notices.append(
            f"Offline: {repository.revision!r} is taken to be commit {repository.commit[:12]}, "
            "as it was when it was fetched."
        )
    if repository.is_gated and missing:
        notices.append("The model is gated: its terms must be accepted on its page first.")
    return ResolvedSource(
        kind="hub",
        id=repository.canonical_id,
        revision=repository.commit,
        folder=snapshot_folder(repository, cache_dir),
        card=repository.card,
        files=repository.files,
        download_bytes=sum(file.size_bytes for file in missing),
        notices=tuple(notices),
        repository=repository,
        is_offline=is_offline,
        cache_dir=cache_dir,
    )


def _license_notices(card: SourceCard) -> tuple[str, ...]:
    if card.license != UNKNOWN_LICENSE:
        return ()
    return ("The licence of the checkpoint is unknown: its card states none.",)


def _check_no_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise UsageError(
            f"{what} has no revisions, but {revision!r} was asked for.",
            "leave --revision out, or give a hub id",
            revision=revision,
        )


def _path_of(model: str) -> Path | None:
    """Return the path that a model name may mean; None where no system could have such one."""
    try:
        folder = Path(model).expanduser()
        folder.exists()
    except (OSError, ValueError, RuntimeError):
        return None
    return folder if model else None


def _check_hub_id(model: str, folder: Path | None) -> None:
    """Refuse what is neither a folder nor of the form `org/name`, with the likely meaning."""
    model = model if len(model) <= _MAX_SHOWN else f"{model[:_MAX_SHOWN]}…"
    address = _HUB_ADDRESS.match(model)
    if address is not None:
        raise UsageError(
            f"{model!r} is an address; expected a hub id or a folder.",
            f"write {address.group(1)!r}",
        )
    if folder is not None and folder.exists():
        raise UsageError(
            f"{model!r} is not a folder.",
            "give the folder that holds config.json and *.safetensors",
        )
    if REPO_ID.fullmatch(model) and "--" not in model and ".." not in model:
        return
    inner = model.replace("\\", "/").removeprefix("./").strip("/")
    is_path = model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1
    if is_path or model.endswith("/") or _WINDOWS_DRIVE.match(model):
        meant = f" Did you mean the hub id {inner!r}?" if REPO_ID.fullmatch(inner) else ""
        raise UsageError(
            f"There is no folder {model!r}.{meant}",
            "check the path, or give a hub id such as 'Qwen/Qwen3-4B'",
            model=model,
        )
    raise UsageError(
        f"{model!r} is neither a folder nor a hub id of the form 'org/name'.{_suggestion(model)}",
        "give a folder, a hub id such as 'Qwen/Qwen3-4B', or 'demo'",
        model=model,
    )


def _suggestion(model: str) -> str:
    """Return "Did you mean …" for a name without its organisation, or a typing error."""
    by_name = {hub_id.split("/")[1].lower(): hub_id for hub_id in _FAMILIAR_IDS}
    exact = by_name.get(model.lower())
    if exact is not None:
        return f" Did you mean {exact!r}?"
    return did_you_mean(model, (*_FAMILIAR_IDS, *by_name, DEMO_NAME))


def _ignore_progress(done_bytes: int, total_bytes: int, label: str) -> None:
    """Take no notice of progress."""
