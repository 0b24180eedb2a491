"""The small library in OpenBLAS's place gives the same products, in every form NumPy asks for."""

import ctypes
import itertools
import shutil
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.bundle.blas import build_plain_blas

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler on Linux"
)
ROW_MAJOR, COLUMN_MAJOR, PLAIN, TRANSPOSED, UPPER, LOWER = 101, 102, 111, 112, 121, 122
TYPES = {"s": np.float32, "d": np.float64, "c": np.complex64, "z": np.complex128}
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("blas") / "plain.so"
    assert build_plain_blas(path) is None
    return ctypes.CDLL(str(path))


class Caller:
    """Calls a function of one letter as C does: numbers by value, complex ones by address."""

    def __init__(self, library: ctypes.CDLL, letter: str) -> None:
        self.library, self.letter, self.dtype = library, letter, TYPES[letter]
        self.rng = np.random.default_rng(7)

    def numbers(self, *shape: int) -> Array:
        values = self.rng.standard_normal(shape)
        if self.letter in "cz":
            return (values + 1j * self.rng.standard_normal(shape)).astype(self.dtype)
        return values.astype(self.dtype)

    def __call__(self, name: str, *arguments: Any) -> Any:
        function = getattr(self.library, f"scipy_cblas_{self.letter}{name}64_")
        kept, passed = [], []
        for value in arguments:
            if isinstance(value, np.ndarray):
                passed.append(ctypes.c_void_p(value.ctypes.data))
            elif isinstance(value, self.dtype):  # a factor
                if self.letter in "cz":
                    kept.append(np.array([value]))
                    passed.append(ctypes.c_void_p(kept[-1].ctypes.data))
                else:
                    passed.append(
                        (ctypes.c_float if self.letter == "s" else ctypes.c_double)(value)
                    )
            else:
                is_choice = value > 100
                passed.append(ctypes.c_int(value) if is_choice else ctypes.c_int64(value))
        function.restype = {"s": ctypes.c_float, "d": ctypes.c_double}.get(self.letter)
        return function(*passed)


@pytest.fixture(params=list(TYPES))
def call(request: pytest.FixtureRequest, library: ctypes.CDLL) -> Caller:
    return Caller(library, request.param)


def near(found: Any, expected: Any) -> bool:
    return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_sums(call: Caller, step: int) -> None:
    x, y = call.numbers(30), call.numbers(30)
    steps = slice(None, 10 * step, step) if step > 0 else slice(9 * -step, None, step)
    # With a negative step BLAS is given the first number in memory and begins at the last.
    picked = x[steps][:10]
    expected = np.einsum("i,i", picked, y[:10])
    if call.letter in "sd":
        assert near(call("dot", 10, x, step, y, 1), expected)
        return
    result = np.zeros(1, call.dtype)
    call("dotu_sub", 10, x, step, y, 1, result)
    assert near(result[0], expected)
    call("dotc_sub", 10, x, step, y, 1, result)
    assert near(result[0], np.einsum("i,i", picked.conj(), y[:10]))


def test_adding(call: Caller) -> None:
    x, y = call.numbers(8), call.numbers(16)
    expected = y.copy()
    expected[::2] += call.dtype(3) * x
    call("axpy", 8, call.dtype(3), x, 1, y, 2)
    assert near(y, expected)


@pytest.mark.parametrize("form", [PLAIN, TRANSPOSED])
@pytest.mark.parametrize("order", [ROW_MAJOR, COLUMN_MAJOR])
def test_matrix_and_vector(call: Caller, order: int, form: int) -> None:
    a = call.numbers(5, 9)  # 5 rows of 7, with two numbers between rows
    memory = a if order == ROW_MAJOR else np.ascontiguousarray(np.pad(a[:, :7].T, ((0, 0), (0, 2))))
    matrix = a[:, :7] if form == PLAIN else a[:, :7].T
    x, y = call.numbers(matrix.shape[1]), call.numbers(matrix.shape[0])
    expected = call.dtype(2) * np.einsum("ij,j", matrix, x) + call.dtype(0.5) * y
    lead = 9 if order == ROW_MAJOR else 7
    call("gemv", order, form, 5, 7, call.dtype(2), memory, lead, x, 1, call.dtype(0.5), y, 1)
    assert near(y, expected)
    y[:] = np.nan  # with a factor of zero nothing is read
    call("gemv", order, form, 5, 7, call.dtype(1), memory, lead, x, 1, call.dtype(0), y, 1)
    assert near(y, np.einsum("ij,j", matrix, x))


@pytest.mark.parametrize("forms", list(itertools.product([PLAIN, TRANSPOSED], repeat=2)), ids=str)
@pytest.mark.parametrize("order", [ROW_MAJOR, COLUMN_MAJOR])
def test_matrices(call: Caller, order: int, forms: tuple[int, int]) -> None:
    rows, columns, depth = 4, 6, 5

    def place(matrix: Array, form: int) -> tuple[Array, int]:
        shown = matrix if form == PLAIN else matrix.T
        memory = np.ascontiguousarray(shown if order == ROW_MAJOR else shown.T)
        return memory, memory.shape[1]

    a, b, c = call.numbers(rows, depth), call.numbers(depth, columns), call.numbers(rows, columns)
    expected = call.dtype(2) * np.einsum("ik,kj", a, b) + call.dtype(0.5) * c
    placed, width = place(c, PLAIN)
    call(
        "gemm", order, *forms, rows, columns, depth, call.dtype(2), *place(a, forms[0]),
        *place(b, forms[1]), call.dtype(0.5), placed, width,
    )  # fmt: skip
    assert near(placed if order == ROW_MAJOR else placed.T, expected)


@pytest.mark.parametrize("form", [PLAIN, TRANSPOSED])
@pytest.mark.parametrize("half", [UPPER, LOWER])
@pytest.mark.parametrize("order", [ROW_MAJOR, COLUMN_MAJOR])
def test_a_matrix_and_itself(call: Caller, order: int, half: int, form: int) -> None:
    a = call.numbers(4, 6)
    shown = a if form == PLAIN else a.T
    memory = np.ascontiguousarray(shown if order == ROW_MAJOR else shown.T)
    c = np.zeros((4, 4), call.dtype)
    call(
        "syrk", order, half, form, 4, 6, call.dtype(1), memory, memory.shape[1], call.dtype(0), c, 4
    )
    found = c if order == ROW_MAJOR else c.T
    kept = np.triu(np.ones((4, 4))) if half == UPPER else np.tril(np.ones((4, 4)))
    assert near(found, np.einsum("ik,jk", a, a) * kept)
