"""A package's IR compiled with one candidate's settings, to be timed and to be scored.

It runs through the same backend as conversations do, so what is measured is what a person gets.
Read `race.py` for what is timed.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen_edge.profiles.properties import ENGINE_KERNELS, KERNELS
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.decoder_backend import DecoderBackend
from qwen_edge.runtime.backends.decoder_making import make_decoder_backend
from qwen_edge.runtime.backends.decoder_preparing import Prepared, prepare_decoder
from qwen_edge.runtime.manifest import MODEL_XML, DeviceSettings
from qwen_edge.runtime.tuning.candidate import PREFILL_CHUNK, TUNABLE, Candidate

_WARM_UP = (MAX_SCORED_TOKENS, 1)  # a prompt and a single token use different kernels


class EngineRunner:
    """One candidate, compiled when it is first needed.

    Args:
        folder: The package folder, checked.
        settings: Of the device, with the candidate's properties.
        candidate: What `settings` were made from.
        beside: A runner whose compiled model serves as well: it differs in what is not compiled.

    State:
        `backend` compiles and warms up where that was not done; `rest` lets go of it again.
    """

    def __init__(
        self,
        folder: Path,
        settings: DeviceSettings,
        candidate: Candidate,
        beside: "EngineRunner | None" = None,
    ) -> None:
        self.candidate = candidate
        self._folder = folder
        self._settings = settings
        self._compiled: Any = None if beside is None else beside._compiled
        self._prepared: Prepared | None = None if beside is None else beside._prepared
        self._backend: DecoderBackend | None = None
        self._resolved: dict[str, str] = {}

    def compile(self) -> None:
        """Compile now, and keep what the engine made of the settings.

        Raises:
            EdgeError: The device refuses the settings, or memory does not suffice.
        """
        settings = self._settings
        if self._compiled is None:
            model = read_ir(self._folder / MODEL_XML)
            prepared = prepare_decoder(model, settings.device, settings.properties)
            self._compiled = compile_model(model, settings.device, prepared.properties)
            self._prepared = prepared
            if settings.device == "CPU":
                self._resolved[KERNELS] = prepared.kernels or ENGINE_KERNELS
        self._resolved[PREFILL_CHUNK] = str(settings.prefill_chunk_tokens)
        for name in sorted(TUNABLE[settings.device]):
            with suppress(RuntimeError):  # a plugin may not tell what it takes
                self._resolved[name] = str(self._compiled.get_property(name))

    @property
    def resolved(self) -> Mapping[str, str]:
        """What the engine made of the settings: it ignores what the processor cannot do."""
        return self._resolved

    @property
    def backend(self) -> DecoderBackend:
        """The model, warm.

        Raises:
            EdgeError: The device refuses the settings, or memory does not suffice.
        """
        if self._backend is None:
            if self._compiled is None:
                self.compile()
            assert self._prepared is not None
            backend = make_decoder_backend(
                self._compiled,
                self._prepared,
                device=self._settings.device,
                max_context_tokens=self._settings.max_context_tokens,
                prefill_chunk_tokens=self._settings.prefill_chunk_tokens,
            )
            for size in _WARM_UP:
                backend.forward([0] * size)
            backend.reset()
            self._backend = backend
        return self._backend

    def prefill(self, token_ids: Sequence[int]) -> float:
        """Read a prompt into an empty cache; return the seconds it took."""
        backend = self.backend
        start_s = time.perf_counter()
        backend.reset()
        backend.forward(token_ids)
        return time.perf_counter() - start_s

    def decode(self, num_tokens: int) -> float:
        """Write tokens after what is in the cache; return the seconds it took."""
        backend = self.backend
        start_s = time.perf_counter()
        for _ in range(num_tokens):
            backend.forward((0,))
        return time.perf_counter() - start_s

    def rest(self) -> None:
        """Let go of the model until it is needed again."""
        backend, self._backend, self._compiled = self._backend, None, None
        if backend is not None:
            backend.close()
        self._prepared = None
