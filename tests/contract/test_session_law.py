"""The law of conversations: whatever was asked before, logits are those of a fresh prefill.

Random asks, edits, branches, rollbacks, snapshots and restores of two sessions that share one
cache, on the trained demo model. After every turn the logits of its prefill and of its last step
are compared with those of the same ids fed at once to an empty cache; and no token is computed
that was still in the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.profiles.providers import choose_provider
from qwen_edge.runtime import SamplingParams
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot, Logits, LogitsRows
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.decoder_making import make_decoder_backend
from qwen_edge.runtime.backends.decoder_preparing import prepare_decoder
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES
from qwen_edge.runtime.manifest import CHAT_TEMPLATE, MODEL_XML, TOKENIZER_JSON
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.session import Session
from qwen_edge.runtime.text_tokenizer import TextTokenizer

LIMITS = {"max_context_tokens": 1024, "prefill_chunk_tokens": 64}
GREEDY = SamplingParams(temperature=0)
FREE = SamplingParams(temperature=1.3, top_k=0, top_p=1.0, seed=1)  # answers of all kinds
MAX_NEW_TOKENS = 12
TEXTS = ("Hello!", "What is 27 + 48?", "Say hi. /no_think", "你好")
SYSTEM = "You are Mira."

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]


class Spy:
    """A backend that remembers what is in its cache, and the logits of its calls in a turn."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.ids: list[int] = []
        self.calls: list[tuple[tuple[int, ...], Logits]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, token_ids: Sequence[int]) -> Logits:
        logits = self._backend.forward(token_ids)
        self.ids += token_ids
        self.calls.append((tuple(self.ids), logits.copy()))
        return logits

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        rows = self._backend.forward_scored(token_ids, num_scored=num_scored)
        self.ids += token_ids
        self.calls.append((tuple(self.ids), rows[-1].copy()))
        return rows

    def trim(self, num_tokens: int) -> None:
        self._backend.trim(num_tokens)
        del self.ids[len(self.ids) - num_tokens :]

    def reset(self) -> None:
        self._backend.reset()
        self.ids.clear()

    def restore(self, snapshot: CacheSnapshot) -> None:
        self._backend.restore(snapshot)
        self.ids = list(snapshot.token_ids)


@dataclass(frozen=True)
class Engine:
    """What the law is tested on.

    Args:
        make: Maker of backends that may be used side by side.
        fresh: Logits of ids fed at once to an empty cache.
        tolerance: How far logits, of about 7, may be from those.
    """

    make: Callable[[], Backend]
    fresh: Fresh
    tolerance: float


def make_engine(make: Callable[[], Backend], tolerance: float) -> Engine:
    reference = make()

    def fresh(token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        reference.reset()
        return reference.forward(token_ids)

    return Engine(make, fresh, tolerance)


def make_openvino(folder: Path, properties: Any, tolerance: float) -> Engine:
    model = read_ir(folder / MODEL_XML)
    keep_last_logits(model)
    compiled = compile_model(model, "CPU", properties)
    return make_engine(lambda: OpenVinoBackend(compiled, device="CPU", **LIMITS), tolerance)


def make_prepared(folder: Path, tolerance: float) -> Engine:
    """The model as packages run it here: with our kernels and our cache where there are any."""
    entry = {device.device: device for device in read_manifest(folder).devices}["CPU"]
    model = read_ir(folder / MODEL_XML)
    prepared = prepare_decoder(model, "CPU", entry.properties)
    compiled = compile_model(model, "CPU", prepared.properties)
    return make_engine(
        lambda: make_decoder_backend(compiled, prepared, device="CPU", **LIMITS), tolerance
    )


def make_onnx(folder: Path) -> Engine:
    model = read_onnx(folder, accuracy_level=1)
    provider = choose_provider([CPU_PROVIDER]).value
    session = create_session(model, provider, accuracy_level=1, threads=1)
    return make_engine(lambda: OnnxBackend(session, model=model, device="CPU", **LIMITS), 1e-4)


def make_fake(tokenizer: TextTokenizer) -> Engine:
    """A model that thinks about every second question and answers letters."""
    control = tokenizer.added_tokens
    begin, end = control["<|im_start|>"], control["<|im_end|>"]
    tags = (control["<think>"], control["</think>"])

    def next_token(ids: Sequence[int]) -> int:
        start = len(ids) - 1 - list(ids)[::-1].index(begin) if begin in ids else 0
        given_ids = ids[start + 3 :]
        value = sum(ids[: start + 2]) % 7
        layout = (tags[0], 300, 301, tags[1]) if value % 2 else ()
        script = (*layout, 310 + value, 320, 330, end)
        return script[min(len(given_ids), len(script) - 1)]

    def make() -> FakeBackend:
        return FakeBackend(next_token, vocab_size=tokenizer.vocab_size, max_context_tokens=1024)

    return make_engine(make, 1e-9)


ENGINES: dict[str, Callable[[Path, Any], Engine]] = {
    "fake": lambda folder, _: make_fake(TextTokenizer.load(folder / TOKENIZER_JSON)),
    "openvino-exact": lambda folder, _: make_openvino(folder, GOLDEN_PROPERTIES, 1e-4),
    # As packages run: the cache in u8, activations in int8 by groups. How tokens are cut into
    # calls moves the logits; measured up to 0.21.
    "openvino-fast": lambda folder, _: make_openvino(
        folder, {d.device: d.properties for d in read_manifest(folder).devices}["CPU"], 0.5
    ),
    # How tokens are cut into calls moves these logits less; measured up to 0.2.
    "openvino-prepared": lambda folder, _: make_prepared(folder, 0.5),
    "onnx": lambda _, onnx_demo: make_onnx(onnx_demo()),
}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, demo_package: Path, onnx_demo: Any) -> Engine:
    """Return each engine in turn."""
    return ENGINES[request.param](demo_package, onnx_demo)


