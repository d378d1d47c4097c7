"""A look into an ONNX file before onnxruntime opens it: protobuf's wire format, as far as safety needs it.

The package onnx would do this too, but serving does without it. What is not known to be harmless is refused: a model of
this project needs few operators, no graphs within graphs, and no file but the one that it names with its SHA-256.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

STANDARD_DOMAINS = ("", "ai.onnx")
_OPERATORS = """
    Add AveragePool Cast Conv DequantizeLinear Flatten Gemm GlobalAveragePool MaxPool Mul Pad QuantizeLinear ReduceMean
    Relu Sigmoid Split Sub Transpose"""
OPERATORS = frozenset(_OPERATORS.split())  # what export.graph and export.quantize write, and version 0.2 wrote
FOLDED = frozenset(
    ("Cast", "DequantizeLinear")
)  # may be computed from constants alone, as the file is opened: none grows
_FLOAT = 1  # a Cast is to float32: casts to integers would make shapes of what was not looked at
_LARGEST_WINDOW = 256  # of convolutions, pools and their padding; the largest needed is 4096 / 32
_MOST_INTEGERS = 64  # of a shape, padding or sizes of parts
_MOST_ITEMS = 2**26  # that a shape may ask for, batch aside: 256 MB
_MOST_PARTS = 10_000  # nodes, or tensors; r152_3x_sk in int8 has some thousands
_MODEL_FIELDS = frozenset((*range(1, 9), 14, 20, 25, 26))

# Field numbers of onnx.proto3
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 14, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE, _GRAPH_VALUES, _GRAPH_INPUT = 1, 5, 15, (11, 12, 13), 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 5, 3, 8
_ATTRIBUTE_PLAIN = {1, 2, 3, 4, 7, 8, 9, 13, 20}  # name, numbers, texts, what it is and a comment: no graphs, no types
_VALUE_NAME, _VALUE_TYPE, _TYPE_TENSOR, _TYPE_DENOTATION = 1, 2, 1, 6
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_SEGMENT, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 3, 8, 9
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}  # by data type
_INT64 = 7
_TYPED_FIXED = {4: 4, 10: 8}  # float_data, double_data: bytes an item
_TYPED_VARINT = (5, 7, 11)  # int32_data, int64_data, uint64_data


class Span(NamedTuple):
    """Where the values of a tensor lie in another file: its name, and the bytes."""

    location: str
    offset: int
    length: int


class Contents(NamedTuple):
    """What a file says of itself, and which parts of another file it takes."""

    metadata: dict[str, str]
    spans: list[Span]


def refuse_unsafe(content: bytes, path: Path) -> Contents:
    """Look through an ONNX file, and raise ValueError, in one line, for a damaged one, for operators, functions or
    types that no model of this project needs, and for tensors whose shape is not that of their data."""
    try:
        return _model(memoryview(content))
    except (_DamagedError, IndexError, UnicodeDecodeError, OverflowError) as error:
        reason = str(error) if isinstance(error, _DamagedError) else ""
        raise ValueError(f"{path}: not a readable ONNX file ({reason or 'damaged, or something else'}).") from None
    except _RefusedError as error:
        raise ValueError(f"{path}: refused, {error}.") from None


def read_external(path: Path, contents: Contents) -> tuple[str, bytes] | None:
    """The one file beside ``path`` that holds tensors, as (name, bytes), if there is one: read once, and hashed.

    Raises ValueError, in one line, if it is not exactly the file that metadata ``external_data`` records, or if a
    tensor lies elsewhere.
    """
    record = _record(path, contents.metadata.get("external_data", "{}"))
    if not contents.spans and record is None:
        return None
    if record is None:
        raise ValueError(f"{path}: refused, its weights lie in other files, and none is recorded with its SHA-256.")
    name, sha256, size = record
    for span in contents.spans:
        if span.location != name:
            raise ValueError(
                f"{path}: refused, its weights lie in {shown(span.location)}, and the file recorded is {name}."
            )
        if span.offset + span.length > size:
            raise ValueError(f"{path}: refused, a tensor ends beyond the {size} bytes of {name}.")
    if not contents.spans:
        raise ValueError(f"{path}: its metadata name the file {name}, but no tensor lies in it; export it again.")
    beside = path.parent / name
    data = _read_regular(beside, size)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{beside}: refused, not the file that {path.name} was written with (its SHA-256 differs).")
    return name, data


def plain_name(name: str) -> bool:
    """Whether a text is the name of a file in the same folder on every system: no path, no drive, nothing hidden."""
    return bool(re.fullmatch(r"[^/\\:]{1,200}", name)) and name.isprintable() and not name.startswith(".")


def shown(text: str, *, most: int = 60) -> str:
    """A text from a stranger's file, short and on one line."""
    kept = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[: most + 1])
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def _record(path: Path, told: str) -> tuple[str, str, int] | None:
    try:
        found = json.loads(told)
        if found == {}:
            return None
        name, sha256, size = found["file"], found["sha256"], found["bytes"]
        good = set(found) == {"file", "sha256", "bytes"} and isinstance(size, int) and 0 <= size < 2**40
        if not (good and re.fullmatch("[0-9a-f]{64}", sha256)):
            raise ValueError
        usable = plain_name(name)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{path}: its metadata is damaged (external_data).") from None
    if not usable:
        raise ValueError(f"{path}: refused, {shown(name)!r} is not the name of a file beside it.")
    return name, sha256, size


