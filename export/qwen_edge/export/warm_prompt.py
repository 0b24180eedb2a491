"""The system prompt that a package brings along, computed once instead of at every start.

A person gives a text file. Its tokens are those that all conversations with that system message
begin with; what the model keeps of them is written as a snapshot per format, with the settings
that the package has for the CPU. Read `runtime/snapshots/warm_prompt.py` for how it is used.
"""

from collections.abc import Sequence
from pathlib import Path

from qwen_edge.errors import UsageError, format_bytes
from qwen_edge.export.front_end import Progress
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.devices.opening import open_backend
from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, FormatName, Manifest, OnnxFacts
from qwen_edge.runtime.package import hash_file
from qwen_edge.runtime.parking import count_common
from qwen_edge.runtime.snapshots import bind_package, save_snapshot
from qwen_edge.runtime.snapshots.warm_prompt import (
    MAX_WARM_PROMPT_BYTES,
    WARM_PROMPT_FILES,
    WARM_PROMPT_TEXT,
)
from qwen_edge.runtime.text_tokenizer import check_encodable

_CPU = "CPU"
_STEP = "compute the warm prompt"
# First messages that have nothing in common: what all their prompts begin with is the system
# message's. A tokenizer may join the template's line end with one that a message begins with.
_FIRST_MESSAGES = ("A", "7", "\n\n", " b", "\u00e9", "(")
_MIN_ANSWER_TOKENS = 256  # what must be left of the context for a conversation to make sense


def read_warm_prompt(path: Path) -> str:
    """Return the text of a file to be shipped as a system prompt.

    Args:
        path: UTF-8; a byte order mark is left out, all else is the prompt.

    Raises:
        UsageError: There is no such file, it is empty, no text, or too long.
    """
    try:
        if path.stat().st_size > MAX_WARM_PROMPT_BYTES:
            raise UsageError(
                f"The warm prompt {str(path)!r} has {format_bytes(path.stat().st_size)}; the "
                f"limit is {format_bytes(MAX_WARM_PROMPT_BYTES)}.",
                "give a shorter text",
                field="warm_prompt",
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise UsageError(
            f"The warm prompt {str(path)!r} cannot be read: {exc.strerror or exc}.",
            "give the path of a text file: --warm-prompt FILE",
            field="warm_prompt",
        ) from exc
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"The warm prompt {str(path)!r} is no UTF-8 text: byte {exc.start:,} is not.",
            "save the file as UTF-8",
            field="warm_prompt",
        ) from exc
    check_encodable(text)
    if not text.strip():
        raise UsageError(
            f"The warm prompt {str(path)!r} is empty.",
            "write the system message into it, or leave --warm-prompt away",
            field="warm_prompt",
        )
    return text


def check_has_cpu(
    formats: Sequence[FormatName], devices: Sequence[DeviceSettings], onnx: OnnxFacts | None
) -> None:
    """Refuse a package for which no warm prompt can be computed here.

    Args:
        formats: Those of the package.
        devices: Its settings for OpenVINO's devices.
        onnx: Its settings for ONNX Runtime.

    Raises:
        UsageError: It has no settings for the CPU.
    """
    if onnx is not None or any(entry.device == _CPU for entry in devices):
        return
    names = ", ".join(entry.device for entry in devices)
    raise UsageError(
        f"A warm prompt is computed on the CPU, and the profile has settings for {names} only "
        f"(format {' and '.join(formats)}).",
        "choose a profile with a CPU, or leave --warm-prompt away",
        field="warm_prompt",
    )


def find_common_ids(
    template: ChatTemplate, text: str, *, max_context_tokens: int
) -> tuple[int, ...]:
    """Return the ids that all conversations with a system message begin with.

    Args:
        template: The package's.
        text: The system message.
        max_context_tokens: What the prompt has to leave room in.

    Raises:
        UsageError: The template leaves system messages out, or the text is too long.
    """
    prompts = []
    for first in _FIRST_MESSAGES:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": first}]
        prompts.append(template.encode(messages))
    num_common = min(count_common(prompts[0], other) for other in prompts[1:])
    without = template.encode([{"role": "user", "content": _FIRST_MESSAGES[0]}])
    if num_common <= count_common(prompts[0], without):
        raise UsageError(
            "The chat template of this model leaves system messages out of the prompt.",
            "leave --warm-prompt away",
            field="warm_prompt",
        )
    limit = max_context_tokens - _MIN_ANSWER_TOKENS
    if num_common > limit:
        raise UsageError(
            f"The warm prompt has {num_common:,} tokens; of a context of {max_context_tokens:,} "
            f"it may take {max(limit, 0):,}.",
            f"shorten it by {num_common - limit:,} tokens, or give more context with "
            "--max-context-tokens",
            field="warm_prompt",
        )
    return tuple(prompts[0][:num_common])


def write_warm_prompt(
    folder: Path, manifest: Manifest, text: str, token_ids: Sequence[int], report: Progress
) -> dict[str, FileFacts]:
    """Compute a system prompt in every format that has a CPU, and write what is kept of it.

    Args:
        folder: Holds the package as `manifest` describes it, with its manifest.
        manifest: Of the package without a warm prompt.
        text: The system message.
        token_ids: What `find_common_ids` returned.
        report: Told about each format.

    Returns:
        The files written, to be added to the manifest's.

    Raises:
        EdgeError: The engine cannot run the package, or the disk is full.
    """
    formats = [
        name
        for name in manifest.formats
        if name == "onnx" or any(entry.device == _CPU for entry in manifest.devices)
    ]
    names = []
    for done, fmt in enumerate(formats):
        report(_STEP, done, len(formats))
        opened = open_backend(folder, manifest, backend=fmt, device=_CPU)
        try:
            opened.backend.forward(token_ids)
            cache = opened.backend.snapshot()
        finally:
            opened.backend.close()
        binding = bind_package(manifest, fmt, opened.choice.value)
        # Kept out of the folder until all are computed: what is not listed would be refused.
        names.append((WARM_PROMPT_FILES[fmt], cache, binding))
    report(_STEP, len(formats), len(formats))
    messages = {"messages": [{"role": "system", "content": text}]}
    for name, cache, binding in names:
        save_snapshot(folder / name, cache, binding=binding, conversation=messages)
    write_text(folder / WARM_PROMPT_TEXT, text)
    written = [WARM_PROMPT_TEXT, *(name for name, _, _ in names)]
    return {name: hash_file(folder / name) for name in written}
