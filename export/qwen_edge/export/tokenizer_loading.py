"""A checkpoint's tokenizer as an object of transformers, from a folder that holds nothing else.

transformers opens what `tokenizer_config.json` names (`tokenizer_file`, `fast_tokenizer_files`,
`gguf_file` and others), wherever that lies, and every file of `additional_chat_templates`. So it
is given a folder of our own: known files, with the settings that say something of tokens and none
that names a file or code. What becomes of the tokenizer is in `tokenizer_files.py`.
"""

import contextlib
import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_edge.errors import CheckpointError, MissingExtraError
from qwen_edge.export.out_of_memory import is_out_of_memory
from qwen_edge.runtime.files.writing import copy_file, make_folder, remove, write_text

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_MAX_CONFIG_BYTES = 32 << 20
# What may be said of a tokenizer beside its tokens. Source: PreTrainedTokenizerBase and
# PreTrainedTokenizerFast, transformers 5.5.
_KEPT_SETTINGS = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "clean_up_tokenization_spaces",
        "do_lower_case",
        "errors",
        "extra_special_tokens",
        "model_input_names",
        "model_max_length",
        "padding_side",
        "spaces_between_special_tokens",
        "split_special_tokens",
        "tokenizer_class",
        "truncation_side",
    }
)


def load_fast(source: Path, scratch: Path) -> Any:
    """Load a tokenizer through transformers.

    The plain fast class takes `tokenizer.json` as it is; the model's own class, which
    `AutoTokenizer` picks, rebuilds parts of it from what it knows of the model, and is
    used only where there is no `tokenizer.json`. Neither runs code of the checkpoint.

    Args:
        source: The checkpoint; what it holds of tokenizers is regular files.
        scratch: A folder to be made for the loading, and removed.

    Raises:
        CheckpointError: The tokenizer is broken, too large, or has no fast form.
        MissingExtraError: transformers is not installed.
    """
    with _quiet_about_torch():
        transformers = import_extra("transformers")
        # Torch, where it is installed, is imported here: 1.5 s of nothing we need.
        has_tokenizer = (source / TOKENIZER).is_file()
        loader = getattr(
            transformers, "PreTrainedTokenizerFast" if has_tokenizer else "AutoTokenizer"
        )
    try:
        _fill(source, scratch)
        with blaming("The tokenizer cannot be loaded"):
            fast = loader.from_pretrained(
                scratch,
                local_files_only=True,
                trust_remote_code=False,
                # Takes `tokenizer.json` at its word. Not said, transformers 5.5 warns of a fault
                # of Mistral's tokenizers for every folder whose config.json names no version.
                fix_mistral_regex=False,
            )
    finally:
        remove(scratch)
    if not getattr(fast, "is_fast", False):
        raise CheckpointError(
            f"The tokenizer is of the kind {type(fast).__name__}, which has no tokenizer.json.",
            f"save it as a fast tokenizer, with {TOKENIZER}, and export again",
        )
    return fast


def _fill(source: Path, scratch: Path) -> None:
    """Write the folder that transformers may see."""
    make_folder(scratch)
    for name in (CONFIG, _SPECIAL_TOKENS, "added_tokens.json"):
        if (source / name).is_file():
            content = read_json_file(source / name)
            if name != "added_tokens.json":
                content = {key: value for key, value in content.items() if _is_kept(key)}
            write_text(scratch / name, json.dumps(content))
    if (source / TOKENIZER).is_file():
        copy_file(source / TOKENIZER, scratch / TOKENIZER)
        return
    for name in ("vocab.json", "merges.txt"):
        check_size(source / name)
        copy_file(source / name, scratch / name)
    if (source / "config.json").is_file():  # from which AutoTokenizer knows the class
        model_type = read_json_file(source / "config.json").get("model_type")
        write_text(scratch / "config.json", json.dumps({"model_type": model_type}))


def _is_kept(key: str) -> bool:
    return key in _KEPT_SETTINGS or key.endswith("_token")


def check_size(path: Path) -> None:
    """Refuse a file that is too large for what it is.

    Args:
        path: One of a tokenizer's small files.

    Raises:
        CheckpointError: It has more than 32 MB.
    """
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path.name!r} has {size_bytes:,} bytes; the limit is {_MAX_CONFIG_BYTES:,}.",
            "check that the file belongs to a tokenizer",
            size_bytes=size_bytes,
        )


def read_json_file(path: Path) -> dict[str, Any]:
    """Read one of a tokenizer's small files.

    Args:
        path: Holds a JSON object.

    Raises:
        CheckpointError: It is too large, not JSON, or something else than an object.
    """
    check_size(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            f"{path.name!r} is not JSON: {exc}.", "fetch or copy the checkpoint again"
        ) from exc
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name!r} holds a {type(content).__name__}; expected an object.",
            "fetch or copy the checkpoint again",
        )
    return content


def import_extra(name: str) -> ModuleType:
    """Import what only an export needs.

    Raises:
        MissingExtraError: It cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise MissingExtraError(
            f"Converting a tokenizer needs {name!r}, which cannot be imported: {exc}.",
            "pip install 'qwen-edge[export]'",
            module=name,
        ) from exc


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn what a tokenizer library raises into a CheckpointError.

    A Rust panic of `tokenizers` arrives as `PanicException`, which is a BaseException.
    """
    try:
        yield
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        if is_out_of_memory(exc):
            raise
        # transformers hides what happened behind a complaint about protobuf, which it lacks.
        shown = exc.__context__ if isinstance(exc, ImportError) and exc.__context__ else exc
        text = (str(shown).strip() or type(shown).__name__).splitlines()[0][:300].rstrip(".")
        raise CheckpointError(
            f"{what}: {text}.",
            "fetch or copy the tokenizer files again, or take those of the base model",
        ) from exc


@contextlib.contextmanager
def _quiet_about_torch() -> Iterator[None]:
    """Keep transformers from advising to install torch: nothing here needs it."""
    logger = logging.getLogger("transformers")

    def is_other(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
