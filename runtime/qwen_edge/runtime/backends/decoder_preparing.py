"""What is done to a decoder in memory before the engine compiles it.

The package's model gives logits for every position and computes with the engine's operators, so
that other programs can run it. Here it is cut down to the last positions, and on a CPU our own
kernels take the place of what they can: whole layers, else attention and products apart.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_edge.errors import DeviceError
from qwen_edge.profiles.properties import KERNELS
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.kernels import (
    AUTO,
    CacheShape,
    KernelLibrary,
    are_wanted,
    find_kernels,
    has_own_cache,
    use_attention,
    use_kernels,
    use_layers,
)

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """How a prepared model is compiled.

    Attributes:
        properties: For the engine: those given, without our own.
        kernels: Which of our kernels it has; None for the engine's alone.
        cache: What its cache of ours must be like; None where the engine keeps one.
        keeps_alive: Memory that it reads weights from; keep it as long as what is compiled.
    """

    properties: Mapping[str, str | bool | int]
    kernels: str | None = None
    cache: CacheShape | None = None
    keeps_alive: object = field(default=None, repr=False)


def prepare_decoder(
    model: Any, device: str, properties: Mapping[str, str | bool | int]
) -> Prepared:
    """Prepare a stateful decoder for one conversation at a time.

    Args:
        model: What `read_ir` returned; changed in place.
        device: "CPU", "GPU", "GPU.1".
        properties: OpenVINO properties, and our own `KERNELS`.

    Raises:
        DeviceError: There are no kernels of that name here.
    """
    keep_last_logits(model, MAX_SCORED_TOKENS)
    chosen = _choose(device, properties)
    if chosen.library is None or not has_own_cache(properties):
        return _put_in_kernels(model, chosen)
    layers = use_layers(model, chosen.library, kernels=chosen.kernels)
    cache = None if layers else use_attention(model, chosen.library, kernels=chosen.kernels)
    prepared = _put_in_kernels(model, chosen)
    if layers is not None:
        kept = (layers.keeps_alive, prepared.keeps_alive)
        return Prepared(_in_f32(prepared.properties), chosen.name, layers.cache, kept)
    return prepared if cache is None else replace(prepared, kernels=chosen.name, cache=cache)


def _in_f32(properties: Mapping[str, str | bool | int]) -> Mapping[str, str | bool | int]:
    """Return properties with which the engine computes the rest in float32.

    With our layers that is embedding, angles and the last norm: nothing that gains by fewer bits,
    and angles lose by them. Tiles multiply in bfloat16 all the same.
    """
    hint = properties.get("INFERENCE_PRECISION_HINT", "bf16")
    is_narrow = str(hint).lower() == "bf16"
    return {**properties, "INFERENCE_PRECISION_HINT": "f32"} if is_narrow else properties


def put_in_kernels(model: Any, device: str, properties: Mapping[str, str | bool | int]) -> Prepared:
    """Let our kernels compute what products they can of any model; as `prepare_decoder`.

    Where there are none, and none was asked for by name, the engine's are left.
    """
    return _put_in_kernels(model, _choose(device, properties))


@dataclass(frozen=True)
class _Chosen:
    """Which kernels properties ask for; no library for the engine's."""

    properties: Mapping[str, str | bool | int]
    kernels: str = AUTO
    library: KernelLibrary | None = None

    @property
    def name(self) -> str:
        names = self.library.names if self.library else ()
        return names[0] if self.kernels == AUTO else self.kernels


def _choose(device: str, properties: Mapping[str, str | bool | int]) -> _Chosen:
    is_wanted = device == "CPU" and are_wanted(properties)
    properties = dict(properties)
    kernels = str(properties.pop(KERNELS, AUTO))
    if not is_wanted:
        return _Chosen(properties)
    library = find_kernels()
    if kernels not in (AUTO, *library.names):
        raise DeviceError(
            f"There are no kernels named {kernels!r} here"
            + (f": {library.reason}." if library.reason else f", but {', '.join(library.names)}."),
            library.fix or f"set {KERNELS} to {AUTO!r}, or tune the package on this machine.",
            device="CPU",
        )
    if not library.names:
        _LOGGER.info("Our own kernels are not used: %s", library.reason)
        return _Chosen(properties)
    return _Chosen(properties, kernels, library)


def _put_in_kernels(model: Any, chosen: _Chosen) -> Prepared:
    if chosen.library is None:
        return Prepared(chosen.properties)
    replacement = use_kernels(model, chosen.library, kernels=chosen.kernels)
    if not replacement.num_products:
        return Prepared(chosen.properties)
    return Prepared(chosen.properties, chosen.name, keeps_alive=replacement.keeps_alive)
