"""Pictures of a report as plain HTML and SVG: bars with intervals, learning curves, a confusion matrix, thumbnails."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.evaluate import Score
from zoo.transforms import read_image

_WIDTH, _HEIGHT = 320, 170  # of a learning curve
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 38, 10, 24
_LEAST_RANGE = 0.1  # of the loss, as a share of its largest value: noise shall not look like progress
_POINTS = 200  # of a curve: more are not seen


def percent(share: float, digits: int = 1) -> str:
    """``62.5 %``, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"


def interval_words(score: Score) -> str:
    """``46 to 77 %``."""
    low, high = score.interval
    return f"{100 * max(low, 0):.0f} to {100 * min(high, 1):.0f}\u00a0%"


def bars(rows: Sequence[tuple[str, str, Score]], *, chance: float) -> str:
    """A bar and its 95 % interval for each (name, kind, score); a line where ``chance`` is. ``kind`` is a CSS class."""
    shown = []
    for name, kind, score in rows:
        low, high = (min(max(end, 0.0), 1.0) for end in score.interval)
        shown.append(
            f'<div class="bar {kind}"><span class="name">{escape(name)}</span>'
            f'<span class="track" aria-hidden="true"><i class="fill" style="width:{score.top1:.2%}"></i>'
            f'<i class="range" style="left:{low:.2%};width:{high - low:.2%}"></i>'
            f'<i class="chance" style="left:{chance:.2%}"></i></span>'
            f'<span class="value">{percent(score.top1)} <small>{interval_words(score)}</small></span></div>'
        )
    return f'<div class="bars">{"".join(shown)}</div>'


def curve(title: str, log: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Loss (left axis) and, if it is logged, the stage's share in [0, 1] (right axis) against epochs."""
    entries = [entry for entry in log if "epoch" in entry and np.isfinite(entry.get("loss", np.nan))]
    if not entries:
        return f"<figure><h3>{escape(title)}</h3><figcaption>Nothing was logged.</figcaption></figure>"
    entries = [entries[i] for i in np.unique(np.linspace(0, len(entries) - 1, _POINTS).round().astype(int))]
    epochs = np.array([entry["epoch"] for entry in entries], float)
    losses = np.array([entry["loss"] for entry in entries], float)
    share = share_name(entries[-1])
    high = float(losses.max())
    low = min(float(losses.min()), high - _LEAST_RANGE * abs(high))
    drawn = [
        f'<line class="axis" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        for y in (_y(0), _y(0.5), _y(1))
    ]
    for value, height in (low, 0.0), (high, 1.0):
        drawn.append(
            f'<text class="loss" x="{_LEFT - 6}" y="{_y(height) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    if share:
        values = np.array([entry.get(share, np.nan) for entry in entries], float)
        drawn.append(_line("share", epochs, values.clip(0, 1)))
        for height in (0.0, 1.0):
            drawn.append(f'<text class="share" x="{_WIDTH - _RIGHT + 6}" y="{_y(height) + 4:.1f}">{height:.0%}</text>')
    drawn.append(_line("loss", epochs, (losses - low) / (high - low or 1)))
    bottom = _HEIGHT - 6
    drawn.append(f'<text x="{_LEFT}" y="{bottom}">epoch 0</text>')
    drawn.append(f'<text x="{_WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{epochs[-1]:.3g}</text>')
    told = f"{title}: loss from {losses[0]:.2f} to {losses[-1]:.2f}"
    return (
        f'<figure><h3>{escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">'
        f"{''.join(drawn)}</svg><figcaption>{caption}</figcaption></figure>"
    )


def share_name(entry: Mapping[str, Any]) -> str | None:
    """The metric of a log entry that is a share in [0, 1]."""
    return next((name for name in ("contrast_accuracy", "accuracy", "agreement") if name in entry), None)


def _y(height: float) -> float:
    return _HEIGHT - _BOTTOM - height * (_HEIGHT - _TOP - _BOTTOM)


def _line(kind: str, epochs: np.ndarray, heights: np.ndarray) -> str:
    across = _LEFT + epochs / max(epochs[-1], 1e-9) * (_WIDTH - _LEFT - _RIGHT)
    points = " ".join(f"{x:.1f},{_y(h):.1f}" for x, h in zip(across, heights, strict=True) if np.isfinite(h))
    if len(heights) == 1:
        return f'<circle class="{kind}" cx="{across[0]:.1f}" cy="{_y(heights[0]):.1f}" r="3"/>'
    return f'<polyline class="{kind}" points="{points}"/>'


def confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Rows are the truth, columns the answers (numbered as the rows), shaded by their share of the row."""
    numbers = "".join(
        f'<th scope="col"><abbr title="{escape(name)}">{k}</abbr></th>' for k, name in enumerate(classes, 1)
    )
    rows = []
    for number, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = max(int(row.sum()), 1)
        cells = "".join(
            f'<td class="{"right" if k == number else "wrong"}{" deep" if n / total > 0.5 else ""}" '
            f'style="--v:{n / total:.2f}"><span>{n or "·"}</span></td>'
            for k, n in enumerate(row)
        )
        rows.append(f'<tr><th scope="row">{number + 1}&ensp;{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="confusion"><thead><tr><td></td>'
        f"{numbers}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def confused_pairs(counts: np.ndarray, *, most: int = 10) -> list[tuple[int, int, int]]:
    """(truth, answer, count) of the most frequent mistakes, the most frequent first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(counts)) for place in order]
    return [(truth, answer, int(wrong[truth, answer])) for truth, answer in places if wrong[truth, answer]]


def thumbnail(path: Path, size: int = 112) -> str:
    """The middle square of a picture as a data: URI (JPEG); a plain square if it cannot be read."""
    try:
        picture = Image.fromarray(read_image(path))
    except (ValueError, OSError):
        picture = Image.new("RGB", (size, size), "#888888")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    kept = io.BytesIO()
    square.save(kept, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(kept.getvalue()).decode()}"


def png(path: Path) -> str:
    """A PNG file as a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
