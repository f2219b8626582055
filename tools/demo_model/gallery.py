"""The template of the demo gallery: instructions, source pictures, and room for the results that step1x-edit puts there.

    python gallery.py --out ../../assets/gallery --font NotoSansCJK-Regular.ttc

Shows the first held-out cases of the grid, whatever comes of them; with --wide, below them, the first wide case of each size up to
256 pixels a side. Writes template.png, and cases.json: the instructions, sizes, and where source and result of each lie (x, y of the upper left
corner). The font must have Chinese characters.
"""
import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cases import OBLONGS, SQUARES, grid_cases, wide_case

COUNT, COLUMNS, MOST = 12, 4, 256  # grid cases, in a row; pixels along a side of wide ones
GAP, TEXT, ARROW = 14, 36, 24  # pixels between cells, for two lines of text, between source and result
WIDTH = GAP + COLUMNS * (2 * 128 + ARROW + GAP)
INK, PAPER = (40, 40, 40), (255, 255, 255)


def wide_cases() -> list[tuple]:
    """The first case of each size."""
    sizes = {(width, height) for width, height in (*((side, side) for side in SQUARES), *OBLONGS) if max(width, height) <= MOST}
    found, i = {}, 0
    while len(found) < len(sizes):
        case = wide_case(i)
        height, width = case[1].shape[:2]
        if (width, height) in sizes:
            found.setdefault((width, height), case)
        i += 1
    return list(found.values())


def places(sizes: list[tuple], top: int) -> tuple[list[tuple], int]:
    """Upper left corners of cells whose pictures have these sizes, row by row, and where the rows end."""
    corners, x, below = [], GAP, top
    for width, height in sizes:
        across = 2 * width + ARROW + GAP
        if x + across > WIDTH:
            x, top = GAP, below
        corners.append((x, top))
        x, below = x + across, max(below, top + TEXT + height + GAP)
    return corners, below


def lines(text: str, font, width: int) -> list[str]:
    """Broken between words, or between Chinese characters."""
    result, space = [""], " " if " " in text else ""
    for word in text.split() if space else text:
        longer = f"{result[-1]}{space}{word}".strip()
        if font.getlength(longer) > width:
            result.append(word)
        else:
            result[-1] = longer
    return result


def main():
    parser = argparse.ArgumentParser(description="Write the gallery's template.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--wide", action="store_true", help="with wide cases, for a model that knows them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    font = ImageFont.truetype(str(options.font), 13)
    cases, corners, end = [], [], GAP
    for block in (grid_cases(COUNT), wide_cases() if options.wide else []):
        placed, end = places([source.shape[1::-1] for _, source, _ in block], end)
        cases, corners = cases + block, corners + placed
    template, cells = Image.new("RGB", (WIDTH, end), PAPER), []
    draw = ImageDraw.Draw(template)
    for (case, picture, _), (x, y) in zip(cases, corners):
        height, width = picture.shape[:2]
        broken = lines(case["instruction"], font, 2 * width + ARROW)
        assert len(broken) <= 2, case["instruction"]
        draw.text((x, y + TEXT - 4), "\n".join(broken), INK, font, anchor="ld", spacing=2)
        source, result = (x, y + TEXT), (x + width + ARROW, y + TEXT)
        middle, tip = y + TEXT + height // 2, result[0] - 5
        draw.line((source[0] + width + 5, middle, tip, middle), INK, 2)
        draw.polygon([(tip + 1, middle), (tip - 5, middle - 4), (tip - 5, middle + 4)], INK)
        template.paste(Image.fromarray(picture), source)
        cells.append({"instruction": case["instruction"], "size": (width, height), "source": source, "result": result})
    template.save(options.out / "template.png", optimize=True)
    written = ",\n".join(" " + json.dumps(cell, ensure_ascii=False) for cell in cells)
    (options.out / "cases.json").write_text(f"[\n{written}\n]\n")


if __name__ == "__main__":
    main()
