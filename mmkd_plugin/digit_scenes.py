"""DigitScenes: handwritten digits drawn into photographs, with their labels.

``tools/make_digit_scenes.py`` writes them. The same numbers give the same pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# How hard the scenes are. These can be changed freely: they are written into manifest.json, so a
# folder that was made with other values is noticed. Lengths are fractions of the scene's side.
DIGITS_PER_SCENE = (3, 7)  # at least, at most
DIGIT_SIDE = (0.22, 0.4)  # side of the drawn 8x8 digit: 28 to 51 pixels of 128
MAX_ROTATION = 20.0  # degrees, either way; far below 90 so that 6 and 9 stay different
CONTRAST = (0.25, 0.65)  # brightness of the ink minus that of what is behind it, of full range
TINT = 0.08  # standard deviation of the ink's colour around grey, of full range
OPACITY = (0.8, 1.0)  # below 1 the photograph shows through the ink
MIN_VISIBLE = 0.6  # of each digit's ink; a place that would hide more is not taken
CROP_SIDE = (0.25, 0.44)  # side of the crop, of the photographs' height

# Which originals are whose. No range may overlap between the splits.
DIGITS_OF = {'train': (0.0, 0.75), 'val': (0.75, 1.0)}  # of load_digits, in its order (by writer)
COLUMNS_OF = {'train': (0.0, 0.7), 'val': (0.7, 1.0)}  # of the width of the photographs

IGNORE = 255
SPLITS = ('train', 'val')


@dataclass(frozen=True)
class Sources:
    """The originals.

    Args:
        digits (np.ndarray): Ink from 0 to 1, shape (N, 8, 8).
        labels (np.ndarray): Digit 0..9 of each, shape (N,).
        photos (tuple[np.ndarray]): RGB photographs, uint8, shape (H, W, 3).
    """

    digits: np.ndarray
    labels: np.ndarray
    photos: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Instance:
    """A digit as it ends up in a scene.

    Args:
        label (int): The digit, 0..9.
        original (int): Its index in ``load_digits``.
        mask (np.ndarray): The pixels of it that can be seen, bool, shape (S, S).
    """

    label: int
    original: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image with its annotation.

    Args:
        image (np.ndarray): RGB, uint8, shape (S, S, 3).
        labels (np.ndarray): Class of each pixel, uint8, shape (S, S).
        instances (list[Instance]): In the order of drawing, the nearest one last.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: list[Instance]


def settings() -> dict[str, Any]:
    """The constants that decide what is drawn, as JSON gives them back."""
    values = {
        'digits_per_scene': DIGITS_PER_SCENE,
        'digit_side': DIGIT_SIDE,
        'max_rotation': MAX_ROTATION,
        'contrast': CONTRAST,
        'tint': TINT,
        'opacity': OPACITY,
        'min_visible': MIN_VISIBLE,
        'crop_side': CROP_SIDE,
        'digits_of': DIGITS_OF,
        'columns_of': COLUMNS_OF,
    }
    return json.loads(json.dumps(values))


def originals_of(split: str, total: int) -> range:
    """Indices of the digits that a split may draw.

    ``load_digits`` keeps the digits of one writer together, so taking the last quarter for
    validation also means handwriting that training has not met.

    Args:
        split (str): 'train' or 'val'.
        total (int): Number of digits.
    """
    start, stop = DIGITS_OF[split]
    return range(round(start * total), round(stop * total))


def draw_background(
    photos: tuple[np.ndarray, ...], split: str, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Crop a square out of the split's part of a photograph and scale it to the scene.

    Returns:
        np.ndarray: float32 RGB from 0 to 1, shape (size, size, 3).
    """
    from PIL import Image

    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    left, right = (round(share * width) for share in COLUMNS_OF[split])
    side = min(round(rng.uniform(*CROP_SIDE) * height), right - left)
    x = rng.integers(left, right - side + 1)
    y = rng.integers(0, height - side + 1)
    crop = photo[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.BICUBIC)
    return np.asarray(crop, dtype=np.float32) / 255


