"""Quality of a package that was sealed before, beside a checkpoint that somebody names.

The checkpoint is found as an export finds it. It need not be the one that the package was made
from, but it must be a model of the same shape and the same tokens, or nothing can be compared.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from qwen_edge.errors import PackageError, UsageError, join_problems
from qwen_edge.export import package_facts as facts
from qwen_edge.export.adapters.matching import match_adapters
from qwen_edge.export.adapters.opening import open_adapters
from qwen_edge.export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.quality.assessment import Assessment, assess, choose_texts
from qwen_edge.export.quality.gate import Gate
from qwen_edge.export.quality.measure import Progress
from qwen_edge.export.quality.runs import SealedRuns
from qwen_edge.export.source import FetchedSource
from qwen_edge.profiles.choose import AUTO
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.manifest import CHAT_TEMPLATE, MODEL_XML, TOKENIZER_JSON, Manifest
from qwen_edge.runtime.text_tokenizer import TextTokenizer

_VOCABULARY = "vocab.json"
# What says nothing about the numbers: a fine-tune may vouch for more positions.
_FREE_FIELDS = frozenset({"architecture", "max_position_embeddings"})
# Two tokenizers of one vocabulary may still cut texts differently.
_PROBE = "Grüße! def f(x):\n\treturn x**2  # 1,234.5 你好，世界 😀"


@dataclass(frozen=True)
class SealedRequest:
    """How a sealed package is measured.

    Args:
        text: A person's own text; None for the built-in ones, whole.
        device: "auto" for the CPU where the package has settings for it.
        gate: What it has to keep to; None for nothing.
        adapters: What is merged into the checkpoint first, each as "DIR" or "DIR=WEIGHT".
    """

    text: Path | None = None
    device: str = AUTO
    gate: Gate | None = None
    adapters: tuple[str, ...] = ()


def measure_sealed(
    folder: Path,
    manifest: Manifest,
    source: FetchedSource,
    request: SealedRequest,
    *,
    progress: Progress,
) -> Assessment:
    """Compare a sealed package with a checkpoint.

    Args:
        folder: The package, checked.
        manifest: Its manifest.
        source: The checkpoint, on this machine.
        request: Texts, device, gate.
        progress: Told of every step.

    Raises:
        UsageError: The checkpoint is of another shape or has other tokens, the architecture has
            no native graph, or the text cannot be used.
        CheckpointError: The checkpoint is not sound.
        PackageError: The package lacks a file or a tensor.
        ParityError: The package gives no numbers.
        DeviceError: The device that was named cannot run it.
    """
    tokenizer = TextTokenizer.load(open_inside(folder, TOKENIZER_JSON))
    check_same_tokens(tokenizer, source.folder)
    contexts = [entry.max_context_tokens for entry in (*manifest.devices, manifest.onnx) if entry]
    choice = choose_texts(
        tokenizer,
        _read_template(folder, manifest),
        manifest.chat.thinking,
        own=request.text,
        is_short=False,
        max_text_tokens=min(contexts),
    )
    runs = SealedRuns(folder, manifest, device=request.device)
    runs.check_device()
    with _open_reference(folder, source, request.adapters) as (spec, checkpoint):
        return assess(
            spec,
            checkpoint,
            folder,
            choice,
            runs,
            has_openvino=MODEL_XML in manifest.files,
            gate=request.gate,
            progress=progress,
        )


def check_same_shape(package: DecoderSpec, reference: DecoderSpec) -> None:
    """Refuse a reference whose numbers mean something else than the package's.

    Args:
        package: What the package was built from.
        reference: The checkpoint's.

    Raises:
        UsageError: Naming every field that differs.
    """
    problems = [
        f"{entry.name} is {getattr(reference, entry.name)!r} there and "
        f"{getattr(package, entry.name)!r} in the package"
        for entry in fields(DecoderSpec)
        if entry.name not in _FREE_FIELDS
        and getattr(reference, entry.name) != getattr(package, entry.name)
    ]
    if problems:
        raise UsageError(
            f"The reference is another architecture than the package: {join_problems(problems)}.",
            "name the checkpoint that the package was made from, with its --adapter if it had one",
            problems=tuple(problems),
        )


def check_same_tokens(tokenizer: TextTokenizer, folder: Path) -> None:
    """Refuse a reference whose ids mean other tokens than the package's.

    Args:
        tokenizer: The package's.
        folder: The checkpoint, with `tokenizer.json` or `vocab.json`; where it has neither, its
            tokens are taken to be the same.

    Raises:
        UsageError: Naming the first token that differs, or the text that is cut differently.
    """
    own = tokenizer.vocabulary()
    if (folder / TOKENIZER_JSON).is_file():
        other_tokenizer = TextTokenizer.load(folder / TOKENIZER_JSON)
        other = other_tokenizer.vocabulary()
        differing = [
            token for token in own.keys() | other.keys() if own.get(token) != other.get(token)
        ]
        if not differing and tokenizer.encode(_PROBE) != other_tokenizer.encode(_PROBE):
            raise _other_tokens(f"both know the same tokens, but cut {_PROBE!r} differently")
    elif (folder / _VOCABULARY).is_file():
        other = facts.read_json_object(folder / _VOCABULARY)
        differing = [token for token, token_id in other.items() if own.get(token) != token_id]
    else:
        return
    if differing:
        first = min(differing)
        raise _other_tokens(
            f"{len(differing):,} tokens differ; {first!r} has id {other.get(first, 'none')} there "
            f"and {own.get(first, 'none')} in the package"
        )


def _other_tokens(problem: str) -> UsageError:
    return UsageError(
        f"The reference has another vocabulary than the package: {problem}.",
        "name the checkpoint that the package was made from, or a fine-tune with its tokenizer",
    )


@contextmanager
def _open_reference(
    folder: Path, source: FetchedSource, given: Sequence[str]
) -> Iterator[tuple[DecoderSpec, Checkpoint]]:
    """Open the checkpoint; refuse one of another shape than the package's."""
    package = read_spec(_read_config(folder))
    spec = read_spec(facts.read_json_object(source.folder / "config.json"))
    adapted = match_adapters(spec, open_adapters(given))
    check_same_shape(package, adapted.spec)
    checkpoint = open_checkpoint(source.folder)
    try:
        check_tensors(checkpoint, spec.tensor_shapes(), is_tied=spec.is_tied)
        if given:
            checkpoint = adapted.merge_into(checkpoint)
        yield adapted.spec, checkpoint
    finally:
        checkpoint.close()


def _read_config(folder: Path) -> dict[str, object]:
    path = open_inside(folder, "config.json")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(
            f"{str(path)!r} cannot be read as JSON: {error}.",
            "check the package with `qwen-edge verify`, or export it again.",
            path=str(path),
        ) from error
    if not isinstance(content, dict):
        raise PackageError(f"{str(path)!r} holds no object.", "export the package again.")
    return content


def _read_template(folder: Path, manifest: Manifest) -> str | None:
    if CHAT_TEMPLATE not in manifest.files:
        return None
    return open_inside(folder, CHAT_TEMPLATE).read_text(encoding="utf-8")
