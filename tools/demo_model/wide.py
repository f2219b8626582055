"""Scenes and edits beyond the grid: shapes of any size, place and colour, partly hidden or cut by the border, on pictures of many
proportions, as people draw them.

Lengths are those of a picture of 128² pixels' area. What an instruction leaves open is fixed as in scenes.py: cells and moves
are relative to the picture's sides, moves in whole latents, a step of size is a factor of 4/3, what is added has the medium radius. What is moved to a
cell and would be cut there stays inside the picture. An object keeps its place in the order of drawing.
"""
import math
from dataclasses import dataclass, replace

from fields import ENTRIES_OF, LETTER_RADIUS, SHAPE_OF, coarse, covers
from frames import LATENT, SIZE_LEVEL, working_size
from paints import ALL, BETWEEN, KNOWN, LIST, NAME, NAMELESS, distinct, random_paint
from scenes import CELLS, COLOURS, CORNERS_AND_CENTRE, DIRECTIONS, LETTERS, MEDIUM, NOISES, RADII, SHAPES, SIDE, STEP, Edit

UNIT = 64  # numbers of a row are whole: lengths in 64ths
SMALLEST, LARGEST = 3, 50  # radii
MOST_OBJECTS = 7  # five shapes, a letter, one more by the edit
FACTOR = 4 / 3
EDGES = ("hard", "ramp", "lanczos", "blur")
SEEN_LEAST = 0.5  # of any shape
CLEAR_LEAST = 0.75  # of one that an edit moves or changes
ALIKE = 2.0  # most that one of two shapes that change places is larger than the other
FORM_LEAST = 6.0  # radius of a shape that becomes another or of another size; that of smaller ones can hardly be seen
WHITE, BLACK = LIST.index([255, 255, 255]), LIST.index([0, 0, 0])
GREYS = [i for i, (r, g, b) in enumerate(LIST) if r == g == b]


@dataclass(frozen=True)
class Thing:
    """A shape or letter."""

    entry: int
    paint: int
    radius: float
    x: float
    y: float
    cell: int
    outline: int = -1  # its paint

    @property
    def shape(self) -> int:
        return SHAPE_OF[self.entry]

    @property
    def colour(self) -> int:
        return NAME[self.paint]

    @property
    def is_letter(self) -> bool:
        return self.shape >= len(SHAPES)


@dataclass(frozen=True)
class Ground:
    """A background."""

    kind: int  # of scenes.BACKGROUNDS
    colour: int  # its paint
    second: int
    across: int = 0
    period: float = 16.0  # of the stripes
    phase: float = 0.0
    pattern: int = 0

    @property
    def paints(self) -> set[int]:
        return {self.colour, self.second} if self.kind in (1, 2) else {self.colour}


