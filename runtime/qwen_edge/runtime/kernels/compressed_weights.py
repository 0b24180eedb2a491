"""Recognise matrix products with compressed weights in a graph, and what they are made of.

The forms are those that NNCF writes, and our export: whole numbers of 4 or 8 bits, less a zero
point where there is one, times a float16 scale per row and group of columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COLUMN_STEP = 128  # as in native/kernels.hpp
_SHORT_GROUPS = (32, 64)
_BITS = {"i4": 4, "i8": 8, "u8": 8}


@dataclass(frozen=True)
class CompressedWeights:
    """A matrix [rows, columns] as it lies in the model's memory; nothing is copied.

    Attributes:
        bits: 4 or 8.
        codes: uint8 [rows, columns * bits / 8]; 4-bit codes two to a byte, the even column low.
        scales: uint8 [rows, 2 * groups], the bits of float16 numbers.
        zero_points: uint8 [rows, 1] for unsigned codes; None for signed ones.
        owners: The constants whose memory that is; the arrays do not keep them.
    """

    bits: int
    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]
    zero_points: npt.NDArray[np.uint8] | None
    owners: tuple[Any, ...]


def read_weights(product: Any) -> CompressedWeights | None:
    """Return the compressed weights of a matrix product, or None where the kernels do not fit.

    Args:
        product: A node `MatMul` of a model.
    """
    attributes = product.get_attributes()
    if attributes["transpose_a"] or not attributes["transpose_b"]:
        return None
    scaled = _skip(product.input_value(1).get_node(), ("Convert", "Reshape"))
    if scaled.get_type_name() != "Multiply":
        return None
    scales = _constant(scaled.input_value(1).get_node(), ("f16",))
    codes, zero_points = scaled.input_value(0).get_node(), None
    if codes.get_type_name() == "Subtract":
        zero_points = _constant(codes.input_value(1).get_node(), ("u8",))
        codes = codes.input_value(0).get_node()
        if zero_points is None:
            return None
    codes = _constant(codes, ("u8",) if zero_points is not None else ("i4", "i8"))
    if codes is None or scales is None:
        return None
    return _take(codes, scales, zero_points)


def _skip(node: Any, types: tuple[str, ...]) -> Any:
    while node.get_type_name() in types:
        node = node.input_value(0).get_node()
    return node


def _constant(node: Any, types: tuple[str, ...]) -> Any:
    """Return the constant behind a node if it holds numbers of these types, or None."""
    node = _skip(node, ("Convert",))
    if node.get_type_name() != "Constant":
        return None
    return node if node.get_output_element_type(0).get_type_name() in types else None


def _take(codes: Any, scales: Any, zero_points: Any) -> CompressedWeights | None:
    """Return arrays over the memory of constants whose shapes are as the kernels want them."""
    shape, scale_shape = list(codes.get_output_shape(0)), list(scales.get_output_shape(0))
    if len(shape) == 2:  # a row is one group
        shape = [shape[0], 1, shape[1]]
        scale_shape.append(1)
    if len(shape) != 3 or scale_shape != [shape[0], shape[1], 1]:
        return None
    rows, groups, group = shape
    bits = _BITS[codes.get_output_element_type(0).get_type_name()]
    is_fitting = group % COLUMN_STEP == 0 or (bits == 4 and group in _SHORT_GROUPS)
    if not rows or not is_fitting or groups * group % COLUMN_STEP:
        return None
    if zero_points is not None and (
        groups != 1 or np.prod(zero_points.get_output_shape(0)) != rows
    ):
        return None
    return CompressedWeights(
        bits,
        _bytes_of(codes, rows),
        _bytes_of(scales, rows),
        None if zero_points is None else _bytes_of(zero_points, rows),
        (codes, scales, zero_points),
    )


def _bytes_of(constant: Any, rows: int) -> npt.NDArray[np.uint8]:
    array: npt.NDArray[Any] = constant.get_tensor_view().data
    return array.reshape(-1).view(np.uint8).reshape(rows, -1)
