"""The self-test of an exported file: two generated images and what they must give, on every machine."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping

import numpy as np

PATTERN = "simclrv2-waves-1"
IMAGES = 2
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-3, "int8": 5e-2}  # of the largest absolute value of an output, by ``weights``
_WAVES = ((1, 2, 0), (5, -3, 100), (-11, 17, 300))  # periods across and down an image, and where they begin


def self_test_images(count: int, size: int) -> np.ndarray:
    """Generated images, uint8 (count, size, size, 3): three triangle waves, in integers alone, so that every machine
    and language makes the same ones."""
    n, y, x, c = np.ogrid[:count, :size, :size, :3]
    waves = []
    for k, (across, down, begin) in enumerate(_WAVES):
        phase = (x * across + y * down) * 512 // size + begin + 170 * c * (k + 1) + 97 * n * (k + 1)
        waves.append(abs(phase % 512 - 256))  # 0..256
    return np.minimum(255, (waves[0] * 2 + waves[1] + waves[2]) // 4).astype(np.uint8)


def self_test(outputs: Mapping[str, np.ndarray]) -> str:
    """Metadata ``self_test`` of a file: what it gives, by name, for ``self_test_images(2, S)``, each (2, width)."""
    stored = {name: base64.b64encode(array.astype("<f4").tobytes()).decode() for name, array in outputs.items()}
    return json.dumps({"pattern": PATTERN, "images": IMAGES, "outputs": stored})


def expected_outputs(told: str, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The reverse of ``self_test``, float32 (2, width) by name. Raises ValueError for anything else than that."""
    try:
        found = json.loads(told)
        if (found["pattern"], found["images"]) != (PATTERN, IMAGES):
            raise ValueError(f"its pattern is {str(found['pattern'])[:40]!r}, not {PATTERN!r} of {IMAGES} images")
        if set(found["outputs"]) != set(widths):
            raise ValueError("it is not of the file's outputs")
        raw = {name: base64.b64decode(found["outputs"][name], validate=True) for name in widths}
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, binascii.Error):
        raise ValueError("it cannot be read") from None
    for name, width in widths.items():
        if len(raw[name]) != IMAGES * width * 4:
            raise ValueError(f"{name} has {len(raw[name])} bytes, not {IMAGES * width * 4}")
    outputs = {name: np.frombuffer(raw[name], "<f4").reshape(IMAGES, width) for name, width in widths.items()}
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise ValueError("it has values that are no numbers")
    return outputs


def difference(
    expected: Mapping[str, np.ndarray], run: Callable[[np.ndarray], Mapping[str, np.ndarray]], size: int, share: float
) -> str | None:
    """What differs, with the figures, by more than ``share`` of the largest value of an output; None if nothing does.

    ``run`` takes images, uint8 (N, size, size, 3), and gives the outputs by name.
    """
    found = run(self_test_images(IMAGES, size))
    for name, wanted in expected.items():
        off = float(np.abs(found[name].astype(np.float64) - wanted).max())
        largest = float(np.abs(wanted).max())
        if not off <= share * largest:  # NaN differs too
            return (
                f"{name} differ by {off:.3g} (allowed {share * largest:.3g}, {share:g} of the largest, {largest:.3g})"
            )
    return None
