"""A server as a process whose model says the last message again, a byte at a time.

    python echo_server.py [--parallel N] [--queue N] [--pace-s SECONDS]

prints its port and serves until a signal.
"""

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer
from qwen_edge.runtime.model import Model
from qwen_edge.server.app import Server
from qwen_edge.server.http_guard import HttpGuard, guard_settings
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.listening import listen, run_server
from qwen_edge.server.model_registry import ModelRegistry
from qwen_edge.server.settings import ServerSettings

TOKENIZER = make_fake_tokenizer()
END = TOKENIZER.added_tokens["<|im_end|>"]
BEGIN = TOKENIZER.added_tokens["<|im_start|>"]
USER = [BEGIN, *TOKENIZER.encode("user\n")]
ASSISTANT = [BEGIN, *TOKENIZER.encode("assistant\n")]


def echo(token_ids: Sequence[int]) -> int:
    """Return the next token of what the user said last."""
    ids = list(token_ids)
    starts = [index for index, token_id in enumerate(ids) if token_id == BEGIN]
    said = ids[starts[-2] + len(USER) : ids.index(END, starts[-2])]
    num_given = len(ids) - starts[-1] - len(ASSISTANT)
    return said[num_given] if num_given < len(said) else END


class PacedBackend(FakeBackend):
    """Takes its time for each step."""

    pace_s = 0.0

    def forward(self, token_ids: Sequence[int]) -> Logits:
        if self.pace_s:
            time.sleep(self.pace_s)
        return super().forward(token_ids)


class EchoManifest:
    """The part of a manifest that a registry and `/v1/models` read."""

    name = "echo"
    devices = ()
    model = type("ModelFacts", (), {"max_context_tokens": 4096})

    def __init__(self, card: Any) -> None:
        self.chat = card.chat


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--pace-s", type=float, default=0.0)
    options = parser.parse_args()
    card: Any = Model.fake(["x"]).manifest

    def load(folder: Path) -> BatchModel:
        backend = PacedBackend(echo, vocab_size=TOKENIZER.vocab_size)
        backend.pace_s = options.pace_s
        return BatchModel(
            SequentialBatchBackend(backend, max_sequences=options.parallel),
            TOKENIZER,
            CHAT_TEMPLATE,
            card,
            options=BatchOptions(max_running=options.parallel, max_waiting=1000),
        )

    listener = listen(port=0, has_key=False)
    packages: Any = [(Path("echo"), EchoManifest(card))]
    settings = ServerSettings(parallel=options.parallel, queue=options.queue)
    server = Server(ModelRegistry(packages, load), settings, ServerLimits(), loads_first=False)
    with contextlib.closing(listener.socket):
        run_server(
            HttpGuard(server.make_app(), guard_settings(listener.hosts)),
            listener,
            on_started=lambda: print(listener.port, flush=True),
        )


if __name__ == "__main__":
    main()
