"""Whether a graph on onnxruntime answers as torch does, whatever the batch and the place in it; before it is a file."""

import numpy as np
import onnxruntime
import torch

from export.graph import ImageInput
from export.samples import as_input
from export.session import run
from zoo.simclr import SimCLR

BATCHES = (1, 2, 7, 32)
TOLERANCE = 1e-4  # of the largest absolute value of an output
HALF_TOLERANCE = 1e-2  # of it, between float16 weights and those that were rounded: 11 bits, through all the layers
PLACE_TOLERANCE = 1e-5  # of it, between an image's answers at different places


class ParityError(ValueError):
    """onnxruntime and torch differ by more than the tolerance; nothing was written."""


@torch.inference_mode()
def torch_outputs(model: SimCLR, pictures: np.ndarray, image_input: ImageInput) -> list[dict[str, np.ndarray]]:
    """What torch makes of batches of 1, 2, 7 and 32 pictures, under the names of a graph's outputs.

    ``pictures``: 32, float32 (N, 3, S, S) in [0, 1]; a smaller batch is the last ones of them.
    """
    found = []
    for count in BATCHES:
        images = torch.from_numpy(pictures[-count:])
        if image_input == "uint8":
            images = torch.round(images * 255) / 255
        features, logits = model(images)
        outputs = {"features": features}
        if model.projector is not None:
            outputs["projections"] = model.projector(features)
        if logits is not None:
            outputs["logits"] = logits
        found.append({name: values.numpy() for name, values in outputs.items()})
    return found


def check_parity(
    wanted: list[dict[str, np.ndarray]],
    session: onnxruntime.InferenceSession,
    pictures: np.ndarray,
    image_input: ImageInput,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ParityError, with the figures, if a graph's answers differ from torch's (``torch_outputs``).

    Every output must be equal to ``tolerance`` of its largest absolute value, and the class the same wherever torch's
    first two are further apart than that.
    """
    for count, references in zip(BATCHES, wanted, strict=True):
        found = run(session, as_input(pictures[-count:], image_input))
        if set(found) != set(references):
            raise ParityError(
                f"The graph has the outputs {sorted(found)}, torch {sorted(references)}. Nothing was written."
            )
        for name, reference in references.items():
            what = f"onnxruntime's {name} differ from torch's"
            _compare(found[name], reference, tolerance, what, f"at batch {count}")
        if "logits" in references:
            _same_classes(found["logits"], references["logits"], count, tolerance)


def _same_classes(found: np.ndarray, wanted: np.ndarray, count: int, tolerance: float) -> None:
    if wanted.shape[1] < 2:
        return
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    clear = first - second > tolerance * np.abs(wanted).max()
    other = np.flatnonzero(clear & (found.argmax(1) != wanted.argmax(1)))
    if len(other):
        raise ParityError(f"onnxruntime names another class for {len(other)} of {count} images. Nothing was written.")


def check_places(session: onnxruntime.InferenceSession, pictures: np.ndarray, image_input: ImageInput) -> None:
    """Raise ParityError if an image's answer depends on where in a batch it is, or on what else is in it.

    A batch of 32 is compared with the same in reverse, and with its first, middle and last image alone.
    """
    batch = as_input(pictures[:32], image_input)
    together = run(session, batch)
    backwards = run(session, np.ascontiguousarray(batch[::-1]))
    for name, values in together.items():
        _compare(backwards[name][::-1], values, PLACE_TOLERANCE, f"{name} depend on the place in the batch", "")
    for place in (0, len(batch) // 2, len(batch) - 1):
        alone = run(session, batch[place : place + 1])
        for name, values in together.items():
            here = values[place : place + 1]
            _compare(alone[name], here, PLACE_TOLERANCE, f"{name} of an image alone differ from those in a batch", "")


def _compare(found: np.ndarray, wanted: np.ndarray, tolerance: float, what: str, where: str) -> None:
    if found.shape != wanted.shape:
        raise ParityError(f"{what}: their shape is {found.shape}, not {wanted.shape}. Nothing was written.")
    difference = float(np.abs(found.astype(np.float64) - wanted).max())
    largest = float(np.abs(wanted).max())
    if not difference <= tolerance * largest:  # NaN fails too
        raise ParityError(
            f"{what} by {difference:.3g} {where}".rstrip()
            + f" (largest {largest:.3g}, allowed {tolerance:g} of it). Nothing was written."
        )
