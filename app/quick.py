"""Gradio's import in half the time: without the stub files for editors that it writes at every start."""

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_WRITER, _FUNCTION = "gradio.component_meta", "create_or_modify_pyi"


def without_stubs() -> None:
    """From here on Gradio's import writes no ``.pyi`` files. To be called before it; harmless after, and twice.

    For every class of a component Gradio parses its source, renders a stub of it and compares that with the file beside
    the source, writing it if it differs: 1.9 of 4 seconds, and into the installed package, which may be read-only or in
    use by another process that starts. A Gradio that has no such function is left as it is.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _WRITER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def run(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, _FUNCTION):
                    setattr(module, _FUNCTION, _nothing)

            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def _nothing(*_: Any) -> None:
    pass


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection inside: an import makes a million objects that stay, and the collector visits them again
    and again. What is there at the end is left out of later collections, too."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def import_page() -> None:
    """Import what the page is made of."""
    with no_collection():
        for name in ("app.ui", "app.server"):
            importlib.import_module(name)
