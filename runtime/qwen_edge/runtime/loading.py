"""From a package folder to a model that answers: check, choose engine and device, warm up.

The steps and their order are here; each is a module of its own: `package.py` and `verified.py`
check, `devices/opening.py` chooses and opens. Read `model.py` for what comes out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Literal, TypedDict, Unpack, get_args

from qwen_edge.errors import PackageError, UsageError, did_you_mean
from qwen_edge.profiles.choose import AUTO
from qwen_edge.runtime.backends.failover import FailoverBackend
from qwen_edge.runtime.backends.warming import WarmingBackend
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.batch_opening import OpenedBatch, open_batch_backend
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.decoding.draft_estimates import CALL_SIZES
from qwen_edge.runtime.decoding.draft_model import check_same_vocabulary
from qwen_edge.runtime.devices.opening import BackendName, choose_formats
from qwen_edge.runtime.devices.routing import Placement, open_devices
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.limits import read_path
from qwen_edge.runtime.manifest import CHAT_TEMPLATE, TOKENIZER_JSON, Manifest
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import (
    Progress,
    check_report,
    check_sizes,
    read_manifest,
    verify_package,
)
from qwen_edge.runtime.snapshots.warm_prompt import find_warm_prompt
from qwen_edge.runtime.text_tokenizer import TextTokenizer
from qwen_edge.runtime.verified import check_verified

# What a base model has in place of a chat template: sessions refuse, `generate` works.
_NO_TEMPLATE = (
    "{{ raise_exception('this is a base model without a chat template; give token ids to "
    "`model.generate`') }}"
)

Verify = Literal["first", "always", "sizes"]
"""When to hash the files: once per package and machine, at every load, or never."""


def load(
    path: Path | str,
    *,
    device: str = AUTO,
    backend: str = AUTO,
    threads: int | None = None,
    verify: str = "first",
    warm_up: bool = True,
    draft: Path | str | None = None,
    lookup: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Open a model package and make it ready to answer.

    Args:
        path: The package folder.
        device: "auto" tries the devices in the package's order, also later: see
            docs/devices.md. "CPU", "GPU" or "NPU" is tried alone and never exchanged for another.
            The name of an execution provider, such as "DmlExecutionProvider", asks for it and
            for the package's ONNX model.
        backend: "openvino" runs the package's IR, "onnx" its ONNX model, and neither falls back
            to the other. "auto" takes the first of the package's formats that can run here: one
            whose engine is not installed, does not have the device or is refused by it is
            passed over. So a device that is named may be served by either engine.
        threads: CPU threads; None for the engine's choice.
        verify: "first" hashes all files at the first load on this machine and compares sizes
            and times later; "always" hashes at every load; "sizes" never does.
        warm_up: Run the first, slow inference in the background at once; the first question
            waits for what is left of it.
        draft: Folder of a smaller package of the same vocabulary that guesses ahead. It is opened
            with the options above, and closed with the model.
        lookup: Whether to guess ahead from what the text said before. The model still chooses
            every token.
        progress: Called with the number of bytes hashed since the last call.

    Returns:
        A model; close it, or use it in a `with` statement. `backend_name` says which engine
        runs it, `device_choice` where and why, `refusals` why not elsewhere.

    Raises:
        UsageError: An option is not one of those above, the package does not hold what is asked
            for, or the draft has another vocabulary.
        MissingExtraError: The engine is not installed.
        PackageError: The folder is no package, or not as it was sealed.
        DeviceError: No device, or not the one asked for, can run it.
        ResourceError: Memory cannot suffice.
    """
    check_load_options(backend, threads, verify)
    folder = read_path(path)
    manifest = read_manifest(folder)
    choose_formats(folder, manifest, backend=backend, device=device)  # refuses before hashing
    check_package(folder, manifest, verify=verify, progress=progress)
    # What is small is read first: its faults need not wait for a compilation.
    tokenizer, template = _read_texts(folder, manifest)
    where: _Where = {"backend": backend, "device": device, "threads": threads}
    guesser = None if draft is None else _load_draft(draft, tokenizer, verify=verify, **where)
    with _closed_on_failure(guesser):
        devices = open_devices(folder, manifest, **where)
        parts = (folder, devices, tokenizer, template, manifest)
        return _make_model(*parts, warm_up=warm_up, lookup=lookup, draft=guesser)


def load_batch(
    path: Path | str,
    *,
    device: str = AUTO,
    backend: str = AUTO,
    threads: int | None = None,
    verify: str = "first",
    cache_bytes: int | None = None,
    options: BatchOptions | None = None,
    warm_up: bool = True,
    reuses_answers: bool = False,
    progress: Progress | None = None,
) -> BatchModel:
    """Open a model package to answer many requests at a time.

    Args:
        path: The package folder.
        device: As for `load`. On the CPU with OpenVINO requests share steps and prefixes;
            elsewhere they take turns, which gains nothing.
        backend: As for `load`.
        threads: As for `load`.
        verify: As for `load`.
        cache_bytes: Most memory for what all requests hold, taken as needed; None for 2 GB, or
            what is available where that is less.
        options: How steps are shared.
        warm_up: As for `load`.
        reuses_answers: Whether a prompt may go on from what an earlier answer left, as the next
            turn of a conversation does. Its tokens are then those of a session, and not bit for
            bit those of the same prompt computed whole.
        progress: As for `load`.

    Raises:
        EdgeError: As `load`.
    """
    check_load_options(backend, threads, verify)
    folder = read_path(path)
    manifest = read_manifest(folder)
    choose_formats(folder, manifest, backend=backend, device=device)  # refuses before hashing
    check_package(folder, manifest, verify=verify, progress=progress)
    tokenizer, template = _read_texts(folder, manifest)
    where: _Where = {"backend": backend, "device": device, "threads": threads}
    opened = open_batch_backend(
        folder, manifest, cache_bytes=cache_bytes, reuses_answers=reuses_answers, **where
    )
    model = _make_batch_model(opened, tokenizer, template, manifest, options)
    if warm_up:
        Thread(target=model.batcher.warm_up, name="qwen-edge-warm-up", daemon=False).start()
    return model


