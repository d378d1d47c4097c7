"""A fuzzer for the reader of TensorFlow checkpoints: mutants must end in CheckpointError or in good arrays.

    python tests/fuzz_checkpoint.py --mutants 200000 --seed 0 --jobs 2

Mutants come in two halves. Raw ones are bytes changed anywhere; most of them end at a CRC. Rebuilt ones are changed
inside the structure and get all the CRCs that TensorFlow would have given them, so that the change reaches the parser.
A mutant is a function of (seed, number) alone: ``mutant(seed, number)`` makes it again.
"""

import argparse
import ast
import functools
import math
import operator
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
from checkpoint_writer import HEADER, MAGIC, varint, write_checkpoint

from zoo import tf_checkpoint
from zoo.tf_checkpoint import MAX_NAME, MAX_TENSORS, Checkpoint, CheckpointError, find_prefix, masked_crc32c, shard_path

REFERENCE = Path(__file__).parent / "reference" / "checkpoints"
CORPUS = Path(__file__).parent / "corpus"

CPU_SECONDS = 5.0  # for one mutant; the largest reference takes 0.03
MEMORY = 1 << 30  # that a worker may take in addition: what asks for more gets a MemoryError, which is a finding
# Python objects are larger than the bytes they are made from. Peaks, in multiples of index and data: references up
# to 0.5, their small selves 8. No mutant may take more than this and a constant, no attack more than its multiple.
PEAK_MULTIPLE, PEAK_CONSTANT, ATTACK_MULTIPLE = 32, 16 << 10, 192
TRACED, ON_DISK = 0.05, 0.01  # shares of the mutants: memory is measured; read through files

BFLOAT16 = 14
LACKING, NO_FILE = 64, "(no such data file)"
INTERESTING = (
    0, 1, 2, 3, 7, 14, 16, 17, 63, 127, 128, 255, 256, 1024, 1025, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
    2**48, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, 2**64, 2**70 - 1,
)  # fmt: skip
NAMES = (
    b"", b"\0", b"a\nb", b"\r", b"\xe2\x80\xa8", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"~",
)  # fmt: skip

Row = tuple[bytes, bytes]  # key and value
Field = tuple[int, int, int | bytes]  # number, wire kind, value


# Checkpoints taken apart


@dataclass(frozen=True)
class Good:
    """A checkpoint to start from, its index taken apart."""

    index: bytes
    shards: tuple[bytes, ...]
    blocks: tuple[tuple[Row, ...], ...]
    values: dict[str, bytes]  # what a reader must find


@functools.cache
def good(name: str) -> Good:
    """A reference (``r50_sk_ft``), or its small self (``r50_sk_ft/small``)."""
    reference, _, small = name.partition("/")
    if not small:
        return _taken_apart(find_prefix(REFERENCE / reference))
    with tempfile.TemporaryDirectory() as folder:
        prefix = write_checkpoint(Path(folder) / "ck", _reduced(reference), shards=2, block_rows=6)
        return _taken_apart(prefix)


