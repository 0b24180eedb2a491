"""Trying devices or providers one after the other until one takes the model.

Both engines go the same way: choose, open, and where that is refused remember why and choose
again, unless somebody asked for this one. Which can be chosen, and how a model is opened, is
theirs: `openvino_opening.py` and `onnx_opening.py`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from qwen_edge.errors import DeviceError, ParityError, ResourceError
from qwen_edge.profiles.choose import Choice
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.manifest import FORMAT_ENGINES, FormatName

_LOGGER = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """A device that was passed over or given up.

    Args:
        format: Which of the package's models it would have run.
        device: The device or execution provider; empty where the engine itself is missing.
        problem: Why, in a sentence.
    """

    format: FormatName
    device: str
    problem: str

    def __str__(self) -> str:
        return f"{self.device or FORMAT_ENGINES[self.format]}: {self.problem.rstrip('.')}"


def list_refusals(fmt: FormatName, refused: Mapping[str, str]) -> tuple[Refusal, ...]:
    """Return as refusals what an engine's opening noted: device to problem, in order."""
    return tuple(Refusal(fmt, device, problem) for device, problem in refused.items())


def try_in_order(
    choose: Callable[[], Choice[T]],
    open_on: Callable[[T], Backend],
    refuse: Callable[[T, str], None],
    *,
    is_auto: bool,
) -> tuple[Backend, Choice[T]]:
    """Open a model on the first that takes it.

    Args:
        choose: Returns the best that was not refused; raises DeviceError when none is left.
        open_on: Makes the model ready there, or says why not.
        refuse: Remembers a refusal, so that `choose` passes it over and states it.
        is_auto: False where one was asked for: its refusal is then final.

    Raises:
        DeviceError: None takes the model, or not the one asked for.
        ParityError: The one asked for computes wrongly.
        ResourceError: Memory cannot suffice.
    """
    last_error: DeviceError | ParityError | ResourceError | None = None
    while True:
        try:
            choice = choose()
        except DeviceError as error:
            # Too little memory is not the device's fault: say that, where it was the last word.
            if isinstance(last_error, ResourceError):
                raise last_error from error
            raise error from last_error
        try:
            backend = open_on(choice.value)
        except (DeviceError, ParityError, ResourceError) as error:
            if not is_auto:
                raise
            _LOGGER.warning("%s", error.problem)
            refuse(choice.value, error.problem)
            last_error = error
            continue
        _LOGGER.info("Using %s", choice.reason)
        return backend, choice
