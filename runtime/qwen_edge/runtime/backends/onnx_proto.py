"""ONNX's messages, as few of them as our own models need, without the `onnx` package.

Only what the export writes is declared; whatever else a file holds (functions, subgraphs,
training data, strings and tensors as attributes) is an unknown field, and refused. No message
here contains itself, so nesting in a file cannot exhaust a stack. What the engine gets is what
these messages are written back to, never the bytes of the file. Read `onnx_file.py` next.
"""

import functools
import importlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from qwen_edge.errors import MissingExtraError, PackageError
from qwen_edge.runtime.manifest import MODEL_ONNX

MAX_MODEL_BYTES = 16 << 20
"""Of model.onnx. 36 layers have 1.1 MB; 16 MB of empty messages take 1 GB of memory to read."""
EXPORT_AGAIN = "export the package again, or copy the folder again from where it came from."

Message = Any
"""A message of a class that is made when it is first needed."""

# Names, numbers and types: onnx.proto of ONNX 1.23, IR version 10. Enumerations are int32 here.
_SCHEMA = {
    "ModelProto": """
        optional int64 ir_version = 1; optional string producer_name = 2;
        optional string producer_version = 3; optional GraphProto graph = 7;
        repeated OperatorSetIdProto opset_import = 8;""",
    "OperatorSetIdProto": "optional string domain = 1; optional int64 version = 2;",
    "GraphProto": """
        repeated NodeProto node = 1; optional string name = 2;
        repeated TensorProto initializer = 5; repeated ValueInfoProto input = 11;
        repeated ValueInfoProto output = 12; repeated ValueInfoProto value_info = 13;""",
    "NodeProto": """
        repeated string input = 1; repeated string output = 2; optional string name = 3;
        optional string op_type = 4; repeated AttributeProto attribute = 5;
        optional string domain = 7;""",
    "AttributeProto": """
        optional string name = 1; optional float f = 2; optional int64 i = 3;
        repeated int64 ints = 8; optional int32 type = 20;""",
    "TensorProto": """
        repeated int64 dims = 1; optional int32 data_type = 2; optional string name = 8;
        optional bytes raw_data = 9; repeated StringStringEntryProto external_data = 13;
        optional int32 data_location = 14;""",
    "StringStringEntryProto": "optional string key = 1; optional string value = 2;",
    "ValueInfoProto": "optional string name = 1; optional TypeProto type = 2;",
    "TypeProto": "optional TensorTypeProto tensor_type = 1;",
    "TensorTypeProto": "optional int32 elem_type = 1; optional TensorShapeProto shape = 2;",
    "TensorShapeProto": "repeated DimensionProto dim = 1;",
    "DimensionProto": "optional int64 dim_value = 1; optional string dim_param = 2;",
}
# What ONNX knows by these numbers and our models never have, to say what was found.
_REFUSED = {
    "ModelProto": {
        4: "domain", 5: "model_version", 6: "doc_string", 14: "metadata_props",
        20: "training_info", 25: "functions", 26: "configuration",
    },
    "GraphProto": {
        10: "doc_string", 14: "quantization_annotation", 15: "sparse_initializer",
        16: "metadata_props",
    },
    "NodeProto": {
        6: "doc_string", 8: "overload", 9: "metadata_props", 10: "device_configurations",
    },
    "AttributeProto": {
        4: "s, a text", 5: "t, a tensor", 6: "g, a subgraph", 7: "floats", 9: "strings",
        10: "tensors", 11: "graphs, subgraphs", 13: "doc_string", 14: "tp, a type",
        15: "type_protos", 21: "ref_attr_name", 22: "sparse_tensor", 23: "sparse_tensors",
    },
    "TensorProto": {
        3: "segment", 4: "float_data", 5: "int32_data", 6: "string_data", 7: "int64_data",
        10: "double_data", 11: "uint64_data", 12: "doc_string", 16: "metadata_props",
    },
    "ValueInfoProto": {3: "doc_string", 4: "metadata_props"},
    "TypeProto": {
        4: "sequence_type", 5: "map_type", 6: "denotation", 7: "opaque_type",
        8: "sparse_tensor_type", 9: "optional_type",
    },
    "DimensionProto": {3: "denotation"},
}  # fmt: skip
_FIELD = re.compile(r"(optional|repeated) (\w+) (\w+) = (\d+);")
_PACKAGE = "qwen_edge.onnx"
# Source: google/protobuf/descriptor.proto, FieldDescriptorProto.Type and Label.
_TYPES = {"float": 2, "int64": 3, "int32": 5, "string": 9, "bytes": 12}
_MESSAGE_TYPE = 11
_MAX_SEARCHED = 200_000  # messages, for a name to tell; 36 layers have 14,000
_LABELS = {"optional": 1, "repeated": 3}


