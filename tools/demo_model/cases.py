"""Held-out cases, with pictures: three sets, which training never sees.

    python cases.py --set wide --out cases          # 500 cases: pictures and cases.json

`grid` are scenes of scenes.py, 128×128; `wide` those of wide.py, of 96 to 512 pixels and many proportions; `drawn` are discs,
squares and stars as a simple drawing program paints them. Kinds and languages come in turn, every other wording from the held-out
templates.
"""
import argparse
import json
import random
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from draw import Drawer
from frames import SIZE_LEVEL
from judge import at_working_size, changed_region, judge
from paints import LIST
from render import Renderer
from scenes import COLOURS, DIRECTIONS, KINDS, SHAPES, SIDE, STEP, Edit, random_edit
from wide import SEEN_LEAST, Ground, Picture, Thing
from wide import random_edit as random_wide_edit
from words import LANGUAGES, instruction

SETS = ("grid", "wide", "drawn")
HELD_OUT_SEED = 1 << 40  # training seeds are below
COUNT = 500
SQUARES = (96, 128, 160, 200, 256, 320, 400, 512)
OBLONGS = ((320, 240), (240, 320), (300, 200), (200, 300), (512, 288), (288, 512), (400, 250), (256, 128), (128, 256), (480, 160),
           (160, 480), (500, 400), (400, 500), (420, 180), (180, 420), (144, 108), (96, 128), (320, 272), (204, 240))
DRAWN = ("circle", "square", "star")
ACROSS = (8, 12, 18, 24, 32, 40, 50, 60, 76, 92)  # pixels of 128
DRAWN_COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0), "orange": (255, 165, 0), "purple": (128, 0, 128)}
DRAWN_GROUNDS = ((255, 255, 255), (192, 192, 192), (0, 0, 0))
DRAWN_KINDS = ("recolor", "remove", "move")


def held_out_cases(count: int = COUNT) -> tuple[list[dict], dict]:
    """Descriptions of the grid's cases, and their scenes for the renderer."""
    rng, described, rows = random.Random(HELD_OUT_SEED), [], {"source": [], "target": []}
    for i in range(count):
        kind, language, held_out = turn(i)
        edit = random_edit(rng, kind)
        text, _ = instruction(rng, edit, language, held_out)
        described.append(description(i, edit, text, language, held_out))
        rows["source"].append(edit.source.row())
        rows["target"].append(edit.target.row())
    return described, {name: torch.tensor(values, dtype=torch.int16) for name, values in rows.items()}


