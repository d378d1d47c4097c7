"""Pickles, opened here and nowhere else: by ``simclr convert``, with ``weights_only``, in a process of its own.

The child copies plain tensors into a safetensors file; the parent reads that and never sees the pickle. Run as a file,
so it imports nothing of ours.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENDINGS = (".pth", ".pt", ".torch", ".bin")
_BACKBONE, _HEAD = "net.0.0.weight", "layers.0.weight"  # a name of each part tells where the part is


@contextmanager
def tensors_of(source: Path) -> Iterator[Path]:
    """A safetensors file with the backbone's (``net.*``, ``fc.*``) and the head's (``head.*``) tensors of a pickle.

    It is gone after the block. Raises ValueError, in one line, for what is no pickle of tensors, or no such network.
    """
    from zoo.files import check_room  # the child has no use for it

    check_room(Path(tempfile.gettempdir()), source.stat().st_size, f"a copy of {source.name}")
    with tempfile.TemporaryDirectory(prefix="simclr-") as folder:
        copy = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-P", __file__, str(source), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"the reading process ended with status {done.returncode}"]
            raise ValueError(f"{source}: {lines[-1]}")
        yield copy


def _dictionaries(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and depth < 8:
        yield {key: item for key, item in value.items() if isinstance(key, str)}
        for item in value.values():
            yield from _dictionaries(item, depth + 1)


def _part(dictionaries: list[dict[str, Any]], mark: str) -> dict[str, Any]:
    """The tensors of the dictionary that has a name ending in ``mark``, without what stands before it."""
    for dictionary in dictionaries:
        for key in dictionary:
            if key.endswith(mark):
                front = key.removesuffix(mark)
                return {name.removeprefix(front): item for name, item in dictionary.items() if name.startswith(front)}
    return {}


def _copy(source: str, target: str) -> str | None:
    """The child's work; what is wrong, or None."""
    import torch
    from safetensors.torch import save_file

    try:
        # weights_only: nothing but tensors and plain containers is built. This is the one place that opens a pickle.
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        return f"not a pickle of plain tensors, or damaged ({type(error).__name__})"
    dictionaries = list(_dictionaries(content))
    parts = _part(dictionaries, _BACKBONE)
    if not parts:
        return f"no network of the known layout in it (no '{_BACKBONE}')"
    parts |= {f"head.{name}": item for name, item in _part(dictionaries, _HEAD).items()}
    del content, dictionaries
    most = Path(source).stat().st_size
    copies = {}
    for name in list(parts):
        item = parts.pop(name)
        if not isinstance(item, torch.Tensor):
            continue
        if item.layout != torch.strided or item.numel() * item.element_size() > most:
            return f"the tensor {name} claims more than the file holds"
        if item.is_floating_point():
            item = item.float()
        copies[name] = item.detach().contiguous().clone()  # no two may share memory
    save_file(copies, target)
    return None


if __name__ == "__main__":
    wrong = _copy(*sys.argv[1:])
    if wrong:
        print(wrong, file=sys.stderr)
        sys.exit(3)
