"""Text to token ids and back, with control tokens only where they are allowed.

Wraps the Rust library `tokenizers`, which is imported when a tokenizer is loaded and not
before. "Added tokens" are the strings that a tokenizer maps to one id without looking at
the vocabulary: `<|im_start|>`, `<think>`, `<tool_call>` and so on. In text that a person, a
file or a tool wrote they must stay text, so `encode` does not look for them unless told to.
This module knows nothing of chat templates; read `chat.py` next.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.errors import PackageError, ResourceError, UsageError
from qwen_edge.runtime.detokenizer import Detokenizer, byte_of_character

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NO_BYTES = b""
_MAX_IDS = 2**32  # the library counts ids in 32 bits and refuses larger ones


class TextTokenizer:
    """A byte-level tokenizer of the Qwen family.

    Args:
        tokenizer: A tokenizer of the `tokenizers` library.
        origin: How error messages call it, usually the path of its file.

    Raises:
        PackageError: It is not byte-level, so text could not be streamed exactly.

    State:
        Remembers the bytes of the tokens seen. The wrapped tokenizer is never changed.
    """

    def __init__(self, tokenizer: "Tokenizer", *, origin: str = "tokenizer") -> None:
        self._tokenizer = tokenizer
        self._origin = origin
        self._check_byte_level()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        self._hidden_ids = frozenset(i for i, token in added.items() if token.special)
        self.added_tokens: dict[str, int] = {token.content: i for i, token in added.items()}
        self._matches_normalized = any(token.normalized for token in added.values())
        self._added_pattern = _any_of(self.added_tokens)
        self._byte_of_character = byte_of_character()
        self._bytes_of_id: dict[int, bytes] = {}
        self._ids_with_text: dict[str, tuple[int, ...]] = {}

    @classmethod
    def load(cls, path: Path | str) -> "TextTokenizer":
        """Read a `tokenizer.json`.

        Raises:
            PackageError: The file is missing, broken, or not a byte-level tokenizer.
            ResourceError: The library that reads it cannot be loaded here.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ResourceError(
                f"The library 'tokenizers' could not be loaded: {error}.",
                "close other programs where memory is short, else\n"
                "pip install --force-reinstall tokenizers",
            ) from error
        path = Path(path)
        if not path.is_file():
            raise PackageError(
                f"The tokenizer file {str(path)!r} is missing.",
                "export the package again, or copy the whole package folder",
                path=str(path),
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except BaseException as exc:
            raise _tokenizer_error(exc, str(path), "could not be read") from exc
        return cls(tokenizer, origin=str(path))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that stands for a token."""
        ids: Iterable[int] = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max(ids) + 1

    def vocabulary(self) -> dict[str, int]:
        """Return the id of every token, added ones too, in the tokenizer's own spelling."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def count_at_least(self, text: str) -> int:
        """Return a lower bound of the number of ids, much faster than counting them.

        No token is longer than the longest entry of the vocabulary. The bound is 0 for a
        tokenizer that changes texts by other means than Unicode form NFC.
        """
        normalizer = type(self._tokenizer.normalizer).__name__
        if normalizer not in ("NFC", "NoneType"):
            return 0
        if normalizer == "NFC":
            text = unicodedata.normalize("NFC", text)  # fifty times as fast as the library's
        return len(text.encode("utf-8", errors="replace")) // self._longest_token_bytes

    @cached_property
    def _longest_token_bytes(self) -> int:
        """Length of the longest token in bytes."""
        # In the byte-level alphabet a character stands for a byte; added tokens are plain text.
        ordinary = self._tokenizer.get_vocab(with_added_tokens=False)
        added = (text.encode("utf-8") for text in self.added_tokens)
        return max(max(map(len, ordinary), default=1), max(map(len, added), default=1))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any Unicode text without lone surrogates.
            allow_special: Whether added tokens in the text become their ids. Only for text
                that a template made; with False the result never holds such an id.

        Raises:
            UsageError: The text holds a lone surrogate.
            PackageError: The tokenizer gave up, or turned ordinary text into a control id.
        """
        check_encodable(text)
        try:
            if allow_special or not self.has_added_token(text):
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
            return self._encode_ordinary(text)
        except BaseException as exc:
            raise _tokenizer_error(exc, self._origin, "could not encode a text") from exc

    def has_added_token(self, text: str) -> bool:
        """Whether the tokenizer would find an added token in `text`."""
        if self._added_pattern is None:
            return False
        if self._added_pattern.search(text):
            return True
        return self._matches_normalized and bool(self._added_pattern.search(self.normalize(text)))

    def split_added(self, text: str) -> list[str]:
        """Split at added tokens; the odd entries of the result are the added tokens.

        A text that shows them only in its normal form is split in that form.
        """
        if self._added_pattern is None:
            return [text]
        if self._matches_normalized and not self._added_pattern.search(text):
            text = self.normalize(text)
        return self._added_pattern.split(text)

    def to_json(self) -> str:
        """Return the content of its `tokenizer.json`, for an engine that needs a copy."""
        return str(self._tokenizer.to_str())

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer sees it; for Qwen that is Unicode form NFC."""
        normalizer = self._tokenizer.normalizer
        return str(normalizer.normalize_str(text)) if normalizer else text

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of ids; special tokens and ids without a token are left out."""
        detokenizer = Detokenizer(self.token_bytes)
        pieces = [detokenizer.push(token_id) for token_id in token_ids]
        return "".join(pieces) + detokenizer.finish()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly part of a character.

        Args:
            token_id: Any integer. Negative ids and ids without a token have no bytes;
                models may have a larger output than the tokenizer has tokens.

        Source:
            ByteLevel decoder of tokenizers 0.22: a token with a character outside the byte
            table stands for its own UTF-8 bytes.
        """
        known = self._bytes_of_id.get(token_id)
        if known is None:
            known = self._bytes_of_id[token_id] = self._compute_bytes(token_id)
        return known

    def tokens_with(self, text: str) -> tuple[int, ...]:
        """Return the ids of all ordinary tokens in which a text occurs, in ascending order.

        Args:
            text: Not empty. Looked for as bytes, so a token may hold part of a character more.
        """
        known = self._ids_with_text.get(text)
        if known is None:
            character_of = {byte: character for character, byte in self._byte_of_character.items()}
            sought = "".join(character_of[byte] for byte in text.encode("utf-8"))
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
            known = tuple(sorted(i for token, i in vocabulary.items() if sought in token))
            self._ids_with_text[text] = known
        return known

    def _compute_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token, looked up in the tokenizer."""
        if not 0 <= token_id < _MAX_IDS or token_id in self._hidden_ids:
            return _NO_BYTES
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return _NO_BYTES
        table = self._byte_of_character
        if all(character in table for character in token):
            return bytes(table[character] for character in token)
        return str(token).encode("utf-8")

    def _encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text as if the tokenizer had no added tokens.

        These are the tokenizer's own steps after its search for added tokens.
        """
        pieces = [self.normalize(text)]
        if self._tokenizer.pre_tokenizer:
            pre_tokenized = self._tokenizer.pre_tokenizer.pre_tokenize_str(pieces[0])
            pieces = [piece for piece, _ in pre_tokenized]
        model = self._tokenizer.model
        ids = [token.id for piece in pieces for token in model.tokenize(piece)]
        control = self._control_ids().intersection(ids)
        if control:
            raise PackageError(
                f"The vocabulary of {self._origin!r} turns ordinary text into the control "
                f"token {self._tokenizer.id_to_token(min(control))!r}, so user text could "
                "pass for the template's.",
                "export the package again from the model's original tokenizer",
                token_ids=sorted(control),
            )
        return ids

    def _control_ids(self) -> set[int]:
        """Return the ids of all added tokens."""
        return set(self.added_tokens.values())

    def _check_byte_level(self) -> None:
        """Raise PackageError unless the decoder is the byte-level one."""
        name = type(self._tokenizer.decoder).__name__
        if name != "ByteLevel":
            raise PackageError(
                f"The tokenizer {self._origin!r} has the decoder {name!r}; expected 'ByteLevel', "
                "which all Qwen models use. Its text could not be streamed exactly.",
                "use a package of a Qwen model",
                decoder=name,
            )


def check_encodable(text: str) -> None:
    """Raise UsageError when the text holds a lone surrogate, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise UsageError(
            f"The text holds the lone surrogate U+{ord(text[exc.start]):04X} at character "
            f"{exc.start:,}, which is half of a character and has no UTF-8 form.",
            "decode the input with errors='replace' before passing it on",
            position=exc.start,
        ) from exc


def _any_of(texts: Sequence[str] | Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern with one group that matches any of the texts, longest first."""
    alternatives = sorted((text for text in texts if text), key=len, reverse=True)
    if not alternatives:
        return None
    return re.compile("(" + "|".join(map(re.escape, alternatives)) + ")")


def _tokenizer_error(exc: BaseException, origin: str, what: str) -> BaseException:
    """Return a PackageError for the library's exceptions; pass others on unchanged.

    A panic of the Rust library derives from BaseException and has no importable class.
    """
    if isinstance(exc, PackageError):
        return exc
    if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
        return exc
    return PackageError(
        f"The tokenizer {origin!r} {what}: {str(exc)[:300]}",
        "export the package again from the model's original tokenizer",
        path=origin,
    )
