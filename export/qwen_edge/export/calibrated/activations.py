"""What the projections of a layer read: it runs on calibration text and its inputs are summed up.

A projection's rounding error shows in its output as that error times its inputs, so the second
moments of the inputs are all that choosing good integers needs, however many tokens were read.
Four places of a layer feed its seven projections. Knows nothing of integers and scales.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from qwen_edge.export.calibrated.moments import Moments, Site
from qwen_edge.export.decoder import DecoderSpec, layer_prefix
from qwen_edge.export.openvino_graph import WeightSource, build_layer_model
from qwen_edge.export.quality.layerwise import EXACT_PROPERTIES, Hidden
from qwen_edge.runtime.backends.compiling import compile_model


class LayerRun:
    """One layer, compiled, that tells what its projections read.

    Args:
        spec: The architecture.
        weights: The layer's; they must outlive this.
        layer_index: From 0.
        sites: Those that are wanted.

    Raises:
        DeviceError: The CPU refuses the layer.
    """

    def __init__(
        self, spec: DecoderSpec, weights: WeightSource, layer_index: int, sites: Sequence[Site] = ()
    ) -> None:
        model = build_layer_model(spec, weights, layer_index)
        prefix = layer_prefix(layer_index)
        self._sites = tuple(sites)
        model.add_outputs([(f"{prefix}{site.node}", 0) for site in sites])
        self._request = compile_model(model, "CPU", EXACT_PROPERTIES).create_infer_request()

    def run(self, hidden: Hidden) -> tuple[Hidden, dict[Site, Hidden]]:
        """Return what the layer gives to a text, and what its sites held, each as a copy.

        Args:
            hidden: What it reads, float32 [tokens, hidden_size].
        """
        count = len(hidden)
        outputs = self._request.infer(
            {
                "hidden_states": hidden[None],
                "attention_mask": np.ones((1, count), np.int64),
                "position_ids": np.arange(count, dtype=np.int64)[None],
            }
        )
        values = {
            site: np.array(outputs[index][0]) for index, site in enumerate(self._sites, start=1)
        }
        return np.array(outputs[0][0]), values


def read_layer(
    spec: DecoderSpec,
    weights: WeightSource,
    layer_index: int,
    hidden: Iterable[Hidden],
    moments: Mapping[Site, Moments],
) -> Iterable[Hidden]:
    """Run a layer on texts, sum up what its projections read, and yield what it gives.

    Args:
        spec: The architecture.
        weights: The layer's, exact.
        layer_index: From 0.
        hidden: What the layer reads of each text, float32 [tokens, hidden_size].
        moments: For each site that is wanted; added to.

    Raises:
        DeviceError: The CPU refuses the layer.
    """
    layer = LayerRun(spec, weights, layer_index, list(moments))
    for rows in hidden:
        after, values = layer.run(rows)
        for site, found in values.items():
            moments[site].add(found)
        yield after
    for summed in moments.values():
        summed.close()
