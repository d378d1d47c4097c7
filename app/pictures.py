"""The pictures that come with the app, drawn by app/drawings.py: gallery and examples when there are no others."""

from pathlib import Path

CREDIT = "drawn by this project's code, Apache-2.0"
PICTURES = Path(__file__).parent / "bundled" / "pictures"
"""A folder for each of ten classes, eight JPEG files of 192 x 192 pixels in each."""


def examples() -> list[Path]:
    """One picture of every class."""
    return sorted(PICTURES.glob("*/1.jpg"))
