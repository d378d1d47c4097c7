"""TensorFlow's checkpoint format, written: for tests, the fuzzer and the benchmarks, which have no TensorFlow."""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.tf_checkpoint import masked_crc32c, shard_path

NUMBERS = {"<f4": 1, "<f8": 2, "<i4": 3, "|u1": 4, "<i2": 5, "|i1": 6, "<i8": 9, "|b1": 10, "<u2": 17, "<f2": 19}
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
HEADER = b"\x08%c\x1a\x02\x08\x01"  # BundleHeaderProto: number of shards, version 1


if TYPE_CHECKING:
    from zoo.simclr import SimCLR


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def entry(array: np.ndarray, *, shard: int, offset: int, crc: int) -> bytes:
    """A BundleEntryProto; fields that are zero are left out, as protocol buffers do."""
    shape = b"".join(b"\x12" + _sized(b"\x08" + varint(size)) for size in array.shape)
    fields = b"\x08" + varint(NUMBERS[array.dtype.str]) + b"\x12" + _sized(shape)
    for tag, value in ((b"\x18", shard), (b"\x20", offset), (b"\x28", array.nbytes)):
        fields += tag + varint(value) if value else b""
    return fields + b"\x35" + struct.pack("<I", crc)


def _sized(message: bytes) -> bytes:
    return varint(len(message)) + message


def block(rows: Iterable[tuple[bytes, bytes]], *, restart_interval: int = 16) -> bytes:
    """The entries of a block, keys prefix-compressed, then the restarts; without the trailer."""
    out, restarts, previous = bytearray(), [], b""
    for number, (key, value) in enumerate(rows):
        if number % restart_interval == 0:
            restarts.append(len(out))
            previous = b""
        # of any two lengths: what is shared ends with the shorter at the latest
        both = zip(previous, key, strict=False)  # the shorter key ends what they share
        shared = next((n for n, (a, b) in enumerate(both) if a != b), min(len(previous), len(key)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def trailer(content: bytes) -> bytes:
    """No compression, and the CRC."""
    return b"\0" + struct.pack("<I", masked_crc32c(content + b"\0"))


def table(rows: list[tuple[bytes, bytes]], *, block_rows: int = 10**9) -> bytes:
    """A whole ``.index``: data blocks of up to ``block_rows`` entries, an empty meta block, the index block, footer."""
    out, root = bytearray(), []
    for start in range(0, len(rows), block_rows):
        part = rows[start : start + block_rows]
        content = block(part)
        root.append((part[-1][0], varint(len(out)) + varint(len(content))))
        out += content + trailer(content)
    if root and root[-1][0]:  # LevelDB shortens the last key to the first that is not below it
        root[-1] = (bytes([root[-1][0][0] + 1]), root[-1][1])
    handles = b""
    for content in (block([]), block(root, restart_interval=1)):
        handles += varint(len(out)) + varint(len(content))
        out += content + trailer(content)
    return bytes(out) + handles.ljust(40, b"\0") + MAGIC


def write_checkpoint(
    prefix: Path, tensors: Mapping[str, np.ndarray], *, shards: int = 1, block_rows: int = 10**9
) -> Path:
    """A checkpoint of ``tensors``, each asked for once, spread over ``shards`` data files; the prefix again."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    rows = [(b"", HEADER % shards)]
    for shard in range(shards):
        offset = 0
        with shard_path(prefix, shard, shards).open("wb") as file:
            for name in names[shard::shards]:
                array = np.asarray(tensors[name], order="C")
                file.write(array.data)
                crc = masked_crc32c(array.reshape(-1).view(np.uint8))
                rows.append((name.encode(), entry(array, shard=shard, offset=offset, crc=crc)))
                offset += array.nbytes
    Path(f"{prefix}.index").write_bytes(table(sorted(rows), block_rows=block_rows))
    return prefix


def published_shapes(model: "SimCLR", *, memory: int = 64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that a published pretrained checkpoint of ``model`` holds: three times what is wanted."""
    from zoo.convert import TENSORFLOW  # here, as it needs torch, and the fuzzer does not

    state = model.state_dict()
    wanted = {theirs: TENSORFLOW.their_shape(tuple(state[ours].shape)) for ours, theirs in TENSORFLOW.names(model)}
    trained = {name: shape for name, shape in wanted.items() if "/moving_" not in name}
    averaged = {name: shape for name, shape in wanted.items() if not name.startswith("head_supervised/")}
    return (
        wanted
        | {f"{name}/Momentum": shape for name, shape in trained.items()}
        | {f"ema_model/{name}": shape for name, shape in averaged.items()}
        | {"memory": (memory, 128), "global_step": ()}
    )