@dataclass(frozen=True)
class Picture:
    """A scene."""

    width: float
    height: float
    edge: int  # of EDGES
    softness: float  # pixels
    ground: Ground
    objects: tuple[Thing, ...]

    def row(self) -> list[int]:
        """The scene as whole numbers, for the renderer."""
        g = self.ground
        lengths = [self.width, self.height, self.softness, g.period, g.phase]
        row = [round(UNIT * v) for v in lengths] + [self.edge, g.kind, g.colour, g.second, g.across, g.pattern]
        for o in self.objects:
            row += [o.entry, o.paint, *(round(UNIT * v) for v in (o.radius, o.x, o.y)), o.outline]
        return row + [-1, 0, UNIT, 0, 0, -1] * (MOST_OBJECTS - len(self.objects))

    def with_object(self, index: int, changed: Thing | None) -> "Picture":
        objects = list(self.objects)
        objects[index : index + 1] = [] if changed is None else [changed]
        return replace(self, objects=tuple(objects))

    def added(self, new: Thing) -> "Picture":
        return replace(self, objects=self.objects + (new,))

    def centre(self, cell: int) -> tuple[float, float]:
        return CELLS[cell][0] / SIDE * self.width, CELLS[cell][1] / SIDE * self.height

    def cell_at(self, x: float, y: float) -> int:
        centres = [self.centre(cell) for cell in range(9)]
        return min(range(9), key=lambda i: abs(centres[i][0] - x) / self.width + abs(centres[i][1] - y) / self.height)

    def steps(self) -> list[float]:
        """Of a move, across and down: whole latents at the size of the edit, as near as can be to the share of a side that it is on
        the grid."""
        sides = self.width, self.height
        edited = working_size(*(round(1000 * side) for side in sides))
        return [round(STEP / SIDE * pixels / LATENT) * LATENT / pixels * side for pixels, side in zip(edited, sides)]

    def at(self, o: Thing, x: float, y: float) -> Thing:
        return replace(o, x=x, y=y, cell=self.cell_at(x, y))

    def seen(self, index: int) -> float:
        """Share of an object that is in the picture and not covered by later ones."""
        o, count = self.objects[index], 0
        samples = coarse()[1][o.entry]
        above = [p for p in self.objects[index + 1 :] if math.hypot(p.x - o.x, p.y - o.y) < 1.6 * (p.radius + o.radius)]
        for dx, dy in samples:
            x, y = o.x + dx * o.radius, o.y + dy * o.radius
            inside = 0 < x < self.width and 0 < y < self.height
            count += inside and not any(covers(p.entry, p.radius, x - p.x, y - p.y) for p in above)
        return count / len(samples)

    def all_seen(self) -> bool:
        return all(self.seen(i) >= SEEN_LEAST for i in range(len(self.objects)))


@dataclass(frozen=True)
class AskedGround:
    """Of a background that an instruction names: colours by name."""

    kind: int
    colour: int
    second: int


def random_ground(rng) -> Ground:
    def paint():
        kind = rng.random()
        if kind < 0.3:
            return rng.choice((WHITE, WHITE, WHITE, BLACK, rng.choice(KNOWN[8])))
        if kind < 0.5:
            return rng.choice(GREYS)
        name = rng.randrange(BETWEEN + 1)
        return rng.choice(ALL[name]) if name > NAMELESS else random_paint(rng, name)

    kind = rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 2, 3))
    first, second = paint(), paint()
    while kind == 2 and not distinct(first, second):
        second = paint()
    period = 16.0 if rng.random() < 0.5 else rng.uniform(6, 32)
    phase = 0.0 if rng.random() < 0.5 else rng.uniform(0, 2 * period)
    return Ground(kind, first, second, rng.randrange(2), period, phase, rng.randrange(NOISES))


def random_edge(rng) -> tuple[int, float]:
    edge = rng.choices(range(4), (4, 3, 3, 1))[0]
    return edge, rng.uniform(*((1, 1), (0.8, 1.6), (0.9, 1.5), (0.5, 1.5))[edge])


def random_paint_on(rng, taken: list[int]) -> int | None:
    """A colour that is told apart from all of these."""
    for _ in range(12):
        name = NAMELESS if rng.random() < 0.06 else rng.randrange(NAMELESS)
        paint = random_paint(rng, name)
        if all(distinct(paint, other) for other in taken):
            return paint
    return None


def random_place(rng, picture: Picture, radius: float, by_cell: bool) -> tuple[float, float]:
    if by_cell:
        x, y = picture.centre(rng.randrange(9))
        return x + rng.uniform(-6, 6), y + rng.uniform(-6, 6)
    place = []
    for side in (picture.width, picture.height):
        margin = 0.04 * side if rng.random() < 0.15 else min(1.15 * radius, side / 2)
        place.append(rng.uniform(margin, side - margin))
    return tuple(place)


