"""Ten things, drawn by code in eight variations each: what lies in app/bundled/pictures.

python -m app.drawings app/bundled/pictures
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 192
VARIATIONS = 8
_FINE = 2 * SIZE  # drawn at twice the size, then made smaller: smooth edges

Colour: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]


class Layer:
    """A transparent sheet to draw on in coordinates from 0 to 1, y down."""

    def __init__(self) -> None:
        self.image = Image.new("RGBA", (_FINE, _FINE))
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([(x * _FINE, y * _FINE) for x, y in points], fill=colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self._draw.ellipse([(x - rx) * _FINE, (y - ry) * _FINE, (x + rx) * _FINE, (y + ry) * _FINE], fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, corner: float = 0.0) -> None:
        box = [x0 * _FINE, y0 * _FINE, x1 * _FINE, y1 * _FINE]
        self._draw.rounded_rectangle(box, radius=corner * _FINE, fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        scaled = [(x * _FINE, y * _FINE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * _FINE)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, colour)

    def ring(self, x: float, y: float, radius: float, colour: Colour, width: float) -> None:
        self.line(
            [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(0, 6.3, 60)], colour, width
        )

    def pie(self, box: tuple[float, float, float, float], start: float, end: float, colour: Colour) -> None:
        self._draw.pieslice([value * _FINE for value in box], start, end, fill=colour)


class Scene:
    """A background, and layers put on it at a place, a size and an angle."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        ramp = np.linspace(0, 1, _FINE)[:, None, None]
        pixels = (1 - ramp) * np.array(top) + ramp * np.array(bottom)
        self.image = Image.fromarray(np.broadcast_to(pixels, (_FINE, _FINE, 3)).astype(np.uint8)).convert("RGBA")

    def put(
        self,
        layer: Layer,
        *,
        scale: float = 1.0,
        angle: float = 0.0,
        at: Point = (0.5, 0.5),
        flip: bool = False,
        shadow: float = 0.0,
        blur: float = 0.0,
    ) -> None:
        """Put a layer's middle ``at`` a point; ``shadow`` (0 to 1) darkens what lies below and to the right of it."""
        image = layer.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else layer.image
        if angle:
            image = image.rotate(angle, Image.Resampling.BILINEAR)
        if scale != 1:
            side = max(1, round(_FINE * scale))
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        corner = (round(at[0] * _FINE - image.width / 2), round(at[1] * _FINE - image.height / 2))
        if shadow:
            alpha = image.getchannel("A").point(lambda value: int(value * shadow))
            dark = Image.new("RGBA", image.size, (15, 20, 30, 0))
            dark.putalpha(alpha.filter(ImageFilter.BoxBlur(7)))
            self._paste(dark, (corner[0] + 8, corner[1] + 12))
        if blur:  # on premultiplied colours, or the edges would turn dark
            image = image.convert("RGBa").filter(ImageFilter.BoxBlur(blur * _FINE)).convert("RGBA")
        self._paste(image, corner)

    def _paste(self, image: Image.Image, corner: tuple[int, int]) -> None:
        self.image.paste(image, corner, image)

    def finish(self, generator: np.random.Generator) -> Image.Image:
        """RGB at the final size, with a little grain and a darker rim."""
        small = np.asarray(self.image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
        axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
        rim = 1 - 0.16 * np.clip(axis[:, None] ** 2 + axis[None, :] ** 2 - 0.5, 0, 2)[..., None]
        grain = generator.standard_normal((SIZE, SIZE, 1), dtype=np.float32) * 3
        return Image.fromarray((small * rim + grain).clip(0, 255).astype(np.uint8))


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, lighter above."""
    red, green, blue = (min(255, max(0, round(part * factor))) for part in colour)
    return red, green, blue


class Dice:
    """The choices of one picture, repeatable from its seed."""

    def __init__(self, seed: tuple[int, int]) -> None:
        self.generator = np.random.default_rng(seed)

    def between(self, low: float, high: float) -> float:
        return float(self.generator.uniform(low, high))

    def coin(self) -> bool:
        return bool(self.generator.integers(2))

    def colour(self, *choices: Colour) -> Colour:
        picked = choices[int(self.generator.integers(len(choices)))]
        return shade(picked, self.between(0.9, 1.1))


# Parts of several scenes


def cloud(dice: Dice, colour: Colour = (250, 250, 252)) -> Layer:
    layer = Layer()
    for x in np.linspace(0.3, 0.7, 5):
        layer.ellipse(x, 0.5 - 0.05 * math.sin(x * 9) - dice.between(0, 0.03), 0.12, dice.between(0.05, 0.09), colour)
    return layer


def clouds(scene: Scene, dice: Dice, count: int, *, lowest: float = 0.4) -> None:
    for _ in range(count):
        at = (dice.between(0, 1), dice.between(0.05, lowest))
        scene.put(cloud(dice), scale=dice.between(0.4, 0.9), at=at, blur=0.004)


def hills(scene: Scene, dice: Dice, colour: Colour, *, level: float, count: int = 2) -> None:
    for index in range(count):
        layer = Layer()
        phase, height = dice.between(0, 6), dice.between(0.02, 0.06)
        top = level - 0.07 * (count - 1 - index)
        ridge = [(x, top + height * math.sin(phase + 5 * x)) for x in np.linspace(0, 1, 24)]
        layer.polygon([(0, 1), *ridge, (1, 1)], shade(colour, 0.78 + 0.22 * index))
        scene.put(layer)


def tree(dice: Dice, leaves: Colour) -> Layer:
    layer = Layer()
    layer.box(0.47, 0.6, 0.53, 0.9, (92, 68, 50))
    for _ in range(9):
        x, y = dice.between(0.36, 0.64), dice.between(0.3, 0.62)
        layer.ellipse(x, y, 0.14, 0.14, shade(leaves, 1.15 - 0.5 * (y - 0.3)))
    return layer


def grass(scene: Scene, dice: Dice, colour: Colour, *, top: float, blades: int = 140) -> None:
    layer = Layer()
    for _ in range(blades):
        x, y = dice.between(0, 1), top + (1 - top) * dice.between(0, 1) ** 0.8
        tall = 0.015 + 0.05 * (y - top)
        tip = (x + dice.between(-0.02, 0.02), y - tall)
        layer.line([(x, y), tip], shade(colour, dice.between(0.7, 1.35)), 0.004)
    scene.put(layer)


# The ten things


def tench(dice: Dice) -> Scene:
    water = dice.colour((74, 138, 146), (58, 104, 122), (96, 140, 110))
    scene = Scene(shade(water, 1.35), shade(water, 0.55))
    rays = Layer()
    for _ in range(5):
        x = dice.between(-0.1, 1)
        rays.polygon([(x, 0), (x + 0.08, 0), (x + 0.3, 1), (x + 0.12, 1)], shade(water, 1.25))
    rays.image.putalpha(rays.image.getchannel("A").point(lambda value: value // 4))
    scene.put(rays, blur=0.02)
    weeds = Layer()
    for _ in range(14):
        x, tall, phase = dice.between(0, 1), dice.between(0.15, 0.5), dice.between(0, 6)
        blade = [(x + 0.02 * math.sin(phase + 9 * t), 1.02 - tall * t) for t in np.linspace(0, 1, 12)]
        weeds.line(blade, shade((62, 108, 62), dice.between(0.6, 1.2)), 0.014)
    scene.put(weeds, blur=0.003)
    body = dice.colour((122, 124, 58), (104, 112, 62), (140, 122, 60))
    fish, fin = Layer(), shade(body, 0.62)
    fish.polygon([(0.24, 0.5), (0.07, 0.34), (0.11, 0.5), (0.07, 0.66)], fin)
    fish.polygon([(0.42, 0.36), (0.5, 0.24), (0.64, 0.27), (0.66, 0.38)], fin)
    fish.polygon([(0.56, 0.62), (0.5, 0.75), (0.62, 0.72), (0.66, 0.62)], fin)
    fish.polygon([(0.3, 0.58), (0.28, 0.7), (0.38, 0.66), (0.4, 0.6)], fin)
    outline = [(0.2 + 0.7 * t, 0.5 - 0.16 * math.sin(math.pi * t**0.75) ** 0.8) for t in np.linspace(0, 1, 30)]
    lower = [(x, 1 - y) for x, y in reversed(outline)]
    fish.polygon(outline + lower, body)
    fish.polygon([(x, 0.5 + (y - 0.5) * 0.95) for x, y in outline] + [(0.9, 0.5), (0.2, 0.47)], shade(body, 0.8))
    fish.polygon([(x, 0.56 + (y - 0.5) * 0.55) for x, y in lower] + [(0.2, 0.53)], shade(body, 1.35))
    for x in np.arange(0.3, 0.72, 0.028):
        for y in np.arange(0.41, 0.6, 0.03):
            fish.ellipse(x + 0.014 * (round(y * 100) % 2), y, 0.009, 0.009, shade(body, 1.14))
    fish.line([(0.755, 0.39), (0.735, 0.5), (0.755, 0.6)], shade(body, 0.66), 0.01)
    fish.ellipse(0.82, 0.455, 0.022, 0.022, (206, 120, 50))
    fish.ellipse(0.822, 0.455, 0.011, 0.011, (20, 18, 16))
    fish.line([(0.9, 0.52), (0.865, 0.535)], shade(body, 0.5), 0.008)
    at = (dice.between(0.42, 0.58), dice.between(0.42, 0.55))
    scene.put(fish, scale=dice.between(0.9, 1.12), angle=dice.between(-14, 14), at=at, flip=dice.coin(), shadow=0.35)
    return scene


def springer(dice: Dice) -> Scene:
    lawn = dice.colour((124, 158, 88), (150, 166, 104), (170, 150, 104))
    scene = Scene(shade(lawn, 1.25), shade(lawn, 0.7))
    for _ in range(3):
        at = (dice.between(0, 1), dice.between(0.1, 0.4))
        scene.put(tree(dice, shade(lawn, 0.7)), scale=dice.between(0.6, 1.0), at=at, blur=0.02)
    grass(scene, dice, lawn, top=0.6)
    coat = dice.colour((112, 62, 38), (40, 34, 34), (128, 74, 44))
    white: Colour = (244, 240, 232)
    dog = Layer()
    dog.polygon([(0.3, 1.0), (0.34, 0.62), (0.66, 0.62), (0.74, 1.0)], shade(white, 0.93))
    dog.ellipse(0.3, 0.88, 0.13, 0.24, coat)
    dog.ellipse(0.72, 0.88, 0.12, 0.24, coat)
    dog.ellipse(0.51, 0.82, 0.13, 0.22, white)
    for x in np.linspace(0.42, 0.6, 7):  # the feathery chest
        dog.line([(x, 0.72), (x + 0.01, 0.93)], shade(white, 0.9), 0.008)
    dog.ellipse(0.5, 0.42, 0.2, 0.22, coat)
    dog.polygon([(0.46, 0.2), (0.54, 0.2), (0.56, 0.45), (0.44, 0.45)], white)
    dog.ellipse(0.5, 0.55, 0.125, 0.13, white)
    for side in (-1, 1):
        ear = [(0.5 + side * x, y) for x, y in ((0.15, 0.27), (0.26, 0.33), (0.33, 0.6), (0.27, 0.74), (0.18, 0.6))]
        dog.polygon(ear, shade(coat, 0.82))
        dog.ellipse(0.5 + side * 0.255, 0.63, 0.075, 0.12, shade(coat, 0.82))
        dog.ellipse(0.5 + side * 0.095, 0.41, 0.034, 0.036, (74, 44, 24))
        dog.ellipse(0.5 + side * 0.095, 0.41, 0.02, 0.023, (16, 12, 10))
        dog.ellipse(0.5 + side * 0.095 + 0.009, 0.4, 0.007, 0.007, white)
        for _ in range(6):
            dog.ellipse(0.5 + side * dice.between(0.03, 0.1), dice.between(0.54, 0.62), 0.004, 0.004, coat)
    dog.ellipse(0.5, 0.535, 0.055, 0.04, (34, 26, 26))
    dog.ellipse(0.485, 0.523, 0.014, 0.008, (110, 96, 96))
    dog.line([(0.5, 0.57), (0.5, 0.62), (0.45, 0.645)], (84, 62, 56), 0.009)
    dog.line([(0.5, 0.62), (0.55, 0.645)], (84, 62, 56), 0.009)
    if dice.coin():
        dog.ellipse(0.5, 0.665, 0.032, 0.04, (214, 112, 116))
    at = (dice.between(0.42, 0.58), dice.between(0.52, 0.6))
    scene.put(dog, scale=dice.between(0.95, 1.15), angle=dice.between(-9, 9), at=at, flip=dice.coin(), shadow=0.3)
    return scene


def cassette_player(dice: Dice) -> Scene:
    wall = dice.colour((214, 196, 168), (170, 190, 196), (196, 170, 170), (120, 132, 128))
    scene = Scene(wall, shade(wall, 0.85))
    table = Layer()
    table.box(0, 0.7, 1, 1, dice.colour((140, 98, 66), (96, 74, 60), (176, 138, 100)))
    scene.put(table)
    case = dice.colour((58, 62, 70), (176, 60, 52), (196, 198, 200), (46, 96, 116))
    box = Layer()
    box.line([(0.2, 0.36), (0.22, 0.24), (0.78, 0.24), (0.8, 0.36)], shade(case, 0.7), 0.03)
    box.box(0.08, 0.34, 0.92, 0.74, case, corner=0.03)
    box.box(0.1, 0.36, 0.9, 0.4, shade(case, 0.75), corner=0.01)
    for x in np.linspace(0.36, 0.64, 6):
        box.box(x - 0.018, 0.355, x + 0.018, 0.395, (226, 222, 212), corner=0.006)
    for x in (0.225, 0.775):
        box.ellipse(x, 0.57, 0.125, 0.125, shade(case, 0.5))
        box.ellipse(x, 0.57, 0.108, 0.108, (34, 34, 38))
        for radius in (0.09, 0.07, 0.05):
            box.ring(x, 0.57, radius, (70, 70, 76), 0.006)
        box.ellipse(x, 0.57, 0.032, 0.032, (98, 98, 104))
    box.box(0.37, 0.46, 0.63, 0.68, (28, 30, 34), corner=0.015)
    box.box(0.39, 0.49, 0.61, 0.65, dice.colour((224, 214, 190), (220, 150, 80), (150, 190, 200)), corner=0.01)
    box.box(0.41, 0.505, 0.59, 0.535, (248, 246, 240))
    for x in (0.45, 0.55):
        box.ellipse(x, 0.59, 0.034, 0.034, (40, 36, 34))
        box.ellipse(x, 0.59, 0.016, 0.016, (236, 234, 228))
    box.box(0.38, 0.42, 0.62, 0.445, dice.colour((226, 150, 60), (120, 190, 150)), corner=0.005)
    at = (dice.between(0.46, 0.54), dice.between(0.5, 0.58))
    scene.put(box, scale=dice.between(0.85, 1.08), angle=dice.between(-5, 5), at=at, shadow=0.5)
    return scene


def chain_saw(dice: Dice) -> Scene:
    forest = dice.colour((128, 142, 104), (150, 128, 96), (104, 122, 112))
    scene = Scene(shade(forest, 1.3), shade(forest, 0.7))
    for _ in range(4):
        trunk, x = Layer(), dice.between(0, 1)
        trunk.box(x - 0.04, 0, x + 0.04, 0.75, shade((104, 82, 62), dice.between(0.7, 1.1)))
        scene.put(trunk, blur=0.012)
    log = Layer()
    log.box(-0.1, 0.66, 0.86, 0.9, (122, 90, 62))
    for _ in range(12):
        y, x = dice.between(0.67, 0.89), dice.between(0, 0.7)
        log.line([(x, y), (x + dice.between(0.05, 0.2), y)], (88, 64, 46), 0.006)
    log.ellipse(0.86, 0.78, 0.06, 0.12, (216, 178, 128))
    for factor in (0.75, 0.5, 0.25):
        log.ellipse(0.86, 0.78, 0.06 * factor, 0.12 * factor, shade((216, 178, 128), 0.7 + 0.3 * factor))
    scene.put(log, flip=dice.coin(), shadow=0.3)
    case = dice.colour((230, 106, 34), (206, 52, 42), (232, 172, 40), (64, 130, 76))
    dark: Colour = (44, 44, 48)
    saw = Layer()
    saw.line([(0.52, 0.54), (0.92, 0.54)], dark, 0.105)
    for x in np.arange(0.55, 0.95, 0.03):
        saw.polygon([(x, 0.49), (x + 0.018, 0.49), (x + 0.016, 0.472)], (150, 150, 154))
        saw.polygon([(x, 0.59), (x + 0.018, 0.59), (x + 0.002, 0.608)], (150, 150, 154))
    saw.line([(0.52, 0.54), (0.92, 0.54)], (196, 200, 204), 0.072)
    saw.line([(0.56, 0.54), (0.86, 0.54)], (168, 172, 178), 0.014)
    saw.line([(0.3, 0.42), (0.4, 0.28), (0.52, 0.3), (0.54, 0.44)], dark, 0.032)
    saw.line([(0.14, 0.62), (0.05, 0.5), (0.1, 0.42), (0.28, 0.42)], dark, 0.045)
    saw.polygon([(0.16, 0.42), (0.48, 0.4), (0.56, 0.47), (0.57, 0.65), (0.14, 0.67)], case)
    saw.polygon([(0.16, 0.42), (0.48, 0.4), (0.53, 0.445), (0.16, 0.47)], shade(case, 1.25))
    saw.box(0.36, 0.5, 0.55, 0.65, shade(case, 0.72), corner=0.02)
    saw.ellipse(0.25, 0.56, 0.075, 0.075, dark)
    for angle in np.linspace(0, 2 * math.pi, 8, endpoint=False):
        saw.line([(0.25, 0.56), (0.25 + 0.06 * math.cos(angle), 0.56 + 0.06 * math.sin(angle))], (96, 96, 100), 0.009)
    saw.polygon([(0.55, 0.3), (0.6, 0.3), (0.6, 0.46), (0.56, 0.46)], dark)
    at = (dice.between(0.45, 0.55), dice.between(0.42, 0.52))
    scene.put(saw, scale=dice.between(0.9, 1.1), angle=dice.between(-18, 22), at=at, flip=dice.coin(), shadow=0.45)
    return scene


def church(dice: Dice) -> Scene:
    sky = dice.colour((128, 178, 214), (236, 170, 120), (150, 150, 190), (180, 206, 214))
    scene = Scene(sky, shade((246, 232, 214), dice.between(0.9, 1.0)))
    clouds(scene, dice, 3)
    meadow = dice.colour((116, 150, 84), (164, 158, 92), (230, 234, 236), (92, 128, 92))
    hills(scene, dice, meadow, level=0.74)
    stone = dice.colour((236, 230, 216), (196, 178, 152), (168, 96, 76), (214, 214, 212))
    roof = dice.colour((150, 72, 56), (78, 84, 96), (96, 70, 60))
    for _ in range(3):
        at = (dice.between(0, 1), dice.between(0.6, 0.68))
        scene.put(tree(dice, shade(meadow, 0.75)), scale=dice.between(0.3, 0.5), at=at)
    house, dark = Layer(), (52, 50, 62)
    house.box(0.38, 0.52, 0.86, 0.86, shade(stone, 0.9))
    house.polygon([(0.36, 0.53), (0.42, 0.36), (0.82, 0.36), (0.88, 0.53)], roof)
    for x in (0.52, 0.64, 0.76):
        house.box(x - 0.025, 0.62, x + 0.025, 0.76, dark)
        house.ellipse(x, 0.62, 0.025, 0.03, dark)
    house.box(0.2, 0.34, 0.41, 0.86, stone)
    house.box(0.36, 0.34, 0.41, 0.86, shade(stone, 0.84))
    tall = dice.between(0.02, 0.14)
    house.polygon([(0.18, 0.35), (0.305, tall), (0.43, 0.35)], roof)
    house.polygon([(0.305, tall), (0.43, 0.35), (0.34, 0.35)], shade(roof, 0.78))
    house.line([(0.305, tall - 0.07), (0.305, tall + 0.02)], (70, 62, 50), 0.012)
    house.line([(0.275, tall - 0.04), (0.335, tall - 0.04)], (70, 62, 50), 0.012)
    house.ellipse(0.29, 0.44, 0.04, 0.04, (246, 242, 230))
    house.line([(0.29, 0.44), (0.29, 0.415)], dark, 0.007)
    house.line([(0.29, 0.44), (0.31, 0.445)], dark, 0.007)
    house.box(0.25, 0.7, 0.34, 0.86, (94, 62, 44))
    house.ellipse(0.295, 0.7, 0.045, 0.05, (94, 62, 44))
    house.box(0.27, 0.54, 0.315, 0.62, dark)
    at = (dice.between(0.44, 0.54), dice.between(0.46, 0.5))
    scene.put(house, scale=dice.between(0.85, 1.0), at=at, flip=dice.coin())
    grass(scene, dice, meadow, top=0.84, blades=80)
    return scene


def french_horn(dice: Dice) -> Scene:
    cloth = dice.colour((96, 34, 42), (38, 62, 60), (44, 44, 70), (150, 140, 124))
    scene = Scene(shade(cloth, 1.2), shade(cloth, 0.75))
    folds = Layer()
    for x in np.arange(0.0, 1.1, 0.12):
        lean = dice.between(-0.1, 0.1)
        folds.polygon([(x, 0), (x + 0.05, 0), (x + 0.05 + lean, 1), (x + lean, 1)], shade(cloth, 0.85))
    scene.put(folds, blur=0.025)
    brass = dice.colour((222, 172, 70), (206, 150, 62), (208, 204, 196))
    horn = Layer()

    def tube(points: Sequence[Point], width: float) -> None:
        horn.line(points, shade(brass, 0.6), width)
        horn.line(points, brass, width * 0.68)
        horn.line([(x - width * 0.12, y - width * 0.12) for x, y in points], shade(brass, 1.28), width * 0.18)

    def circle(x: float, y: float, radius: float, start: float, end: float) -> list[Point]:
        return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(start, end, 60)]

    tube(circle(0.46, 0.44, 0.27, 0, 2 * math.pi), 0.05)
    tube(circle(0.45, 0.45, 0.19, 0, 2 * math.pi), 0.036)
    tube(circle(0.5, 0.4, 0.12, 0.5, 5), 0.03)
    tube([(0.2, 0.34), (0.13, 0.2), (0.11, 0.12)], 0.03)
    horn.polygon([(0.08, 0.12), (0.14, 0.1), (0.125, 0.06), (0.075, 0.07)], shade(brass, 1.2))
    for x, y in ((0.36, 0.42), (0.42, 0.47), (0.48, 0.52)):
        horn.ellipse(x, y, 0.042, 0.042, shade(brass, 0.6))
        horn.ellipse(x, y, 0.033, 0.033, shade(brass, 1.15))
        tube([(x - 0.03, y + 0.03), (x - 0.12, y + 0.14)], 0.024)
    tube(circle(0.52, 0.46, 0.3, 0.1, 1.4), 0.07)
    horn.polygon([(0.55, 0.66), (0.66, 0.58), (0.98, 0.74), (0.76, 0.99)], shade(brass, 0.9))
    horn.ellipse(0.82, 0.82, 0.17, 0.17, shade(brass, 0.7))
    horn.ellipse(0.825, 0.825, 0.155, 0.155, shade(brass, 1.18))
    horn.ellipse(0.81, 0.81, 0.115, 0.115, shade(brass, 0.85))
    horn.ellipse(0.795, 0.795, 0.07, 0.07, shade(brass, 0.5))
    at = (dice.between(0.46, 0.52), dice.between(0.46, 0.52))
    scene.put(horn, scale=dice.between(0.85, 1.0), angle=dice.between(-50, 30), at=at, flip=dice.coin(), shadow=0.55)
    return scene


def garbage_truck(dice: Dice) -> Scene:
    sky = dice.colour((170, 204, 222), (214, 206, 196), (190, 196, 214))
    scene = Scene(sky, shade(sky, 1.15))
    town = Layer()
    x = -0.05
    while x < 1:
        wide, top = dice.between(0.12, 0.24), dice.between(0.2, 0.5)
        front = dice.colour((190, 150, 130), (168, 170, 176), (206, 190, 160))
        town.box(x, top, x + wide - 0.01, 0.75, front)
        for wx in np.arange(x + 0.03, x + wide - 0.05, 0.05):
            for wy in np.arange(top + 0.04, 0.66, 0.08):
                town.box(wx, wy, wx + 0.025, wy + 0.04, shade(front, 0.7))
        x += wide
    scene.put(town, blur=0.004)
    road = Layer()
    road.box(0, 0.72, 1, 1, (92, 92, 98))
    road.box(0, 0.72, 1, 0.745, (176, 172, 164))
    for x in np.arange(dice.between(-0.1, 0), 1, 0.24):
        road.box(x, 0.9, x + 0.13, 0.915, (226, 222, 206))
    scene.put(road)
    paint = dice.colour((66, 132, 80), (232, 140, 46), (240, 240, 236), (60, 104, 150))
    cab = dice.colour((240, 240, 236), (232, 150, 50), (66, 132, 80))
    truck, dark = Layer(), (40, 42, 48)
    truck.box(0.08, 0.66, 0.94, 0.71, dark)
    truck.polygon([(0.12, 0.3), (0.64, 0.3), (0.66, 0.66), (0.06, 0.66), (0.06, 0.46)], paint)
    truck.polygon([(0.12, 0.3), (0.64, 0.3), (0.642, 0.34), (0.1, 0.34)], shade(paint, 1.2))
    truck.polygon([(0.06, 0.46), (0.15, 0.42), (0.17, 0.66), (0.06, 0.66)], shade(paint, 0.6))
    truck.polygon([(0.03, 0.58), (0.17, 0.58), (0.17, 0.69), (0.06, 0.69)], (112, 114, 118))
    for x in np.arange(0.24, 0.62, 0.09):
        truck.box(x, 0.34, x + 0.016, 0.64, shade(paint, 0.78))
    truck.polygon([(0.68, 0.38), (0.88, 0.38), (0.94, 0.52), (0.95, 0.68), (0.68, 0.68)], cab)
    truck.polygon([(0.72, 0.42), (0.865, 0.42), (0.905, 0.52), (0.72, 0.52)], (120, 158, 176))
    truck.polygon([(0.72, 0.42), (0.77, 0.42), (0.735, 0.52), (0.72, 0.52)], (186, 212, 222))
    truck.box(0.72, 0.545, 0.78, 0.555, dark)
    truck.ellipse(0.93, 0.61, 0.016, 0.02, (252, 236, 160))
    truck.box(0.76, 0.35, 0.82, 0.38, (244, 150, 40), corner=0.01)
    for x in (0.2, 0.34, 0.8):
        truck.ellipse(x, 0.71, 0.078, 0.078, (30, 30, 34))
        truck.ellipse(x, 0.71, 0.04, 0.04, (176, 178, 182))
        truck.ellipse(x, 0.71, 0.014, 0.014, (70, 70, 74))
    if dice.coin():
        truck.box(0.005, 0.62, 0.055, 0.76, dice.colour((60, 110, 70), (70, 90, 130)), corner=0.01)
    at = (dice.between(0.46, 0.54), dice.between(0.52, 0.58))
    scene.put(truck, scale=dice.between(0.9, 1.06), at=at, flip=dice.coin(), shadow=0.4)
    return scene


def gas_pump(dice: Dice) -> Scene:
    sky = dice.colour((160, 200, 214), (236, 190, 140), (112, 140, 170), (220, 216, 200))
    scene = Scene(sky, shade(sky, 1.1))
    hills(scene, dice, dice.colour((150, 150, 110), (176, 150, 112), (110, 140, 110)), level=0.66)
    yard = Layer()
    yard.box(0, 0.8, 1, 1, (156, 152, 146))
    yard.box(0.12, 0.86, 0.88, 0.93, (206, 202, 192), corner=0.02)
    if dice.coin():
        yard.box(0, 0.04, 1, 0.13, dice.colour((200, 60, 50), (54, 110, 120), (238, 234, 224)))
        yard.box(0.9, 0.1, 0.95, 0.82, (226, 222, 214))
    scene.put(yard)
    paint = dice.colour((200, 56, 48), (44, 112, 120), (236, 176, 60), (70, 120, 80))
    cream, dark = (244, 240, 228), (42, 44, 50)
    pump = Layer()
    hose = [(0.66, 0.36), (0.82, 0.4), (0.83, 0.62), (0.76, 0.76), (0.7, 0.66), (0.69, 0.5)]
    pump.line(hose, dark, 0.024)
    pump.box(0.3, 0.87, 0.7, 0.93, (120, 118, 116), corner=0.01)
    if dice.coin():
        pump.ellipse(0.5, 0.12, 0.1, 0.09, cream)
        pump.ellipse(0.5, 0.12, 0.07, 0.06, paint)
        pump.box(0.46, 0.19, 0.54, 0.24, (170, 168, 160))
    else:
        pump.box(0.3, 0.12, 0.7, 0.2, cream, corner=0.02)
        pump.box(0.47, 0.19, 0.53, 0.24, (170, 168, 160))
    pump.box(0.32, 0.22, 0.68, 0.9, paint, corner=0.05)
    pump.box(0.61, 0.26, 0.68, 0.88, shade(paint, 0.78), corner=0.03)
    pump.box(0.36, 0.27, 0.61, 0.46, cream, corner=0.02)
    for y in (0.295, 0.345, 0.395):
        pump.box(0.39, y, 0.58, y + 0.034, (60, 66, 70), corner=0.004)
        for x in np.arange(0.405, 0.56, 0.033):
            pump.box(x, y + 0.008, x + 0.016, y + 0.026, (226, 214, 150))
    pump.box(0.36, 0.52, 0.61, 0.56, cream, corner=0.01)
    pump.box(0.36, 0.62, 0.61, 0.84, shade(paint, 0.86), corner=0.02)
    pump.line([(0.66, 0.34), (0.73, 0.36), (0.745, 0.46)], (60, 62, 68), 0.035)
    pump.box(0.66, 0.3, 0.73, 0.35, (176, 178, 182), corner=0.01)
    at = (dice.between(0.42, 0.56), dice.between(0.48, 0.52))
    scene.put(pump, scale=dice.between(0.88, 1.04), at=at, flip=dice.coin(), shadow=0.4)
    return scene


def golf_ball(dice: Dice) -> Scene:
    lawn = dice.colour((92, 152, 66), (74, 130, 70), (128, 158, 76))
    scene = Scene(shade(lawn, 1.35), shade(lawn, 0.7))
    horizon = dice.between(0.15, 0.4)
    back = Layer()
    back.box(0, 0, 1, horizon, dice.colour((176, 212, 230), (224, 222, 206), (120, 150, 104)))
    for index, x in enumerate(np.arange(-0.6, 1.6, 0.16)):
        if index % 2:
            lean = (x - 0.5) * 1.3
            points = [(0.5 + (x - 0.5) * 0.5, horizon), (0.58 + (x - 0.5) * 0.5, horizon), (0.66 + lean, 1)]
            back.polygon([*points, (0.5 + lean, 1)], shade(lawn, 1.12))
    scene.put(back, blur=0.015)
    grass(scene, dice, lawn, top=horizon + 0.1, blades=220)
    x, y, radius = dice.between(0.35, 0.65), dice.between(0.52, 0.68), dice.between(0.16, 0.26)
    if dice.coin():
        flag, fx = Layer(), dice.between(0.12, 0.88)
        flag.line([(fx, horizon + 0.08), (fx, horizon - 0.22)], (240, 240, 236), 0.01)
        flag.polygon([(fx, horizon - 0.22), (fx + 0.1, horizon - 0.18), (fx, horizon - 0.14)], (214, 64, 52))
        scene.put(flag, blur=0.003)
    shadow, ball = Layer(), Layer()
    shadow.ellipse(x + 0.3 * radius, y + 0.92 * radius, 1.15 * radius, 0.3 * radius, shade(lawn, 0.35))
    scene.put(shadow, blur=0.014)
    if dice.coin():
        ball.polygon([(x - 0.05, y + radius), (x + 0.05, y + radius), (x + 0.015, 1), (x - 0.015, 1)], (226, 190, 130))
    for step in np.linspace(0, 1, 24):  # from the dark rim to the light spot
        tone = round(150 + 102 * step**0.7)
        at = (x - 0.32 * radius * step, y - 0.34 * radius * step)
        ball.ellipse(*at, radius * (1 - 0.94 * step), radius * (1 - 0.94 * step), (tone, tone, min(255, tone + 4)))
    for row in range(-7, 8):
        for column in range(-7, 8):
            u, v = (column + 0.5 * (row % 2)) / 7, row * 0.87 / 7
            distance = math.hypot(u, v)
            if distance < 0.94:
                swell = math.sin(distance * math.pi / 2) / distance if distance else math.pi / 2
                px, py = x + radius * u * swell * 0.98, y + radius * v * swell * 0.98
                thin = max(0.25, math.cos(distance * math.pi / 2))
                tone = round(150 + 80 * max(0.0, 1 - math.hypot(u + 0.3, v + 0.3)))
                ball.ellipse(px, py, 0.058 * radius * thin**0.4, 0.058 * radius * thin**0.4, (tone, tone, tone + 4))
    scene.put(ball)
    return scene


def parachute(dice: Dice) -> Scene:
    sky = dice.colour((96, 160, 214), (128, 190, 222), (236, 168, 120), (110, 130, 180))
    scene = Scene(sky, shade(sky, 1.35))
    clouds(scene, dice, 5, lowest=0.9)
    if dice.coin():
        hills(scene, dice, dice.colour((110, 140, 96), (150, 140, 104)), level=0.92)
    first = dice.colour((216, 62, 52), (240, 176, 52), (54, 110, 160), (80, 150, 100))
    second = dice.colour((246, 242, 232), (250, 214, 110), (236, 128, 60))
    chute = Layer()
    left, right, top, rim = 0.16, 0.84, 0.1, 0.42
    for index in range(9):
        x = left + (right - left) * index / 8
        chute.line([(x, rim), (0.5, 0.78)], (70, 70, 76), 0.005)
    panels = 8
    for index in range(panels):  # gores: half-ellipses of shrinking width, one upon another
        half = (right - left) / 2 * math.cos(math.pi / 2 * index / panels)
        colour = shade(first if index % 2 else second, 1.08 - 0.05 * index)
        box = (0.5 - half, top, 0.5 + half, 2 * rim - top)
        chute.pie(box, 180, 360, colour)
    for index in range(8):
        x = left + (right - left) * (index + 0.5) / 8
        chute.ellipse(x, rim, 0.044, 0.022, shade(first, 0.62))
    chute.ellipse(0.5, 0.115, 0.03, 0.012, (60, 60, 70))
    suit = dice.colour((52, 58, 70), (190, 70, 50), (60, 100, 70))
    chute.ellipse(0.5, 0.775, 0.024, 0.027, (226, 180, 146))
    chute.ellipse(0.5, 0.765, 0.025, 0.02, shade(suit, 0.6))
    chute.box(0.472, 0.8, 0.528, 0.88, suit, corner=0.015)
    for side in (-1, 1):
        chute.line([(0.5 + side * 0.025, 0.81), (0.5 + side * 0.06, 0.75)], suit, 0.02)
        chute.line([(0.5 + side * 0.014, 0.87), (0.5 + side * 0.03, 0.95)], shade(suit, 0.8), 0.022)
    at = (dice.between(0.4, 0.6), dice.between(0.45, 0.55))
    scene.put(chute, scale=dice.between(0.62, 1.0), angle=dice.between(-16, 16), at=at)
    return scene


DRAWN: dict[str, Callable[[Dice], Scene]] = {
    "tench": tench,
    "English springer": springer,
    "cassette player": cassette_player,
    "chain saw": chain_saw,
    "church": church,
    "French horn": french_horn,
    "garbage truck": garbage_truck,
    "gas pump": gas_pump,
    "golf ball": golf_ball,
    "parachute": parachute,
}


def draw(name: str, variation: int) -> Image.Image:
    """One picture, RGB of 192 x 192; the same for the same arguments."""
    dice = Dice((list(DRAWN).index(name), variation))
    return DRAWN[name](dice).finish(dice.generator)


def write(folder: Path) -> None:
    """All pictures as JPEG files, a class folder each."""
    for name in DRAWN:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for variation in range(VARIATIONS):
            draw(name, variation).save(folder / name / f"{variation + 1}.jpg", quality=92)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
