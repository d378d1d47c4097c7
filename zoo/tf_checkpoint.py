"""TensorFlow's checkpoint format (V2), read without TensorFlow: ``.index`` and ``.data-*`` files to a lazy mapping.

The index is a table in LevelDB's layout: blocks of prefix-compressed keys, each block followed by its CRC, a footer at
the end. Key "" holds the BundleHeaderProto, every other key a tensor's BundleEntryProto: type, shape, shard, offset,
size, CRC (formats: tensorflow/core/lib/io/format.cc, tensorflow/core/protobuf/tensor_bundle.proto). A file is taken
for hostile: whatever it claims is checked against what is there before anything of that size is made.
"""

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # behind every block: one byte of compression, four of CRC
_MASK = 0xA282EAD8

# Bounds no honest file comes near (r152_3x_sk with all its slots: 3,300 tensors, names of 60 characters, 0.2 MB).
MAX_INDEX_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_SHARDS = 10_000
MAX_NAME = 1024
MAX_RANK = 16
_MAX_STATE_BYTES = 64 << 10  # of the file `checkpoint`
_MAX_NAME_GROWTH = 8  # names are stored without the prefix they share with the one before: all of them, times this

_DTYPES: dict[int, np.dtype[Any]] = {  # tensorflow/core/framework/types.proto
    1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 4: np.dtype("u1"), 5: np.dtype("<i2"),
    6: np.dtype("i1"), 9: np.dtype("<i8"), 10: np.dtype("?"), 17: np.dtype("<u2"), 19: np.dtype("<f2"),
    22: np.dtype("<u4"), 23: np.dtype("<u8"),
}  # fmt: skip
_BFLOAT16 = 14


class CheckpointError(ValueError):
    """The files are no checkpoint, are damaged, or hold what is not supported; the message says which and where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint: where its bytes are and what they must be."""

    shape: tuple[int, ...]
    dtype: int  # TensorFlow's number
    shard: int
    offset: int
    size: int
    crc32c: int  # masked
    sliced: bool  # a partitioned variable: its bytes are elsewhere


class Shard(Protocol):
    """The bytes of one ``.data-*`` file, wherever they are."""

    size: int
    tries: int  # how often to read a tensor whose CRC does not fit: more than once where a network is between

    def read(self, offset: int, size: int) -> np.ndarray:
        """uint8 (size,). Raises CheckpointError or OSError if they cannot be had."""


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors by name, in TensorFlow's axis order; each is read, and its CRC verified, when it is asked for.

    ``index``: the bytes of the ``.index`` file. ``open_shard(number, count)`` opens a ``.data-*`` file. Raises
    CheckpointError if the index is damaged or claims what the data files do not hold.
    """

    def __init__(self, index: bytes, open_shard: Callable[[int, int], Shard]) -> None:
        count, self.entries = parse_index(index)
        self._shards = [open_shard(number, count) for number in range(count)]
        _check_extents(self.entries, [shard.size for shard in self._shards])
        self.index_sha256 = hashlib.sha256(index).hexdigest()

    def __getitem__(self, name: str) -> np.ndarray:
        """A read-only array (bfloat16 comes as float32). Raises CheckpointError if its CRC does not fit."""
        entry = self.entries[name]
        if entry.sliced:
            raise CheckpointError(f"{name} is stored in slices, which is not supported.")
        if _itemsize(entry.dtype) is None:
            raise CheckpointError(f"{name} is of TensorFlow's type {entry.dtype}, which is not supported.")
        shard = self._shards[entry.shard]
        for _ in range(shard.tries):
            data = shard.read(entry.offset, entry.size)
            if masked_crc32c(data) == entry.crc32c:
                break
        else:
            raise CheckpointError(f"{name} is damaged: its CRC does not fit. Get the data file again.")
        if entry.dtype == _BFLOAT16:
            wide = data.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(entry.shape)
        return data.view(_DTYPES[entry.dtype]).reshape(entry.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        return self.entries[name].shape

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.entries


def open_checkpoint(prefix_or_dir: str | Path) -> Checkpoint:
    """A checkpoint on this machine: its prefix (``.../model.ckpt-100``), one of its files, or its folder.

    The data files are memory-mapped. A folder's file ``checkpoint`` names the newest; without it, there must be only
    one. Raises CheckpointError, in one line, for what is missing, damaged or not supported.
    """
    prefix: Path | str = prefix_or_dir
    try:
        prefix = find_prefix(Path(prefix_or_dir))
        with Path(f"{prefix}.index").open("rb") as file:
            index = file.read(MAX_INDEX_BYTES + 1)
        return Checkpoint(index, lambda number, count: _MappedFile(shard_path(prefix, number, count)))
    except OSError as error:
        raise CheckpointError(f"{error.filename or prefix}: {error.strerror or error}.") from None
    except CheckpointError as error:
        named = str(error).startswith(str(prefix))
        raise CheckpointError(str(error) if named else f"{prefix}: {error}") from None


def shard_path(prefix: str | Path, number: int, count: int) -> Path:
    """``prefix.data-00000-of-00001``."""
    return Path(f"{prefix}.data-{number:05d}-of-{count:05d}")


def find_prefix(path: Path) -> Path:
    """The prefix that a prefix, a file of the checkpoint, or its folder stands for. Raises CheckpointError."""
    if not path.is_dir():
        prefix = Path(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", str(path)))
        if not Path(f"{prefix}.index").is_file():
            raise CheckpointError(f"{prefix}.index: no such file; give the prefix, such as model.ckpt-100.")
        return prefix
    state = path / "checkpoint"
    if state.is_file():
        with state.open("rb") as file:
            newest = newest_of(file.read(_MAX_STATE_BYTES))
        if newest and (path / f"{newest}.index").is_file():
            return path / newest
    found = sorted(path.glob("*.index"))
    if len(found) != 1:
        names = ", ".join(file.stem for file in found[:5]) or "none"
        raise CheckpointError(f"{path}: which checkpoint? There are: {names}. Give its prefix.")
    return found[0].with_suffix("")


def newest_of(state: bytes) -> str | None:
    """The name, without folders, of the newest checkpoint in the text of a file called ``checkpoint``."""
    found = re.search(rb'^[ \t]*model_checkpoint_path:[ \t]*"([^"\n]*)"', state, re.MULTILINE)
    name = re.split(r"[/\\]", found[1].decode("utf-8", "replace"))[-1] if found else ""
    return name or None


class _MappedFile:
    """A data file, mapped, not read. (What shrinks it later can still end the process, as with any mapped file.)"""

    tries = 1

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        self._data = np.memmap(path, np.uint8, "r") if self.size else np.empty(0, np.uint8)

    def read(self, offset: int, size: int) -> np.ndarray:
        if self._path.stat().st_size < self.size:
            raise CheckpointError(f"{self._path} has been cut short since it was opened.")
        return np.asarray(self._data[offset : offset + size])


def masked_crc32c(data: np.ndarray | bytes) -> int:
    """TensorFlow's CRC32C of bytes: rotated and shifted, so that a CRC of data that holds CRCs stays a good one."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def parse_index(index: bytes) -> tuple[int, dict[str, Entry]]:
    """(number of shards, entries by name) of the bytes of an ``.index`` file. Raises CheckpointError."""
    if len(index) > MAX_INDEX_BYTES:
        raise CheckpointError(f"The index has more than {MAX_INDEX_BYTES:,} bytes; no checkpoint of ours comes near.")
    rows = _table(index)
    key, value = next(rows, (None, b""))
    if key != b"":
        raise CheckpointError("The index has no header.")
    count = _header(value)
    entries: dict[str, Entry] = {}
    for number, (key, value) in enumerate(rows):
        if number >= MAX_TENSORS:
            raise CheckpointError(f"The index has more than {MAX_TENSORS:,} tensors.")
        try:
            name = key.decode()
        except UnicodeDecodeError:  # slices of partitioned variables have such keys
            continue
        if not name.isprintable():
            raise CheckpointError(f"A name in the index is not printable: {_shown(key)}.")
        entries[name] = _entry(name, value, count)
    return count, entries


