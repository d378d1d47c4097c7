"""The documentation's snippets run, and its commands and options exist."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import zoo
from app.cli import main as simclr

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pretended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages load from the authors."""
    path = tmp_path_factory.mktemp("pretended") / "model.safetensors"
    zoo.save_file(zoo.create("r50_1x", classify_from=1, seed=0), path)
    return path


@pytest.fixture
def photos(image_folder: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = image_folder.parent
    image_folder.rename(folder / "photos")
    rows = [f"{name}/{k:02d}.png,{name}" for name in ("circle", "square", "stripes") for k in range(4)]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SIMCLR_CACHE", str(folder / "cache"))
    weights = folder / "cache" / "r50_1x" / "finetuned_1pct"
    weights.mkdir(parents=True)
    shutil.copy(pretended, weights)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_snippets_run(page: Path, photos: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def commands() -> list[tuple[str, str]]:
    lines = [(page.name, line) for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("simclr ")]


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_and_options_exist(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    if name.startswith("-"):
        arguments = [name]
        shown = ""
    else:
        with pytest.raises(SystemExit) as stop:
            simclr([name, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in shown + "--version", f"{page}: {line}"


def test_there_are_commands_and_links_to_check() -> None:
    assert len(commands()) > 5
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