def turn(i: int) -> tuple[str, str, bool]:
    """Kind, language, and whether the wording is held out, of a case."""
    return KINDS[i % len(KINDS)], LANGUAGES[i // 11 % 2], i // 22 % 2 == 1


def description(i: int, edit: Edit, text: str, language: str, held_out: bool) -> dict:
    return {"id": f"{i:03}", "kind": edit.kind, "language": language, "held_out": held_out, "instruction": text}


def bucket(edit: Edit) -> str:
    """How large the edit's object is, in pixels across at the size of the edit."""
    o = next((edit.asked[key] for key in ("object", "old", "new") if key in edit.asked), None)
    if o is None:
        return "whole picture"
    return next(name for most, name in ((6, "6 to 12"), (12, "13 to 24"), (24, "25 to 48"), (99, "49 to 100")) if o.radius <= most)


@lru_cache
def drawer() -> Drawer:
    return Drawer()


def drawn_by_field(scene: Picture, width: int, height: int) -> np.ndarray:
    return drawer()(torch.tensor([scene.row()]), width, height, len(scene.objects))[0].permute(1, 2, 0).numpy()


def wide_case(i: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Description, source and target [H, W, 3], of which the source is not right as it is."""
    rng = random.Random(f"held-out wide case {HELD_OUT_SEED + i}")
    kind, language, held_out = turn(i)
    width, height = (rng.choice(SQUARES),) * 2 if i % 2 == 0 else rng.choice(OBLONGS)
    while True:
        edit, edge = random_wide_edit(rng, kind, width / height), rng.randrange(2)
        pictures = [drawn_by_field(replace(scene, edge=edge, softness=1.0), width, height) for scene in (edit.source, edit.target)]
        source, target = (at_working_size(Image.fromarray(picture), SIZE_LEVEL) for picture in pictures)
        if not judge(source, target, source, any_edges=True)["right"]:
            break
    text, _ = instruction(rng, edit, language, held_out)
    return description(i, edit, text, language, held_out) | {"size": bucket(edit), "edges": "any"}, *pictures


def drawn_number() -> int:
    return len(DRAWN) * len(ACROSS) * len(DRAWN_COLOURS) * len(DRAWN_GROUNDS) * len(DRAWN_KINDS)


def painted(ground: tuple, thing: Thing | None, colour: tuple, side: int) -> np.ndarray:
    """As ImageDraw paints it, without smooth edges."""
    picture = Image.new("RGB", (side, side), ground)
    if thing is not None:
        draw, scale = ImageDraw.Draw(picture), side / SIDE
        x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
        box = (x - r, y - r, x + r, y + r)
        if SHAPES[thing.shape] == "circle":
            draw.ellipse(box, colour)
        elif SHAPES[thing.shape] == "square":
            draw.rectangle(box, colour)
        else:
            corners = [(r if k % 2 == 0 else 0.4 * r, np.pi * (k / 5 - 0.5)) for k in range(10)]
            draw.polygon([(x + s * np.cos(a), y + s * np.sin(a)) for s, a in corners], colour)
    return np.array(picture)


def drawn_case(i: int) -> tuple[dict, np.ndarray, np.ndarray]:
    rng = random.Random(f"drawn case {HELD_OUT_SEED + i}")
    at, digits = i, []
    for base in (len(DRAWN_KINDS), len(DRAWN), len(DRAWN_GROUNDS), len(DRAWN_COLOURS), len(ACROSS)):
        at, digit = divmod(at, base)
        digits.append(digit)
    kind, shape = DRAWN_KINDS[digits[0]], SHAPES.index(DRAWN[digits[1]])
    ground, name, across = DRAWN_GROUNDS[digits[2]], list(DRAWN_COLOURS)[digits[3]], ACROSS[digits[4]]
    side, colour = rng.choice((128, 128, 128, 256, 512)), DRAWN_COLOURS[name]
    radius = across / 2
    place = [rng.uniform(radius + 1, SIDE - radius - 1) if rng.random() < 0.7 else SIDE / 2 for _ in range(2)]
    scene = Picture(SIDE, SIDE, 0, 1.0, Ground(0, LIST.index(list(ground)), 0), ())
    thing = scene.at(Thing(shape, LIST.index(list(colour)), radius, *place, 0), *place)
    scene, changed, paint, asked = scene.added(thing), thing, colour, {}
    if kind == "remove":
        changed = None
    if kind == "recolor":
        asked["colour"] = rng.choice([c for c in range(len(COLOURS)) if c != thing.colour and differs(c, (colour, ground))])
        paint = list(COLOURS.values())[asked["colour"]]
    if kind == "move":
        moves = {d: scene.at(thing, thing.x + STEP * dx, thing.y + STEP * dy) for d, (dx, dy) in DIRECTIONS.items()}
        moves = {d: o for d, o in moves.items() if scene.with_object(0, o).seen(0) >= SEEN_LEAST}
        asked["direction"] = rng.choice(list(moves))
        changed = moves[asked["direction"]]
    edit = Edit(kind, scene, scene, {"object": thing} | asked)
    language, held_out = rng.choice(LANGUAGES), rng.random() < 0.5
    text, _ = instruction(rng, edit, language, held_out)
    described = description(i, edit, text, language, held_out) | {"size": bucket(edit), "edges": "any"}
    return described, painted(ground, thing, colour, side), painted(ground, changed, paint, side)


def differs(paint: int, colours) -> bool:
    """By so much that a person sees it and the judge too."""
    return all(max(abs(a - b) for a, b in zip(LIST[paint], colour)) >= 60 for colour in colours)


def grid_cases(count: int) -> list[tuple]:
    described, arrays = held_out_cases(count)
    source, target = (Renderer()(arrays[name]).permute(0, 2, 3, 1).numpy() for name in ("source", "target"))
    return list(zip(described, source, target))


def cases_of(name: str, count: int | None = None, run=map):
    """Descriptions, sources and targets of a set, each at its own size; `run` applies a function to many numbers."""
    if name == "grid":
        return (case for part in run(grid_cases, [count or COUNT]) for case in part)
    if name == "wide":
        return run(wide_case, range(count or COUNT))
    every = range(drawn_number())
    return run(drawn_case, every if count is None else sorted(random.Random(0).sample(every, count)))


def main():
    parser = argparse.ArgumentParser(description="Write held-out cases: <id>.source.png, .target.png, .mask.png, cases.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="grid")
    parser.add_argument("--count", type=int, help="fewer cases than all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    cases = list(cases_of(options.set, options.count))
    for case, source, target in cases:
        pair = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in (source, target)]
        mask = changed_region(*pair)[0].byte().numpy() * 255
        for name, picture in (("source", source), ("target", target), ("mask", mask)):
            Image.fromarray(picture).save(options.out / f"{case['id']}.{name}.png")
    described = [case for case, *_ in cases]
    (options.out / "cases.json").write_text(json.dumps(described, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
