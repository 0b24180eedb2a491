"""Inference engines behind one protocol: token ids in, next-token logits out.

`backend.py` is the protocol, `fake.py` the smallest implementation, `openvino.py` the one for
CPU and GPU, `openvino_static.py` the one for NPU. Importing this package imports no engine.
"""

from qwen_edge.runtime.backends.backend import Backend, Logits
from qwen_edge.runtime.backends.fake import FakeBackend

__all__ = ["Backend", "FakeBackend", "Logits"]