# The table: LevelDB's layout


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, in order; every block is checked against its CRC before it is read."""
    if len(data) < _FOOTER:
        raise CheckpointError(f"The index has {len(data)} bytes, fewer than its footer.")
    end = len(data) - _FOOTER
    if struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise CheckpointError("Not the index of a TensorFlow checkpoint (its last bytes are not a table's).")
    _, _, position = _handle(data, end, len(data) - 8)  # of the block of meta blocks, of which there are none
    root, size, _ = _handle(data, position, len(data) - 8)
    budget = _MAX_NAME_GROWTH * len(data)
    previous, used = b"", 0
    first = True
    for _, value in _block(data, root, size, end):
        offset, size, _ = _handle(value, 0, len(value))
        if offset < used:
            raise CheckpointError(f"Blocks of the index overlap at byte {offset}.")
        used = offset + size + _TRAILER
        for key, content in _block(data, offset, size, end):
            if not (previous < key or first):
                raise CheckpointError(f"Keys of the index are not in order at {_shown(key)}.")
            budget -= len(key)
            if budget < 0:
                raise CheckpointError("The index holds longer names than its size allows.")
            previous, first = key, False
            yield key, content


def _block(data: bytes, offset: int, size: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Entries of one block: lengths of (shared prefix, rest of the key, value), then rest and value."""
    if offset + size + _TRAILER > end:
        raise CheckpointError(f"A block of the index at byte {offset} reaches outside the file.")
    stored = struct.unpack_from("<I", data, offset + size + 1)[0]
    if masked_crc32c(data[offset : offset + size + 1]) != stored:
        raise CheckpointError(f"The index is damaged: the CRC of the block at byte {offset} does not fit.")
    if data[offset + size] != 0:
        raise CheckpointError("The index is compressed, which TensorFlow does not do to checkpoints.")
    block = data[offset : offset + size]
    restarts = struct.unpack_from("<I", block, size - 4)[0] if size >= 4 else 0
    stop = size - 4 * (restarts + 1)
    if stop < 0 or not restarts:
        raise CheckpointError(f"The block of the index at byte {offset} has no room for its {restarts} restarts.")
    key, position = b"", 0
    while position < stop:
        shared, position = _varint(block, position, stop)
        rest, position = _varint(block, position, stop)
        length, position = _varint(block, position, stop)
        if shared > len(key) or position + rest + length > stop:
            raise CheckpointError(f"An entry of the block of the index at byte {offset} reaches outside it.")
        if shared + rest > MAX_NAME:
            raise CheckpointError(f"A name in the index has {shared + rest} characters, more than {MAX_NAME}.")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int, end: int) -> tuple[int, int, int]:
    """(offset, size, where the next thing starts) of a block handle."""
    offset, position = _varint(data, position, end)
    size, position = _varint(data, position, end)
    return offset, size, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """(value, where the next thing starts) of a number of seven bits a byte, below 2**64."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise CheckpointError("A number in the index is cut off or too large.")


# The values: protocol buffers


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a message: an integer, or bytes."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _varint(data, position, end)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(data, position, end)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise CheckpointError(f"A message of the index has a field of the unknown kind {kind}.")
        if position + length > end:
            raise CheckpointError("A field of a message of the index reaches outside it.")
        content = data[position : position + length]
        yield number, int.from_bytes(content, "little") if kind != 2 else content
        position += length


def _header(value: bytes) -> int:
    """The number of shards of a BundleHeaderProto."""
    shards = 0
    for number, content in _fields(value):
        if number == 1:
            shards = _integer(content)
        elif number == 2 and content:
            raise CheckpointError("The checkpoint is big-endian, which is not supported.")
        elif number == 3:
            needed = _number(_message(content), 2)
            if needed > 1:
                raise CheckpointError(f"The checkpoint needs a reader of version {needed}; this one is of version 1.")
    if not 1 <= shards <= MAX_SHARDS:
        raise CheckpointError(f"The index speaks of {shards} data files; 1 to {MAX_SHARDS:,} are allowed.")
    return shards


def _entry(name: str, value: bytes, shards: int) -> Entry:
    """A BundleEntryProto, consistent in itself."""
    numbers = dict.fromkeys((1, 3, 4, 5, 6), 0)  # dtype, shard, offset, size, crc32c
    shape: tuple[int, ...] = ()
    sliced = False
    for number, content in _fields(value):
        if number in numbers:
            numbers[number] = _integer(content)
        elif number == 2:
            shape = _shape(name, _message(content))
        elif number == 7:
            sliced = True
    dtype, shard, offset, size, crc = numbers.values()
    if shard >= shards:
        raise CheckpointError(f"{name} is said to be in data file {shard} of {shards}.")
    itemsize = _itemsize(dtype)
    if not sliced and itemsize is not None:
        expected = itemsize * math.prod(shape)
        if size != expected:
            raise CheckpointError(f"{name} of shape {shape} takes {expected} bytes, but {size} are stored.")
    return Entry(shape, dtype, shard, offset, size, crc, sliced)


def _shape(name: str, value: bytes) -> tuple[int, ...]:
    shape = []
    for number, content in _fields(value):
        if number == 2:
            size = _number(_message(content), 1)
            if size >= 1 << 63:  # a negative number: unknown
                raise CheckpointError(f"{name} has a dimension of unknown size.")
            shape.append(size)
            if len(shape) > MAX_RANK:
                raise CheckpointError(f"{name} has more than {MAX_RANK} dimensions.")
        elif number == 3 and content:
            raise CheckpointError(f"{name} has an unknown number of dimensions.")
    if math.prod(max(size, 1) for size in shape) >> 60:  # more than numpy can address, even where one of them is 0
        raise CheckpointError(f"{name} has impossible dimensions: {tuple(shape)}.")
    return tuple(shape)


def _number(message: bytes, field: int) -> int:
    """The last value of a field that is a number; 0 if it is not there."""
    value = 0
    for number, content in _fields(message):
        if number == field:
            value = _integer(content)
    return value


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise CheckpointError("A message of the index has bytes where a number belongs.")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CheckpointError("A message of the index has a number where a message belongs.")
    return value


def _itemsize(dtype: int) -> int | None:
    if dtype == _BFLOAT16:
        return 2
    return _DTYPES[dtype].itemsize if dtype in _DTYPES else None


def _check_extents(entries: Mapping[str, Entry], sizes: Sequence[int]) -> None:
    """Every tensor lies within its data file, and no two share a byte."""
    used = [0] * len(sizes)
    before = [""] * len(sizes)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
        shard = entry.shard
        if entry.sliced:
            continue
        if entry.offset + entry.size > sizes[shard]:
            raise CheckpointError(
                f"{name} ends at byte {entry.offset + entry.size} of data file {shard}, which has {sizes[shard]}."
            )
        if entry.size and entry.offset < used[shard]:
            raise CheckpointError(f"{name} and {before[shard]} overlap in data file {shard}.")
        if entry.size:
            used[shard], before[shard] = entry.offset + entry.size, name


def _shown(key: bytes) -> str:
    return repr(key[:60].decode("utf-8", "backslashreplace"))
