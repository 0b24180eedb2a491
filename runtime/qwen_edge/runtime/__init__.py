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
    from qwen_edge.runtime.batch_model import BatchAnswer, BatchModel
    from qwen_edge.runtime.batching.batch_options import BatchOptions
    from qwen_edge.runtime.decoding.sampling import SamplingParams
    from qwen_edge.runtime.events import Answer, Event
    from qwen_edge.runtime.loading import load, load_batch
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.session import Session
    from qwen_edge.runtime.structured.output_format import OutputFormat
    from qwen_edge.runtime.tools.tool import Tool
    from qwen_edge.runtime.tools.tool_call import ToolCall

__all__ = [
    "Answer",
    "BatchAnswer",
    "BatchModel",
    "BatchOptions",
    "Event",
    "FakeBackend",
    "Model",
    "OutputFormat",
    "SamplingParams",
    "Session",
    "Tool",
    "ToolCall",
    "load",
    "load_batch",
]

_HOME_OF = {
    "Answer": "qwen_edge.runtime.events",
    "BatchAnswer": "qwen_edge.runtime.batch_model",
    "BatchModel": "qwen_edge.runtime.batch_model",
    "BatchOptions": "qwen_edge.runtime.batching.batch_options",
    "Event": "qwen_edge.runtime.events",
    "FakeBackend": "qwen_edge.runtime.backends.fake",
    "Model": "qwen_edge.runtime.model",
    "SamplingParams": "qwen_edge.runtime.decoding.sampling",
    "Session": "qwen_edge.runtime.session",
    "OutputFormat": "qwen_edge.runtime.structured.output_format",
    "Tool": "qwen_edge.runtime.tools.tool",
    "ToolCall": "qwen_edge.runtime.tools.tool_call",
    "load": "qwen_edge.runtime.loading",
    "load_batch": "qwen_edge.runtime.loading",
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
