"""What is done to a decoder in memory before the engine compiles it.

The package's model gives logits for every position and computes with the engine's operators, so
that other programs can run it. Here it is cut down to the last positions, and on a CPU our own
kernels take the place of its products with compressed weights.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_edge.errors import DeviceError
from qwen_edge.profiles.properties import KERNELS
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.kernels import AUTO, are_wanted, find_kernels, use_kernels

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """How a prepared model is compiled.

    Attributes:
        properties: For the engine: those given, without our own.
        kernels: Which of our kernels compute its products; None for the engine's.
        keeps_alive: Memory that it reads weights from; keep it as long as what is compiled.
    """

    properties: Mapping[str, str | bool | int]
    kernels: str | None = None
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
    return put_in_kernels(model, device, properties)


def put_in_kernels(model: Any, device: str, properties: Mapping[str, str | bool | int]) -> Prepared:
    """Let our kernels compute what they can of any model; as `prepare_decoder`.

    Where there are none, and none was asked for by name, the engine's are left.
    """
    is_wanted = device == "CPU" and are_wanted(properties)
    properties = dict(properties)
    kernels = str(properties.pop(KERNELS, AUTO))
    if not is_wanted:
        return Prepared(properties)
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
        return Prepared(properties)
    replacement = use_kernels(model, library, kernels=kernels)
    if not replacement.num_products:
        return Prepared(properties)
    name = library.names[0] if kernels == AUTO else kernels
    return Prepared(properties, name, replacement.keeps_alive)
