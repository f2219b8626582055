"""Sizes at which pictures are edited: of each proportion one, by the runtime's rules for the model and for the vision tower."""
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

SIZE_LEVEL = 128  # side of the square whose area pictures are brought to
LATENT = 8  # pixels along a latent's side
VISION_PIXELS = 140 * 140
MERGED = 28  # pixels along a side of the vision tower's tokens
FIRST_LEAST = 4 * MERGED * MERGED
TALLEST = 3.0  # proportion of training pictures


def working_size(width: int, height: int, level: int = SIZE_LEVEL) -> tuple[int, int]:
    """Width and height at which a picture is edited: about level² pixels, each side rounded down to a multiple of 16."""
    aspect, area = width / height, level * level
    if width > height:
        wide = math.ceil(math.sqrt(area * aspect))
        high = math.ceil(wide / aspect)
    else:
        high = math.ceil(math.sqrt(area / aspect))
        wide = math.ceil(high * aspect)
    return wide // 16 * 16, high // 16 * 16


def vision_size(height: int, width: int, least: int, most: float) -> tuple[int, int]:
    """Height and width, multiples of 28, with an area between the bounds, as the official processor has them."""
    def rounded(side):
        return max(1, round(side / MERGED)) * MERGED

    area = rounded(height) * rounded(width)
    if area > most:
        ratio = math.sqrt(height * width / most)
        return tuple(math.floor(side / ratio / MERGED) * MERGED for side in (height, width))
    if area < least:
        ratio = math.sqrt(least / (height * width))
        return tuple(math.ceil(side * ratio / MERGED) * MERGED for side in (height, width))
    return rounded(height), rounded(width)


@dataclass(frozen=True)
class Frame:
    """A size at which pictures are edited."""

    width: int = SIZE_LEVEL
    height: int = SIZE_LEVEL

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of the transformer, down and across."""
        return self.height // 16, self.width // 16

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @cached_property
    def vision(self) -> list[tuple[int, int]]:
        """Height and width after the first and the second resize for the vision tower."""
        first = vision_size(self.height, self.width, FIRST_LEAST, math.inf)
        return [first, vision_size(*first, VISION_PIXELS, VISION_PIXELS)]

    @property
    def merged(self) -> tuple[int, int]:
        """Tokens of the picture in the text, down and across."""
        return tuple(side // MERGED for side in self.vision[1])

    @property
    def picture_tokens(self) -> int:
        return self.merged[0] * self.merged[1]

    def __str__(self):
        return f"{self.width}x{self.height}"


SQUARE = Frame()
_LYING = [Frame(128, 112), Frame(144, 96), Frame(160, 96), Frame(176, 80), Frame(192, 80), Frame(208, 64)]
FRAMES = [SQUARE, *_LYING, *(Frame(frame.height, frame.width) for frame in _LYING)]  # of training


def random_aspect(rng, frame: Frame) -> float:
    """Of a picture that is edited at this size; square ones are mostly just that."""
    return 1.0 if frame == SQUARE and rng.random() < 0.8 else rng.choice(aspects(frame))


@lru_cache
def aspects(frame: Frame) -> list[float]:
    """Proportions (width to height) of pictures that are edited at this size, evenly spread."""
    steps = 2000
    every = [TALLEST ** (i / steps) for i in range(-steps, steps + 1)]
    return [a for a in every if Frame(*working_size(round(9999 * a), 9999)) == frame]
