"""Refuse a package for a GPU that no GPU would take, before a byte of it is written.

Owns nothing but the step: the arithmetic is `qwen_edge.profiles.gpu_memory`, and the GPU itself
is not asked, since the package may be made on another machine.
"""

import logging

from qwen_edge.export.package_facts import device_settings
from qwen_edge.export.request import ResolvedRequest
from qwen_edge.profiles.gpu_memory import ModelShape, check_gpu_buffers

_LOGGER = logging.getLogger(__name__)


def check_gpu(resolved: ResolvedRequest, model: ModelShape, *, context_limit: int) -> None:
    """Check the largest buffer of a package whose profile names a GPU.

    Args:
        resolved: The request.
        model: The decoder's shape.
        context_limit: Tokens that the model was made for.

    Raises:
        ResourceError: A buffer is larger than GPUs give out.
    """
    if "openvino" not in resolved.formats:
        return
    asked = resolved.request.max_context_tokens
    limit = context_limit if asked is None else min(asked, context_limit)
    for settings in device_settings(resolved.profile, limit, model.num_layers):
        if settings.device == "GPU":
            note = check_gpu_buffers(model, settings, resolved.recipe)
            if note is not None:
                _LOGGER.warning(note)