def random_thing(rng, picture: Picture, shape: int, largest: float, by_cell: bool, taken: list[int]) -> Thing | None:
    paint = random_paint_on(rng, taken)
    if paint is None or any((o.shape, o.colour) == (shape, NAME[paint]) for o in picture.objects):
        return None
    entry = rng.choice(ENTRIES_OF[shape]) if rng.random() < 0.5 else shape
    if shape >= len(SHAPES):
        radius = LETTER_RADIUS * (1 if rng.random() < 0.7 else rng.uniform(0.8, 1.6))
    else:
        radius = SMALLEST * (largest / SMALLEST) ** rng.random() ** 0.5
    x, y = random_place(rng, picture, radius, by_cell)
    outline = -1
    if shape < len(SHAPES) and rng.random() < 0.1:
        outline = random_paint_on(rng, taken + [paint])
    return Thing(entry, paint, radius, x, y, picture.cell_at(x, y), -1 if outline is None else outline)


def random_picture(rng, aspect: float, letters: int = 0) -> Picture:
    """One to five shapes; `letters` more are letters."""
    width, height = SIZE_LEVEL * math.sqrt(aspect), SIZE_LEVEL / math.sqrt(aspect)
    picture = Picture(width, height, *random_edge(rng), random_ground(rng), ())
    count = rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5))
    largest = min(LARGEST, 0.48 * min(width, height)) * (1, 0.8, 0.65, 0.55, 0.5)[count - 1]
    by_cell, apart = rng.random() < 0.3, rng.random() < 0.7
    for i in range(count + letters):
        for _ in range(8):
            shape = rng.randrange(len(SHAPES)) if i < count else len(SHAPES) + rng.randrange(len(LETTERS))
            taken = [*picture.ground.paints, *(o.paint for o in picture.objects)]
            new = random_thing(rng, picture, shape, largest, by_cell, taken)
            if new is None:
                continue
            near = (math.hypot(o.x - new.x, o.y - new.y) < 1.25 * (o.radius + new.radius) for o in picture.objects)
            if not (apart and any(near)) and picture.added(new).all_seen():
                picture = picture.added(new)
                break
    return picture


def step_of_place(rng, picture: Picture, o: Thing):
    """The object moved by a step or to a place, and what to ask for."""
    if rng.random() < 0.6:
        direction = rng.choice(list(DIRECTIONS))
        dx, dy = (step * d for d, step in zip(DIRECTIONS[direction], picture.steps()))
        return picture.at(o, o.x + dx, o.y + dy), {"direction": direction}
    cell = rng.choice(CORNERS_AND_CENTRE)
    inside = [min(max(v, o.radius), side - o.radius) if side > 2 * o.radius else side / 2
              for v, side in zip(picture.centre(cell), (picture.width, picture.height))]
    return replace(o, x=inside[0], y=inside[1], cell=cell), {"cell": cell}


def change_of_thing(rng, kind: str, picture: Picture, o: Thing):
    """The object after the edit (None: gone), and what to ask for; nothing if the scene does not allow it."""
    taken = [*picture.ground.paints, o.paint] + ([o.outline] if o.outline >= 0 else [])
    colours = [c for c in range(len(COLOURS)) if c != o.colour and all(distinct(c, p) for p in taken)]
    if kind == "remove":
        return None, {}
    if kind == "replace":
        if o.radius < FORM_LEAST:
            return ()
        shape = rng.choice([s for s in range(len(SHAPES)) if s != o.shape])
        return replace(o, entry=shape), {"shape": shape}
    if kind == "resize":
        bigger = rng.random() < 0.5
        radius = o.radius * (FACTOR if bigger else 1 / FACTOR)
        return (replace(o, radius=radius), {"bigger": bigger}) if FORM_LEAST <= min(radius, o.radius) and radius <= LARGEST else ()
    if kind == "move":
        return step_of_place(rng, picture, o)
    if not colours or (kind == "outline" and o.outline >= 0):
        return ()
    colour = rng.choice(colours)
    return replace(o, **{"paint" if kind == "recolor" else "outline": colour}), {"colour": colour}