def _read_regular(path: Path, size: int) -> bytes:
    """A file of that size, followed nowhere: no link, no pipe, no device. Opened once, so it cannot be exchanged."""
    options = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise ValueError(f"{path}: refused, a link; the weights must lie there themselves.")
        with os.fdopen(os.open(path, options), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ValueError(f"{path}: refused, not a regular file.")
            if state.st_size != size:
                raise ValueError(f"{path}: {state.st_size} bytes instead of {size}; copy it again.")
            data = file.read(size + 1)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, and the model's weights lie in it; copy it too.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) != size:
        raise ValueError(f"{path}: changed while it was read; try again.")
    return data


class _DamagedError(Exception):
    pass


class _RefusedError(Exception):
    pass


# ---- protobuf --------------------------------------------------------------------------------------------------------


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
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
            value, at = data[at : at + (8 if kind == 1 else 4)], at + (8 if kind == 1 else 4)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise _DamagedError
        if at > len(data) or not 0 < number < 2**29:
            raise _DamagedError
        yield number, value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _DamagedError
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _integers(value: int | memoryview) -> list[int]:
    """One int64, or a few packed ones."""
    found = []
    if isinstance(value, int):
        found.append(value)
    else:
        if len(value) > 10 * _MOST_INTEGERS:
            raise _DamagedError("too many integers in one place")
        at = 0
        while at < len(value):
            item, at = _varint(value, at)
            found.append(item)
    return [item - 2**64 if item >= 2**63 else item for item in found]


def _count(value: int | memoryview) -> int:
    """How many varints there are."""
    if isinstance(value, int):
        return 1
    return int(np.count_nonzero(np.frombuffer(value, np.uint8) < 0x80))


class _Once:
    """A guard: protobuf would merge a part that comes twice, and what was looked at would not be what is used."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, number: int) -> None:
        if number in self.seen:
            raise _DamagedError("a part is there twice")
        self.seen.add(number)


# ---- ONNX, from the whole to the parts -------------------------------------------------------------------------------


def _model(data: memoryview) -> Contents:
    graphs: list[memoryview] = []
    domains: set[str] = set()
    metadata: dict[str, str] = {}
    for number, value in _fields(data):
        if number == _MODEL_GRAPH:
            graphs.append(_message(value))
        elif number == _MODEL_OPSET:
            domains |= {_text(part) for field, part in _fields(_message(value)) if field == 1} or {""}
        elif number == _MODEL_METADATA:
            key, told = _entry(value)
            if key in metadata:
                raise _RefusedError(f"its metadata have {shown(key)!r} twice")
            metadata[key] = told
        elif number == _MODEL_FUNCTIONS:
            raise _RefusedError("it defines functions of its own; export it again with `simclr export`")
        elif number not in _MODEL_FIELDS:
            raise _DamagedError("a part that no ONNX file has")
        elif number == _MODEL_TRAINING:
            raise _RefusedError("it brings a training of its own; export it again with `simclr export`")
    if len(graphs) != 1 or not domains:
        raise _DamagedError
    _refuse_domains(domains)
    return Contents(metadata, _graph(graphs[0]))


def _refuse_domains(domains: set[str]) -> None:
    foreign = sorted(domains - set(STANDARD_DOMAINS))
    if foreign:
        raise _RefusedError(f"it needs operators outside the ONNX standard ({shown(', '.join(foreign))})")


def _entry(value: int | memoryview) -> tuple[str, str]:
    """A key and its value (StringStringEntryProto)."""
    once, found = _Once(), {1: "", 2: ""}
    for number, part in _fields(_message(value)):
        once(number)
        if number in found:
            found[number] = _text(part)
    return found[1], found[2]


def _graph(graph: memoryview) -> list[Span]:
    """Where its external tensors lie. Everything in it is looked at."""
    spans: list[Span] = []
    constants: set[str] = set()
    names: set[str] = {""}
    nodes = []
    for number, value in _fields(graph):
        if number == _GRAPH_INITIALIZER:
            name, span = _tensor(_message(value))
            if name in constants:
                raise _DamagedError("a tensor is there twice")
            constants.add(name)
            spans += [span] if span else []
        elif number == _GRAPH_NODE:
            nodes.append(_message(value))
        elif number in _GRAPH_VALUES:
            name = _value(_message(value))
            if number == _GRAPH_INPUT:
                names.add(name)
        elif number == _GRAPH_SPARSE:
            raise _RefusedError("it has sparse tensors; export it again with `simclr export`")
    if len(nodes) > _MOST_PARTS or len(constants) > _MOST_PARTS:
        raise _RefusedError(f"it has more than {_MOST_PARTS} parts")
    names |= constants
    for node in nodes:
        _node(node, names, constants)
    return spans


def _value(value: memoryview) -> str:
    """The name of an input, an output or what is between: tensors only, so that types do not nest."""
    once, name = _Once(), ""
    for number, part in _fields(value):
        if number == _VALUE_NAME:
            once(number)
            name = _text(part)
        elif number == _VALUE_TYPE:
            once(number)
            if not {field for field, _ in _fields(_message(part))} <= {_TYPE_TENSOR, _TYPE_DENOTATION}:
                raise _RefusedError("it has values that are not tensors")
    return name


def _node(node: memoryview, names: set[str], constants: set[str]) -> None:
    """Refuse what no model here needs; ``names`` and ``constants`` are those known before it, and grow."""
    inputs, outputs, kinds, domains, attributes = [], [], [], set(), []
    for number, part in _fields(node):
        if number == _NODE_INPUT:
            inputs.append(_text(part))
        elif number == _NODE_OUTPUT:
            outputs.append(_text(part))
        elif number == _NODE_TYPE:
            kinds.append(_text(part))
        elif number == _NODE_DOMAIN:
            domains.add(_text(part))
        elif number == _NODE_ATTRIBUTE:
            attributes.append(_message(part))
    _refuse_domains(domains)
    if len(kinds) != 1:
        raise _DamagedError
    kind = kinds[0]
    if kind not in OPERATORS:
        raise _RefusedError(f"it uses the operator {shown(kind)!r}, which no model of this project needs")
    for attribute in attributes:
        _attribute(attribute)
    if not names.issuperset(inputs):
        raise _DamagedError("a node comes before what it needs")
    if constants.issuperset(name for name in inputs if name):
        if kind not in (FOLDED if inputs else {"Constant"}):
            raise _RefusedError(f"it computes {shown(kind)!r} from constants alone; export it again")
        constants.update(outputs)
    names.update(outputs)


def _attribute(attribute: memoryview) -> None:
    name, numbers, once = "", list[int | memoryview](), _Once()
    for number, part in _fields(attribute):
        if number == _ATTRIBUTE_TENSOR:
            once(number)
            if _tensor(_message(part))[1]:
                raise _RefusedError("a constant of it lies in another file")
        elif number not in _ATTRIBUTE_PLAIN:
            raise _RefusedError("it has graphs within graphs, or types, in a node; export it again")
        elif number == _ATTRIBUTE_NAME:
            once(number)
            name = _text(part)
        elif number in (_ATTRIBUTE_INT, _ATTRIBUTE_INTS):
            numbers.append(part)
    if name == "to" and any(item != _FLOAT for part in numbers for item in _integers(part)):
        raise _RefusedError("it casts to something else than float32, which no model of this project needs")
    if name in ("kernel_shape", "pads", "strides", "dilations") and any(
        not 0 <= item <= _LARGEST_WINDOW for part in numbers for item in _integers(part)
    ):
        raise _RefusedError(f"its {name} are beyond 0 to {_LARGEST_WINDOW}")


def _tensor(tensor: memoryview) -> tuple[str, Span | None]:
    """(name, where it lies if it is external), once its shape and its data agree."""
    dims: list[int] = []
    raw: memoryview | None = None
    kind, items, location, name, once = 0, 0, 0, "", _Once()
    entries, typed = list[tuple[str, str]](), list[int | memoryview]()
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS:
            dims += _integers(value)
        elif number == _TENSOR_SEGMENT:
            raise _RefusedError("it has tensors in segments")
        elif number in _TYPED_FIXED:
            items += len(_message(value)) // _TYPED_FIXED[number]
        elif number in _TYPED_VARINT:
            items += _count(value)
            typed.append(value)
        elif number == _TENSOR_EXTERNAL:
            entries.append(_entry(value))
        else:
            once(number)
            if number == _TENSOR_TYPE and isinstance(value, int):
                kind = value
            elif number == _TENSOR_NAME:
                name = _text(value)
            elif number == _TENSOR_RAW:
                raw = _message(value)
            elif number == _TENSOR_LOCATION and isinstance(value, int):
                location = value
    if kind not in _ITEM_BYTES or len(dims) > 8 or any(not 0 <= side < 2**40 for side in dims):
        raise _DamagedError(f"the shape or the type of {shown(name)!r}")
    count = math.prod(dims)
    size = count * _ITEM_BYTES[kind]
    if not (entries or location):
        if (None if raw is None else len(raw), items) not in ((size, 0), (None, count)):
            raise _DamagedError(f"{shown(name)!r} has other data than its shape says")
        if kind == _INT64:
            _refuse_vast(name, count, raw, typed)
        return name, None
    if raw is not None or items or location != 1 or kind == _INT64:
        raise _DamagedError(f"{shown(name)!r} lies here and elsewhere, or is a shape and lies elsewhere")
    return name, _span(name, entries, size)


def _refuse_vast(name: str, count: int, raw: memoryview | None, typed: list[int | memoryview]) -> None:
    """Integers of 64 bits are shapes, padding and places: few, and not for more memory than a model here can need."""
    if count > _MOST_INTEGERS:
        raise _RefusedError(f"{shown(name)!r} has {count} integers, more than the {_MOST_INTEGERS} of any shape")
    values = [item for part in typed for item in _integers(part)]
    if raw is not None:
        values = [int(item) for item in np.frombuffer(raw, "<i8")]
    asked = math.prod(abs(item) for item in values if 0 < abs(item) < 2**62)  # beyond that: "to the end"
    if asked > _MOST_ITEMS:
        raise _RefusedError(f"{shown(name)!r} asks for {asked} values, more than a model here can need")


def _span(name: str, entries: list[tuple[str, str]], size: int) -> Span:
    told = dict(entries)
    if len(told) != len(entries) or not {"location"} <= set(told) <= {"location", "offset", "length", "checksum"}:
        raise _DamagedError(f"where {shown(name)!r} lies")
    offset, length = told.get("offset", "0"), told.get("length", str(size))
    if not all(re.fullmatch("[0-9]{1,15}", number) for number in (offset, length)) or int(length) != size:
        raise _DamagedError(f"where {shown(name)!r} lies")
    return Span(told["location"], int(offset), int(length))
