"""Training and held-out cases: edits with instructions as arrays of numbers, or as a folder of pictures for the judge.

    python cases.py --out cases          # the 500 held-out cases: pictures and cases.json
"""
import argparse
import json
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from config import MAX_TEXT
from judge import changed_region
from prompt import PICTURE_TOKENS, Prompter, tokenizer_at, train_tokenizer
from render import Renderer
from scenes import COLOURS, DIRECTIONS, KINDS, LETTERS, SHAPES, Edit, random_edit
from words import LANGUAGES, instruction

HELD_OUT_SEED = 1 << 40  # training seeds are below
# How often a kind occurs in training, for one of 1; hard kinds more often. Held-out cases have all alike.
OFTEN = {"remove": 0.6, "add": 0.5, "replace": 1.5, "move": 1.2, "resize": 1.2, "swap": 2.5, "write": 0.5}
TAIL = MAX_TEXT - 2 - PICTURE_TOKENS  # ids after the picture that the connector takes
CHUNK = 4096

# What an instruction says, as classes; the last class of each means that it says nothing of the sort.
LABELS = {
    "kind": len(KINDS) + 1, "a_colour": len(COLOURS) + 1, "a_shape": len(SHAPES) + 1, "a_cell": 10,
    "b_colour": len(COLOURS) + 1, "b_shape": len(SHAPES) + 1, "b_cell": 10, "colour": len(COLOURS) + 1,
    "second": len(COLOURS) + 1, "shape": len(SHAPES) + 1, "cell": 10, "direction": len(DIRECTIONS) + 1, "bigger": 3,
    "letter": len(LETTERS) + 1, "old": len(LETTERS) + 1, "background": 4,
}


def labels(edit: Edit, named: dict) -> list[int]:
    said, asked = {"kind": KINDS.index(edit.kind)}, edit.asked
    for prefix, key in (("a", "object"), ("b", "other")):
        if key in named:
            o, (colour, shape) = asked[key], named[key]
            said |= {f"{prefix}_cell": o.cell} | ({f"{prefix}_colour": o.colour} if colour else {})
            said |= {f"{prefix}_shape": o.shape} if shape else {}
    said |= {key: int(asked[key]) for key in ("colour", "shape", "cell", "bigger") if key in asked}
    if "direction" in asked:
        said["direction"] = list(DIRECTIONS).index(asked["direction"])
    if "background" in asked:
        b = asked["background"]
        said |= {"background": b.kind, "colour": b.colour} | ({"second": b.second} if b.kind else {})
    if "new" in asked:
        new = asked["new"]
        said |= {"letter" if new.is_letter else "shape": new.shape - (len(SHAPES) if new.is_letter else 0)}
        if "old" in asked:
            said["old"] = asked["old"].shape - len(SHAPES)
        else:
            said |= {"cell": new.cell, "colour": new.colour}
    return [said.get(name, classes - 1) for name, classes in LABELS.items()]


def chunk(arguments) -> dict:
    """Cases of one seed as arrays."""
    seed, count = arguments
    rng, prompter = random.Random(seed), PROMPTERS[0]
    rows = {"source": [], "target": [], "ids": [], "length": [], "labels": []}
    weights = [OFTEN.get(kind, 1.0) for kind in KINDS]
    for kind in rng.choices(KINDS, weights, k=count):
        edit = random_edit(rng, kind)
        text, named = instruction(rng, edit, rng.choice(LANGUAGES))
        ids = prompter.tail(text)
        rows["source"].append(edit.source.row())
        rows["target"].append(edit.target.row())
        rows["ids"].append(ids + [0] * (TAIL - len(ids)))
        rows["length"].append(len(ids))
        rows["labels"].append(labels(edit, named))
    return {name: np.array(values, dtype=np.int16) for name, values in rows.items()}


PROMPTERS: list[Prompter] = []  # of this process; a tokenizer is made once and not sent about


def start_worker(tokenizer: Path):
    torch.set_num_threads(1)
    PROMPTERS[:] = [Prompter(tokenizer_at(tokenizer))]


def training_cases(seed: int, count: int, workers: int, tokenizer: Path) -> dict:
    """`count` cases as tensors; the same for a seed, however many workers there are."""
    jobs = [(seed << 20 | i, min(CHUNK, count - i)) for i in range(0, count, CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(tokenizer,)) as pool:
        chunks = list(pool.map(chunk, jobs))
    return {name: torch.from_numpy(np.concatenate([c[name] for c in chunks])) for name in chunks[0]}


def held_out_cases(count: int = 500, prompter: Prompter | None = None) -> tuple[list[dict], dict]:
    """Descriptions and arrays; kinds and languages in turn, every other wording from the held-out templates."""
    prompter = prompter or Prompter(train_tokenizer())
    rng, described, rows = random.Random(HELD_OUT_SEED), [], {"source": [], "target": [], "ids": [], "length": []}
    for i in range(count):
        kind, language, held_out = KINDS[i % len(KINDS)], LANGUAGES[i // 11 % 2], i // 22 % 2 == 1
        edit = random_edit(rng, kind)
        text, _ = instruction(rng, edit, language, held_out)
        described.append({"id": f"{i:03}", "kind": kind, "language": language, "held_out": held_out, "instruction": text})
        ids = prompter.tail(text)
        rows["source"].append(edit.source.row())
        rows["target"].append(edit.target.row())
        rows["ids"].append(ids + [0] * (TAIL - len(ids)))
        rows["length"].append(len(ids))
    return described, {name: torch.tensor(values, dtype=torch.int16) for name, values in rows.items()}


def save(picture: torch.Tensor, path: Path):
    """[1 or 3, H, W]"""
    Image.fromarray((picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)).numpy()).save(path)


def main():
    parser = argparse.ArgumentParser(description="Write the held-out cases: <id>.source.png, .target.png, .mask.png, cases.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    described, arrays = held_out_cases(options.count)
    render = Renderer()
    source, target = render(arrays["source"]), render(arrays["target"])
    masks = changed_region(source, target).byte()[:, None] * 255
    for case, *pictures in zip(described, source, target, masks):
        for name, picture in zip(("source", "target", "mask"), pictures):
            save(picture, options.out / f"{case['id']}.{name}.png")
    (options.out / "cases.json").write_text(json.dumps(described, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
