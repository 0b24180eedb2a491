"""Turn a package's decoder, in memory, into one over a cache in blocks.

The package is the same for one conversation and for many: OpenVINO's own transformation replaces
the state by inputs for the blocks and for each sequence's table. Its head is cut down to the
tokens whose logits are wanted, which for a prompt is one of hundreds. `openvino_paged.py` feeds
the result.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qwen_edge.errors import PackageError
from qwen_edge.runtime.backends.compiling import blaming_the_model, compile_model
from qwen_edge.runtime.backends.decoder_request import LOGITS
from qwen_edge.runtime.backends.last_logits import find_head
from qwen_edge.runtime.engine import first_line, import_openvino
from qwen_edge.runtime.manifest import MODEL_XML

SCORED_ROWS = "sampled_tokens_indices"
KEY_CACHE = "key_cache."
VALUE_CACHE = "value_cache."
# Keys as the stateful engine keeps them, each token with a scale of its own. The paged kernel's
# default has one per channel and block: it would quantise a block anew with each token.
_ROW_BY_ROW = {"KEY_CACHE_QUANT_MODE": "BY_TOKEN"}


def compile_paged(model: Any, properties: Mapping[str, str | bool | int]) -> Any:
    """Transform a decoder and compile it for the CPU.

    Args:
        model: What `read_ir` returned, a stateful decoder; changed in place.
        properties: OpenVINO properties, as for the stateful decoder.

    Returns:
        An `openvino.CompiledModel` with the inputs of `PagedCall`, a `key_cache.N` and a
        `value_cache.N` for each layer, and the output `logits` [scored, 1, vocab].

    Raises:
        PackageError: The decoder is not of a form that can be transformed.
        DeviceError: The device refused the model or a property.
        ResourceError: Memory ran out while compiling.

    Source:
        Inputs and their meaning: PagedAttention in the OpenVINO 2026.4 documentation; the same
        transformation and the name of the added input as in openvino.genai 2026.4.
    """
    openvino = import_openvino()
    # Importing it by name keeps the engine behind `engine.py`, which makes it quiet.
    transformations = importlib.import_module(f"{openvino.__name__}._offline_transformations")
    try:
        transformations.paged_attention_transformation(model)
    except RuntimeError as error:
        raise PackageError(
            f"OpenVINO {openvino.__version__} cannot run this model on many sequences at once: "
            f"{first_line(error)}.",
            "load it without batching.",
            engine_message=str(error),
        ) from error
    with blaming_the_model(MODEL_XML):
        _score_some_rows(model)
    return compile_model(model, "CPU", {**_ROW_BY_ROW, **properties})


def _score_some_rows(model: Any) -> None:
    """Let an input choose the tokens whose hidden states go through the head."""
    head = find_head(model)
    if head is None:
        raise PackageError(
            f"No matrix product makes {LOGITS!r}, so it cannot be cut to some tokens.",
            "load the package without batching.",
        )
    openvino = import_openvino()
    ops = openvino.opset15
    rows = ops.parameter([-1], openvino.Type.i32, SCORED_ROWS)
    rows.output(0).set_names({SCORED_ROWS})
    axis = ops.constant(np.array(0, dtype=np.int64))
    chosen = ops.gather(head.input_value(0), rows, axis)  # [scored, 1, hidden]
    head.input(0).replace_source_output(chosen.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()
