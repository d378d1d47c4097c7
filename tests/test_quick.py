"""Gradio's import without stub files: a pretended package that writes them, and what the real one must have for it."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from gradio import component_meta

from app.quick import no_collection

ROOT = Path(__file__).parents[1]
WRITES = """
from pathlib import Path
def create_or_modify_pyi(*_):
    Path(__file__).with_name("written.pyi").touch()
"""


def import_pretended(folder: Path, source: str, *, hooked: bool) -> list[str]:
    """Import a package called gradio whose component_meta has this source, and call what a class of it would call."""
    package = folder / "gradio"
    package.mkdir()
    (package / "__init__.py").write_text("from gradio import component_meta\ncomponent_meta.made()\n")
    (package / "component_meta.py").write_text(source)
    hook = "from app.quick import without_stubs; without_stubs(); without_stubs()\n" if hooked else ""
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n{hook}import gradio; print(gradio.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == package / "__init__.py"
    return sorted(path.name for path in package.glob("*.pyi"))


@pytest.mark.parametrize("hooked", [False, True])
def test_no_stubs_are_written(hooked: bool, tmp_path: Path) -> None:
    source = WRITES + "def made():\n    create_or_modify_pyi('class', 'name', [])\n"
    assert import_pretended(tmp_path, source, hooked=hooked) == ([] if hooked else ["written.pyi"])


def test_a_gradio_without_the_function_is_left_alone(tmp_path: Path) -> None:
    assert import_pretended(
        tmp_path, WRITES.replace("create_or", "make_or") + "made = make_or_modify_pyi\n", hooked=True
    )


def test_the_real_one_calls_it_by_that_name() -> None:
    """Else nothing would be gained; it is looked up when a class is made, and its result is not used."""
    assert "create_or_modify_pyi" in component_meta.ComponentMeta.__new__.__code__.co_names


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
