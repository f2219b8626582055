"""Scenes beyond the grid: colours and their names, sizes, drawing, edits, held-out sets."""
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cases import cases_of, drawn_number
from config import MAX_TEXT
from draw import Drawer
from frames import FRAMES, SIZE_LEVEL, aspects, vision_size, working_size
from judge import at_working_size, changed_region, judge
from paints import ALL, BETWEEN, LIST, NAME, NAMELESS, distinct, names_of
from prompt import Prompter, train_tokenizer
from render import Renderer
from scenes import BACKGROUNDS, CELLS, COLOUR_NAMES, COLOURS, KINDS, RADII, SHAPES, Background, Object, Scene
from stream import AFTER, LABELS, labels
from wide import CLEAR_LEAST, SEEN_LEAST, Ground, Picture, Thing, random_edit
from words import LANGUAGES, instruction

GOLDEN = Path(os.environ.get("STEP1X_GOLDEN", Path(__file__).resolve().parents[3] / "tests" / "data" / "golden"))


@pytest.mark.parametrize("code, name", [
    ("ff0000", "red"), ("8b0000", "red"), ("ffa500", "orange"), ("ffff00", "yellow"), ("00ff00", "green"), ("008000", "green"),
    ("00ffff", "cyan"), ("0000ff", "blue"), ("000080", "blue"), ("800080", "purple"), ("ffc0cb", "pink"), ("ffffff", "white"),
    ("000000", "black"), ("808080", None), ("8b4513", None),
])
def test_colours_have_the_names_that_people_give_them(code, name):
    found = names_of(np.array([tuple(bytes.fromhex(code))]))[0]
    assert found == (NAMELESS if name is None else COLOUR_NAMES.index(name))


def test_palette_colours_are_paints_under_their_own_numbers():
    assert [tuple(LIST[i]) for i in range(NAMELESS)] == list(COLOURS.values()) and NAME[:NAMELESS] == list(range(NAMELESS))
    assert all(distinct(a, b) for a in range(NAMELESS) for b in range(a))
    assert all(len(ALL[name]) >= 10 for name in range(BETWEEN + 1))


def test_working_sizes_are_the_runtimes():
    for case in json.loads((GOLDEN / "resize.json").read_text())["sizes"]:
        assert list(working_size(*case["input"], case["size_level"])) == case["working"], case


def test_vision_sizes_are_the_official_ones():
    bounds = 256 * 28 * 28, 324 * 28 * 28
    for (width, height), first, second in [
        ((512, 512), (504, 504), (504, 504)), ((416, 624), (420, 616), (392, 588)), ((1360, 768), (1372, 756), (672, 364)),
        ((1760, 592), (1764, 588), (868, 280)),
    ]:
        assert vision_size(height, width, 4 * 28 * 28, 16384 * 28 * 28)[::-1] == first
        assert vision_size(*first[::-1], *bounds)[::-1] == second


def test_frames_are_sizes_of_pictures_and_leave_room_for_words():
    prompter, rng = Prompter(train_tokenizer()), random.Random(1)
    longest = max(len(prompter.tail(instruction(rng, random_edit(rng, kind), language)[0]))
                  for kind in KINDS for language in LANGUAGES for _ in range(20))
    for frame in FRAMES:
        assert aspects(frame) and frame.width % 16 == 0 and frame.height % 16 == 0
        assert MAX_TEXT - AFTER - frame.picture_tokens >= longest


def test_a_grid_scene_is_drawn_alike_by_both_renderers():
    background = Background(BACKGROUNDS.index("stripes"), 5, 8)
    objects = [Object(s, c, size, *CELLS[cell], outline) for s, c, size, cell, outline in
               ((0, 0, 2, 0, -1), (3, 2, 1, 4, 9), (6, 7, 0, 8, -1), (1, 4, 2, 2, -1), (len(SHAPES) + 3, 9, 1, 6, -1))]
    things = [Thing(o.shape, o.colour, RADII[o.size], o.x + 0.5, o.y + 0.5, o.cell, o.outline) for o in objects]
    wide = Picture(128.0, 128.0, 1, 1.0, Ground(2, 5, 8), tuple(things))
    grid = Renderer()(torch.tensor([Scene(background, tuple(objects)).row()]))
    drawn = Drawer()(torch.tensor([wide.row()]), 128, 128)
    apart = (grid.int() - drawn.int()).abs().amax(1)
    assert apart.max() <= 24 and (apart > 8).float().mean() < 0.01