@pytest.fixture(scope="module")
def make_model(demo_package: Path) -> Callable[[Backend], Model]:
    """Return a maker of demo models around a backend."""
    manifest = read_manifest(demo_package)
    tokenizer = TextTokenizer.load(demo_package / TOKENIZER_JSON)
    template = (demo_package / CHAT_TEMPLATE).read_text(encoding="utf-8")

    def make(backend: Backend) -> Model:
        return Model(backend, tokenizer, template, manifest)

    return make


class Play:
    """Two sessions on one cache, and what they are told to do."""

    def __init__(self, model: Model, spy: Spy, engine: Engine) -> None:
        self._model = model
        self._spy = spy
        self._engine = engine
        self._sessions = [model.session(system=SYSTEM), model.session(system=SYSTEM)]
        self._saved: list[tuple[CacheSnapshot, Session]] = []

    def do(self, action: str, which: int, number: int, thinking: bool | None) -> None:
        """Follow one step."""
        session = self._sessions[which]
        users = [i for i, message in enumerate(session.messages) if message["role"] == "user"]
        if action == "ask":
            self._ask(session, None, TEXTS[number], thinking)
        elif action == "edit" and users:
            self._ask(session, users[number % len(users)], TEXTS[number], thinking)
        elif action == "rollback" and users:
            session.rollback(1 + number % len(users))
        elif action == "branch":
            self._sessions[1 - which] = session.branch()
        elif action == "snapshot":
            self._saved.append((self._spy.snapshot(), session.branch()))
        elif action == "restore" and self._saved:
            cache, saved = self._saved[number % len(self._saved)]
            self._spy.restore(cache)
            self._model.prefix_cache._sequence = list(cache.token_ids)
            self._sessions[which] = saved.branch()

    def _ask(self, session: Session, end: int | None, text: str, thinking: bool | None) -> None:
        """Ask one question, in the place of the message `end` if there is one; check the law."""
        spy, model = self._spy, self._model
        asked = [*session.messages[:end], {"role": "user", "content": text}]
        held = tuple(spy.ids)
        spy.calls.clear()
        answer = session.ask(
            text if end is None else asked,
            sampling=FREE if text == TEXTS[0] else GREEDY,
            max_new_tokens=MAX_NEW_TOKENS,
            thinking=thinking,
        )
        prompt = model.chat_template.encode(asked, thinking=thinking)
        assert session.conversation_ids == (*prompt, *answer.token_ids)
        assert answer.timings.prompt_tokens == len(prompt)
        # Nothing is computed that was there, and nothing is taken for there that was not.
        assert answer.timings.reused_tokens == num_common(held, prompt[:-1])
        assert spy.calls[0][0] == tuple(prompt)
        assert session.cached_ids == tuple(spy.ids) == session.conversation_ids[: len(spy.ids)]
        self._check_logits()

    def _check_logits(self) -> None:
        """Compare the first and the last logits of a turn with those of a fresh cache."""
        for ids, logits in (self._spy.calls[0], self._spy.calls[-1]):
            expected = self._engine.fresh(ids)
            tolerance = self._engine.tolerance
            assert np.abs(logits - expected).max() < tolerance
            second, first = np.sort(expected)[-2:]
            assert np.argmax(logits) == np.argmax(expected) or first - second < 2 * tolerance


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    return sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(left, right, strict=False)))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "edit", "rollback", "branch", "snapshot", "restore"]),
        st.integers(0, 1),
        st.integers(0, len(TEXTS) - 1),
        st.sampled_from([None, True, False]),
    ),
    min_size=4,
    max_size=10,
)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_law_of_conversations(
    engine: Engine, make_model: Callable[[Backend], Model], steps: list[tuple[Any, ...]]
) -> None:
    spy: Any = Spy(engine.make())
    play = Play(make_model(spy), spy, engine)
    for step in steps:
        play.do(*step)


@pytest.mark.parametrize("thinking", [None, True, False])
def test_a_turn_computes_the_last_answer_and_the_new_message_alone(
    engine: Engine, make_model: Callable[[Backend], Model], thinking: bool | None
) -> None:
    """Also where the template drops the thought of the turn before, and its empty block."""
    spy: Any = Spy(engine.make())
    model = make_model(spy)
    session = model.session(system=SYSTEM, thinking=thinking, sampling=GREEDY)
    before = session.ask(TEXTS[1])
    for text in (TEXTS[1], TEXTS[0], TEXTS[3]):
        answer = session.ask(text)
        new = [{"role": "assistant", "content": before.text}, {"role": "user", "content": text}]
        # The header of the answer before was computed with its question.
        most = len(model.chat_template.encode(new, thinking=thinking))
        assert answer.timings.prefill_tokens <= most
        assert bool(before.reasoning) is (thinking is not False) or engine.tolerance == 1e-9
        before = answer


def test_a_session_is_usable_after_an_impossible_question(
    engine: Engine, make_model: Callable[[Backend], Model]
) -> None:
    spy: Any = Spy(engine.make())
    session: Session = make_model(spy).session()
    session.ask(TEXTS[1], max_new_tokens=3)
    held, messages = list(spy.ids), session.messages
    with pytest.raises(UsageError, match="no tool call"):
        session.ask([{"role": "user", "content": "Q"}, {"role": "tool", "content": "1"}])
    assert (spy.ids, session.messages) == (held, messages)
    assert session.ask(TEXTS[1], max_new_tokens=3).timings.reused_tokens > 0
