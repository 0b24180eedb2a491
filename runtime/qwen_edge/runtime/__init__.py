"""The runtime: opens a model package and talks with it.

    from qwen_edge.runtime import load

    with load("./qwen3-4b") as model, model.session(system="Be brief.") as chat:
        for event in chat.stream("Why is the sky blue?"):
            print(event.text, end="", flush=True)

Importing this package loads no engine, opens no socket and writes no file: each name below
is imported when it is first used. Read `loading.py` first, then `model.py` and `session.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_edge.runtime.backends.fake import FakeBackend
    from qwen_edge.runtime.events import Answer, Event
    from qwen_edge.runtime.loading import load
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.sampling import SamplingParams
    from qwen_edge.runtime.session import Session

__all__ = ["Answer", "Event", "FakeBackend", "Model", "SamplingParams", "Session", "load"]

_HOME_OF = {
    "Answer": "qwen_edge.runtime.events",
    "Event": "qwen_edge.runtime.events",
    "FakeBackend": "qwen_edge.runtime.backends.fake",
    "Model": "qwen_edge.runtime.model",
    "SamplingParams": "qwen_edge.runtime.sampling",
    "Session": "qwen_edge.runtime.session",
    "load": "qwen_edge.runtime.loading",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use.

    State:
        Keeps the name in the module, so this runs once for each.
    """
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
