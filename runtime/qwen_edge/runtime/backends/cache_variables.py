"""The KV cache of an OpenVINO decoder, out of the engine in packed form and in again to the bit.

The engine has two variables per layer, keys and values. Here they are read, packed, checked,
unpacked and written, one after the other, while another thread packs or unpacks the next: all of
them at once would be four times the cache. `row_codec.py` does the packing, `openvino.py` knows
which tokens the rows are.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qwen_edge.runtime.backends.row_codec import Form, PackedRows, Rows, pack_rows, unpack_rows
from qwen_edge.runtime.engine import import_openvino

Array = npt.NDArray[Any]
Given = TypeVar("Given")
Made = TypeVar("Made")

_NUM_THREADS = 2
_NUM_AHEAD = 2
# What the numbers in a cache depend on, as the engine resolved it: not speed hints or threads,
# which at most change the order of sums.
_ARITHMETIC = (
    "INFERENCE_PRECISION_HINT",
    "EXECUTION_MODE_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)
_ENGINE_CACHE = (
    "KV_CACHE_PRECISION",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "KEY_CACHE_GROUP_SIZE",
    "VALUE_CACHE_GROUP_SIZE",
)
# Given out as bare numbers without their scales; taking them back ends the process (2026.4.1).
_UNREADABLE = frozenset({"u4", "i4", "u2", "u1"})
_FORM_OF: Mapping[str, Form] = {"u8": "u8"}


def read_cache_settings(
    compiled: Any, device: str, *, is_own_cache: bool = False
) -> dict[str, str]:
    """Return engine, version and settings that the numbers in a model's cache depend on.

    Args:
        compiled: An `openvino.CompiledModel`.
        device: What it was compiled for.
        is_own_cache: Whether keys and values lie outside the engine.
    """
    settings = {"engine": f"OpenVINO {import_openvino().__version__}", "device": device}
    for name in _ARITHMETIC if is_own_cache else (*_ARITHMETIC, *_ENGINE_CACHE):
        # Plugins list properties that they then do not tell, and tell some they do not list.
        with contextlib.suppress(RuntimeError):
            settings[name] = _as_text(compiled.get_property(name))
    return settings


class CacheVariables:
    """Access to the variables of one infer request.

    Args:
        query: Returns the request's variables.
        settings: What `read_cache_settings` returned.
        make_tensor: `openvino.Tensor`.

    State:
        None of its own. Errors of the engine are RuntimeError here; the caller says what they
        mean.
    """

    def __init__(
        self,
        query: Callable[[], Sequence[Any]],
        settings: Mapping[str, str],
        make_tensor: Callable[..., Any],
    ) -> None:
        self._query = query
        self._settings = settings
        self._make_tensor = make_tensor
        # The CPU plugin reads what it is given at once, and would keep a copy of its own for as
        # long as the cache lives: 4 bytes a value. It is lent the array instead.
        self._is_lent = settings.get("device") == "CPU"

    def keep(self, rows: npt.NDArray[np.intp], num_rows: int) -> None:
        """Drop all rows but these; a quantised cache changes by last bits."""
        for variable in self._variables():
            values = _values_of(variable, num_rows)
            self._write(variable, np.ascontiguousarray(values[:, :, rows]))

    def pack(self, rows: npt.NDArray[np.intp], num_rows: int) -> list[Array]:
        """Return some of the rows in packed form, to be given to `write`.

        Args:
            rows: Indices, ascending.
            num_rows: Rows the cache is expected to hold.

        Returns:
            Per variable, sorted by name, its values, and after values of uint8 their limits.
        """
        variables = self._variables()
        is_whole = rows.size == num_rows

        def pack(given: tuple[str, Rows]) -> PackedRows:
            name, values = given
            form, group_size = self._form_of(name)
            chosen = values if is_whole else values[:, :, rows]
            return pack_rows(chosen, form=form, group_size=group_size)

        given = (
            (str(variable.name), np.asarray(_values_of(variable, num_rows), np.float32))
            for variable in variables
        )
        return join_packed(_map_ahead(pack, given))

    def find_misfit(self, arrays: Sequence[Array], num_tokens: int) -> str | None:
        """Return why arrays cannot be this model's rows of so many tokens, or None."""
        variables = self._variables()
        packed = split_packed(arrays)
        if packed is None or len(packed) != len(variables):
            return f"it has {len(arrays)} arrays, expected those of {len(variables)} variables"
        for variable, rows in zip(variables, packed, strict=True):
            shape = tuple(variable.state.shape)
            # Whatever it holds now, empty or not, heads and their size are the model's own.
            expected = (1, shape[1], num_tokens, shape[3]) if len(shape) == 4 else shape
            if rows.values.shape != expected:
                return f"its arrays have shape {rows.values.shape}, expected {expected}"
            form, group_size = self._form_of(str(variable.name))
            groups = shape[3] // (group_size or shape[3])
            if rows.limits is None:
                continue
            if form != "u8":
                return "its arrays are those of a quantised cache"
            if rows.limits.shape != (*expected[:3], groups, 2):
                return f"its limits have shape {rows.limits.shape}"
        return None

    def write(self, arrays: Sequence[Array], rows: npt.NDArray[np.intp], num_rows: int) -> bool:
        """Put rows in the place of all there are; the others, nobody's, become zeros.

        Args:
            arrays: What `pack` returned, and `find_misfit` found to fit.
            rows: Where its rows are to stand, ascending.
            num_rows: Rows the cache is to hold.

        Returns:
            Whether the engine now gives out what it gave when the rows were packed. One
            variable stands for all: thousands of rows with scales of their own.
        """
        packed = split_packed(arrays) or []
        variables = self._variables()

        def unpack(one: PackedRows) -> Rows:
            return _spread(unpack_rows(one, is_for_engine=True), rows, num_rows)

        for variable, values in zip(variables, _map_ahead(unpack, packed), strict=True):
            self._write(variable, values)
        expected = _spread(unpack_rows(packed[0], is_for_engine=False), rows, num_rows)
        return np.array_equal(_values_of(variables[0], num_rows), expected)

    def _variables(self) -> list[Any]:
        for key in ("KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION", "KV_CACHE_PRECISION"):
            if self._settings.get(key) in _UNREADABLE:
                raise RuntimeError(f"a cache of {self._settings[key]} has no readable form")
        # The engine's order is by nothing that is promised, and differs between compilations.
        return sorted(self._query(), key=lambda variable: str(variable.name))

    def _form_of(self, name: str) -> tuple[Form, int]:
        """Return form and group size of a variable's rows."""
        kind = "VALUE" if name.endswith("value") else "KEY"
        precision = self._settings.get(f"{kind}_CACHE_PRECISION", "")
        group_size = self._settings.get(f"{kind}_CACHE_GROUP_SIZE", "0")
        return _FORM_OF.get(precision, "f32"), int(group_size) if group_size.isdigit() else 0

    def _write(self, variable: Any, values: Rows) -> None:
        variable.state = self._make_tensor(values, shared_memory=self._is_lent)


