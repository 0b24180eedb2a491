"""Writing the graph as ONNX: one file for the graph, one for the weights.

Deterministic: the same specification and weights give the same two files, byte for byte.
"""

from pathlib import Path

import onnx_ir as ir

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.onnx_graph import build_onnx_decoder
from qwen_edge.export.onnx_operators import Operators, RuntimeOperators
from qwen_edge.export.onnx_parts import GraphBuilder
from qwen_edge.export.onnx_weights import OnnxWeights
from qwen_edge.export.portable_operators import PortableOperators
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.runtime.files.writing import note_written
from qwen_edge.runtime.manifest import MODEL_ONNX, MODEL_ONNX_DATA


def write_onnx_model(
    spec: DecoderSpec,
    store: WeightStore,
    folder: Path,
    *,
    max_context_tokens: int,
    is_portable: bool = False,
) -> None:
    """Build the decoder and write model.onnx and model.onnx.data.

    Args:
        spec: The decoder.
        store: Frozen; must stay open until this returns.
        folder: Receives the two files.
        max_context_tokens: Positions the rotary tables hold.
        is_portable: Standard operators only, for programs that do not have ONNX Runtime's own.

    Raises:
        OSError: The disk filled up.
    """
    import onnx

    path = folder / MODEL_ONNX
    with OnnxWeights(store, folder / MODEL_ONNX_DATA) as weights:
        builder = GraphBuilder()
        operators: Operators
        if is_portable:
            operators = PortableOperators(spec, weights, builder)
        else:
            operators = RuntimeOperators(spec, weights, builder, max_context_tokens)
        model = build_onnx_decoder(spec, operators, builder)
    ir.save(model, path)
    note_written(path)
    onnx.checker.check_model(str(path))
