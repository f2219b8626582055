"""Scenes, instructions, prompt path and judge."""
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from cases import held_out_cases
from frames import FRAMES
from judge import judge, report
from prompt import Prompter, enlarge, enlarge_with_pillow, patches, pieces, train_tokenizer
from render import Renderer
from scenes import KINDS, LETTERS, RADII, SHAPES, Background, Object, Scene, random_edit
from stream import LABELS, TAIL, labels
from words import FRAMES as SENTENCES
from words import LANGUAGES, TEMPLATES, instruction

GOLDEN = Path(os.environ.get("STEP1X_GOLDEN", Path(__file__).resolve().parents[3] / "tests" / "data" / "golden"))


@pytest.fixture(scope="module")
def held_out():
    described, arrays = held_out_cases(220)
    render = Renderer()
    return described, render(arrays["source"]), render(arrays["target"])


def test_judge_takes_the_target_and_refuses_the_source(held_out):
    described, source, target = held_out
    for edited, share in ((target, 1.0), (source, 0.0)):
        result = report(described, judge(source, target, edited)["right"].tolist())
        assert result["right"] == share, result


def test_judge_tells_shapes_and_letters_apart():
    background, render = Background(0, 8, 8), Renderer()
    empty = render(torch.tensor([Scene(background, ()).row()]))
    groups = [(range(len(SHAPES)), size) for size in range(len(RADII))]
    groups.append((range(len(SHAPES), len(SHAPES) + len(LETTERS)), 1))
    for shapes, size in groups:
        drawn = render(torch.tensor([Scene(background, (Object(s, 5, size, 64, 64),)).row() for s in shapes]))
        for i, target in enumerate(drawn):
            right = judge(empty.expand_as(drawn), target.expand_as(drawn), drawn)["right"]
            assert right.nonzero().flatten().tolist() == [i]


def test_held_out_wordings_are_apart_and_many():
    for language in LANGUAGES:
        for kind, (training, held_out) in TEMPLATES[language].items():
            assert not set(training) & set(held_out), kind
            assert len(training) * len(SENTENCES[language]) >= 25 and len(held_out) >= 3, kind


def test_words_of_held_out_wordings_occur_in_training():
    def words(templates, language):
        fixed = re.sub(r"{.}|,", " ", " ".join(templates))
        return set(fixed.split() if language == "en" else fixed.replace(" ", ""))

    for language in LANGUAGES:
        groups = list(TEMPLATES[language].values())
        training = words([t for group in groups for t in group[0]], language)
        assert words([t for group in groups for t in group[1]], language) <= training


def test_every_instruction_fits_and_names_its_edit():
    prompter, rng = Prompter(train_tokenizer()), random.Random(5)
    for kind in KINDS:
        for language in LANGUAGES:
            for held_out in (False, True):
                edit = random_edit(rng, kind)
                text, named = instruction(rng, edit, language, held_out)
                assert len(prompter.tail(text)) <= TAIL, text
                said = dict(zip(LABELS, labels(edit, named)))
                assert all(0 <= said[name] < classes for name, classes in LABELS.items())
                assert said["kind"] == KINDS.index(kind) and edit.source.row() != edit.target.row()


def test_quotes_spell_their_contents():
    prompter = Prompter(train_tokenizer())
    assert pieces('a "bc" d')[:4] == ['<|vision_end|>a "', "“b”", "“c”", '" d<|im_end|>\n<|im_start|>assistant\n']
    for letter in LETTERS:
        tail = prompter.tail(f"write '{letter}'")
        assert tail.count(prompter.ids(letter)[0]) == 1 and len(prompter.ids(letter)) == 1


def test_patches_are_the_official_ones():
    file = safe_open(GOLDEN / "qwen.safetensors", "pt")
    for image in ("image0", "image1"):
        pixels = file.get_tensor(f"{image}.rgb").permute(2, 0, 1)[None]
        assert torch.equal(patches(pixels)[0], file.get_tensor(f"{image}.pixel_values"))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_enlarging_is_near_pillows(frame):
    shape = (1, 3, frame.height, frame.width)
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    pillow = enlarge_with_pillow(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), frame)
    difference = (enlarge(picture, frame)[0].int() - pillow.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.02


def test_the_grids_held_out_cases_are_those_of_before():
    folder = GOLDEN.parent / "demo_cases"
    described, arrays = held_out_cases(22)
    drawn = [Renderer()(arrays[name]).permute(0, 2, 3, 1).numpy() for name in ("source", "target")]
    assert described == [{key: case[key] for key in described[0]} for case in json.loads((folder / "cases.json").read_text())[:22]]
    for case, *pictures in zip(described, *drawn):
        for name, picture in zip(("source", "target"), pictures):
            assert np.array_equal(picture, np.array(Image.open(folder / f"{case['id']}.{name}.png").convert("RGB")))
