"""The model zoo of SimCLRv2: names, architectures, weights and the evaluation transform.

Importing this needs neither torch nor numpy; what does is imported at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zoo.registry import Spec, list_models, list_weights, spec

if TYPE_CHECKING:
    from zoo import convert as convert
    from zoo.simclr import Output as Output
    from zoo.simclr import SimCLR as SimCLR
    from zoo.transforms import preprocess as preprocess
    from zoo.transforms import read_image as read_image
    from zoo.weights import WeightsNotFoundError as WeightsNotFoundError
    from zoo.weights import create as create
    from zoo.weights import load as load
    from zoo.weights import load_file as load_file
    from zoo.weights import save_file as save_file

__version__ = "0.1.0"
__all__ = [
    "Output",
    "SimCLR",
    "Spec",
    "WeightsNotFoundError",
    "convert",
    "create",
    "list_models",
    "list_weights",
    "load",
    "load_file",
    "preprocess",
    "read_image",
    "save_file",
    "spec",
]

_HOME = {  # where each lazily imported name lives
    "Output": "zoo.simclr",
    "SimCLR": "zoo.simclr",
    "preprocess": "zoo.transforms",
    "read_image": "zoo.transforms",
    "WeightsNotFoundError": "zoo.weights",
    "create": "zoo.weights",
    "load": "zoo.weights",
    "load_file": "zoo.weights",
    "save_file": "zoo.weights",
}


def __getattr__(name: str) -> Any:
    if name == "convert":
        return importlib.import_module("zoo.convert")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
