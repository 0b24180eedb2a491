"""The tokenizer of a package: copied, given its chat template, converted to OpenVINO.

Owns every file of a package that has to do with text. The truth is `tokenizer.json`; the
OpenVINO pair, which other programs use, is converted from it and compared with it. It
does not render chats; see `qwen_edge.runtime.chat`. Works without torch.
"""

import contextlib
import importlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_edge.errors import CheckpointError, MissingExtraError, join_problems
from qwen_edge.export.tokenizer_agreement import (
    Disagreement,
    check_ordinary,
    find_disagreements,
)
from qwen_edge.runtime.engine import import_openvino

_log = logging.getLogger(__name__)

_TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
# The largest tokenizer.json in use (Gemma 3) has 33 MB.
_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 32 << 20


@dataclass(frozen=True)
class TokenizerReport:
    """What became of a tokenizer.

    Attributes:
        num_ids: The highest token id and one: what the model's vocabulary must hold.
        chat_template_from: The file that the chat template was taken from; None if the
            checkpoint has none.
        disagreements: Unusual texts that the OpenVINO tokenizer treats differently.
    """

    num_ids: int
    chat_template_from: str | None
    disagreements: tuple[Disagreement, ...]


def write_tokenizer_files(
    source_folder: Path, output_folder: Path, *, vocab_size: int, for_openvino: bool = True
) -> TokenizerReport:
    """Write every tokenizer file of a package.

    Args:
        source_folder: The checkpoint, with `tokenizer.json`, or `vocab.json` and `merges.txt`.
        output_folder: An existing folder.
        vocab_size: Rows of the model's embedding, from its config.
        for_openvino: Write the OpenVINO pair, which only programs that run the IR need.

    Returns:
        Figures, and where the converted tokenizer differs from the original.

    Raises:
        CheckpointError: The tokenizer is missing, broken, or has ids beyond `vocab_size`.
        ParityError: The converted tokenizer treats ordinary text differently.
        MissingExtraError: transformers or openvino-tokenizers is not installed.

    State:
        Writes `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` (if there
        is one) and the OpenVINO pair. Two runs write the same bytes.
    """
    template, template_from = _choose_template(source_folder)
    if (source_folder / _TOKENIZER).is_file():
        original = _load_original(source_folder / _TOKENIZER)
        shutil.copyfile(source_folder / _TOKENIZER, output_folder / _TOKENIZER)
        fast = _load_fast(source_folder, "PreTrainedTokenizerFast")
    else:
        _check_can_build(source_folder)
        fast = _load_fast(source_folder, "AutoTokenizer")
        fast.backend_tokenizer.save(str(output_folder / _TOKENIZER))
        original = _load_original(output_folder / _TOKENIZER)
    num_ids = _check_ids(original, vocab_size)
    _write_config(source_folder, output_folder, fast)
    fast.chat_template = template
    if template is not None:
        (output_folder / _TEMPLATE).write_bytes(template.encode("utf-8"))
    disagreements = _convert(fast, original, output_folder) if for_openvino else ()
    check_ordinary(disagreements)
    for found in disagreements:
        _log.warning(
            "The OpenVINO tokenizer differs at %s of %r: %s instead of %s",
            found.step,
            found.text,
            found.actual,
            found.expected,
        )
    return TokenizerReport(num_ids, template_from, disagreements)


def _load_original(path: Path) -> Any:
    """Load `tokenizer.json` with the library that the runtime uses."""
    tokenizers = _import_extra("tokenizers")
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_TOKENIZER_BYTES:
        raise CheckpointError(
            f"{_TOKENIZER!r} has {size_bytes:,} bytes; the limit is {_MAX_TOKENIZER_BYTES:,}.",
            "check that the file is a tokenizer",
            size_bytes=size_bytes,
        )
    with _blaming(f"{_TOKENIZER!r} cannot be read"):
        return tokenizers.Tokenizer.from_file(str(path))


def _load_fast(folder: Path, kind: str) -> Any:
    """Load a tokenizer through transformers, from this folder only.

    The plain fast class takes `tokenizer.json` as it is; the model's own class, which
    `AutoTokenizer` picks, rebuilds parts of it from what it knows of the model, and is
    used only where there is no `tokenizer.json`. Neither runs code of the checkpoint.
    """
    with _quiet_about_torch():
        transformers = _import_extra("transformers")
        # Torch, where it is installed, is imported here: 1.5 s of nothing we need.
        loader = getattr(transformers, kind)
    with _blaming("The tokenizer cannot be loaded"):
        fast = loader.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            # Takes `tokenizer.json` at its word. Not said, transformers 5.5 warns of a fault of
            # Mistral's tokenizers for every folder whose config.json names no version.
            fix_mistral_regex=False,
        )
    if not getattr(fast, "is_fast", False):
        raise CheckpointError(
            f"The tokenizer is of the kind {type(fast).__name__}, which has no tokenizer.json.",
            f"save it as a fast tokenizer, with {_TOKENIZER}, and export again",
        )
    return fast


def _check_can_build(folder: Path) -> None:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    present = sorted(path.name for path in folder.iterdir() if "token" in path.name.lower())
    raise CheckpointError(
        f"The checkpoint has no tokenizer: neither {_TOKENIZER!r} nor 'vocab.json' with "
        f"'merges.txt'. Found: {', '.join(present) or 'nothing of the kind'}.",
        "copy the tokenizer files of the base model into the folder",
        present=present,
    )


