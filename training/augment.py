"""The augmentation as training calls it: draws the dice of a batch, then makes its views."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from training import exact_augment, fast_augment
from training.dice import Views, draw_views


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip and, for pretraining, colour and blur (paper appendix, code: data_util.preprocess_for_train).

    ``size`` is the side of the views in pixels, ``strength`` that of the colour jitter (1.0 on ImageNet, 0.5 on
    CIFAR-10). ``color=False, blur=False`` leaves crop and flip: fine-tuning, distillation, linear evaluation.
    ``exact`` takes the plain form (training/exact_augment.py) in the place of the fast one (training/fast_augment.py).
    """

    size: int
    strength: float = 1.0
    blur: bool = True
    color: bool = True
    exact: bool = False

    def draw(self, shapes: np.ndarray, *, indices: Sequence[int], epoch: int, view: int, seed: int) -> Views:
        """The parameters of one view of each image; ``shapes`` (B, 2) are heights and widths in pixels."""
        return draw_views(
            np.asarray(shapes),
            strength=self.strength,
            color=self.color,
            blur=self.blur,
            seed=seed,
            epoch=epoch,
            indices=np.asarray(indices),
            view=view,
        )

    def __call__(
        self, images: Sequence[np.ndarray], *, indices: Sequence[int], epoch: int, view: int, seed: int
    ) -> Tensor:
        """One view of each uint8 (H, W, 3) image: float32 (B, 3, size, size) in [0, 1].

        ``indices`` are the images' places in the data set: what is drawn for an image depends on (seed, epoch, index,
        view) alone, and not on the batch it is in.
        """
        return self.views(images, indices=indices, epoch=epoch, views=[view], seed=seed)[0]

    def views(
        self, images: Sequence[np.ndarray], *, indices: Sequence[int], epoch: int, views: Sequence[int], seed: int
    ) -> Tensor:
        """Several views of each image, made together, as ``__call__`` makes each: (len(views), B, 3, size, size)."""
        shapes = np.array([image.shape[:2] for image in images]).reshape(-1, 2)
        drawn = [self.draw(shapes, indices=indices, epoch=epoch, view=view, seed=seed) for view in views]
        form = exact_augment if self.exact else fast_augment
        made = form.augment([*images] * len(views), Views.joined(drawn), self.size)
        return made.unflatten(0, (len(views), len(images)))
