"""Makes damaged XML texts out of good ones: as tags that fit anywhere, and as a tree.

What the first makes is rarely well formed; what the second makes is, so that more is believed.
"""

import copy
from collections.abc import Sequence
from random import Random
from xml.etree import ElementTree

from mutate import change_bytes


def change_xml(rng: Random, data: bytes) -> bytes:
    """Change attributes, tags and texts of an XML text in one to four places."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tags = _spans(data)
        if not tags:
            return change_bytes(rng, data)
        start, stop = rng.choice(tags)
        data = data[:start] + _change_tag(rng, data, start, stop, tags) + data[stop:]
    return data


def change_xml_tree(rng: Random, data: bytes) -> bytes:
    """Change elements of an XML text and leave it well formed, so that more of it is believed."""
    root = ElementTree.fromstring(data)
    parents = [element for element in root.iter() if len(element)]
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        parent = rng.choice(parents)
        if not len(parent):
            continue
        at = rng.randrange(len(parent))
        element = parent[at]
        # The same chance for what there is little of: all layers look alike.
        if rng.random() < 0.7:
            names = sorted({found.tag for found in parents})
            name = rng.choice(names)
            parent = rng.choice([found for found in parents if found.tag == name])
            at = rng.randrange(max(1, len(parent)))
            element = parent[at] if len(parent) else parent
        kind = rng.randrange(12)
        if kind == 0 and len(parent) > at:
            del parent[at]
        elif kind == 1:
            parent.insert(at, copy.deepcopy(element))
        elif kind == 2:
            other = rng.choice(parents)
            if len(other) and other is not root:
                parent.insert(at, copy.deepcopy(other[rng.randrange(len(other))]))
        elif kind == 3 and element.text and element.text.strip():
            element.text = _other_value(rng, element.text)
        else:
            _change_attribute(rng, rng.choice(list(element.iter())))
        if sum(1 for _ in root.iter()) > 60_000:
            break
    return bytes(ElementTree.tostring(root))


def _change_attribute(rng: Random, element: ElementTree.Element) -> None:
    if not element.attrib:
        element.text = _other_value(rng, element.text or "")
        return
    name = rng.choice(sorted(element.attrib))
    if rng.random() < 0.1:
        del element.attrib[name]
    else:
        element.attrib[name] = _other_value(rng, element.attrib[name])


def _other_value(rng: Random, text: str) -> str:
    if text.strip().lstrip("-").isdigit() and rng.random() < 0.6:
        value = int(text)
        return str(
            rng.choice((value + 1, value - 1, value * 2, value // 2, -value, 0, -1, value + 64))
        )
    parts = text.split(",")
    if len(parts) > 1 and rng.random() < 0.6:
        parts[rng.randrange(len(parts))] = rng.choice(
            ("0", "-1", "1", "2147483647", "9223372036854775807")
        )
        return ",".join(parts[: rng.randrange(1, len(parts) + 2)])
    return rng.choice(_XML_VALUES).decode()


def _spans(data: bytes) -> list[tuple[int, int]]:
    spans, at = [], data.find(b"<")
    while at >= 0:
        stop = data.find(b">", at) + 1
        if not stop:
            break
        spans.append((at, stop))
        at = data.find(b"<", stop)
    return spans


_XML_VALUES = (
    b"", b"0", b"1", b"-1", b"2", b"3", b"64", b"127", b"2147483648", b"9223372036854775807",
    b"18446744073709551600", b"99999999999999999999999", b"1e30", b"nan", b"x", b"true", b"f32",
    b"i64", b"u4", b"u1", b"string", b"boolean", b"nf4", b"undefined", b"dynamic", b"?", b"?,?",
    b"..", b"1,2,3", b"1024,1024,1024,1024", b"-5,7", b"[", b"a" * 3_000, b"../openvino_model",
    b"opset1", b"opset15", b"extension", b"Constant", b"Result", b"If", b"Loop", b"TensorIterator",
    b"Add", b"Gather", b"Reshape", b"MatMul", b"Parameter", b"ReadValue", b"StridedSlice",
)  # fmt: skip
_XML_PIECES = (
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<!--", b"<![CDATA[", b"<?x?>", b"</net>", b"</layers>",
    b"<net>" * 1_000, b"<a>" * 20_000, b"&b;", b"&#0;", b"<layers>", b"<edges>", b"<rt_info>",
    b"<body>", b'<data offset="0" size="8"/>', b"<dim>-1</dim>", b"<dim>4294967296</dim>",
    b'<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>', b"<dim>0</dim>",
)  # fmt: skip


def _change_tag(
    rng: Random, data: bytes, start: int, stop: int, tags: Sequence[tuple[int, int]]
) -> bytes:
    tag = data[start:stop]
    kind = rng.randrange(10)
    if kind == 0:
        return b""
    if kind == 1:
        return tag * rng.choice((2, 2, 5))
    if kind == 2:
        return rng.choice(_XML_PIECES) + tag
    if kind == 3:
        other = rng.choice(tags)
        return data[other[0] : other[1]]
    parts = tag.split(b'"')
    if len(parts) >= 3:  # name="value": every second part is a value
        at = rng.randrange(1, len(parts), 2)
        number = parts[at].isdigit()
        if number and rng.random() < 0.5:
            value = int(parts[at])
            parts[at] = str(
                rng.choice((value + 1, value - 1, value * 2, value // 2, -value))
            ).encode()
        elif rng.random() < 0.2:
            other = rng.choice(tags)
            values = data[other[0] : other[1]].split(b'"')[1::2]
            parts[at] = rng.choice(values) if values else b""
        else:
            parts[at] = rng.choice(_XML_VALUES)
        return b'"'.join(parts)
    return change_bytes(rng, tag)