def _check_ids(original: Any, vocab_size: int) -> int:
    """Return the highest id and one; refuse ids for which the model has no row."""
    vocabulary: Mapping[str, int] = original.get_vocab(with_added_tokens=True)
    if not vocabulary:
        raise CheckpointError(
            "The tokenizer has no tokens at all.",
            "copy the tokenizer files of the base model into the folder",
        )
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= vocab_size)
    if beyond:
        listed = join_problems([f"{token!r} = {i:,}" for i, token in beyond])
        raise CheckpointError(
            f"The tokenizer has {len(beyond):,} tokens beyond the model's vocabulary of "
            f"{vocab_size:,}: {listed}.",
            "use the tokenizer that belongs to the weights, or resize the model's embedding",
            vocab_size=vocab_size,
            num_beyond=len(beyond),
        )
    return max(vocabulary.values()) + 1


def _read_json_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path.name!r} has {path.stat().st_size:,} bytes; the limit is {_MAX_CONFIG_BYTES:,}.",
            "check that the file belongs to a tokenizer",
        )
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


def _write_config(source: Path, output: Path, fast: Any) -> None:
    """Copy the tokenizer's config word for word, or write what the loaded one knows."""
    if (source / _CONFIG).is_file():
        shutil.copyfile(source / _CONFIG, output / _CONFIG)
        return
    content: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = getattr(fast, key, None)
        content[key] = None if token is None else str(token)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (output / _CONFIG).write_bytes(f"{text}\n".encode())


def _choose_template(folder: Path) -> tuple[str | None, str | None]:
    """Return the chat template and the file it comes from, in transformers' order.

    Source: `PreTrainedTokenizerBase.from_pretrained`, transformers 5.5: a file of its own
    goes before the entry of the config.
    """
    path = folder / _TEMPLATE
    if path.is_file():
        try:
            return path.read_bytes().decode("utf-8"), _TEMPLATE
        except UnicodeDecodeError as exc:
            raise CheckpointError(
                f"{_TEMPLATE!r} is not UTF-8 text: {exc}.", "fetch or copy the checkpoint again"
            ) from exc
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        template = _named_template(_read_json_object(legacy).get("chat_template"), legacy.name)
        if template is not None:
            return template, legacy.name
    if (folder / _CONFIG).is_file():
        content = _read_json_object(folder / _CONFIG)
        template = _named_template(content.get("chat_template"), _CONFIG)
        if template is not None:
            return template, _CONFIG
    return None, None


def _named_template(value: object, where: str) -> str | None:
    """Return a template written as a text, or the main one of a list of named ones."""
    if value is None or isinstance(value, str):
        return value
    entries = value if isinstance(value, list) else []
    by_name = {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }
    # "tool_use" renders chats without tools as well.
    for name in ("default", "tool_use", *by_name):
        if name in by_name:
            others = sorted(set(by_name) - {name})
            if others:
                _log.warning("%s: the chat template %r is used, not %s", where, name, others)
            return str(by_name[name])
    raise CheckpointError(
        f"'chat_template' in {where!r} is a {type(value).__name__}; expected a text or a list of "
        "named texts.",
        "copy the tokenizer files of the base model into the folder",
    )


def _convert(fast: Any, original: Any, output: Path) -> tuple[Disagreement, ...]:
    """Write the OpenVINO pair and compare it with the original."""
    ov = import_openvino()
    openvino_tokenizers = _import_extra("openvino_tokenizers")
    with _blaming("openvino-tokenizers cannot convert this tokenizer"):
        # The defaults are those of optimum-intel and GenAI: special tokens as
        # tokenizer.json says when encoding, and left out when decoding.
        encoder, decoder = openvino_tokenizers.convert_tokenizer(fast, with_detokenizer=True)
    _name_nodes(encoder, "string_input")
    _name_nodes(decoder, "token_ids")
    decoder.outputs[0].get_tensor().set_names({"string_output"})
    for model, name in ((encoder, "openvino_tokenizer"), (decoder, "openvino_detokenizer")):
        ov.save_model(model, output / f"{name}.xml", compress_to_fp16=False)
    core = ov.Core()
    encode_request = core.compile_model(output / "openvino_tokenizer.xml", "CPU")
    decode_request = core.compile_model(output / "openvino_detokenizer.xml", "CPU")

    def encode(text: str) -> list[int]:
        return [int(i) for i in encode_request([text])["input_ids"][0]]

    def decode(ids: list[int]) -> str:
        return str(decode_request([[ids]])["string_output"][0])

    return find_disagreements(original, encode, decode)


def _name_nodes(model: Any, input_name: str) -> None:
    """Give every node a name that does not count what this process made before.

    OpenVINO numbers its nodes from the start of the process, so that two conversions of
    the same tokenizer would differ.
    """
    for index, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
    model.inputs[0].get_tensor().set_names({input_name})


def _import_extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise MissingExtraError(
            f"Converting a tokenizer needs {name!r}, which cannot be imported: {exc}.",
            "pip install 'qwen-edge[export]'",
            module=name,
        ) from exc


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turn what a tokenizer library raises into a CheckpointError.

    A Rust panic of `tokenizers` arrives as `PanicException`, which is a BaseException.
    """
    try:
        yield
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
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
