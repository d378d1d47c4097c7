"""Models out of torch: ONNX files for numpy and onnxruntime. Importing this needs neither torch nor onnxruntime."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.graph import ParityError as ParityError
    from export.graph import to_onnx as to_onnx
    from export.runtime import OnnxModel as OnnxModel

__all__ = ["OnnxModel", "ParityError", "to_onnx"]

_HOME = {"OnnxModel": "export.runtime", "ParityError": "export.graph", "to_onnx": "export.graph"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
