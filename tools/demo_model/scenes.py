"""Scenes of a few shapes, and edits of them: a source scene, what is asked for, and the exact target scene.

A scene is a background and objects in cells of a 3×3 grid. Everything that an instruction leaves open is fixed here
(how far a move goes, how large an added shape is), so that one target is right.
"""
from dataclasses import astuple, dataclass, field, replace

SIDE = 128
COLOURS = {
    "red": (215, 35, 40), "orange": (240, 130, 20), "yellow": (250, 225, 45), "green": (45, 160, 65), "cyan": (70, 205, 215),
    "blue": (40, 80, 210), "purple": (130, 50, 170), "pink": (245, 130, 190), "white": (245, 245, 245), "black": (25, 25, 25),
}
COLOUR_NAMES = list(COLOURS)
SHAPES = ["circle", "square", "triangle", "star", "ring", "diamond", "cross", "heart", "moon"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RADII = (9, 12, 16)  # a step is a factor of 4/3
MEDIUM = 1
CELLS = [(x, y) for y in (24, 64, 104) for x in (24, 64, 104)]  # centres, in reading order
STEP = 40  # pixels of a move by direction: to the next cell
JITTER = 1  # pixels that objects of a source scene stand off their cell's centre, at most
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CORNERS_AND_CENTRE = (0, 2, 4, 6, 8)
BACKGROUNDS = ("plain", "gradient", "stripes", "noise")
NOISES = 256  # different noise patterns
MOST_OBJECTS = 6  # four shapes, a letter, one more by the edit
KINDS = ("recolor", "remove", "add", "replace", "move", "resize", "background", "outline", "swap", "write", "letter")


@dataclass(frozen=True)
class Object:
    shape: int  # of SHAPES, then LETTERS
    colour: int
    size: int
    x: int
    y: int
    outline: int = -1  # its colour

    @property
    def cell(self) -> int:
        return min(range(9), key=lambda i: abs(CELLS[i][0] - self.x) + abs(CELLS[i][1] - self.y))

    @property
    def is_letter(self) -> bool:
        return self.shape >= len(SHAPES)


@dataclass(frozen=True)
class Background:
    kind: int
    colour: int
    second: int  # the lower colour of a gradient, the second one of stripes
    across: int = 0  # 1: from left to right, not from top to bottom
    pattern: int = 0  # of the noise

    @property
    def colours(self) -> set[int]:
        return {self.colour, self.second} if self.kind in (1, 2) else {self.colour}


@dataclass(frozen=True)
class Scene:
    background: Background
    objects: tuple[Object, ...]

    def row(self) -> list[int]:
        """The scene as numbers, for the renderer."""
        absent = [-1, 0, 0, 0, 0, -1]
        rows = [list(astuple(o)) for o in self.objects] + [absent] * (MOST_OBJECTS - len(self.objects))
        return list(astuple(self.background)) + sum(rows, [])

    def with_object(self, index: int, changed: Object | None) -> "Scene":
        objects = list(self.objects)
        objects[index : index + 1] = [] if changed is None else [changed]
        return replace(self, objects=tuple(objects))

    def free_cells(self) -> list[int]:
        taken = {o.cell for o in self.objects}
        return [cell for cell in range(9) if cell not in taken]


@dataclass
class Edit:
    kind: str
    source: Scene
    target: Scene
    asked: dict = field(default_factory=dict)  # what the instruction must say, by slot


def random_background(rng) -> Background:
    kind = rng.choice((0, 0, 1, 2, 3))
    colour, second = rng.sample(range(len(COLOURS)), 2)
    return Background(kind, colour, second, rng.randrange(2) if kind in (1, 2) else 0, rng.randrange(NOISES))


def random_scene(rng, letters: int = 0) -> Scene:
    """One to four shapes; `letters` more are letters."""
    background = random_background(rng)
    colours = [c for c in range(len(COLOURS)) if c not in background.colours]
    count = rng.choice((1, 2, 2, 3, 3, 4))
    objects, looks = [], set()
    for i, cell in enumerate(rng.sample(range(9), count + letters)):
        shape = rng.randrange(len(SHAPES)) if i < count else len(SHAPES) + rng.randrange(len(LETTERS))
        colour = rng.choice(colours)
        if (shape, colour) in looks:
            continue
        looks.add((shape, colour))
        x, y = (centre + rng.randint(-JITTER, JITTER) for centre in CELLS[cell])
        outline = rng.choice([c for c in colours if c != colour]) if i < count and rng.random() < 0.12 else -1
        objects.append(Object(shape, colour, rng.randrange(3) if i < count else MEDIUM, x, y, outline))
    return Scene(background, tuple(objects))


def moved(o: Object, cell: int) -> Object:
    return replace(o, x=CELLS[cell][0], y=CELLS[cell][1])


def steps_free(scene: Scene, o: Object) -> list[str]:
    """Directions in which the neighbouring cell exists and is free."""
    def target(d):
        return o.x + STEP * DIRECTIONS[d][0], o.y + STEP * DIRECTIONS[d][1]

    inside = [d for d in DIRECTIONS if all(0 < v < SIDE for v in target(d))]
    return [d for d in inside if replace(o, x=target(d)[0], y=target(d)[1]).cell in scene.free_cells()]


def change_of_object(rng, kind: str, scene: Scene, index: int, free_colours: list[int]):
    """The object after the edit (None: gone), and what to ask for; nothing if the scene does not allow it."""
    o = scene.objects[index]
    colours = [c for c in free_colours if c not in (o.colour, o.outline)]
    if kind == "recolor":
        colour = rng.choice(colours)
        return replace(o, colour=colour), {"colour": colour}
    if kind == "remove":
        return None, {}
    if kind == "replace":
        shape = rng.choice([s for s in range(len(SHAPES)) if s != o.shape])
        return replace(o, shape=shape), {"shape": shape}
    if kind == "resize":
        by = rng.choice([b for b in (-1, 1) if 0 <= o.size + b < len(RADII)])
        return replace(o, size=o.size + by), {"bigger": by > 0}
    if kind == "outline" and o.outline < 0:
        colour = rng.choice(colours)
        return replace(o, outline=colour), {"colour": colour}
    if kind == "move":
        steps = steps_free(scene, o)
        cells = [cell for cell in CORNERS_AND_CENTRE if cell in scene.free_cells()]
        if steps and rng.random() < 0.6:
            direction = rng.choice(steps)
            dx, dy = DIRECTIONS[direction]
            return replace(o, x=o.x + STEP * dx, y=o.y + STEP * dy), {"direction": direction}
        if cells:
            cell = rng.choice(cells)
            return moved(o, cell), {"cell": cell}
    return ()


def change_of_background(rng, scene: Scene) -> Edit:
    taken = {c for o in scene.objects for c in (o.colour, o.outline)} | scene.background.colours
    colours = [c for c in range(len(COLOURS)) if c not in taken]
    if not colours:
        return None
    kind = rng.choice((0, 0, 1, 2)) if len(colours) > 1 else 0
    colour, second = rng.sample(colours, 2) if len(colours) > 1 else colours * 2
    background = Background(kind, colour, second)
    return Edit("background", scene, replace(scene, background=background), {"background": background})


def try_edit(rng, kind: str) -> Edit | None:
    """An edit of a new scene, unless that scene does not allow it."""
    letters = 1 if kind == "letter" or rng.random() < 0.15 else 0
    scene = random_scene(rng, letters)
    free_colours = [c for c in range(len(COLOURS)) if c not in scene.background.colours]
    shapes = [i for i, o in enumerate(scene.objects) if not o.is_letter]
    if kind == "background":
        return change_of_background(rng, scene)
    if kind in ("add", "write"):
        cell, colour = rng.choice(scene.free_cells()), rng.choice(free_colours)
        shape = rng.randrange(len(SHAPES)) if kind == "add" else len(SHAPES) + rng.randrange(len(LETTERS))
        new = Object(shape, colour, MEDIUM, *CELLS[cell])
        return Edit(kind, scene, replace(scene, objects=scene.objects + (new,)), {"new": new})
    if kind == "letter":
        index = next((i for i, o in enumerate(scene.objects) if o.is_letter), None)
        if index is None:
            return None
        old = scene.objects[index]
        new = replace(old, shape=rng.choice([s for s in range(len(SHAPES), len(SHAPES) + 26) if s != old.shape]))
        return Edit(kind, scene, scene.with_object(index, new), {"old": old, "new": new})
    if kind == "swap":
        if len(shapes) < 2:
            return None
        i, j = rng.sample(shapes, 2)
        a, b = scene.objects[i], scene.objects[j]
        target = scene.with_object(i, replace(a, x=b.x, y=b.y)).with_object(j, replace(b, x=a.x, y=a.y))
        return Edit(kind, scene, target, {"object": a, "other": b})
    index = rng.choice(shapes)
    change = change_of_object(rng, kind, scene, index, free_colours)
    if change == ():
        return None
    return Edit(kind, scene, scene.with_object(index, change[0]), {"object": scene.objects[index]} | change[1])


def random_edit(rng, kind: str) -> Edit:
    while (edit := try_edit(rng, kind)) is None:
        pass
    return edit
