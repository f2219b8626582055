"""Training cases: edits with instructions as arrays of numbers, made by other processes while training runs.

Cases of one source are alike: GRID are the scenes of scenes.py, a frame's name stands for the wide scenes of that size.
"""
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import scenes
import wide
from config import MAX_TEXT
from fields import coarse, fields
from frames import FRAMES, random_aspect
from prompt import PICTURE_TOKENS, Prompter, tokenizer_at
from scenes import COLOURS, DIRECTIONS, KINDS, LETTERS, SHAPES, Edit
from words import LANGUAGES, instruction

GRID = "grid"
BY_NAME = {str(frame): frame for frame in FRAMES}
# How often a kind occurs in training, for one of 1; hard kinds more often. Held-out cases have all alike.
GRID_OFTEN = {"recolor": 1.5, "remove": 0.6, "add": 0.6, "replace": 1.6, "move": 1.2, "resize": 1.4, "background": 1.8, "outline": 1.0,
              "swap": 1.8, "write": 0.7, "letter": 1.4}
WIDE_OFTEN = {"recolor": 0.7, "remove": 0.7, "add": 0.9, "replace": 1.3, "move": 1.8, "resize": 0.9, "background": 1.5, "outline": 0.9,
              "swap": 2.4, "letter": 1.7}
AFTER = 2  # rows of the connector before the picture
TAIL = MAX_TEXT - AFTER - PICTURE_TOKENS  # ids after a square picture that the connector takes
CHUNK = 2048

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


def padded(ids: list[int]) -> list[int]:
    return ids + [0] * (TAIL - len(ids))


def chunk(source: str, seed: int, count: int) -> dict:
    """Cases of one source as arrays."""
    rng, prompter = random.Random(f"{source} {seed}"), PROMPTERS[0]
    rows = {"source": [], "target": [], "ids": [], "length": [], "labels": []}
    often = GRID_OFTEN if source == GRID else WIDE_OFTEN
    weights = [often.get(kind, 1.0) for kind in KINDS]
    for kind in rng.choices(KINDS, weights, k=count):
        if source == GRID:
            edit = scenes.random_edit(rng, kind)
        else:
            edit = wide.random_edit(rng, kind, random_aspect(rng, BY_NAME[source]))
        text, named = instruction(rng, edit, rng.choice(LANGUAGES))
        ids = prompter.tail(text)
        rows["source"].append(edit.source.row())
        rows["target"].append(edit.target.row())
        rows["ids"].append(padded(ids))
        rows["length"].append(len(ids))
        rows["labels"].append(labels(edit, named))
    return {name: np.array(values, dtype=np.int16) for name, values in rows.items()}


PROMPTERS: list[Prompter] = []  # of this process; a tokenizer is made once and not sent about


def start_worker(tokenizer: Path):
    torch.set_num_threads(1)
    PROMPTERS[:] = [Prompter(tokenizer_at(tokenizer))]


def workers(count: int, tokenizer: Path) -> ProcessPoolExecutor:
    """Processes that make cases. They are copies of this one, so they must start before it opens a GPU."""
    coarse(), fields()  # once for all
    return ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=start_worker, initargs=(tokenizer,))


class Stream:
    """Cases of several sources on the device, more and more of them."""

    def __init__(self, pool: ProcessPoolExecutor, seed: int, counts: dict[str, int]):
        self.pool, self.counts = pool, counts
        most = max(counts.values())
        jobs = [(source, at, min(CHUNK, count - at)) for at in range(0, most, CHUNK) for source, count in counts.items() if at < count]
        self.waiting = [(source, pool.submit(chunk, source, seed << 32 | at, count)) for source, at, count in jobs]
        self.arrays, self.ready, self.filled = {}, {}, dict.fromkeys(counts, 0)

    def attach(self, device):
        """Waits until there are some of every source."""
        self.device = device
        for source in self.counts:
            first = next(i for i, (of, _) in enumerate(self.waiting) if of == source)
            self.take(*self.waiting.pop(first))

    def take(self, source, future):
        made = future.result()
        if source not in self.arrays:
            self.arrays[source] = {name: torch.zeros(self.counts[source], *values.shape[1:], dtype=torch.int16, device=self.device)
                                   for name, values in made.items()}
            self.ready[source] = torch.zeros((), device=self.device)
        start = self.filled[source]
        self.filled[source] += len(made["ids"])
        for name, values in made.items():
            self.arrays[source][name][start : self.filled[source]] = torch.from_numpy(values).to(self.device)
        self.ready[source].fill_(self.filled[source])

    def poll(self):
        """Takes what has been made since."""
        done = [pair for pair in self.waiting if pair[1].done()]
        self.waiting = [pair for pair in self.waiting if pair not in done]
        for pair in done:
            self.take(*pair)

    def pick(self, source: str, count: int) -> dict:
        """Random ones of those that are there, without waiting for the device."""
        index = (torch.rand(count, device=self.device, dtype=torch.float64) * self.ready[source]).long()
        return {name: values[index] for name, values in self.arrays[source].items()}