def test_a_picture_of_twice_the_size_shows_the_same():
    rng, drawer = random.Random(4), Drawer()
    for aspect in (1.0, 0.6, 2.2):
        scene = random_edit(rng, "recolor", aspect).source
        width, height = round(scene.width), round(scene.height)
        once, twice = (drawer(torch.tensor([scene.row()]), n * width, n * height).float() for n in (1, 2))
        halved = torch.nn.functional.avg_pool2d(twice, 2)
        assert ((once - halved).abs().amax(1) > 60).float().mean() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_edits_can_be_seen_and_named(kind):
    rng, drawer = random.Random(7), Drawer()
    for i in range(40):
        frame = FRAMES[i % len(FRAMES)]
        edit = random_edit(rng, kind, rng.choice(aspects(frame)))
        text, named = instruction(rng, edit, LANGUAGES[i % 2], i % 3 == 0)
        said = dict(zip(LABELS, labels(edit, named)))
        assert all(0 <= said[name] < classes for name, classes in LABELS.items()) and said["kind"] == KINDS.index(kind)
        for scene in (edit.source, edit.target):
            assert all(scene.seen(k) >= SEEN_LEAST for k in range(len(scene.objects)))
        looks = [(o.shape, o.colour) for o in edit.source.objects]
        assert len(set(looks)) == len(looks)
        if kind in ("move", "resize", "replace"):
            assert edit.source.seen(edit.source.objects.index(edit.asked["object"])) >= CLEAR_LEAST
        source, target = (drawer(torch.tensor([scene.row()]), frame.width, frame.height) for scene in (edit.source, edit.target))
        assert judge(source, target, target)["right"] and not torch.equal(source, target), text
        if kind != "resize" or edit.asked["object"].radius > 12:  # edges that move by less than 3 pixels are within the judge's bounds
            assert not judge(source, target, source)["right"], text


def test_moves_and_sizes_are_fixed():
    rng, seen = random.Random(3), set()
    for kind in ("move", "resize", "add"):
        for _ in range(60):
            edit = random_edit(rng, kind, 1.5)
            before, after = edit.asked.get("object"), edit.target.objects
            if kind == "add":
                new = after[-1]
                assert new.radius == RADII[1] and (new.x, new.y) == edit.source.centre(new.cell)
            else:
                now = after[edit.source.objects.index(before)]
                if kind == "resize":
                    assert now.radius == pytest.approx(before.radius * (4 / 3 if edit.asked["bigger"] else 3 / 4))
                elif edit.asked.get("direction") == "left":
                    assert (before.x - now.x, now.y) == (pytest.approx(48 / 144 * edit.source.width), before.y)  # 6 latents of 18
                elif "cell" in edit.asked:
                    assert 0 <= now.x - now.radius + 1e-6 and now.x + now.radius <= edit.source.width + 1e-6
            seen.add(kind)
    assert seen == {"move", "resize", "add"}


def test_any_edges_are_right_where_a_case_says_so_and_other_things_are_not():
    rng, drawer = random.Random(11), Drawer()
    only_there = 0
    for i in range(60):
        frame = FRAMES[i % len(FRAMES)]
        edit = random_edit(rng, KINDS[i % len(KINDS)], rng.choice(aspects(frame)))

        def drawn(scene, edge, softness=1.0):
            return drawer(torch.tensor([replace(scene, edge=edge, softness=softness).row()]), frame.width, frame.height)

        source, target = (drawn(scene, 1) for scene in (edit.source, edit.target))
        others = [drawn(edit.target, 0), drawn(edit.target, 1, 1.5), drawn(edit.target, 2)]
        assert all(judge(source, target, other, True)["right"] for other in others)
        only_there += sum(not judge(source, target, other)["right"] for other in others)
        for k, o in enumerate(edit.target.objects):
            aside = replace(o, x=o.x + (5 if o.x < frame.width / 2 else -5))
            gone, moved = (drawn(edit.target.with_object(k, wrong), 1) for wrong in (None, aside))
            if changed_region(target, gone).float().mean() > 0.02:  # what is less than 1 % of the picture may go where all else changes
                assert not judge(source, target, gone, True)["right"]
                assert edit.kind == "background" or o.radius < 8 or not judge(source, target, moved, True)["right"]
    assert only_there > 5


@pytest.mark.parametrize("name", ["wide", "drawn"])
def test_held_out_sets_are_judged_at_the_size_of_the_edit(name):
    made = list(cases_of(name, 33))
    assert len(made) == 33 and {case["kind"] for case, *_ in made} == set(KINDS if name == "wide" else ("recolor", "remove", "move"))
    for case, source, target in made:
        height, width = source.shape[:2]
        assert source.shape == target.shape and 96 <= min(width, height) and max(width, height) <= 512 and case["size"]
        pictures = [at_working_size(Image.fromarray(picture), SIZE_LEVEL) for picture in (source, target)]
        assert pictures[0].shape[2:] == working_size(width, height)[::-1]
        assert judge(*pictures, pictures[1], True)["right"] and not judge(*pictures, pictures[0], True)["right"], case
    assert drawn_number() == 1350