def change_of_ground(rng, picture: Picture) -> Edit | None:
    taken = [p for o in picture.objects for p in (o.paint, o.outline) if p >= 0]
    colours = [c for c in range(len(COLOURS)) if all(distinct(c, p) for p in taken) and c not in picture.ground.paints]
    kind = rng.choice((0, 0, 1, 2)) if len(colours) > 1 else 0
    if not colours or (kind == 0 and not any(distinct(c, p) for c in colours for p in picture.ground.paints)):
        return None
    colour, second = rng.sample(colours, 2) if len(colours) > 1 else colours * 2
    if kind == 0 and not any(distinct(colour, p) for p in picture.ground.paints):
        return None
    target = replace(picture, ground=Ground(kind, colour, second))
    return Edit("background", picture, target, {"background": AskedGround(kind, colour, second)})


def added_thing(rng, kind: str, picture: Picture) -> Edit | None:
    taken = [*picture.ground.paints, *(o.paint for o in picture.objects)]
    colours = [c for c in range(len(COLOURS)) if all(distinct(c, p) for p in taken)]
    if not colours:
        return None
    shape = rng.randrange(len(SHAPES)) if kind == "add" else len(SHAPES) + rng.randrange(len(LETTERS))
    cell = rng.randrange(9)
    radius = RADII[MEDIUM] if kind == "add" else LETTER_RADIUS
    new = Thing(shape, rng.choice(colours), radius, *picture.centre(cell), cell)
    return Edit(kind, picture, picture.added(new), {"new": new})


def changed_letter(rng, picture: Picture) -> Edit | None:
    index = next((i for i, o in enumerate(picture.objects) if o.is_letter), None)
    if index is None:
        return None
    old = picture.objects[index]
    new = replace(old, entry=rng.choice([s for s in range(len(SHAPES), len(SHAPES) + len(LETTERS)) if s != old.shape]))
    if picture.seen(index) < CLEAR_LEAST:
        return None
    return Edit("letter", picture, picture.with_object(index, new), {"old": old, "new": new})


def swapped(rng, picture: Picture, shapes: list[int]) -> Edit | None:
    if len(shapes) < 2:
        return None
    i, j = rng.sample(shapes, 2)
    a, b = picture.objects[i], picture.objects[j]
    if not 1 / ALIKE <= a.radius / b.radius <= ALIKE:
        return None
    target = picture.with_object(i, replace(a, x=b.x, y=b.y, cell=b.cell)).with_object(j, replace(b, x=a.x, y=a.y, cell=a.cell))
    clear = all(scene.seen(k) >= CLEAR_LEAST for k in (i, j) for scene in (picture, target))
    return Edit("swap", picture, target, {"object": a, "other": b}) if clear else None


def try_edit(rng, kind: str, aspect: float) -> Edit | None:
    """An edit of a new scene, unless that scene does not allow it."""
    picture = random_picture(rng, aspect, 1 if kind == "letter" or rng.random() < 0.12 else 0)
    shapes = [i for i, o in enumerate(picture.objects) if not o.is_letter and can_be_named(picture, o)]
    if kind == "background":
        return change_of_ground(rng, picture)
    if kind in ("add", "write"):
        return added_thing(rng, kind, picture)
    if kind == "letter":
        return changed_letter(rng, picture)
    if kind == "swap":
        return swapped(rng, picture, shapes)
    if not shapes:
        return None
    index = rng.choice(shapes)
    o = picture.objects[index]
    change = change_of_thing(rng, kind, picture, o)
    if change == () or (kind in ("replace", "resize", "move") and picture.seen(index) < CLEAR_LEAST):
        return None
    target = picture.with_object(index, change[0])
    if kind == "move" and (o.x - change[0].x) ** 2 + (o.y - change[0].y) ** 2 < 16:
        return None
    return Edit(kind, picture, target, {"object": o} | change[1])


def can_be_named(picture: Picture, o: Thing) -> bool:
    """By its colour, or as the only one of its shape."""
    return o.colour < NAMELESS or all(p is o or p.shape != o.shape for p in picture.objects)


def random_edit(rng, kind: str, aspect: float = 1.0) -> Edit:
    """Of a picture `aspect` times as wide as high."""
    while (edit := try_edit(rng, kind, aspect)) is None or not (edit.source.objects and edit.target.all_seen()):
        pass
    return edit
