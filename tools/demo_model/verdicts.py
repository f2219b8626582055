"""What judge.py says of pictures that are made from a case's source and target by fixed rules, for tests of other judges.

    python verdicts.py ../../tests/data/wide_cases       # writes verdicts.json there
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from frames import SIZE_LEVEL
from judge import any_edges, at_working_size, judge


def shifted(picture: np.ndarray, pixels: int) -> np.ndarray:
    """To the right; the first column is repeated."""
    return picture[:, np.maximum(np.arange(picture.shape[1]) - pixels, 0)]


def smoothed(picture: np.ndarray) -> np.ndarray:
    """Means of squares of four pixels; beyond the border it is repeated."""
    down, right = (np.minimum(np.arange(side) + 1, side - 1) for side in picture.shape[:2])
    wide = picture.astype(int)
    return (wide + wide[down] + wide[:, right] + wide[down][:, right] + 2) // 4


def noisy(picture: np.ndarray, amplitude: int) -> np.ndarray:
    y, x, c = np.indices(picture.shape)
    return np.minimum(picture + (31 * x + 17 * y + 5 * c) % amplitude, 255)


EDITED = {
    "target": lambda source, target: target,
    "source": lambda source, target: source,
    "between": lambda source, target: (source.astype(int) + 4 * target.astype(int) + 2) // 5,
    "shifted 1": lambda source, target: shifted(target, 1),
    "shifted 4": lambda source, target: shifted(target, 4),
    "smoothed": lambda source, target: smoothed(target),
    "darker": lambda source, target: target.astype(int) * 31 // 32,
    "noisy 8": lambda source, target: noisy(target, 8),
    "noisy 60": lambda source, target: noisy(target, 60),
}


def verdict(case: dict, source: np.ndarray, target: np.ndarray, edited: np.ndarray) -> dict:
    pictures = [Image.fromarray(picture.astype(np.uint8)) for picture in (source, target, edited)]
    measures = judge(*(at_working_size(picture, SIZE_LEVEL) for picture in pictures), any_edges(case))
    return {name: round(value.item(), 6) if value.is_floating_point() else value.item() for name, value in measures.items()}


def verdicts(folder: Path) -> dict:
    """By case and by the name of the edited picture."""
    result = {}
    for case in json.loads((folder / "cases.json").read_text()):
        source, target = (np.array(Image.open(folder / f"{case['id']}.{name}.png").convert("RGB")) for name in ("source", "target"))
        result[case["id"]] = {name: verdict(case, source, target, edited(source, target)) for name, edited in EDITED.items()}
    return result


def main():
    parser = argparse.ArgumentParser(description="Write the verdicts on made-up results of a folder's cases.")
    parser.add_argument("cases", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = verdicts(options.cases)
    lines = [f" {json.dumps(case)}: {{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(v)}" for name, v in each.items()) + "\n }"
             for case, each in found.items()]
    (options.cases / "verdicts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
