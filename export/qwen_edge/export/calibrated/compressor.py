"""The compressor of calibrated recipes: factors, scales and integers by what a layer reads."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qwen_edge.export.calibrated.balance import balance_layer
from qwen_edge.export.calibrated.moments import SITES, Moments, Site
from qwen_edge.export.calibrated.rounding import SHRINKAGE, round_with_gptq, round_with_scales
from qwen_edge.export.checkpoint import Checkpoint, widen
from qwen_edge.export.compress import (
    Compressor,
    Parts,
    SourceMatrix,
    TensorStore,
    fit_format,
    stored_parts,
)
from qwen_edge.export.decoder import DecoderSpec, layer_prefix
from qwen_edge.profiles.matrix_format import FOUR_BITS, MatrixFormat
from qwen_edge.profiles.recipe import Recipe

Matrix = npt.NDArray[np.float32]


class CalibratedCompressor(Compressor):
    """Compresses layers whose inputs are known.

    Args:
        checkpoint: Checked against `spec` already.
        spec: The decoder.
        recipe: One whose `calibration` is "activations".
        store: Receives every tensor.

    State:
        As `Compressor`.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, recipe: Recipe, store: TensorStore
    ) -> None:
        super().__init__(checkpoint, spec, recipe, store)
        self._moments: Mapping[Site, Moments] = {}

    def make_moments(self, layer_index: int) -> dict[Site, Moments]:
        """Return empty sums for the sites of a layer that its recipe asks for.

        Args:
            layer_index: From 0.
        """
        shapes = self._spec.linear_shapes(layer_index)
        moments = {}
        for site in SITES:
            names = [f"{layer_prefix(layer_index)}{reader}.weight" for reader in site.readers]
            width = shapes[names[0]][1]
            found = [fit_format(self._format(name), width) for name in names]
            coarse = [one for one in found if one.weights in FOUR_BITS]
            if not coarse and all(one.weights != "int8" for one in found):
                continue
            groups = [one.group_size for one in coarse if one.group_size != -1]
            block = width if self._recipe.gptq and coarse else max(groups, default=1)
            moments[site] = Moments(width, block)
        return moments

    def compress_with(self, layer_index: int, moments: Mapping[Site, Moments]) -> None:
        """Store one layer's tensors.

        Args:
            layer_index: From 0.
            moments: Of `make_moments`, closed; AWQ's factors are divided out of them.

        Raises:
            CheckpointError: As `compress_layer`.
        """
        self._moments = moments
        self.compress_layer(layer_index)
        self._moments = {}

    def _balance(self, layer_index: int, matrices: dict[str, SourceMatrix]) -> None:
        """Put AWQ's factors on all that the layer's sites feed."""
        wide = {name: widen(matrix.array, matrix.dtype) for name, matrix in matrices.items()}
        sizes: dict[str, int] = {}
        for site in self._moments:
            names = [name for name in matrices if _reads(name, site)]
            found = {name: fit_format(self._format(name), wide[name].shape[1]) for name in names}
            coarse = {n: one.group_size for n, one in found.items() if one.weights in FOUR_BITS}
            # Among readers of 8 bits outliers cost as well; 4 bits show the same way out of it.
            eight = {n: one.group_size for n, one in found.items() if one.weights == "int8"}
            sizes |= coarse or eight
        balance = balance_layer(self._spec, layer_index, wide, self._moments, sizes)
        for site, factors in balance.sites.items():
            self._moments[site].divide(factors)
        self._apply(balance, matrices)

    def _convert(self, matrix: SourceMatrix, found: MatrixFormat) -> Parts:
        moments = self._moments_of(matrix.name)
        has_method = self._recipe.gptq or self._recipe.scale_estimation
        if found.weights != "int4" or not has_method or moments is None:
            return super()._convert(matrix, found)
        weights = widen(matrix.array, matrix.dtype)
        if matrix.row_factors is not None:
            weights *= matrix.row_factors[:, None]
        if matrix.column_factors is not None:
            weights *= matrix.column_factors
        symmetric, size = found.symmetric, found.group_size
        if self._recipe.gptq:
            done = round_with_gptq(
                weights,
                moments.products[0],
                size,
                symmetric=symmetric,
                scale_estimation=self._recipe.scale_estimation,
            )
        else:
            products = moments.products_of(size)
            shrinkage = SHRINKAGE if self._recipe.awq else 0.0
            done = round_with_scales(
                weights, products, size, symmetric=symmetric, shrinkage=shrinkage
            )
        return {key: [array] for key, array in stored_parts(matrix, done).items()}

    def _moments_of(self, name: str) -> Moments | None:
        """Return what a projection of the layer reads; None for embedding and head."""
        for site, moments in self._moments.items():
            if _reads(name, site):
                return moments
        return None


def _reads(name: str, site: Site) -> bool:
    return name.removesuffix(".weight").endswith(site.readers)
