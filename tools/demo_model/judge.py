"""Which edits are right: the changed region matches the target, and the rest is as it was.

    python judge.py cases edited [--json report.json] [--sheet sheet.png] [--size-level 128]

`cases` is the folder that cases.py writes; `edited` holds <id>.png. Pictures are compared at the size at which they were edited: all
three are brought to it. A pixel matches if one within a pixel of it in the other picture differs by at most 45 of 255 in every
channel (colours of the palette differ by 95 or more in one), looked for both ways. Where a case says that any edges are right, colours
between those of the pixels there match too: drawn with hard edges or soft ones, a shape is the same.
An edit is right if the pixels that fail to match, anywhere, are at most a tenth as many as the changed region's and at most 1 %
of the picture; if at most 1 % of the pixels fail that lie 3 or more off the changed region; and if the mean difference there is
at most 6 of 255. (Any shape or letter taken for another fails 11 % or more.)
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from frames import SIZE_LEVEL, working_size

COLOUR_TOLERANCE = 45  # of 255, in any channel
CHANGED_MOST, PICTURE_MOST, OUTSIDE_MOST = 0.10, 0.01, 0.01  # failing pixels, as shares of these
OUTSIDE_MEAN_MOST = 6.0  # of 255
MARGIN = 3  # pixels around the changed region that are not outside it


def changed_region(source, target):
    """Pixels [B, H, W] that the edit changes; a faint difference (a noisy background uncovered) counts too."""
    return (source.int() - target.int()).abs().amax(1) > 8


def near_match(a, b, any_edges: bool = False):
    """For each pixel of a, whether a pixel of b within one pixel matches, or with any edges, a colour between: [B, H, W]."""
    padded = F.pad(b.float(), (1, 1, 1, 1), mode="replicate")
    h, w = a.shape[2:]
    around = torch.stack([padded[:, :, y : y + h, x : x + w] for y in range(3) for x in range(3)])
    if any_edges:
        return torch.maximum(around.amin(0) - a, a - around.amax(0)).amax(1) <= COLOUR_TOLERANCE
    return (a - around).abs().amax(2).amin(0) <= COLOUR_TOLERANCE


def judge(source, target, edited, any_edges: bool = False) -> dict:
    """Pictures uint8 [B, 3, H, W] to measures [B] and the verdict `right` [B]."""
    changed = changed_region(source, target)
    a, b = target.float(), edited.float()
    wrong = ~(near_match(a, b, any_edges) & near_match(b, a, any_edges))
    around = F.max_pool2d(changed[:, None].float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)[:, 0] > 0

    def share(region, values):
        return (values * region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1)

    failing = wrong.sum((1, 2))
    measures = {
        "changed": failing / changed.sum((1, 2)),
        "picture": failing / wrong[0].numel(),
        "outside": share(~around, wrong),
        "mean": share(~around, (a - b).abs().mean(1)),
    }
    right = (measures["changed"] <= CHANGED_MOST) & (measures["picture"] <= PICTURE_MOST)
    right &= (measures["outside"] <= OUTSIDE_MOST) & (measures["mean"] <= OUTSIDE_MEAN_MOST)
    return measures | {"right": right}


def any_edges(case: dict) -> bool:
    return {"same": False, "any": True}[case.get("edges", "same")]


def report(cases: list[dict], right: list[bool]) -> dict:
    """Shares of right edits over all, by kind, by language, by whether the wording occurred in training."""
    def shares(key):
        values = list(dict.fromkeys(key(case) for case in cases))
        return {v: float(np.mean([r for case, r in zip(cases, right) if key(case) == v])) for v in values}

    wording = {False: "seen", True: "unseen"}
    result = {
        "cases": len(cases), "right": float(np.mean(right)), "kind": shares(lambda c: c["kind"]),
        "language": shares(lambda c: c["language"]), "wording": shares(lambda c: wording[c["held_out"]]),
    }
    return result | ({"size": shares(lambda c: c["size"])} if all("size" in c for c in cases) else {})


def printed(result: dict) -> str:
    lines = [f"{'all':12}{100 * result['right']:6.1f} % of {result['cases']}"]
    for group in ("kind", "language", "wording", "size"):
        lines += [f"{name:12}{100 * share:6.1f} %" for name, share in result.get(group, {}).items()]
    return "\n".join(lines)


def sheet(pictures, count: int = 66) -> Image.Image:
    """Triples of source, target and result [1, 3, H, W]: source, result and target above each other, 11 cases a row."""
    columns = [torch.cat([s, e, t], dim=2)[0] for s, t, e in pictures[:count]]
    height, width = (max(column.shape[side] for column in columns) for side in (1, 2))
    columns = [F.pad(c, (0, width - c.shape[2], 0, height - c.shape[1]), value=255) for c in columns]
    rows = [torch.cat(columns[i : i + 11], dim=2) for i in range(0, len(columns) - 10, 11)]
    return Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy())


def at_working_size(picture: Image.Image, level: int) -> torch.Tensor:
    """uint8 [1, 3, H, W] of the size at which the picture is edited."""
    size = working_size(*picture.size, level)
    for step in ((size[0], picture.height), size):  # columns first: newer versions of Pillow choose the order by the cost
        picture = picture if picture.size == step else picture.resize(step, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def main():
    parser = argparse.ArgumentParser(description="Judge edited pictures against the held-out cases.")
    parser.add_argument("cases", type=Path)
    parser.add_argument("edited", type=Path)
    parser.add_argument("--json", type=Path, help="write the report, with every case's measures, here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    parser.add_argument("--size-level", type=int, default=SIZE_LEVEL, help="at which the pictures were edited [default: the demo model's]")
    options = parser.parse_args()
    cases = json.loads((options.cases / "cases.json").read_text())
    cases = [case for case in cases if (options.edited / f"{case['id']}.png").exists()]
    if not cases:
        parser.error(f"{options.edited} holds no <id>.png of a case")
    each = []
    for case in cases:
        paths = [options.cases / f"{case['id']}.{name}.png" for name in ("source", "target")] + [options.edited / f"{case['id']}.png"]
        each.append([at_working_size(Image.open(path).convert("RGB"), options.size_level) for path in paths])
    measures = [judge(*pictures, any_edges(case)) for case, pictures in zip(cases, each)]
    measures = {name: torch.cat([m[name] for m in measures]) for name in measures[0]}
    result = report(cases, measures["right"].tolist())
    print(printed(result))
    if options.json:
        measured = [case | {name: values[i].item() for name, values in measures.items()} for i, case in enumerate(cases)]
        options.json.write_text(json.dumps(result | {"each": measured}, ensure_ascii=False, indent=1) + "\n")
    if options.sheet:
        sheet(each).save(options.sheet)


if __name__ == "__main__":
    main()