def _reduced(reference: str) -> dict[str, np.ndarray]:
    """Some twenty of the tensors, at most two wide, of all the types."""
    checkpoint = tf_checkpoint.open_checkpoint(REFERENCE / reference)
    names = list(checkpoint)[:: len(checkpoint) // 20]
    types = ("f4", "f4", "f4", "f8", "i4", "u1", "i2", "i1", "i8", "?", "u2", "f2")
    arrays = (checkpoint[name] for name in names)
    small = {name: array[(slice(2),) * array.ndim] for name, array in zip(names, arrays, strict=True)}
    small = {name: array.astype(types[k % len(types)]) for k, (name, array) in enumerate(small.items())}
    return small | {"empty": np.empty((0, 3), np.float32), "global_step": np.array(250228)}


def _taken_apart(prefix: Path) -> Good:
    index = Path(f"{prefix}.index").read_bytes()
    checkpoint = tf_checkpoint.open_checkpoint(prefix)
    shards = tuple(path.read_bytes() for path in sorted(prefix.parent.glob(f"{prefix.name}.data-*")))
    position = len(index) - 48
    handles = []
    for _ in range(4):
        number, position = read_varint(index, position)
        handles.append(number)
    root = rows_of(index[handles[2] : handles[2] + handles[3]])
    blocks = []
    for _, handle in root:
        offset, position = read_varint(handle, 0)
        size, _ = read_varint(handle, position)
        blocks.append(tuple(rows_of(index[offset : offset + size])))
    return Good(index, shards, tuple(blocks), {key: checkpoint[key].tobytes() for key in checkpoint})


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, where the next thing starts). Raises IndexError at the end."""
    value = shift = 0
    while data[position] >= 0x80:
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1


def triples_of(content: bytes) -> tuple[list[list[int]], list[bytes], bytes]:
    """The entries of a good block: their three numbers, the bytes behind each, and the restarts."""
    stop = len(content) - 4 * (1 + struct.unpack("<I", content[-4:])[0])
    numbers, bodies, position = [], [], 0
    while position < stop:
        shared, position = read_varint(content, position)
        rest, position = read_varint(content, position)
        length, position = read_varint(content, position)
        numbers.append([shared, rest, length])
        bodies.append(content[position : position + rest + length])
        position += rest + length
    return numbers, bodies, content[stop:]


def rows_of(content: bytes) -> list[Row]:
    """Keys and values of a good block."""
    rows, key = [], b""
    numbers, bodies, _ = triples_of(content)
    for (shared, rest, _), body in zip(numbers, bodies, strict=True):
        key = key[:shared] + body[:rest]
        rows.append((key, body[rest:]))
    return rows


def fields_of(message: bytes) -> list[Field]:
    """The fields of a message. Raises IndexError or ValueError if it is none."""
    fields: list[Field] = []
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = read_varint(message, position)
            fields.append((number, kind, value))
            continue
        length, position = read_varint(message, position) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), position)
        content = message[position : position + length]
        if not 0 <= length == len(content):
            raise ValueError("Not a message.")
        fields.append((number, kind, content if kind == 2 else int.from_bytes(content, "little")))
        position += length
    return fields


def message_of(fields: Sequence[Field]) -> bytes:
    """The fields as bytes; a value that does not suit its kind is made to."""
    out = b""
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if kind == 0:
            out += varint(value if isinstance(value, int) else len(value))
        elif kind == 2:
            out += sized(varint(value) if isinstance(value, int) else value)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            plain = value if isinstance(value, int) else len(value)
            out += (plain % 256**width).to_bytes(width, "little")
    return out


def sized(message: bytes) -> bytes:
    return varint(len(message)) + message


# Changes


def changed_bytes(rng: Random, data: bytes | bytearray) -> bytearray:
    """A few of the changes that know nothing of the format."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        b = min(b, a + rng.choice((1, 4, 16, 64, 4096)))
        match rng.randrange(9):
            case 0 | 1 if a < len(data):
                data[a] ^= 1 << rng.randrange(8)
            case 2 if a < len(data):
                data[a] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                del data[a:]
            case 4:
                data[a:a] = rng.randbytes(rng.choice((1, 2, 5, 48)))
            case 5:
                del data[a:b]
            case 6:
                data[a:a] = data[a:b]
            case 7:
                c = rng.randrange(len(data) + 1)
                data[a:b], data[c : c + b - a] = data[c : c + b - a], data[a:b]
            case 8:
                width = rng.choice((1, 2, 4, 8))
                data[a : a + width] = (changed_number(rng, 0) % 256**width).to_bytes(width, "little")
    return data