def _make_batch_model(
    opened: OpenedBatch,
    tokenizer: TextTokenizer,
    template: str,
    manifest: Manifest,
    options: BatchOptions | None,
) -> BatchModel:
    """Put the parts together; closes the backend where that goes wrong."""
    try:
        return BatchModel(
            opened.backend,
            tokenizer,
            template,
            manifest,
            options=options,
            backend_name=opened.name,
            device_choice=opened.choice,
        )
    except BaseException:
        opened.backend.close()
        raise


def _read_texts(folder: Path, manifest: Manifest) -> tuple[TextTokenizer, str]:
    """Return a package's tokenizer and the text of its chat template."""
    tokenizer = TextTokenizer.load(open_inside(folder, TOKENIZER_JSON))
    _check_vocabulary(tokenizer, manifest)
    has_template = CHAT_TEMPLATE in manifest.files
    return tokenizer, _read_text(folder, CHAT_TEMPLATE) if has_template else _NO_TEMPLATE


class _Where(TypedDict):
    """Which engine and device, as the caller asked for it."""

    backend: str
    device: str
    threads: int | None


def _load_draft(
    path: Path | str, tokenizer: TextTokenizer, *, verify: str, **where: Unpack[_Where]
) -> Model:
    """Open the package that guesses ahead; refuse one that means other tokens."""
    folder = read_path(path, "draft")
    read_manifest(folder)
    other = TextTokenizer.load(open_inside(folder, TOKENIZER_JSON))
    check_same_vocabulary(tokenizer, other, folder.name)
    return load(folder, verify=verify, **where)


@contextmanager
def _closed_on_failure(model: Model | None) -> Iterator[None]:
    """Close a model when what it was opened for fails."""
    try:
        yield
    except BaseException:
        if model is not None:
            model.close()
        raise


def check_load_options(backend: str, threads: int | None, verify: str) -> None:
    """Refuse options that no package could be loaded with.

    Raises:
        UsageError: Naming the option, its value and what it may be.
    """
    for name, value, known in (
        ("backend", backend, get_args(BackendName)),
        ("verify", verify, get_args(Verify)),
    ):
        if value not in known:
            hint = did_you_mean(value, known)
            fix = f"use one of: {', '.join(known)}"
            raise UsageError(f"{name} is {value!r}.{hint}", fix, option=name, value=value)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UsageError(
            f"threads is {threads!r}; expected 1 or more, or None for the engine's own choice.",
            "leave it out, or give the number of performance cores.",
            option="threads",
            value=threads,
        )


def check_package(
    folder: Path, manifest: Manifest, *, verify: str, progress: Progress | None = None
) -> None:
    """Check the files of a package as thoroughly as asked.

    Raises:
        PackageError: Files are missing, changed or not listed.

    State:
        With "first", a passed check is remembered in the user's cache folder.
    """
    if verify == "always":
        check_report(verify_package(folder, progress))
    elif verify == "first":
        cache_dir = read_environment().cache_dir
        check_verified(folder, manifest, cache_dir=cache_dir, progress=progress)
    check_sizes(folder, manifest)


def _make_model(
    folder: Path,
    devices: FailoverBackend[Placement],
    tokenizer: TextTokenizer,
    template: str,
    manifest: Manifest,
    *,
    warm_up: bool,
    lookup: bool,
    draft: Model | None,
) -> Model:
    """Put the parts together and begin to warm up; closes the backend where that goes wrong."""
    sizes = CALL_SIZES if lookup or draft is not None else ()
    where = devices.where
    warming = WarmingBackend(devices, call_sizes=sizes) if warm_up else None
    try:
        model = Model(
            warming or devices,
            tokenizer,
            template,
            manifest,
            wait_until_warm=warming.wait_until_warm if warming else None,
            uses_lookup=lookup,
            draft=draft,
            devices=devices,
        )
        _use_warm_prompt(model, folder, manifest, where)
        return model
    except BaseException:
        (warming or devices).close()
        raise


def _use_warm_prompt(model: Model, folder: Path, manifest: Manifest, where: Placement) -> None:
    """Let conversations begin with the system prompt whose cache the package brings along."""
    warm = find_warm_prompt(
        folder,
        manifest,
        where.name,
        binding=where.binding,
        max_tokens=where.choice.value.max_context_tokens,
    )
    if warm is None:
        return
    model.warm_prompt = warm.text
    if warm.token_ids:
        model.prefix_cache.pin(warm.token_ids, warm.read)


def _check_vocabulary(tokenizer: TextTokenizer, manifest: Manifest) -> None:
    """Refuse a tokenizer whose ids the model has no rows for."""
    if tokenizer.vocab_size > manifest.model.vocab_size:
        raise PackageError(
            f"{TOKENIZER_JSON!r} has {tokenizer.vocab_size:,} tokens, but the model knows "
            f"{manifest.model.vocab_size:,}.",
            "export the package again from a checkpoint whose tokenizer is its own.",
            tokenizer_tokens=tokenizer.vocab_size,
            vocab_size=manifest.model.vocab_size,
        )


def _read_text(folder: Path, name: str) -> str:
    path = open_inside(folder, name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(
            f"{str(path)!r} cannot be read as text: {error}.",
            "check the package with `qwen-edge verify`, or export it again.",
            path=str(path),
        ) from error
