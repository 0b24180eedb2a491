"""The tokenizer of a package: copied, given its chat template, converted to OpenVINO.

Owns every file of a package that has to do with text. The truth is `tokenizer.json`; the
OpenVINO pair, which other programs use, is converted from it and compared with it. It
is loaded in `tokenizer_loading.py`, and chats are rendered in `qwen_edge.runtime.chat`.
Works without torch.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import CheckpointError, join_problems
from qwen_edge.export.tokenizer_agreement import (
    Disagreement,
    check_ordinary,
    find_disagreements,
)
from qwen_edge.export.tokenizer_loading import (
    CONFIG,
    TOKENIZER,
    blaming,
    check_size,
    import_extra,
    load_fast,
    read_json_file,
)
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.writing import copy_file, note_written, write_text

_log = logging.getLogger(__name__)

_TEMPLATE = "chat_template.jinja"
_SCRATCH = ".tokenizer"  # in the output folder while the tokenizer is loaded
# The largest tokenizer.json in use (Gemma 3) has 33 MB.
_MAX_TOKENIZER_BYTES = 256 << 20


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
    if (source_folder / TOKENIZER).is_file():
        original = _load_original(source_folder / TOKENIZER)
        copy_file(source_folder / TOKENIZER, output_folder / TOKENIZER)
        fast = load_fast(source_folder, output_folder / _SCRATCH)
    else:
        _check_can_build(source_folder)
        fast = load_fast(source_folder, output_folder / _SCRATCH)
        fast.backend_tokenizer.save(str(output_folder / TOKENIZER))
        note_written(output_folder / TOKENIZER)
        original = _load_original(output_folder / TOKENIZER)
    num_ids = _check_ids(original, vocab_size)
    _write_config(source_folder, output_folder, fast)
    fast.chat_template = template
    if template is not None:
        write_text(output_folder / _TEMPLATE, template)
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
    tokenizers = import_extra("tokenizers")
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_TOKENIZER_BYTES:
        raise CheckpointError(
            f"{TOKENIZER!r} has {size_bytes:,} bytes; the limit is {_MAX_TOKENIZER_BYTES:,}.",
            "check that the file is a tokenizer",
            size_bytes=size_bytes,
        )
    with blaming(f"{TOKENIZER!r} cannot be read"):
        return tokenizers.Tokenizer.from_file(str(path))


def _check_can_build(folder: Path) -> None:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    present = sorted(path.name for path in folder.iterdir() if "token" in path.name.lower())
    raise CheckpointError(
        f"The checkpoint has no tokenizer: neither {TOKENIZER!r} nor 'vocab.json' with "
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


def _write_config(source: Path, output: Path, fast: Any) -> None:
    """Copy the tokenizer's config word for word, or write what the loaded one knows."""
    if (source / CONFIG).is_file():
        copy_file(source / CONFIG, output / CONFIG)
        return
    content: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = getattr(fast, key, None)
        content[key] = None if token is None else str(token)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(output / CONFIG, f"{text}\n")


def _choose_template(folder: Path) -> tuple[str | None, str | None]:
    """Return the chat template and the file it comes from, in transformers' order.

    Source: `PreTrainedTokenizerBase.from_pretrained`, transformers 5.5: a file of its own
    goes before the entry of the config.
    """
    path = folder / _TEMPLATE
    if path.is_file():
        check_size(path)
        try:
            return path.read_bytes().decode("utf-8"), _TEMPLATE
        except UnicodeDecodeError as exc:
            raise CheckpointError(
                f"{_TEMPLATE!r} is not UTF-8 text: {exc}.", "fetch or copy the checkpoint again"
            ) from exc
    legacy = folder / "chat_template.json"
    if legacy.is_file():
        template = _named_template(read_json_file(legacy).get("chat_template"), legacy.name)
        if template is not None:
            return template, legacy.name
    if (folder / CONFIG).is_file():
        content = read_json_file(folder / CONFIG)
        template = _named_template(content.get("chat_template"), CONFIG)
        if template is not None:
            return template, CONFIG
    return None, None


def _named_template(value: object, where: str) -> str | None:
    """Return a template written as a text, or the main one of a list of named ones."""
    if value is None:
        return None
    if isinstance(value, str):
        return _check_writable(value, where)
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
            return _check_writable(str(by_name[name]), where)
    raise CheckpointError(
        f"'chat_template' in {where!r} is a {type(value).__name__}; expected a text or a list of "
        "named texts.",
        "copy the tokenizer files of the base model into the folder",
    )


def _check_writable(template: str, where: str) -> str:
    """Refuse halves of characters, which JSON can write and a text file cannot."""
    try:
        template.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise CheckpointError(
            f"'chat_template' in {where!r} holds half of a character at position "
            f"{exc.start:,}, which no text file can hold.",
            "copy the tokenizer files of the base model into the folder",
        ) from exc
    return template


def _convert(fast: Any, original: Any, output: Path) -> tuple[Disagreement, ...]:
    """Write the OpenVINO pair and compare it with the original."""
    ov = import_openvino()
    openvino_tokenizers = import_extra("openvino_tokenizers")
    with blaming("openvino-tokenizers cannot convert this tokenizer"):
        # The defaults are those of optimum-intel and GenAI: special tokens as
        # tokenizer.json says when encoding, and left out when decoding.
        encoder, decoder = openvino_tokenizers.convert_tokenizer(fast, with_detokenizer=True)
    _name_nodes(encoder, "string_input")
    _name_nodes(decoder, "token_ids")
    decoder.outputs[0].get_tensor().set_names({"string_output"})
    for model, name in ((encoder, "openvino_tokenizer"), (decoder, "openvino_detokenizer")):
        ov.save_model(model, output / f"{name}.xml", compress_to_fp16=False)
        note_written(output / f"{name}.xml", output / f"{name}.bin")
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
