"""Colours and their names: what a person calls a colour is the name of the nearest well-known one.

A paint is a number: the ten colours of the palette come first, under their own numbers, then well-known colours, then a grid of
all colours. A paint's name is a number of COLOUR_NAMES; colours near the border between two names have none that an instruction
may use, and greys, browns and the like have no name in this small language at all.
"""
import numpy as np

from scenes import COLOUR_NAMES, COLOURS

NAMELESS = len(COLOURS)  # brown, grey, magenta: a person knows a word, the model does not
BETWEEN = NAMELESS + 1  # people would not agree; for backgrounds alone
WELL_KNOWN = {
    "red": "ff0000 8b0000 dc143c b22222 cc0000 e53935 f44336", "orange": "ffa500 ff8c00 ff9800 ff7f0e f57c00 ff7800",
    "yellow": "ffff00 ffd700 ffeb3b fdd835 ffe650 ffff66",
    "green": "008000 00ff00 228b22 32cd32 006400 4caf50 2ca02c 3cb371 00c853 66bb6a",
    "cyan": "00ffff 40e0d0 00ced1 00bcd4 26c6da 80deea", "blue": "0000ff 1e90ff 4169e1 00008b 000080 2196f3 1f77b4 3f51b5 6495ed",
    "purple": "800080 8a2be2 9400d3 9c27b0 6a0dad 9b59b6 9932cc 673ab7", "pink": "ffc0cb ff69b4 ff1493 f8bbd0 ff80ab ec70b0",
    "white": "ffffff fafafa", "black": "000000 141414 202020 2a2a2a",
}
WITHOUT_NAME = (
    "808080 a9a9a9 c0c0c0 d8d8d8 696969 505050 3c3c3c 8b4513 654321 a0522d 5d4037 cd853f d2b48c c68e5a 808000 556b2f ff00ff d000d0 "
    "008080 006666 f5f5dc ffe4b5 708090 2f4f4f 5a0000 87ceeb add8e6 e6e6fa b0c4de fa8072 e9967a bc8f8f 98fb98 d0f0c0 bdb76b "
    "adff2f cddc39 ff4500 4b0082 301934 483d8b 7b68ee c71585 dda0dd ffdab9 faf0e6 78909c 9e9d24 1a1a40"
)
LEVELS = 26  # of each channel in the grid of all colours
CLEARLY = 0.75  # a colour has a name if the nearest colour of another one is so much further away
DISTINCT = 0.13, 60  # least distance, and difference of some channel of 255, of colours that must be told apart


def oklab(rgb):
    """Colours [..., 3] of 0..255 to a space where distances are about as large as they look (Ottosson 2020)."""
    x = np.asarray(rgb) / 255
    x = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    cones = x @ np.array([[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
                          [0.0514459929, 0.1073969566, 0.6299787005]])
    return np.cbrt(cones) @ np.array([[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
                                      [-0.0040720468, 0.4505937099, -0.8086757660]])


def parsed(codes: str) -> list[tuple]:
    return [tuple(bytes.fromhex(code)) for code in codes.split()]


def anchors() -> tuple[list, list]:
    """Colours and the names that they are known by."""
    known = [[*COLOURS.values()]] + [parsed(WELL_KNOWN[name]) for name in COLOUR_NAMES] + [parsed(WITHOUT_NAME)]
    names = [range(NAMELESS)] + [[name] * len(group) for name, group in enumerate(known[1:])]
    return sum(known, []), [name for group in names for name in group]


def names_of(rgb) -> np.ndarray:
    """Names of colours [n, 3]; BETWEEN where two are about as near."""
    known, names = anchors()
    names = np.array(names)
    apart = np.linalg.norm(oklab(rgb)[:, None] - oklab(known), axis=2)
    by_name = np.stack([apart[:, names == name].min(1) for name in range(NAMELESS + 1)], axis=1)
    nearest, second = np.sort(by_name, axis=1)[:, :2].T
    return np.where(nearest < CLEARLY * second, by_name.argmin(1), BETWEEN)


def paints():
    """Every paint's colour [n, 3], and its name."""
    known, known_names = anchors()
    levels = np.linspace(0, 255, LEVELS).round().astype(int)
    every = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.concatenate([known, every]), np.concatenate([known_names, names_of(every)])


PAINTS, NAMES = paints()
KNOWN = [np.flatnonzero(NAMES[: len(anchors()[0])] == name).tolist() for name in range(NAMELESS + 1)]
ALL = [np.flatnonzero(NAMES == name).tolist() for name in range(BETWEEN + 1)]
LIST, LAB, NAME = PAINTS.tolist(), oklab(PAINTS).tolist(), NAMES.tolist()  # quicker one by one than arrays


def random_paint(rng, name: int) -> int:
    """A colour of this name: the palette's, a well-known one, or any."""
    kind = rng.random()
    if kind < 0.3 and name < NAMELESS:
        return name
    return rng.choice(KNOWN[name] if kind < 0.5 else ALL[name])


def distinct(a: int, b: int) -> bool:
    """Whether two paints are easily told apart."""
    far = sum((p - q) ** 2 for p, q in zip(LAB[a], LAB[b])) >= DISTINCT[0] ** 2
    return far and max(abs(p - q) for p, q in zip(LIST[a], LIST[b])) >= DISTINCT[1]
