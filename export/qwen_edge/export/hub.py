"""A model repository on a hub: which files it has at one commit, in one request.

Owns which files an export takes, and the reading of a hub's answer. It does not know
how bytes travel (`transfer.py`) nor where they are kept (`hub_cache.py`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from qwen_edge.errors import CheckpointError, SourceError, UsageError
from qwen_edge.export.integrity import SourceFile
from qwen_edge.export.source_card import SourceCard, card_from_metadata
from qwen_edge.export.transfer import TransferLimits, read_json
from qwen_edge.runtime.licence_names import is_licence_text

# What an export reads. Never pickles (.bin, .pt) and never code (.py).
_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",
)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_ID = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,94}[A-Za-z0-9_]"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,200}")


@dataclass(frozen=True)
class HubRepository:
    """One commit of a model repository: which files it has, and what its card says.

    Attributes:
        id: `org/name` as it was asked for; the name in the cache too.
        canonical_id: `org/name` as the hub spells it now.
        revision: What was asked for: a branch, a tag or a commit.
        commit: The commit it stands for, 40 hexadecimal digits.
        files: The files that an export needs, by name.
        card: Licence and ancestry.
        is_gated: Terms must be accepted on the model's page.
        is_complete: The files are the hub's own list, not what happens to be cached.
    """

    id: str
    canonical_id: str
    revision: str
    commit: str
    files: tuple[SourceFile, ...]
    card: SourceCard
    is_gated: bool = False
    is_complete: bool = True


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, which can never mean anything else."""
    return _COMMIT.fullmatch(revision) is not None


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 in hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def select_files(names: Iterable[str]) -> list[str]:
    """Return the names that an export needs, sorted.

    Args:
        names: All names of a repository or folder. Names with a folder are left out.

    Returns:
        Plain names. Where weights have the usual names (`model.safetensors`,
        `model-00001-of-00003.safetensors`), other safetensors files, which repeat
        the weights in another form, are left out.
    """
    wanted = sorted(
        name
        for name in names
        if _PLAIN_NAME.fullmatch(name)
        and (is_licence_text(name) or any(fnmatchcase(name, p) for p in _WANTED))
    )
    if not any(_WEIGHTS.fullmatch(name) for name in wanted):
        return wanted
    return [name for name in wanted if ".safetensors" not in name or _WEIGHTS.fullmatch(name)]


def check_has_weights(names: Iterable[str], where: str) -> None:
    """Refuse a place without `config.json` or without safetensors weights.

    Args:
        names: All file names that are there.
        where: How the place is called in the message.

    Raises:
        CheckpointError: One of the two is missing; names what is there.
    """
    present = sorted(names)
    shown = ", ".join(present[:12]) + (f" and {len(present) - 12:,} more" if present[12:] else "")
    found = f" Found: {shown}." if present else " It is empty."
    if "config.json" not in present:
        raise CheckpointError(
            f"{where} is not a checkpoint: 'config.json' is missing.{found}",
            "give the folder or hub id that holds config.json and *.safetensors",
            missing="config.json",
            present=present,
        )
    if any(name.endswith(".safetensors") for name in present):
        return
    fix = "give a checkpoint with *.safetensors files"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in present):
        fix = (
            "convert the weights to safetensors first, for example with "
            "`model.save_pretrained(folder, safe_serialization=True)`: pickled weights can run "
            "code when they are read, so they are never opened here"
        )
    elif any(name.endswith(".gguf") for name in present):
        fix = "give the original checkpoint: GGUF files are quantised already"
    raise CheckpointError(
        f"{where} has no weights in the safetensors format.{found}",
        fix,
        missing="*.safetensors",
        present=present,
    )


def list_repository(repo_id: str, *, revision: str, limits: TransferLimits) -> HubRepository:
    """Ask the hub which commit a revision is, and which files it has. One request.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag or commit.
        limits: Patience of the request.

    Raises:
        SourceError: No connection, a refusal, or an answer that makes no sense.
        CheckpointError: The repository has no config or no safetensors weights.

    State:
        Writes nothing.
    """
    from huggingface_hub import constants

    check_revision(revision)
    url = (
        f"{constants.ENDPOINT}/api/models/{repo_id}/revision/{quote(revision, safe='')}?blobs=true"
    )
    try:
        answer = read_json(url, headers=hub_headers(), limits=limits)
    except SourceError as exc:
        problem = f"{exc.problem} Asked for {repo_id!r}, revision {revision!r}."
        raise SourceError(problem, exc.fix, **exc.facts, model=repo_id) from exc
    return _parse_listing(repo_id, revision, answer)


def check_revision(revision: str) -> None:
    """Refuse a revision that cannot be a branch, a tag or a commit (UsageError)."""
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise UsageError(
            f"{revision!r} cannot be a revision; expected a branch, a tag or a commit hash.",
            "leave --revision out to take 'main'",
            revision=revision,
        )


def hub_headers() -> dict[str, str]:
    """Return the headers of a request: who asks, and the token if one is stored.

    The library's own headers would add the versions of other packages, and in 1.33 ask
    the hub which coding agents there are; neither is needed to fetch a file.
    """
    from huggingface_hub import __version__, constants, get_token

    headers = {"User-Agent": f"qwen-edge; hf_hub/{__version__}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _parse_listing(repo_id: str, revision: str, answer: Mapping[str, Any]) -> HubRepository:
    commit = answer.get("sha")
    if not isinstance(commit, str) or not is_commit(commit):
        raise _senseless(
            repo_id, f"'sha' is {commit!r}; expected a commit of 40 hexadecimal digits"
        )
    if is_commit(revision) and commit != revision:
        raise _senseless(repo_id, f"asked for the commit {revision}, got {commit}")
    siblings = answer.get("siblings")
    if not isinstance(siblings, list):
        raise _senseless(repo_id, "'siblings', the list of files, is missing")
    entries = {
        str(entry["rfilename"]): entry
        for entry in siblings
        if isinstance(entry, dict) and "rfilename" in entry
    }
    check_has_weights(entries, f"{repo_id!r} at commit {commit[:12]}")
    files = tuple(_parse_file(repo_id, name, entries[name]) for name in select_files(entries))
    card = answer.get("cardData")
    return HubRepository(
        id=repo_id,
        canonical_id=_canonical(repo_id, answer.get("id")),
        revision=revision,
        commit=commit,
        files=files,
        card=card_from_metadata(card if isinstance(card, dict) else {}),
        is_gated=bool(answer.get("gated")),
    )


def _parse_file(repo_id: str, name: str, entry: Mapping[str, Any]) -> SourceFile:
    lfs = entry.get("lfs")
    large = lfs if isinstance(lfs, dict) else {}
    size = large.get("size", entry.get("size"))
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _senseless(repo_id, f"the size of {name!r} is {size!r}; expected a count of bytes")
    sha256, oid = large.get("sha256"), entry.get("blobId")
    if isinstance(sha256, str) and is_sha256(sha256):
        return SourceFile(name, size, sha256=sha256)
    return SourceFile(name, size, git_oid=oid if isinstance(oid, str) and is_commit(oid) else None)


def _canonical(repo_id: str, answered: object) -> str:
    """Return the hub's own spelling of an id, or its new name after a renaming."""
    is_id = isinstance(answered, str) and REPO_ID.fullmatch(answered) is not None
    return str(answered) if is_id else repo_id


def _senseless(repo_id: str, detail: str) -> SourceError:
    return SourceError(
        f"The hub's answer about {repo_id!r} makes no sense: {detail}.",
        "check HF_ENDPOINT; a mirror may be out of order",
        model=repo_id,
    )
