"""Scenes to pictures, in batches on any device: shapes from an atlas of coverages made of distance fields."""
import numpy as np
import torch
from torch.nn import functional as F

from scenes import COLOURS, LETTERS, MOST_OBJECTS, NOISES, RADII, SHAPES, SIDE

PATCH = 48  # side of an atlas entry, an object's centre in its middle
OUTLINE = 3.0  # pixels around a shape
STRIPE = 16
NOISE_AMPLITUDE = 20  # of 255
LETTER_UNIT, LETTER_STROKE = 4.4, 5.0  # pixels

# Strokes of the letters as points (x, y) of a grid 5 wide and 7 high; "|" begins a new stroke.
STROKES = dict(zip(LETTERS, (
    "06 20 46|14 34", "00 06 36 45 44 33 03|00 30 41 42 33", "41 30 10 01 05 16 36 45", "00 06 26 44 42 20 00",
    "40 00 06 46|03 33", "40 00 06|03 33", "41 30 10 01 05 16 36 45 43 23", "00 06|40 46|03 43", "10 30|20 26|16 36",
    "40 45 36 16 05", "00 06|40 03 46", "00 06 46", "06 00 23 40 46", "06 00 46 40", "10 30 41 45 36 16 05 01 10",
    "06 00 30 41 42 33 03", "10 30 41 45 36 16 05 01 10|24 46", "06 00 30 41 42 33 03|23 46",
    "41 30 10 01 02 13 33 44 45 36 16 05", "00 40|20 26", "00 05 16 36 45 40", "00 26 40", "00 16 23 36 40", "00 46|40 06",
    "00 23 40|23 26", "00 40 06 46",
)))


def grid():
    """Pixel centres of an atlas entry around the object's own pixel."""
    axis = np.arange(PATCH) - PATCH / 2
    return np.stack(np.meshgrid(axis, axis), axis=-1)  # [y, x, (x, y)]


def segment_distance(points, a, b):
    along = np.clip(((points - a) @ (b - a)) / max((b - a) @ (b - a), 1e-9), 0, 1)
    return np.linalg.norm(points - a - along[..., None] * (b - a), axis=-1)


def polygon_distance(points, corners):
    """Signed: negative inside."""
    distance, inside = np.full(points.shape[:2], np.inf), np.zeros(points.shape[:2], bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0)):
        distance = np.minimum(distance, segment_distance(points, a, b))
        straddles = (a[1] > points[..., 1]) != (b[1] > points[..., 1])
        crossing = a[0] + (points[..., 1] - a[1]) / (b[1] - a[1] + 1e-12) * (b[0] - a[0])
        inside ^= straddles & (points[..., 0] < crossing)
    return np.where(inside, -distance, distance)


def spokes(radii, turn=-np.pi / 2):
    angles = turn + 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def heart():
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 16


def moon():
    """A disc without a second one; its tips are up and down on the right."""
    outer, inner = np.linspace(0.25, 1.75, 40) * np.pi, np.linspace(1.70, 0.30, 40) * np.pi
    arc = [np.stack([np.cos(a), np.sin(a)], axis=1) for a in (outer, inner)]
    return np.concatenate([arc[0], arc[1] * [0.62, 0.87] + [0.35, 0]]) + [0.15, 0]


POLYGONS = {
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.92,
    "triangle": spokes([1.15] * 3) + [0, 0.2],
    "star": spokes([1.12, 0.47] * 5),
    "diamond": np.array([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)]),
    "cross": np.array([(-1, -1), (1, -1), (1, -3), (3, -3), (3, -1), (5, -1), (5, 1), (3, 1), (3, 3), (1, 3), (1, 1), (-1, 1)])
    * (1 / 3) - [2 / 3, 0],
    "heart": heart(),
    "moon": moon(),
}


