"""Reading an IR's text before the engine does, so that a damaged one is refused and not followed.

OpenVINO believes what it reads: an edge from a layer that is not there, or a state without a
name, ends the process. Here every graph in the file is held against itself: layers and ports that
edges name, one edge for each input, no circle, constants inside the file of weights. What the
operators compute is left to the engine. This module imports no engine.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from qwen_edge.errors import PackageError, format_bytes

RULES = "1"
"""Another text when the check refuses more than before: what was remembered is checked again."""
MAX_XML_BYTES = 64 << 20
"""Of the text alone. 36 layers have 3.5 MB."""
_MAX_DEPTH = 48
_MAX_PORTS = 4_096  # of one layer
_MAX_CHARS = 4_096  # of an attribute that is read here
_BITS = {
    "boolean": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "i4": 4, "i8": 8, "i16": 16,
    "i32": 32, "i64": 64, "u1": 1, "u2": 2, "u3": 3, "u4": 4, "u6": 6, "u8": 8, "u16": 16,
    "u32": 32, "u64": 64, "nf4": 4, "f8e4m3": 8, "f8e5m2": 8, "f4e2m1": 4, "f8e8m0": 8,
}  # fmt: skip
_EDGE = ("from-layer", "from-port", "to-layer", "to-port")
_STATES = ("ReadValue", "Assign")
_EXPORT_AGAIN = "check the package with `qwen-edge verify`, or export it again."


@dataclass
class _Layer:
    """One layer: its ports and what it says of itself."""

    kind: str
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Graph:
    """The layers and edges of the model, or of a body inside a layer of it."""

    layers: dict[str, _Layer] = field(default_factory=dict)
    edges: list[tuple[str, str, str, str]] = field(default_factory=list)


def check_ir(xml_path: Path) -> None:
    """Refuse an IR that contradicts itself or its file of weights.

    Args:
        xml_path: The `.xml` file; the `.bin` beside it has the same stem, and may be missing
            where no constant is read from it.

    Raises:
        PackageError: It cannot be read, is no XML, or names what is not there.
    """
    try:
        text = _read(xml_path)
        bin_path = xml_path.with_suffix(".bin")
        bin_bytes = bin_path.stat().st_size if bin_path.is_file() else 0
    except OSError as error:
        raise PackageError(
            f"{str(xml_path)!r} cannot be read: {error.strerror or error}.",
            "check the package with `qwen-edge verify`.",
            path=str(xml_path),
        ) from error
    try:
        graphs = _Reader().read(text)
        for graph in graphs:
            _check_layers(graph, bin_bytes)
            _check_edges(graph)
            _check_no_circle(graph)
    except expat.ExpatError as error:
        problem = f"it is no XML ({expat.errors.messages[error.code]}, line {error.lineno:,})"
        raise _refusal(xml_path, problem) from error
    except (UnicodeError, ValueError) as error:
        raise _refusal(xml_path, str(error)) from error


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        text = stream.read(MAX_XML_BYTES + 1)
    if len(text) > MAX_XML_BYTES:
        raise _refusal(path, f"its text has more than {format_bytes(MAX_XML_BYTES)}")
    return text


def _refusal(path: Path, problem: str) -> PackageError:
    return PackageError(
        f"qwen-edge cannot read {str(path)!r} as an OpenVINO model: {problem}.",
        _EXPORT_AGAIN,
        path=str(path),
    )


class _Reader:
    """Collects the graphs of an IR; raises ValueError for what no IR has.

    State:
        The elements that are open, and the graphs and layers that these belong to.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._inside: list[_Graph] = []  # one for each "layers" element's parent that is open
        self._layers: list[_Layer] = []
        self._done: list[_Graph] = []

    def read(self, text: bytes) -> list[_Graph]:
        """Return the graphs of a text, the model's own last."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = _refuse_doctype
        parser.Parse(text, True)
        return self._done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if len(self._open) > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if name == "dim" and parent:  # most of them are
            return
        if (not parent) != (name == "net"):
            raise ValueError(f"it has an element {name[:40]!r} where none belongs")
        if name == "port" and parent in ("input", "output"):
            self._add_port(parent, _take(attributes, "id"))
        elif name == "edge" and parent == "edges":
            source, source_port, target, target_port = (_take(attributes, key) for key in _EDGE)
            self._inside[-1].edges.append((source, source_port, target, target_port))
        elif name == "layer" and parent == "layers":
            self._add_layer(attributes)
        elif name == "data" and parent == "layer" and self._layers:
            self._layers[-1].data = attributes
        elif name == "net" or _is_body(name):
            self._inside.append(_Graph())

    def _add_layer(self, attributes: dict[str, str]) -> None:
        layers, layer_id = self._inside[-1].layers, _take(attributes, "id")
        if layer_id in layers:
            raise ValueError(f"it has two layers {layer_id!r}")
        layers[layer_id] = _Layer(_take(attributes, "type"))
        self._layers.append(layers[layer_id])

    def _add_port(self, side: str, port_id: str) -> None:
        if not self._layers or self._open[-3] != "layer":
            return
        layer = self._layers[-1]
        ports = layer.inputs if side == "input" else layer.outputs
        if port_id in layer.inputs or port_id in layer.outputs or len(ports) >= _MAX_PORTS:
            raise ValueError(f"a layer {layer.kind[:40]!r} has two ports {port_id!r}, or too many")
        ports.add(port_id)

    def _end(self, name: str) -> None:
        self._open.pop()
        if name == "layer" and self._open[-1:] == ["layers"]:
            self._layers.pop()
        elif name == "net" or _is_body(name):
            self._done.append(self._inside.pop())


def _is_body(name: str) -> bool:
    return name == "body" or name.endswith("_body")


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it declares a document type, which no model has")


def _take(attributes: Mapping[str, str], key: str) -> str:
    value = attributes.get(key)
    if value is None or len(value) > _MAX_CHARS:
        raise ValueError(f"an element lacks {key!r}")
    return value


def _check_layers(graph: _Graph, bin_bytes: int) -> None:
    """Refuse constants outside of the weights, and states that cannot be told apart."""
    for layer_id, layer in graph.layers.items():
        where = f"layer {layer_id!r} ({layer.kind[:40]})"
        if layer.kind == "Const":
            _check_constant(layer.data, where, bin_bytes)
        elif layer.kind in _STATES and not layer.data.get("variable_id"):
            raise ValueError(f"{where} names no state")


def _check_constant(data: Mapping[str, str], where: str, bin_bytes: int) -> None:
    offset, size = (_whole(data, key, where) for key in ("offset", "size"))
    if offset + size > bin_bytes:
        raise ValueError(
            f"{where} is read up to byte {offset + size:,} of weights that have {bin_bytes:,}"
        )
    element_type = _take(data, "element_type")
    bits = _BITS.get(element_type)  # none of "string": their lengths are in the weights
    if bits is None:
        raise ValueError(f"{where} holds {element_type[:40]!r}, which no decoder has")
    shape = _take(data, "shape")
    count = math.prod(_dims(shape, where))
    if (count * bits + 7) // 8 != size:
        raise ValueError(f"{where} has {size:,} bytes, not those of [{shape[:80]}] {element_type}")


def _dims(shape: str, where: str) -> Iterator[int]:
    for part in shape.split(",") if shape.strip() else ():
        if not part.strip().isascii() or not part.strip().isdigit() or len(part) > 20:
            raise ValueError(f"{where} has the shape [{shape[:80]}], expected numbers")
        yield int(part)


def _whole(data: Mapping[str, str], key: str, where: str) -> int:
    text = data.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError(f"{where} has {key} {text[:40]!r}, expected a number")
    return int(text)


def _check_edges(graph: _Graph) -> None:
    """Refuse edges from or to what is not there, and inputs without exactly one."""
    reached: set[tuple[str, str]] = set()
    for source, source_port, target, target_port in graph.edges:
        edge = f"an edge from {source!r} to {target!r}"
        if source not in graph.layers or source_port not in graph.layers[source].outputs:
            raise ValueError(f"{edge} begins at a port that is not there")
        if target not in graph.layers or target_port not in graph.layers[target].inputs:
            raise ValueError(f"{edge} ends at a port that is not there")
        if (target, target_port) in reached:
            raise ValueError(f"two edges end at one input of layer {target!r}")
        reached.add((target, target_port))
    for layer_id, layer in graph.layers.items():
        if any((layer_id, port) not in reached for port in layer.inputs):
            raise ValueError(f"layer {layer_id!r} ({layer.kind[:40]}) has an input without an edge")


def _check_no_circle(graph: _Graph) -> None:
    """Refuse layers that wait for each other."""
    waiting = dict.fromkeys(graph.layers, 0)
    following: dict[str, list[str]] = {layer_id: [] for layer_id in graph.layers}
    for source, _, target, _ in graph.edges:
        waiting[target] += 1
        following[source].append(target)
    ready = [layer_id for layer_id, count in waiting.items() if not count]
    num_done = 0
    while ready:
        num_done += 1
        for target in following[ready.pop()]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if num_done < len(graph.layers):
        raise ValueError("its layers form a circle")