def draw_digit(digit: np.ndarray, side: float, degrees: float) -> np.ndarray:
    """Enlarge and turn a digit in one cubic warp.

    Args:
        digit (np.ndarray): Ink from 0 to 1, shape (8, 8).
        side (float): Side in pixels that the 8 source pixels are drawn with.
        degrees (float): Rotation.

    Returns:
        np.ndarray: Coverage from 0 to 1, float32, square, with room for the turned corners.
    """
    from scipy.ndimage import affine_transform

    source = np.pad(digit, 2)
    patch = math.ceil(side * 1.5)
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn * (len(digit) / side)
    offset = np.full(2, (len(source) - 1) / 2) - matrix @ np.full(2, (patch - 1) / 2)
    ink = affine_transform(source, matrix, offset, output_shape=(patch, patch), order=3)
    return np.clip((ink - 0.25) / 0.4, 0, 1).astype(np.float32)


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Dilate a bool mask by a square of the given radius."""
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, np.ones((3, 3), bool), iterations=pixels)


def pick_ink(behind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose the colour of a digit by its contrast to the mean colour behind it.

    Args:
        behind (np.ndarray): RGB from 0 to 1 of the covered pixels, shape (N, 3).
        rng (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: RGB from 0 to 1, shape (3,).
    """
    mean = behind.mean(axis=0)
    grey = float(mean.mean())
    contrast = rng.uniform(*CONTRAST)
    sign = rng.choice((-1.0, 1.0))
    if not 0 <= grey + sign * contrast <= 1:  # no room on this side
        sign = 1.0 if grey < 0.5 else -1.0
    tint = rng.normal(0, TINT, 3)
    return np.clip(mean + sign * contrast + tint - tint.mean(), 0, 1).astype(np.float32)


def compose_scene(sources: Sources, split: str, index: int, size: int, seed: int) -> Scene:
    """Draw one scene; it depends on nothing but the arguments and the settings above.

    A later digit covers earlier ones. Its ring (the soft edge of the ink and at least one pixel
    around it) is 255 in the class mask, over earlier digits too, so that a pixel has a class only
    where it is clear, and the class mask and the instance masks hold exactly the same pixels.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = draw_background(sources.photos, split, size, rng)
    labels = np.zeros((size, size), np.uint8)
    instances: list[Instance] = []
    full_areas: list[int] = []
    originals = originals_of(split, len(sources.digits))
    ring = max(1, round(size / 128))

    low, high = DIGITS_PER_SCENE
    wanted = int(rng.integers(low, high + 1))
    for _ in range(50 * wanted):  # a scene that fills up stays below the number wanted
        if len(instances) == wanted:
            break
        original = int(rng.integers(originals.start, originals.stop))
        side = rng.uniform(*DIGIT_SIDE) * size
        patch = draw_digit(sources.digits[original], side, rng.uniform(-MAX_ROTATION, MAX_ROTATION))
        # The centre keeps 0.4 sides off the border: at most a tenth of the digit is cut off.
        top, left = np.rint(rng.uniform(0.4 * side, size - 0.4 * side, 2) - len(patch) / 2).astype(
            int
        )
        coverage = paste(patch, top, left, size)
        ink = coverage >= 0.5
        full_area = int((patch >= 0.5).sum())
        footprint = grow(ink, ring) | (coverage > 0.05)
        visible = [instance.mask & ~footprint for instance in instances]
        areas = [int(ink.sum()), *(int(mask.sum()) for mask in visible)]
        if any(a < MIN_VISIBLE * f for a, f in zip(areas, [full_area, *full_areas], strict=True)):
            continue

        alpha = (coverage * np.float32(rng.uniform(*OPACITY)))[..., None]
        image = image * (1 - alpha) + pick_ink(image[ink], rng) * alpha
        label = int(sources.labels[original])
        labels[footprint] = IGNORE
        labels[ink] = label + 1
        instances = [
            Instance(instance.label, instance.original, mask)
            for instance, mask in zip(instances, visible, strict=True)
        ]
        instances.append(Instance(label, original, ink))
        full_areas.append(full_area)
    return Scene(np.rint(image * 255).astype(np.uint8), labels, instances)


def paste(patch: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Put a square patch on an empty (size, size) canvas, cut at the canvas' border."""
    canvas = np.zeros((size, size), patch.dtype)
    t, le = max(top, 0), max(left, 0)
    b, r = min(top + len(patch), size), min(left + len(patch), size)
    canvas[t:b, le:r] = patch[t - top : b - top, le - left : r - left]
    return canvas