def changed_number(rng: Random, number: int) -> int:
    near = (number + 1, number - 1, number * 2, number // 2, number + 4, number ^ 1 << rng.randrange(64))
    return max(0, rng.choice(rng.choice((INTERESTING, near))))


def changed_message(rng: Random, message: bytes) -> bytes:
    """A protocol buffer of which one thing is changed, at some depth."""
    try:
        fields = fields_of(message)
        number, kind, value = fields[k := rng.randrange(len(fields))]
    except (IndexError, ValueError):
        return bytes(changed_bytes(rng, message))
    match rng.randrange(20):
        case 0:
            del fields[k]
        case 1:
            fields[k:k] = [fields[k]] * rng.choice((1, 2, 17))
        case 2:
            fields[k] = (rng.choice((1, 2, 3, 7, 8, changed_number(rng, number) % 2**61)), kind, value)
        case 3:
            fields[k] = (number, rng.randrange(8), value)
        case 4:
            rng.shuffle(fields)
        case 5:
            fields.insert(k, (rng.randrange(9), rng.choice((0, 1, 2, 5)), rng.choice((0, 1, 2**64 - 1, b"", b"x"))))
        case 6:
            return message[: rng.randrange(len(message))]
        case 7:
            return bytes(changed_bytes(rng, message))
        case _ if isinstance(value, int):
            fields[k] = (number, kind, changed_number(rng, value))
        case _:
            fields[k] = (number, kind, changed_message(rng, value))
    return message_of(fields)


# Changes to keys, values and data, before blocks are made of them


@dataclass
class Draft:
    """A checkpoint under change."""

    blocks: list[list[Row]]
    shards: list[bytes]
    restart_interval: int = 16

    def some_entry(self, rng: Random) -> tuple[list[Row], int]:
        """(block, number in it) of a tensor."""
        rows = rng.choice(self.blocks)
        k = rng.randrange(len(rows))
        return (rows, k) if rows[k][0] or len(rows) == 1 else (rows, 1)


def change_keys(rng: Random, draft: Draft) -> None:
    rows, k = draft.some_entry(rng)
    key, value = rows[k]
    match rng.randrange(7):
        case 0:
            other = rng.choice(draft.blocks)
            j = rng.randrange(len(other))
            rows[k], other[j] = other[j], rows[k]
        case 1:
            rows.insert(k, (key, value))
        case 2:
            del rows[k]
        case 3:
            rows[k] = (key + b"x" * rng.choice((1, 100, MAX_NAME - len(key), MAX_NAME - len(key) + 1, 5000)), value)
        case 4:
            rows[k] = (key + rng.choice(NAMES), value)
        case 5:
            rows[k] = (bytes(changed_bytes(rng, key)), value)
        case 6:
            rows[k + 1 : k + 1] = [(key + b"x" * 900 + b"%d" % n, b"") for n in range(100, 400)]
            draft.restart_interval = 1000


def change_entry(rng: Random, draft: Draft) -> None:
    rows, k = draft.some_entry(rng)
    value = changed_message(rng, rows[k][1])
    if rng.random() < 0.3:
        value = changed_message(rng, value)
    rows[k] = (rows[k][0], _with_its_crc(value, draft.shards) if rng.random() < 0.8 else value)
    if rng.random() < 0.2:  # with a name that must not break the message about it
        rows[k] = (rows[k][0] + rng.choice(NAMES), rows[k][1])


def change_header(rng: Random, draft: Draft) -> None:
    value = changed_message(rng, draft.blocks[0][0][1])
    if rng.random() < 0.1:  # the version of reader that it needs; TensorFlow leaves it out
        value += b"\x1a" + sized(b"\x10" + varint(changed_number(rng, 1)))
    draft.blocks[0][0] = (b"", value)


def change_meaning(rng: Random, draft: Draft) -> None:
    """An entry that says something else, and still fits in itself; places and types of two entries are exchanged."""
    rows, k = draft.some_entry(rng)
    others, j = draft.some_entry(rng)
    one, two = (_by_number(part[n][1]) for part, n in ((rows, k), (others, j)))
    for number in rng.choice(((3, 4), (4,), (3, 4, 5), (1,), (2,), (1, 2, 5), (6,))):
        one[number], two[number] = two[number], one[number]
    if rng.random() < 0.2:
        one[1] = rng.choice((BFLOAT16, 17, 19, 7, *range(24)))
    if rng.random() < 0.1:  # no bytes, whatever the other dimensions are
        sizes = rng.sample((0, *rng.choices(INTERESTING, k=rng.choice((1, 2)))), k=2)
        one[2], one[5] = b"".join(b"\x12" + sized(b"\x08" + varint(size)) for size in (0, *sizes)), 0
    for part, n, numbers in ((rows, k, one), (others, j, two)):
        kinds = {2: 2, 6: 5}
        value = message_of([(number, kinds.get(number, 0), content) for number, content in numbers.items() if content])
        part[n] = (part[n][0], _with_its_crc(value, draft.shards))


def change_data(rng: Random, draft: Draft) -> None:
    """Bytes of a tensor, with its CRC; or the length of a data file."""
    if rng.random() < 0.2:
        shard = rng.randrange(len(draft.shards))
        whole = draft.shards[shard]
        draft.shards[shard] = rng.choice(
            (b"", whole[:-1], whole[: rng.randrange(len(whole))], whole + b"\0", whole * 2)
        )
        return
    rows, k = draft.some_entry(rng)
    numbers = _by_number(rows[k][1])
    shard, offset, size = numbers[3], numbers[4], numbers[5]
    data = bytearray(draft.shards[shard])
    for _ in range(3 if size else 0):
        data[offset + rng.randrange(size)] = rng.choice((0, 0xFF, rng.randrange(256)))
    draft.shards[shard] = bytes(data)
    rows[k] = (rows[k][0], _with_its_crc(rows[k][1], draft.shards))


def _by_number(value: bytes) -> dict[int, Any]:
    return {1: 0, 2: b"", 3: 0, 4: 0, 5: 0, 6: 0} | {number: content for number, _, content in fields_of(value)}


def _with_its_crc(value: bytes, shards: Sequence[bytes]) -> bytes:
    """The entry with the CRC of the bytes it speaks of, if there are any."""
    try:
        fields = fields_of(value)
        numbers = _by_number(value)
        data = shards[numbers[3]][numbers[4] : numbers[4] + numbers[5]]
    except (IndexError, ValueError, TypeError):
        return value
    return message_of([*(part for part in fields if part[0] != 6), (6, 5, masked_crc32c(data))])


# Changes to blocks that are written, and to where they are


def change_content(rng: Random, content: bytes) -> bytes:
    return bytes(changed_bytes(rng, content))


def change_triples(rng: Random, content: bytes) -> bytes:
    """The three numbers before an entry: shared, rest, length."""
    numbers, bodies, restarts = triples_of(content)
    for _ in range(rng.choice((1, 1, 3)) if numbers else 0):
        triple = rng.choice(numbers)
        k = rng.randrange(3)
        triple[k] = changed_number(rng, triple[k])
        if rng.random() < 0.2:
            triple[1 - k % 2] = max(0, triple[1 - k % 2] + rng.choice((-1, 1)))
    return (
        b"".join(b"".join(map(varint, triple)) + body for triple, body in zip(numbers, bodies, strict=True)) + restarts
    )


def change_restarts(rng: Random, content: bytes) -> bytes:
    count = struct.unpack("<I", content[-4:])[0]
    entries, offsets = content[: -4 * (count + 1)], content[-4 * (count + 1) : -4]
    match rng.randrange(4):
        case 0:
            count = changed_number(rng, count) % 2**32
        case 1:
            offsets, count = b"", rng.choice((0, count))
        case 2:
            offsets = bytes(changed_bytes(rng, offsets))
        case 3:
            entries = entries[: -rng.choice((1, 2, 4, 16))]
    return entries + offsets + struct.pack("<I", count)


def change_handles(rng: Random, handles: list[list[int]], end: int) -> None:
    """Which blocks the index block speaks of. ``end``: where it will itself be."""
    handle = rng.choice(handles)
    match rng.randrange(6):
        case 0 | 1:
            k = rng.randrange(2)
            handle[k] = changed_number(rng, handle[k])
        case 2:
            handle[:] = rng.choice(handles)
        case 3:
            handle[:] = [end, rng.choice((8, 100, handle[1]))]
        case 4:
            handles.insert(rng.randrange(len(handles)), list(handle))
        case 5:
            rng.shuffle(handles)


def change_footer(rng: Random, numbers: list[int]) -> bytes:
    """The last bytes. ``numbers``: the handles of the meta block and of the index block."""
    match rng.randrange(4):
        case 0 | 1:
            k = rng.randrange(4)
            numbers[k] = changed_number(rng, numbers[k])
        case 2:
            numbers[2:] = rng.choice((numbers[:2], [0, numbers[0]], [numbers[0], sum(numbers[2:])], [0, numbers[2]]))
        case 3:
            return bytes(changed_bytes(rng, footer_of(numbers)))
    return footer_of(numbers)


def footer_of(numbers: Sequence[int]) -> bytes:
    return b"".join(map(varint, numbers)).ljust(40, b"\0")[:40] + MAGIC


# Mutants

BEFORE: dict[str, Callable[[Random, Draft], None]] = {
    "data": change_data, "meaning": change_meaning, "entry": change_entry, "header": change_header, "keys": change_keys,
}  # fmt: skip
INSIDE: dict[str, Callable[[Random, bytes], bytes]] = {
    "prefixes": change_triples, "restarts": change_restarts, "block bytes": change_content,
}  # fmt: skip
REBUILT = {  # each with how often it is taken
    "data": 2, "meaning": 3, "entry": 6, "header": 2, "keys": 2, "prefixes": 2, "restarts": 1, "block bytes": 2,
    "compression": 0.2, "handles": 2, "footer": 2,
}  # fmt: skip
BASES = {
    "r18_cifar/small": 30, "r50_pretrained/small": 30, "r50_sk_ft/small": 30,
    "r18_cifar": 8, "r50_pretrained": 1, "r50_sk_ft": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A changed checkpoint."""

    seed: int
    number: int
    base: str
    kinds: tuple[str, ...]
    index: bytes
    shards: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(self.index) + sum(map(len, self.shards))


def mutant(seed: int, number: int) -> Mutant:
    """The ``number``-th mutant of a seed; those of odd numbers are rebuilt, those of even ones raw."""
    rng = Random(f"{seed}/{number}")
    name = rng.choices(list(BASES), list(BASES.values()))[0]
    base = good(name)
    if number % 2:
        kinds = tuple(dict.fromkeys(rng.choices(list(REBUILT), list(REBUILT.values()), k=rng.choice((1, 1, 1, 2)))))
        return Mutant(seed, number, name, kinds, *rebuilt(rng, base, kinds))
    if rng.random() < 0.6:
        return Mutant(seed, number, name, ("raw index",), bytes(changed_bytes(rng, base.index)), base.shards)
    shards = list(base.shards)
    k = rng.randrange(len(shards))
    shards[k] = bytes(changed_bytes(rng, shards[k]))
    return Mutant(seed, number, name, ("raw data",), base.index, tuple(shards))


def rebuilt(rng: Random, base: Good, kinds: Sequence[str]) -> tuple[bytes, tuple[bytes, ...]]:
    """(index, data files) with changes of the kinds, and with CRCs that fit."""
    draft = Draft([list(rows) for rows in base.blocks], list(base.shards))
    for kind, change in BEFORE.items():
        if kind in kinds:
            change(rng, draft)
    contents = [encoded(tuple(rows), draft.restart_interval) for rows in draft.blocks]
    keys = [rows[-1][0] if rows else b"~" for rows in draft.blocks]
    return assembled(contents, keys, kinds, rng), tuple(draft.shards)


@functools.lru_cache(64)
def encoded(rows: tuple[Row, ...], restart_interval: int = 16) -> bytes:
    """A block; unlike the writer's, of keys in any order."""
    out, restarts, previous = bytearray(), [], b""
    for number, (key, value) in enumerate(rows):
        if number % restart_interval == 0:
            restarts.append(len(out))
            previous = b""
        shared = sum(takewhile(bool, map(operator.eq, previous, key)))
        out += raw_row(shared, key[shared:], value)
        previous = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def raw_row(shared: int, rest: bytes, value: bytes) -> bytes:
    return varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value


def assembled(
    contents: Sequence[bytes], keys: Sequence[bytes], kinds: Sequence[str] = (), rng: Random | None = None
) -> bytes:
    """An index of these blocks, changed in the kinds that are not of keys and values."""
    rng = rng or Random(0)
    where = rng.randrange(len(contents) + 2)  # the meta block and the index block too
    out = bytearray()
    handles: list[list[int]] = []

    def put(content: bytes) -> None:
        compression = b"\0"
        if len(handles) == where:
            for kind, change in INSIDE.items():
                content = change(rng, content) if kind in kinds else content
            compression = bytes([rng.randrange(256)]) if "compression" in kinds else compression
        handles.append([len(out), len(content)])
        out.extend(content + compression + struct.pack("<I", masked_crc32c(content + compression)))

    for content in (*contents, encoded(())):
        put(content)
    named = [list(handle) for handle in handles[:-1]]
    if "handles" in kinds:
        change_handles(rng, named, len(out))
    rows = zip([*keys, b"~~"], named, strict=False)  # a change may have added a handle
    put(encoded(tuple((key, b"".join(map(varint, handle))) for key, handle in rows), 1))
    numbers = handles[-2] + handles[-1]
    return bytes(out) + (change_footer(rng, numbers) if "footer" in kinds else footer_of(numbers))


# What comes of them


class Memory:
    """A data file in memory."""

    tries = 1

    def __init__(self, data: bytes) -> None:
        self.size, self._data = len(data), np.frombuffer(data, np.uint8)

    def read(self, offset: int, size: int) -> np.ndarray:
        return self._data[offset : offset + size]


class WrongError(Exception):
    """The reader did what it must not."""


class OvertimeError(BaseException):
    """Not an Exception, so that nothing catches it on the way."""


def check(mutant: Mutant, folder: Path | None = None) -> str:
    """What came of a mutant: "", or where the reader ended. Raises WrongError, or what the reader should not raise.

    It is read from memory, where a few data files that it lacks are empty; with ``folder``, through files there.
    """
    ends = ""
    try:
        checkpoint = _opened(mutant, folder)
    except CheckpointError as error:
        return _end(error)
    for name in _sample(checkpoint, mutant):
        try:
            array = checkpoint[name]
        except CheckpointError as error:
            ends = ends or _end(error)
        else:
            _check_array(mutant, checkpoint, name, array)
    return ends


def _opened(mutant: Mutant, folder: Path | None) -> Checkpoint:
    if folder is None:
        shards = [Memory(data) for data in mutant.shards] + [Memory(b"")] * LACKING
        return Checkpoint(mutant.index, lambda number, _: shards[number] if number < len(shards) else _none())
    prefix = folder / f"ck-{mutant.number}"
    save(mutant, prefix)
    return tf_checkpoint.open_checkpoint(prefix)


def _none() -> NoReturn:
    raise CheckpointError(NO_FILE)


def save(mutant: Mutant, prefix: Path) -> None:
    Path(f"{prefix}.index").write_bytes(mutant.index)
    for number, data in enumerate(mutant.shards):
        shard_path(prefix, number, len(mutant.shards)).write_bytes(data)


def _sample(checkpoint: Checkpoint, mutant: Mutant) -> list[str]:
    """All the names of a small checkpoint, some of a large one."""
    names = list(checkpoint)
    return names if len(names) <= 40 else Random(mutant.number).sample(names, 40)


def _check_array(mutant: Mutant, checkpoint: Checkpoint, name: str, array: np.ndarray) -> None:
    """It is what the entry says, and what the bytes are; a raw mutant that is read is read as it was."""
    entry = checkpoint.entries[name]
    stored = mutant.shards[entry.shard][entry.offset : entry.offset + entry.size] if entry.size else b""
    if entry.dtype == BFLOAT16:
        stored = b"".join(b"\0\0" + stored[k : k + 2] for k in range(0, len(stored), 2))
    if array.shape != entry.shape or array.itemsize * math.prod(entry.shape) != array.nbytes:
        raise WrongError("An array is of another shape than its entry.")
    if array.tobytes() != stored:
        raise WrongError("An array holds other bytes than the data file.")
    if array.nbytes > sum(map(len, mutant.shards)) * (2 if entry.dtype == BFLOAT16 else 1):
        raise WrongError("An array is larger than the data files.")
    if not mutant.number % 2 and good(mutant.base).values[name] != stored:
        raise WrongError("Damage was not noticed.")


def _end(error: BaseException) -> str:
    """Which of the reader's messages this is, from the line that raised it; it must be one line."""
    while isinstance(error.__context__, CheckpointError):
        error = error.__context__
    if not str(error).isprintable():
        raise WrongError("A message is more than one line that can be printed.")
    return NO_FILE if str(error) == NO_FILE else messages().get(_line(error), "(another message)")


def _line(error: BaseException) -> int:
    """The line of the reader's source that the error comes from, or went through last; 0 if none."""
    walked = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in walked if frame.f_code.co_filename == tf_checkpoint.__file__]
    return lines[-1] if lines else 0


@functools.cache
def messages() -> dict[int, str]:
    """The reader's messages by line of its source."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(Path(tf_checkpoint.__file__).read_text("utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            said = node.exc.args[0]
            parts = said.values if isinstance(said, ast.JoinedStr) else [said]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            found |= dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), text)
    return found


# Many of them


@dataclass
class Findings:
    """What came of many mutants."""

    mutants: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)  # the reader's message, or "" for what is still valid
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Mutant] = field(default_factory=dict)  # the smallest of each of ``wrong``
    traced: int = 0
    peak: float = 0.0  # largest, in multiples of index and data together, less the constant
    peak_number: int = -1
    slowest: float = 0.0  # seconds of CPU
    slowest_number: int = -1

    def add(self, other: "Findings") -> None:
        self.mutants += other.mutants
        self.traced += other.traced
        for ours, theirs in ((self.kinds, other.kinds), (self.ends, other.ends), (self.wrong, other.wrong)):
            ours.update(theirs)
        for what, one in other.examples.items():
            self.examples[what] = min(one, self.examples.get(what, one), key=lambda example: example.size)
        self.peak, self.peak_number = max((self.peak, self.peak_number), (other.peak, other.peak_number))
        self.slowest, self.slowest_number = max(
            (self.slowest, self.slowest_number), (other.slowest, other.slowest_number)
        )

    def summary(self) -> str:
        """The figures, a line each."""
        lines = [f"{self.mutants:,} mutants, {sum(self.wrong.values())} findings", "", "kinds (some mutants have two):"]
        lines += [f"{count:9,}  {kind}" for kind, count in self.kinds.most_common()]
        lines += ["", "ends:"] + [f"{count:9,}  {end or '(still valid)'}" for end, count in self.ends.most_common()]
        lines += [f"{0:9,}  {end}" for end in dict.fromkeys(messages().values()) if end not in self.ends]
        lines += ["", f"peak: {self.peak:.1f} times the files (mutant {self.peak_number}; {self.traced:,} traced)"]
        lines += [f"slowest: {self.slowest:.2f} s (mutant {self.slowest_number})"]
        lines += [f"FOUND {count} times: {what} ({self.examples[what].number})" for what, count in self.wrong.items()]
        return "\n".join(lines)


def fuzz(mutants: int, seed: int) -> Findings:
    """The first ``mutants`` mutants of a seed."""
    return fuzz_range(seed, range(mutants))


def fuzz_range(seed: int, numbers: range) -> Findings:
    findings = Findings()
    messages()  # not to be counted as a mutant's memory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _overtime_raised():
        for number in numbers:
            one = mutant(seed, number)
            draw = Random(number).random()
            _run(findings, one, Path(folder) if draw > 1 - ON_DISK else None, traced=draw < TRACED)
    return findings


def _run(findings: Findings, one: Mutant, folder: Path | None, *, traced: bool) -> None:
    findings.mutants += 1
    findings.kinds.update(one.kinds)
    start = time.process_time()
    try:
        if traced:
            findings.traced += 1
            with _limited():
                end, peak = peak_of(functools.partial(check, one))
            multiple = max(0, peak - PEAK_CONSTANT) / max(one.size, 1)
            findings.peak, findings.peak_number = max((findings.peak, findings.peak_number), (multiple, one.number))
            if multiple > PEAK_MULTIPLE:
                raise WrongError(f"More memory than {PEAK_MULTIPLE} times the files.")
        else:
            with _limited():
                end = check(one, folder)
        findings.ends[end] += 1
    except (Exception, OvertimeError) as error:
        what = str(error) if isinstance(error, WrongError) else f"{type(error).__name__} at line {_line(error)}"
        findings.add(Findings(wrong=Counter([what]), examples={what: one}))
    spent = time.process_time() - start
    findings.slowest, findings.slowest_number = max((findings.slowest, findings.slowest_number), (spent, one.number))


def peak_of(work: Callable[[], str]) -> tuple[str, int]:
    """(what it returns, bytes allocated at its peak)."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def _overtime_raised() -> Iterator[None]:
    """What ``_limited`` limits ends in OvertimeError; without such timers (Windows) it is not limited."""

    def overtime(*_: object) -> None:
        raise OvertimeError(f"more than {CPU_SECONDS} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGVTALRM, overtime)
    try:
        yield
    finally:
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _limited() -> Iterator[None]:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


# Attacks: the most memory and time for the fewest bytes


def attacks(size: int) -> Iterator[tuple[str, bytes]]:
    """(name, an index of about ``size`` bytes)."""

    def index(rows: bytes) -> bytes:
        return assembled([raw_row(0, b"", HEADER % 1) + rows + struct.pack("<II", 0, 1)], [b"~"])

    def numbered(name: bytes, count: int, value: bytes = b"", *, digits: int = 3) -> bytes:
        rows = [raw_row(0, name + number_key(0, digits), value)]
        for number in range(1, count):
            key = number_key(number, digits)
            same = next(k for k in range(digits) if key[k] != number_key(number - 1, digits)[k])
            rows.append(raw_row(len(name) + same, key[same:], value))
        return b"".join(rows)

    wide = "\U00010000".encode()  # a string with one such character takes four bytes for each
    most = MAX_TENSORS - 1
    yield "many tensors", index(numbered(b"", min(most, size // 4)))
    yield "many names, four bytes a character", index(numbered(wide + b"n" * 55, min(most, size // 5)))
    padding = b"\x4a\x3c" + bytes(60)  # names may be sixteen times as long as the index
    yield "longest names, four bytes a character", index(numbered(wide + b"n" * (MAX_NAME - 7), size // 67, padding))
    yield "keys that are no names", index(numbered(b"\xff", size // 4, digits=4))
    fields = b"".join(varint(number << 3) + b"\0" for number in range(2**18, 2**18 + size // 5))
    version = b"\x08\x01\x1a" + sized(fields)
    yield "fields of the version", assembled([raw_row(0, b"", version) + struct.pack("<II", 0, 1)], [b"~"])
    yield "fields of a dimension", index(raw_row(0, b"v", b"\x12" + sized(b"\x12" + sized(fields))))
    yield "empty shapes", index(raw_row(0, b"v", b"\x12\0" * (size // 2)))


def number_key(number: int, digits: int) -> bytes:
    """In order, and of characters that can be printed."""
    return bytes(0x30 + number // 75**k % 75 for k in reversed(range(digits)))


@dataclass(frozen=True)
class Attack:
    """What an attack cost."""

    name: str
    size: int
    peak: int
    seconds: float

    def __str__(self) -> str:
        peak = f"{self.peak:,} at the peak ({self.peak / self.size:.1f} times)"
        return f"{self.name}: {self.size:,} bytes, {peak}, {self.seconds:.1f} s"


def attacked(size: int) -> Iterator[Attack]:
    """The attacks, run."""
    for name, index in attacks(size):
        one = Mutant(0, 1, "", (name,), index, (b"",))
        start = time.process_time()
        check(one)
        seconds = time.process_time() - start
        yield Attack(name, len(index), peak_of(functools.partial(check, one))[1], seconds)


# The command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where findings are written")
    parser.add_argument("--attacks", type=float, default=1, metavar="MIB", help="size of the attacks; 0: none")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    findings = _in_processes(options.mutants, options.seed, options.jobs)
    print(f"{findings.summary()}\n{time.monotonic() - start:.0f} s with {options.jobs} processes, seed {options.seed}")
    for what, one in findings.examples.items():
        prefix = options.corpus / f"finding_{one.seed}_{one.number}"
        options.corpus.mkdir(parents=True, exist_ok=True)
        save(one, prefix)
        print(f"{prefix}: {what}")
    too_much = False
    for attack in attacked(int(options.attacks * 2**20)) if options.attacks else ():
        print(f"attack: {attack}", flush=True)
        too_much |= attack.peak > ATTACK_MULTIPLE * attack.size
    return 1 if findings.wrong or too_much else 0


def _in_processes(mutants: int, seed: int, jobs: int) -> Findings:
    findings, start = Findings(), time.monotonic()
    chunks = [range(first, min(first + 500, mutants)) for first in range(0, mutants, 500)]
    with ProcessPoolExecutor(jobs, initializer=_limit_memory) as pool:
        for part in pool.map(functools.partial(fuzz_range, seed), chunks):
            findings.add(part)
            rate = findings.mutants / (time.monotonic() - start)
            if sys.stderr.isatty():
                left = f"{(mutants - findings.mutants) / rate:.0f} s left"
                print(f"\r{findings.mutants:,} of {mutants:,}, {rate:.0f}/s, {left} ", end="", file=sys.stderr)
    return findings


def _limit_memory() -> None:
    """So that no mutant takes the machine's memory, whether it is traced or not."""
    used = Path("/proc/self/statm")
    if used.exists():
        import resource

        limit = int(used.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