def join_packed(packed: Iterable[PackedRows]) -> list[Array]:
    """Return packed rows as one list of arrays; see `split_packed`."""
    arrays: list[Array] = []
    for rows in packed:
        arrays.append(rows.values)
        if rows.limits is not None:
            arrays.append(rows.limits)
    return arrays


def split_packed(arrays: Sequence[Array]) -> list[PackedRows] | None:
    """Return the packed rows that a list of arrays stands for, or None where it is no such list.

    Values of uint8 are followed by their limits, all others stand alone.
    """
    packed: list[PackedRows] = []
    left = deque(arrays)
    while left:
        values = left.popleft()
        if values.ndim != 4 or values.shape[0] != 1:
            return None
        if values.dtype != np.uint8:
            if values.dtype not in (np.uint16, np.float16, np.float32):
                return None
            packed.append(PackedRows(values))
            continue
        if not left or left[0].dtype != np.float32 or left[0].ndim != 5:
            return None
        packed.append(PackedRows(values, left.popleft()))
    return packed


def _spread(values: Rows, rows: npt.NDArray[np.intp], num_rows: int) -> Rows:
    """Return rows at their places among zeros."""
    if rows.size == num_rows:
        return values
    spread = np.zeros((*values.shape[:2], num_rows, values.shape[3]), dtype=np.float32)
    spread[:, :, rows] = values
    return spread


def _values_of(variable: Any, num_rows: int) -> Array:
    """Return a variable's rows; refuse a cache in a plugin's own form."""
    values: Array = variable.state.data  # [1, kv_heads, rows, head_dim]
    if values.ndim != 4 or values.shape[2] != num_rows:
        raise RuntimeError(f"it has shape {values.shape}, expected {num_rows} rows")
    return values


def _map_ahead(make: Callable[[Given], Made], items: Iterable[Given]) -> Iterator[Made]:
    """Yield what a function makes of items, in order, while threads make the next ones.

    Few are made ahead, since each is large. The items are taken in the caller's thread.
    """
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="cache") as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > _NUM_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _as_text(value: object) -> str:
    """Return a property's value as the engine writes it: its types print as Python's otherwise."""
    to_string = getattr(value, "to_string", None)
    return str(to_string() if callable(to_string) else value)
