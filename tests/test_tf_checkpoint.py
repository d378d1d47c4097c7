"""TensorFlow's checkpoints, read without TensorFlow: files that TensorFlow wrote, and files it never would."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_writer import HEADER, block, entry, table, trailer, varint, write_checkpoint
from conftest import REFERENCE
from reference.reference_weights import variable_value

from zoo.tf_checkpoint import (
    MAX_NAME,
    Checkpoint,
    CheckpointError,
    find_prefix,
    masked_crc32c,
    open_checkpoint,
    parse_index,
    shard_path,
)

RECORDED = sorted(path.parent.name for path in REFERENCE.glob("checkpoints/*/checkpoint"))
FOLDER = REFERENCE / "checkpoints"


class Bytes:
    """A data file in memory that counts what is read."""

    tries = 1

    def __init__(self, data: bytes) -> None:
        self.size, self.data, self.reads = len(data), np.frombuffer(data, np.uint8), 0

    def read(self, offset: int, size: int) -> np.ndarray:
        self.reads += size
        return self.data[offset : offset + size]


@pytest.mark.parametrize("name", RECORDED)
def test_what_tensorflow_wrote(name: str) -> None:
    checkpoint = open_checkpoint(FOLDER / name)
    assert {"base_model/conv2d/kernel", "head_supervised/linear_layer/dense/bias"} < set(checkpoint)
    for variable in checkpoint:
        array = checkpoint[variable]
        assert array.shape == checkpoint.shape(variable)
        if variable == "global_step":
            assert array == 250228
        else:
            np.testing.assert_array_equal(array, variable_value(variable, array.shape))


@pytest.mark.parametrize("name", RECORDED)
def test_our_writer_writes_what_tensorflow_writes(name: str, tmp_path: Path) -> None:
    """To the byte: so what is written in these tests is what TensorFlow would have written."""
    theirs = find_prefix(FOLDER / name)
    ours = write_checkpoint(tmp_path / "model.ckpt-1", open_checkpoint(FOLDER / name))
    assert Path(f"{ours}.index").read_bytes() == Path(f"{theirs}.index").read_bytes()
    assert shard_path(ours, 0, 1).read_bytes() == shard_path(theirs, 0, 1).read_bytes()


def test_types_shards_and_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    types = ["f4", "f8", "i4", "i8", "u1", "?"]
    tensors = {f"v/{k}": rng.integers(0, 100, (k % 4, 3)).astype(types[k]) for k in range(len(types))}
    tensors |= {f"long/{'x' * k}": rng.random(k + 1, np.float32) for k in range(200)}
    prefix = write_checkpoint(tmp_path / "ck", tensors, shards=3, block_rows=7)
    checkpoint = open_checkpoint(prefix)
    assert list(checkpoint) == sorted(tensors)
    for name, value in tensors.items():
        assert checkpoint[name].dtype == value.dtype
        np.testing.assert_array_equal(checkpoint[name], value)


def test_bfloat16(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.15625], np.float32)
    stored = (values.view(np.uint32) >> 16).astype("<u2")
    proto = entry(stored, shard=0, offset=0, crc=masked_crc32c(stored.view(np.uint8))).replace(b"\x08\x11", b"\x08\x0e")
    checkpoint = Checkpoint(table([(b"", HEADER % 1), (b"v", proto)]), lambda *_: Bytes(stored.tobytes()))
    np.testing.assert_array_equal(checkpoint["v"], values)


def test_only_what_is_asked_for_is_read() -> None:
    prefix = find_prefix(FOLDER / "r18_cifar")
    shard = Bytes(shard_path(prefix, 0, 1).read_bytes())
    checkpoint = Checkpoint(Path(f"{prefix}.index").read_bytes(), lambda *_: shard)
    assert "base_model/conv2d/kernel" in checkpoint
    assert checkpoint.shape("base_model/conv2d/kernel") == (3, 3, 3, 4)
    assert len(checkpoint) == 121
    assert shard.reads == 0
    checkpoint["base_model/conv2d/kernel"]
    assert shard.reads == 4 * 3 * 3 * 3 * 4


def test_prefixes_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    one = write_checkpoint(folder / "model.ckpt-1", {"a": np.zeros(1, np.float32)})
    assert find_prefix(folder) == one
    two = write_checkpoint(folder / "model.ckpt-2", {"b": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"which checkpoint\? There are: model\.ckpt-1, model\.ckpt-2"):
        open_checkpoint(folder)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/gone/elsewhere/model.ckpt-2"\n')
    assert list(open_checkpoint(folder)) == ["b"]
    for given in (two, f"{two}.index", shard_path(two, 0, 1)):
        assert find_prefix(Path(given)) == two
    (folder / "checkpoint").write_text('model_checkpoint_path: "../../etc/passwd"\n')
    with pytest.raises(CheckpointError, match="which checkpoint"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="give the prefix"):
        open_checkpoint(folder / "model.ckpt-3")
    shard_path(one, 0, 1).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(one)


def test_a_changed_bit_is_found_where_it_is(tmp_path: Path) -> None:
    prefix = write_checkpoint(tmp_path / "ck", {"a": np.arange(5.0), "b": np.arange(7.0)})
    path = shard_path(prefix, 0, 1)
    data = bytearray(path.read_bytes())
    data[8 * 5 + 3] ^= 1
    path.write_bytes(data)
    checkpoint = open_checkpoint(prefix)
    np.testing.assert_array_equal(checkpoint["a"], np.arange(5.0))
    with pytest.raises(CheckpointError, match="b is damaged: its CRC"):
        checkpoint["b"]


# Files TensorFlow would not write

GOOD = entry(np.zeros((2, 3), np.float32), shard=0, offset=0, crc=0)


def index(*rows: tuple[bytes, bytes], header: bytes = HEADER % 1) -> bytes:
    return table([(b"", header), *rows])


def with_value(value: bytes, name: bytes = b"v") -> bytes:
    return index((name, value))


def from_block(content: bytes, *, compression: bytes = b"\0") -> bytes:
    """An index whose only data block is ``content``, whatever that is."""
    tail = compression + struct.pack("<I", masked_crc32c(content + compression))
    root = block([(b"z", varint(0) + varint(len(content)))])
    meta = block([])
    out = content + tail + meta + trailer(meta) + root + trailer(root)
    first = len(content) + 5
    handles = varint(first) + varint(len(meta)) + varint(first + len(meta) + 5) + varint(len(root))
    return out + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def raw_row(shared: int, key: bytes, value: bytes) -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


ONE_RESTART = struct.pack("<II", 0, 1)


def long_names() -> bytes:
    """Names of 1,000 characters that cost three bytes each."""
    rows = raw_row(0, b"", HEADER % 1) + raw_row(0, b"a" * 1000, GOOD)
    rows += b"".join(raw_row(1000, f"{n:04x}".encode(), GOOD) for n in range(3000))
    return from_block(rows + ONE_RESTART)


def same_block_again() -> bytes:
    """An index block that names one data block a thousand times."""
    content = block([(b"", HEADER % 1)])
    root = block([(struct.pack(">H", n), varint(0) + varint(len(content))) for n in range(1000)])
    handles = varint(0) + varint(len(content)) + varint(len(content) + 5) + varint(len(root))
    return content + trailer(content) + root + trailer(root) + handles.ljust(40, b"\0") + table([])[-8:]


def overlapping() -> bytes:
    return index((b"a", GOOD), (b"b", entry(np.zeros(3, np.float32), shard=0, offset=8, crc=0)))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "fewer than its footer"),
    "other": (lambda: bytes(1000), "Not the index"),
    "no_header": (lambda: table([(b"v", GOOD)]), "no header"),
    "no_rows": (lambda: table([]), "no header"),
    "many_shards": (lambda: index(header=b"\x08" + varint(10**6)), "1000000 data files"),
    "big_endian": (lambda: index(header=b"\x08\x01\x10\x01"), "big-endian"),
    "newer": (lambda: index(header=b"\x08\x01\x1a\x02\x10\x09"), "reader of version 9"),
    "compressed": (lambda: from_block(block([(b"", HEADER % 1)]), compression=b"\1"), "compressed"),
    "no_restarts": (lambda: from_block(struct.pack("<I", 0)), "no room"),
    "many_restarts": (lambda: from_block(struct.pack("<I", 2**32 - 1)), "no room"),
    "outside": (lambda: from_block(b"\0\0\x7fabc" + ONE_RESTART), "outside"),
    "shared": (lambda: from_block(raw_row(0, b"", HEADER % 1) + raw_row(9, b"v", GOOD) + ONE_RESTART), "outside"),
    "varint": (lambda: from_block(b"\xff" * 20 + ONE_RESTART), "too large"),
    "unsorted": (lambda: table([(b"", HEADER % 1), (b"b", GOOD), (b"a", GOOD)]), "not in order"),
    "twice": (lambda: table([(b"", HEADER % 1), (b"b", GOOD), (b"b", GOOD)]), "not in order"),
    "name": (lambda: with_value(GOOD, b"n" * (MAX_NAME + 1)), "1025 characters"),
    "newline": (lambda: with_value(GOOD, b"a\nb"), r"not printable: 'a\\nb'"),
    "names": (long_names, "longer names"),
    "same_block": (same_block_again, "overlap"),
    "overlap": (overlapping, "b and a overlap"),
    "size": (lambda: with_value(GOOD.replace(b"\x28\x18", b"\x28\x19")), "takes 24 bytes, but 25"),
    "huge": (
        lambda: with_value(b"\x08\x01\x12\x0a\x12\x08\x08" + varint(2**48) + b"\x28\x04"),
        "takes 1125899906842624 bytes",
    ),
    "impossible": (lambda: with_value(b"\x08\x01\x12\x0c\x12\x0a\x08" + varint(2**62)), "impossible dimensions"),
    "negative": (lambda: with_value(b"\x08\x01\x12\x0d\x12\x0b\x08" + varint(2**64 - 1)), "unknown size"),
    "rank": (lambda: with_value(b"\x08\x01\x12\x44" + b"\x12\x02\x08\x01" * 17), "more than 16 dimensions"),
    "unknown_rank": (lambda: with_value(b"\x08\x01\x12\x02\x18\x01"), "unknown number of dimensions"),
    "far": (lambda: with_value(entry(np.zeros(1, "f4"), shard=0, offset=10**12, crc=0)), "which has 24"),
    "other_shard": (lambda: with_value(entry(np.zeros(1, "f4"), shard=3, offset=0, crc=0)), "data file 3 of 1"),
    "group": (lambda: with_value(b"\x0b"), "unknown kind 3"),
    "cut_field": (lambda: with_value(b"\x12\x50\x12"), "reaches outside it"),
    "bytes": (lambda: with_value(b"\x0a\x01x"), "bytes where a number"),
    "number": (lambda: with_value(b"\x10\x07"), "number where a message"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_indices_end_in_one_typed_error(name: str) -> None:
    make, said = HOSTILE[name]
    with pytest.raises(CheckpointError, match=said) as caught:
        Checkpoint(make(), lambda *_: Bytes(bytes(24)))
    assert "\n" not in str(caught.value)


def test_every_changed_byte_of_an_index_is_noticed() -> None:
    good = Path(f"{find_prefix(FOLDER / 'r18_cifar')}.index").read_bytes()
    entries = parse_index(good)
    for position in range(0, len(good), 7):
        changed = bytearray(good)
        changed[position] ^= 0x55
        try:
            assert parse_index(bytes(changed)) == entries  # the padding of the footer, and the empty meta block
        except CheckpointError:
            continue


@pytest.mark.parametrize(
    ("proto", "said"),
    [
        (b"\x08\x07\x12\x00\x28\x05", "type 7, which is not supported"),  # a string
        (b"\x08\x01\x12\x04\x12\x02\x08\x02\x3a\x00", "stored in slices"),
    ],
)
def test_what_is_not_supported_is_said_when_asked_for(proto: bytes, said: str) -> None:
    checkpoint = Checkpoint(with_value(proto), lambda *_: Bytes(bytes(24)))
    assert list(checkpoint) == ["v"]
    with pytest.raises(CheckpointError, match=said):
        checkpoint["v"]
