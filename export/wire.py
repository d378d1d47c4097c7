"""A look into an ONNX file before onnxruntime opens it: protobuf's wire format, as far as safety needs it.

The package onnx would do this too, but serving does without it.
"""

from collections.abc import Iterator
from pathlib import Path

STANDARD_DOMAINS = ("", "ai.onnx")

# Field numbers of onnx.proto3
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTIONS = 7, 8, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_DEEPEST = 8  # graphs within graphs


def refuse_unsafe(content: bytes, path: Path) -> None:
    """Raise ValueError for a damaged file, weights outside the file, or operators beyond the ONNX standard."""
    try:
        fields = list(_fields(memoryview(content)))
        graphs = [value for number, value in fields if number == _MODEL_GRAPH and isinstance(value, memoryview)]
        domains = {_domain(value) for number, value in fields if number == _MODEL_OPSET}
        if len(graphs) != 1 or not domains:
            raise _DamagedError
        if any(number == _MODEL_FUNCTIONS for number, _ in fields):
            raise ValueError(f"{path}: refused, it defines functions of its own; export it again with `simclr export`.")
        external, used = _walk(graphs[0], _DEEPEST)
    except (_DamagedError, IndexError, UnicodeDecodeError):
        raise ValueError(f"{path}: not a readable ONNX file (damaged, or something else).") from None
    foreign = sorted((domains | used) - set(STANDARD_DOMAINS))
    if foreign:
        raise ValueError(f"{path}: refused, it needs operators outside the ONNX standard ({', '.join(foreign)}).")
    if external:
        raise ValueError(f"{path}: refused, its weights lie in other files; a model here is a single file.")


class _DamagedError(Exception):
    pass


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise _DamagedError


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message; lengths are checked, bytes are not copied."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 5):
            value, at = 0, at + (8 if kind == 1 else 4)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise _DamagedError
        if at > len(data) or number == 0:
            raise _DamagedError
        yield number, value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError
    return value


def _domain(opset: int | memoryview) -> str:
    return "".join(bytes(_message(value)).decode() for number, value in _fields(_message(opset)) if number == 1)


def _walk(graph: memoryview, depth: int) -> tuple[bool, set[str]]:
    """(are there external tensors, operator domains used) of a graph and the graphs inside it."""
    if depth == 0:
        raise _DamagedError
    external, domains = False, {""}
    for number, value in _fields(graph):
        if number == _GRAPH_INITIALIZER:
            external |= _is_external(_message(value))
        elif number == _GRAPH_SPARSE:
            external |= any(_is_external(_message(part)) for field, part in _fields(_message(value)) if field < 3)
        elif number == _GRAPH_NODE:
            for field, part in _fields(_message(value)):
                if field == _NODE_DOMAIN:
                    domains.add(bytes(_message(part)).decode())
                elif field == _NODE_ATTRIBUTE:
                    for kind, item in _fields(_message(part)):
                        if kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                            external |= _is_external(_message(item))
                        elif kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                            inner, more = _walk(_message(item), depth - 1)
                            external, domains = external | inner, domains | more
    return external, domains


def _is_external(tensor: memoryview) -> bool:
    return any(
        number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0) for number, value in _fields(tensor)
    )