def parse_model(text: bytes) -> Message:
    """Read a ModelProto from the bytes of `model.onnx`.

    Returns:
        The message; fields that are not declared here are kept in it, out of sight.

    Raises:
        PackageError: The bytes are no such message.
        MissingExtraError: Protocol buffers, which come with ONNX Runtime, are not installed.
    """
    model_class = _model_class()
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    try:
        return model_class.FromString(text)
    except (decode_error, RecursionError) as error:
        raise refusal(
            f"is not an ONNX model: its {len(text):,} bytes are damaged or something else"
        ) from error


def check_fields_are_known(model: Message, text: bytes) -> None:
    """Refuse a model with fields that our export never writes.

    Args:
        model: What `parse_model` returned.
        text: What it was read from, to say what was found.

    Raises:
        PackageError: There are such fields, at whatever depth.

    State:
        `model` holds the declared fields only.
    """
    size_bytes = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size_bytes:
        raise refusal(_describe_unknown(parse_model(text)))


def refusal(what: str, fix: str = EXPORT_AGAIN, **facts: object) -> PackageError:
    """Return the error that says what is wrong with `model.onnx`.

    Args:
        what: The rest of the sentence after the file's name, without its full stop.
        fix: What to do about it.
        **facts: The figures behind the text.
    """
    return PackageError(f"'{MODEL_ONNX}' {what}.", fix, **facts)


def short(name: str) -> str:
    """Return a name out of a file in quotes, and never a long one."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


@functools.cache
def _model_class() -> Any:
    """Return the class of ModelProto, in a pool of its own: `onnx` may use the usual one."""
    try:
        descriptors = importlib.import_module("google.protobuf.descriptor_pb2")
        pools = importlib.import_module("google.protobuf.descriptor_pool")
        factory = importlib.import_module("google.protobuf.message_factory")
    except ImportError as error:
        raise MissingExtraError(
            "Reading ONNX models needs 'onnxruntime' and the 'protobuf' it brings, which are "
            "not installed.",
            "pip install 'qwen-edge[onnx]'",
        ) from error
    # proto3 refuses texts that are not UTF-8; `optional` keeps apart zero and not given.
    file = descriptors.FileDescriptorProto(name="onnx.proto", package=_PACKAGE, syntax="proto3")
    for message_name, text in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for label, kind, name, number in _FIELD.findall(text):
            field = message.field.add(name=name, number=int(number), label=_LABELS[label])
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type, field.type_name = _MESSAGE_TYPE, f".{_PACKAGE}.{kind}"
            if label == "optional":
                field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{name}")
    pool = pools.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))


def _describe_unknown(model: Message) -> str:
    """Say which field it is that our models never have, and where."""
    unknown_fields = importlib.import_module("google.protobuf.unknown_fields")
    messages = itertools.islice(_iter_messages(model, "the model"), _MAX_SEARCHED)
    for message, owner in messages:
        for field in unknown_fields.UnknownFieldSet(message):
            kind = message.DESCRIPTOR.name
            name = _REFUSED.get(kind, {}).get(field.field_number)
            what = f"{name!r}" if name else f"the unknown field {field.field_number}"
            return f"has {what} in {owner} ({kind}), which our models never have"
    return "has fields that our models never have"


def _iter_messages(message: Message, owner: str) -> Iterator[tuple[Message, str]]:
    """Yield a message and all inside it, each with the nearest name that a reader can find."""
    yield message, owner
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if field.has_presence else value:
            name = getattr(part, "name", "")
            inner = f"{field.name} {short(name)}" if name else owner
            if message.DESCRIPTOR.name == "NodeProto":
                inner = f"{inner} of {owner}"
            yield from _iter_messages(part, inner)
