"""What was measured of an export: its forms side by side, and what each layer costs in integers."""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from export.choose import Layer
from export.session import run

TIMED = (1, 8)  # batch sizes
_ROUNDS, _PATIENCE = 9, 4.0  # seconds a batch size
_ENOUGH = 200  # images
_NOISE = 1.05  # times as long is not yet slower


class Form(NamedTuple):
    """One way to write the network: its size, the milliseconds of a batch by batch size, and how it answers (shares of
    the judged images: the right class where there were labels, the same class as in float; the mean cosine of the
    features with those in float; None if not asked)."""

    name: str
    nbytes: int
    milliseconds: dict[int, float]
    top1: float | None
    agreement: float | None
    cosine: float | None


class Report(NamedTuple):
    """``judged``: how many images the answers were compared on. ``layers`` and several ``forms`` only for int8."""

    path: Path
    file_bytes: int
    judged: int
    forms: list[Form]
    layers: list[Layer]

    def slower(self) -> str | None:
        """A warning with the figures, if integers are slower than float on this machine."""
        if len(self.forms) < 2:
            return None
        floats, integers = self.forms[0].milliseconds, self.forms[-1].milliseconds
        worse = [
            f"{integers[count]:.1f} ms against {floats[count]:.1f} ms at batch {count}"
            for count in floats
            if integers[count] > _NOISE * floats[count]
        ]
        if not worse:
            return None
        return f"int8 is slower than fp32 on this machine ({', '.join(worse)}); use weights='fp32' or 'fp16' here."

    def markdown(self) -> str:
        """The tables."""
        lines = [f"# {self.path.name}", "", f"{self.file_bytes / 1e6:.1f} MB."]
        if self.judged:
            lines[-1] += f" Measured on {self.judged:,} images; onnxruntime {onnxruntime.__version__}, CPU."
            lines += ["", f"| form | MB of weights | {_TITLES} | top-1 | same answer as fp32 | cosine of features |"]
            lines += ["|---|---|" + "---|" * (len(TIMED) + 3)]
            lines += [_row(form) for form in self.forms]
        if self.layers and self.judged < _ENOUGH:
            lines += ["", f"So few images tell little; give {_ENOUGH} and more, other than those of the calibration."]
        if self.layers:
            lines += ["", "Error of the outputs (root mean square, relative) when one layer alone is in integers:", ""]
            lines += ["| layer | error | written as |", "|---|---|---|"]
            lines += [
                f"| {layer.name} | {layer.error:.2%} | {'int8' if layer.integer else 'float'} |"
                for layer in self.layers
            ]
        return "\n".join(lines) + "\n"


_TITLES = " | ".join(f"ms, batch {count}" for count in TIMED)


def _row(form: Form) -> str:
    times = " | ".join(f"{form.milliseconds[count]:.1f}" if form.milliseconds else "" for count in TIMED)
    shares = " | ".join("" if share is None else f"{share:.2%}" for share in (form.top1, form.agreement))
    cosine = "" if form.cosine is None else f"{form.cosine:.4f}"
    return f"| {form.name} | {form.nbytes / 1e6:.1f} | {times} | {shares} | {cosine} |"


def timed(sessions: Mapping[str, onnxruntime.InferenceSession], batch: np.ndarray) -> dict[str, dict[int, float]]:
    """Milliseconds by batch size: sessions take turns, the median of up to nine rounds after a first one."""
    found: dict[str, dict[int, float]] = {name: {} for name in sessions}
    for count in TIMED:
        some = np.ascontiguousarray(batch[:count])
        times: dict[str, list[float]] = {name: [] for name in sessions}
        started = time.monotonic()
        for turn in range(_ROUNDS + 1):
            for name, session in sessions.items():
                before = time.perf_counter()
                run(session, some)
                if turn:
                    times[name].append(time.perf_counter() - before)
            if turn and time.monotonic() - started > _PATIENCE:
                break
        for name, values in times.items():
            found[name][count] = 1000 * statistics.median(values)
    return found
