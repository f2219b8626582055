"""The template of the demo gallery: instructions, source pictures, and room for the results that step1x-edit puts there.

    python gallery.py --out ../../assets/gallery --font NotoSansCJK-Regular.ttc

Shows the first held-out cases, whatever comes of them. Writes template.png, and cases.json: the instructions, and where source and
result of each lie (x, y of the upper left corner). The font must have Chinese characters.
"""
import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cases import held_out_cases
from render import Renderer
from scenes import SIDE

COUNT, COLUMNS = 24, 4
GAP, TEXT, ARROW = 14, 36, 24  # pixels between cells, for two lines of text, between source and result
CELL = (2 * SIDE + ARROW, TEXT + SIDE)
INK, PAPER = (40, 40, 40), (255, 255, 255)


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
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    described, arrays = held_out_cases(COUNT)
    pictures = Renderer()(arrays["source"]).permute(0, 2, 3, 1).numpy()
    font = ImageFont.truetype(str(options.font), 13)
    size = [GAP + n * (cell + GAP) for n, cell in zip((COLUMNS, -(-COUNT // COLUMNS)), CELL)]
    template, cells = Image.new("RGB", size, PAPER), []
    draw = ImageDraw.Draw(template)
    for i, (case, picture) in enumerate(zip(described, pictures)):
        x, y = (GAP + at * (cell + GAP) for at, cell in zip((i % COLUMNS, i // COLUMNS), CELL))
        broken = lines(case["instruction"], font, CELL[0])
        assert len(broken) <= 2, case["instruction"]
        draw.text((x, y + TEXT - 4), "\n".join(broken), INK, font, anchor="ld", spacing=2)
        source, result = (x, y + TEXT), (x + SIDE + ARROW, y + TEXT)
        middle, tip = y + TEXT + SIDE // 2, result[0] - 5
        draw.line((source[0] + SIDE + 5, middle, tip, middle), INK, 2)
        draw.polygon([(tip + 1, middle), (tip - 5, middle - 4), (tip - 5, middle + 4)], INK)
        template.paste(Image.fromarray(picture), source)
        cells.append({"instruction": case["instruction"], "source": source, "result": result})
    template.save(options.out / "template.png", optimize=True)
    (options.out / "cases.json").write_text(json.dumps({"side": SIDE, "cells": cells}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
