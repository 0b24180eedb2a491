"""The weights of a sealed package, for graphs that hold a part of its model.

Constants keep the checkpoint's names in the package, so a layer is found by them and decompressed
by the very nodes that the package has.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import PackageError
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.manifest import MODEL_XML


class PackageWeights:
    """A `WeightSource` over a package's OpenVINO model, which stays mapped.

    Args:
        folder: The package.

    Raises:
        PackageError: Its model cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = read_ir(folder / MODEL_XML)
        self._nodes = {node.get_friendly_name(): node for node in self._model.get_ops()}

    def linear(self, name: str) -> Any:
        """Return a projection's weight, float32 [out, in], as the package decompresses it.

        Raises:
            PackageError: The package has no such weight.
        """
        node = self._nodes.get(f"{name}/convert") or self._find(name)
        return node.output(0)

    def embedding(self, name: str) -> Any:
        """Return the embedding table, float32 [vocab, hidden]; raises as `linear`."""
        return self.linear(name)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or a bias, float32 [size]; raises as `linear`."""
        values: npt.NDArray[np.float32] = self._find(name).get_data().reshape(-1)
        return values.astype(np.float32)

    def activation_scale(self, name: str) -> npt.NDArray[np.float32] | None:
        """Return what multiplies the input of a projection, or None."""
        node = self._nodes.get(f"{name.removesuffix('.weight')}.activation_scale")
        return None if node is None else node.get_data().reshape(-1).astype(np.float32)

    def _find(self, name: str) -> Any:
        node = self._nodes.get(name)
        if node is None:
            raise PackageError(
                f"The model in {str(self._folder)!r} has no constant {name!r}, so it cannot be "
                "compared with a checkpoint layer by layer.",
                "export the checkpoint again with this version, and compare that",
                tensor=name,
            )
        return node
