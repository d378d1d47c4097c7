"""The contact sheet shows the very pixels that training sees."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import main as simclr
from training import data
from training.augment import Augmentation
from training.recipes import recipe
from training.views import cell_side, draw_views, recipe_augmentation


def shown(sheet: np.ndarray, view: np.ndarray) -> int:
    """How often a picture (H, W, 3) is in the sheet, by brute force over the places of its first pixels."""
    height, width = view.shape[:2]
    first = (sheet[: len(sheet) - height + 1, : sheet.shape[1] - width + 1] == view[0, 0]).all(-1)
    return sum(bool((sheet[y : y + height, x : x + width] == view).all()) for y, x in np.argwhere(first))


def enlarged(view: np.ndarray, size: int) -> np.ndarray:
    """float (3, S, S) in [0, 1] to uint8, every pixel a square."""
    times = cell_side(size) // size
    return np.kron(np.rint(view.transpose(1, 2, 0) * 255).astype(np.uint8), np.ones((times, times, 1), np.uint8))


@pytest.mark.parametrize(
    ("augmentation", "views", "epochs"),
    [(Augmentation(24), 2, (5, 6, 7)), (Augmentation(48, color=False), 1, range(5, 11))],
)
def test_the_views_are_those_of_training(
    image_folder: Path, tmp_path: Path, augmentation: Augmentation, views: int, epochs: range
) -> None:
    images = data.from_folder(image_folder).subset([3, 20])
    draw_views(images, augmentation, tmp_path / "new" / "views.png", views=views, seed=3, rows=2, epoch=5)  # type: ignore[arg-type]
    sheet = np.asarray(Image.open(tmp_path / "new" / "views.png"))
    for index, path in enumerate(images.paths):
        for epoch in epochs:
            for view in range(views):
                pixels = [np.asarray(Image.open(path))]
                seen = augmentation(pixels, indices=[index], epoch=epoch, view=view, seed=3)[0].numpy()
                assert shown(sheet, enlarged(seen, augmentation.size)) == 1
        other = augmentation(pixels, indices=[index], epoch=4, view=0, seed=3)[0].numpy()
        assert shown(sheet, enlarged(other, augmentation.size)) == 0
    again = tmp_path / "again.png"
    draw_views(images, augmentation, again, views=views, seed=3, rows=2, epoch=5)  # type: ignore[arg-type]
    assert again.read_bytes() == (tmp_path / "new" / "views.png").read_bytes()


def test_unreadable_files_are_passed_over(image_folder: Path, tmp_path: Path) -> None:
    images = data.from_folder(image_folder)
    for path in images.paths[:-2]:
        path.write_text("no image")
    draw_views(images, Augmentation(24), tmp_path / "two.png", views=2, seed=0, rows=8)
    draw_views(images, Augmentation(24), tmp_path / "one.png", views=2, seed=0, rows=1)
    two, one = (np.asarray(Image.open(tmp_path / f"{name}.png")).shape for name in ("two", "one"))
    assert two[1] == one[1]
    assert cell_side(24) < two[0] - one[0] < 2 * cell_side(24)  # one row more
    for path in images.paths:
        path.write_text("no image")
    with pytest.raises(ValueError, match="None of the 36 images can be read"):
        draw_views(images, Augmentation(24), tmp_path / "none.png", views=2, seed=0)
    assert not (tmp_path / "none.png").exists()


def test_a_name_that_is_no_text_is_drawn(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 60, 3), 90, np.uint8)).save(tmp_path / "two\nlines.png")
    draw_views(data.from_folder(tmp_path), Augmentation(48), tmp_path / "views.png", views=1, seed=0)
    assert (tmp_path / "views.png").exists()


def test_a_panorama_is_drawn(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 3000, 3), 90, np.uint8)).save(tmp_path / "wide.png")
    images, augmentation = data.from_folder(tmp_path), Augmentation(48, color=False, blur=False)
    draw_views(images, augmentation, tmp_path / "views.png", views=1, seed=0)
    sheet = np.asarray(Image.open(tmp_path / "views.png"))
    assert shown(sheet, np.full((144, 144, 3), 90, np.uint8)) == 6


@pytest.mark.parametrize(("size", "side"), [(32, 160), (96, 192), (144, 144), (200, 200), (224, 224), (448, 256)])
def test_cells_are_legible_and_fit(size: int, side: int) -> None:
    assert cell_side(size) == side


def test_the_recipe_decides() -> None:
    assert recipe_augmentation(recipe("cifar10_pretrain")) == (Augmentation(32, strength=0.5, blur=False), 2)
    for name in ("imagenet_finetune_1pct", "imagenet_distill"):
        assert recipe_augmentation(recipe(name)) == (Augmentation(224, color=False, blur=False), 1)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        simclr(["views", *arguments])
    return int(stop.value.code or 0)


def test_views_command(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, expected = tmp_path / "views.png", tmp_path / "expected.png"
    given = ["--images", str(image_folder), "--out", str(out), "--rows", "1", "--image-size", "24"]
    assert run(*given, "--color-strength", "0.3", "--no-blur", "--seed", "4", "--epoch", "2") == 0
    assert str(out) in capsys.readouterr().out
    augmentation = Augmentation(24, strength=0.3, blur=False)
    draw_views(data.from_folder(image_folder), augmentation, expected, views=2, seed=4, rows=1, epoch=2)
    assert out.read_bytes() == expected.read_bytes()
    assert run(*given, "--recipe", "standard_distill") == 0
    assert run(*given, "--recipe", "standard_distill", "--no-blur") == 2
    assert "--blur is for pretraining; the views of 'standard_distill' are" in capsys.readouterr().err
    assert run(*given, "--recipe", "standard_pretain") == 2
    assert "standard_pretrain" in capsys.readouterr().err