def shape_distance(name: str, radius: float):
    points = grid()
    from_centre = np.linalg.norm(points, axis=-1)
    if name == "circle":
        return from_centre - radius
    if name == "ring":
        return np.abs(from_centre - 0.72 * radius) - 0.28 * radius
    return polygon_distance(points, POLYGONS[name] * radius)


def letter_distance(letter: str):
    points, distance = grid(), np.full((PATCH, PATCH), np.inf)
    for stroke in STROKES[letter].split("|"):
        nodes = [(np.array([int(p[0]) - 2, int(p[1]) - 3])) * LETTER_UNIT for p in stroke.split()]
        for a, b in zip(nodes, nodes[1:]):
            distance = np.minimum(distance, segment_distance(points, a, b))
    return distance - LETTER_STROKE / 2


def atlas():
    """Coverage of fill and of fill with outline [2, shapes and letters, sizes, PATCH, PATCH]."""
    shapes = [[shape_distance(name, r) for r in RADII] for name in SHAPES]
    letters = [[letter_distance(letter)] * len(RADII) for letter in LETTERS]
    distance = np.array(shapes + letters)
    cover = np.stack([np.clip(0.5 - distance, 0, 1), np.clip(0.5 + OUTLINE - distance, 0, 1)])
    return torch.from_numpy(cover.astype(np.float32))


class Renderer:
    def __init__(self, device="cpu"):
        self.atlas = atlas().to(device)
        self.palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)
        coarse = np.random.default_rng(7).uniform(-1, 1, (NOISES, 1, 9, 9)).astype(np.float32)
        noise = F.interpolate(torch.from_numpy(coarse), size=(SIDE, SIDE), mode="bilinear", align_corners=True)
        self.noise = NOISE_AMPLITUDE * noise[:, 0].to(device)
        self.axis = torch.arange(SIDE, device=device)

    def background(self, kind, colour, second, across, pattern):
        """[B, 3, H, W] in 0..255."""
        first, last = (self.palette[c][:, :, None, None] for c in (colour, second))
        down = self.axis[None, :, None].expand(len(kind), SIDE, SIDE)
        along = torch.where(across[:, None, None] > 0, down.transpose(1, 2), down)[:, None]
        kind = kind[:, None, None, None]
        mix = torch.where(kind == 1, along / (SIDE - 1), torch.where(kind == 2, (along // STRIPE % 2).float(), 0.0))
        return first + mix * (last - first) + torch.where(kind == 3, self.noise[pattern][:, None], 0.0)

    def coverage(self, layer: int, shape, size, x, y):
        """[B, 1, H, W] of one object each, placed at its centre."""
        column = self.axis[None] - x[:, None] + PATCH // 2  # [B, W] in the atlas entry
        row = self.axis[None] - y[:, None] + PATCH // 2
        inside = ((column >= 0) & (column < PATCH))[:, None] & ((row >= 0) & (row < PATCH))[:, :, None]
        inside &= (shape >= 0)[:, None, None]
        entry = shape.clamp(min=0) * len(RADII) + size
        flat = (entry[:, None, None] * PATCH + row.clamp(0, PATCH - 1)[:, :, None]) * PATCH + column.clamp(0, PATCH - 1)[:, None]
        return torch.where(inside, self.atlas[layer].flatten()[flat], 0.0)[:, None]

    def __call__(self, rows):
        """Rows of `Scene.row` [B, 41] to pictures, uint8 [B, 3, H, W]."""
        rows = rows.to(self.palette.device).long()
        picture = self.background(*rows[:, :5].T)
        for slot in range(MOST_OBJECTS):
            shape, colour, size, x, y, outline = rows[:, 5 + 6 * slot : 11 + 6 * slot].T
            for layer, paint, there in ((1, outline, outline >= 0), (0, colour, shape >= 0)):
                cover = self.coverage(layer, torch.where(there, shape, -1), size, x, y)
                picture = torch.lerp(picture, self.palette[paint.clamp(min=0)][:, :, None, None], cover)
        return picture.round().clamp(0, 255).byte()
