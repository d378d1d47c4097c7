"""Models out of torch: ONNX files for numpy and onnxruntime. Importing this needs neither torch nor onnxruntime."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.checks import ParityError as ParityError
    from export.runtime import OnnxModel as OnnxModel
    from export.write import to_onnx as to_onnx

__all__ = ["OnnxModel", "ParityError", "to_onnx"]

# Unless this is set before its import onnxruntime tells Microsoft of its use (1.32 does; Privacy.md in its package).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {"OnnxModel": "export.runtime", "ParityError": "export.checks", "to_onnx": "export.write"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
