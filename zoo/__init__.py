"""The model zoo of SimCLRv2: names, architectures, weights and the evaluation transform.

Importing this needs neither torch nor numpy; what does is imported at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zoo.registry import Spec, list_models, list_weights, spec

if TYPE_CHECKING:
    from zoo import convert as convert
    from zoo.hub import push as push
    from zoo.lock import TamperedError as TamperedError
    from zoo.model_file import load_file as load_file
    from zoo.model_file import save_file as save_file
    from zoo.simclr import Output as Output
    from zoo.simclr import SimCLR as SimCLR
    from zoo.sources import WeightsNotFoundError as WeightsNotFoundError
    from zoo.tf_checkpoint import CheckpointError as CheckpointError
    from zoo.transforms import preprocess as preprocess
    from zoo.transforms import read_image as read_image
    from zoo.weights import create as create
    from zoo.weights import load as load

__version__ = "0.2.0"
__all__ = [
    "CheckpointError",
    "Output",
    "SimCLR",
    "Spec",
    "TamperedError",
    "WeightsNotFoundError",
    "convert",
    "create",
    "list_models",
    "list_weights",
    "load",
    "load_file",
    "preprocess",
    "push",
    "read_image",
    "save_file",
    "spec",
]

_HOME = {  # where each lazily imported name lives
    "CheckpointError": "zoo.tf_checkpoint",
    "Output": "zoo.simclr",
    "SimCLR": "zoo.simclr",
    "TamperedError": "zoo.lock",
    "WeightsNotFoundError": "zoo.sources",
    "create": "zoo.weights",
    "load": "zoo.weights",
    "load_file": "zoo.model_file",
    "preprocess": "zoo.transforms",
    "push": "zoo.hub",
    "read_image": "zoo.transforms",
    "save_file": "zoo.model_file",
}


def __getattr__(name: str) -> Any:
    if name == "convert":
        return importlib.import_module("zoo.convert")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
