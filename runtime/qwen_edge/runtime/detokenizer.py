"""From token ids to text, one id at a time, without ever splitting a character.

Byte-level tokens end anywhere inside a UTF-8 character. The detokenizer holds such a
beginning back until the character is whole. It knows nothing of stop strings or reasoning.

Law: the pieces joined, with `finish()` last, equal `Tokenizer.decode(ids)` of the `tokenizers`
library with special tokens skipped. A "character" is a code point: an emoji joined from
several code points may arrive in several pieces, each of them valid text.
"""

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns ids into text in linear time.

    Args:
        token_bytes: Returns the bytes of one token; empty for a token that is never shown
            (a special token, or an id without a token).

    State:
        Holds at most three bytes: the beginning of an unfinished character.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add one id and return the characters that it completes, often one word, maybe none.

        Bytes that can no longer become a character are shown as U+FFFD, as `decode` does.
        """
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """Return U+FFFD when the ids ended inside a character, else an empty text.

        State:
            Ready for a new sequence afterwards.
        """
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def byte_of_character() -> dict[str, int]:
    """Return the map from the characters of byte-level tokens to the bytes they stand for.

    Returns:
        256 entries. Printable Latin-1 characters stand for themselves, the other bytes for
        U+0100 and up.

    Source:
        `bytes_to_unicode` in openai/gpt-2, `src/encoder.py`; the ByteLevel decoder of
        huggingface/tokenizers uses the same table.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table
