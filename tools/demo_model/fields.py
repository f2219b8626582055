"""Distance fields of shapes of any size: signed, negative inside, in radii, around the shape's centre.

An entry is a form of a shape: first each shape's and letter's own, under its number, then others that people draw.
"""
from functools import lru_cache

import numpy as np

from render import LETTER_STROKE, LETTER_UNIT, POLYGONS, STROKES, polygon_distance, segment_distance, spokes
from scenes import LETTERS, MEDIUM, RADII, SHAPES

EXTENT = 1.6  # radii from the centre to the field's edge
POINTS = 193  # along a field's side
LETTER_RADIUS = RADII[MEDIUM]  # of letters as they are written

FORMS = (  # shape, and polygon in radii or (middle, half of the width) of a ring
    ("triangle", np.array([(0, -1.05), (0.95, 0.85), (-0.95, 0.85)])),
    ("triangle", np.array([(0, -1), (0.7, 0.8), (-0.7, 0.8)])),
    ("star", spokes([1.12, 0.43] * 5)),
    ("star", spokes([1.12, 0.57] * 5)),
    ("ring", (0.82, 0.18)),
    ("ring", (0.64, 0.34)),
    ("diamond", np.array([(0, -1.1), (1.1, 0), (0, 1.1), (-1.1, 0)])),
    ("diamond", np.array([(0, -1.1), (0.62, 0), (0, 1.1), (-0.62, 0)])),
    ("cross", POLYGONS["cross"] * [[0.7 if abs(x) < 0.5 else 1, 0.7 if abs(y) < 0.5 else 1] for x, y in POLYGONS["cross"]]),
    ("cross", POLYGONS["cross"] * [[1.3 if abs(x) < 0.5 else 1, 1.3 if abs(y) < 0.5 else 1] for x, y in POLYGONS["cross"]]),
    ("heart", POLYGONS["heart"] * [1.12, 0.95]),
    ("moon", POLYGONS["moon"] * [-1, 1]),
    ("moon", np.where(POLYGONS["moon"][:, :1] > -0.3, POLYGONS["moon"] * [0.8, 1], POLYGONS["moon"])),
)
SHAPE_OF = [*range(len(SHAPES) + len(LETTERS)), *(SHAPES.index(name) for name, _ in FORMS)]  # of each entry
ENTRIES_OF = [[entry for entry, of in enumerate(SHAPE_OF) if of == shape] for shape in range(len(SHAPES) + len(LETTERS))]


def points(count: int, extent: float):
    axis = np.linspace(-extent, extent, count)
    return np.stack(np.meshgrid(axis, axis), axis=-1)  # [y, x, (x, y)]


def ring(at, middle: float, half: float):
    return np.abs(np.linalg.norm(at, axis=-1) - middle) - half


def letter(at, name: str):
    distance = np.full(at.shape[:2], np.inf)
    for stroke in STROKES[name].split("|"):
        nodes = [np.array([int(p[0]) - 2, int(p[1]) - 3]) * LETTER_UNIT / LETTER_RADIUS for p in stroke.split()]
        for a, b in zip(nodes, nodes[1:]):
            distance = np.minimum(distance, segment_distance(at, a, b))
    return distance - LETTER_STROKE / 2 / LETTER_RADIUS


@lru_cache
def fields(count: int = POINTS, extent: float = EXTENT) -> np.ndarray:
    """Of every entry [entries, y, x]."""
    at, result = points(count, extent), []
    for name in SHAPES:
        if name in POLYGONS:
            result.append(polygon_distance(at, POLYGONS[name]))
        else:
            result.append(ring(at, *((0, 1) if name == "circle" else (0.72, 0.28))))
    result += [letter(at, name) for name in LETTERS]
    result += [ring(at, *form) if name == "ring" else polygon_distance(at, form) for name, form in FORMS]
    return np.stack(result).astype(np.float32)


COARSE = 48  # along the side of the coarse fields, for questions about single points
SPREAD = 11  # points asked for, along the side of a square


@lru_cache
def coarse():
    """Whether points are inside, as rows of flat tables; and of each entry points that are."""
    inside = fields(COARSE, EXTENT) < 0
    at = points(SPREAD, 1.3)
    numbers = np.rint((at + EXTENT) / (2 * EXTENT) * (COARSE - 1)).astype(int)
    samples = [at[table[numbers[..., 1], numbers[..., 0]]].tolist() for table in inside]
    return [table.flatten().tolist() for table in inside], samples


def covers(entry: int, radius: float, dx: float, dy: float) -> bool:
    """Whether a shape covers the point (dx, dy) from its centre; roughly."""
    scale = (COARSE - 1) / (2 * EXTENT)
    column, row = round((dx / radius + EXTENT) * scale), round((dy / radius + EXTENT) * scale)
    return 0 <= column < COARSE and 0 <= row < COARSE and coarse()[0][entry][row * COARSE + column]
