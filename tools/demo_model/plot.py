"""The training log as a picture: losses, and the judge's shares over time.

    python plot.py run/log.jsonl curve.png
"""
import json
import math
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cases import SETS

LOSSES = (("vae", "l1"), ("vae", "edge"), ("edit", "flow"), ("edit", "target"), ("edit", "named"))


def line(axes, points, **style):
    """By minutes; a value that is missing leaves a gap."""
    if points:
        axes.plot(*zip(*((seconds / 60, math.nan if value is None else value) for seconds, value in points)), **style)


def plot_shares(axes, visits):
    """Of every set: without guidance broken, with guidance whole."""
    for number, name in enumerate(SETS):
        for scale, dashes in ((1.0, "--"), (6.0, "-")):
            chosen = [v for v in visits if v.get("set", "grid") == name and v["scale"] == scale]
            label = f"{name}, guidance {scale}"
            line(axes, [(v["seconds"], 100 * v["right"]) for v in chosen], color=f"C{number}", linestyle=dashes, marker=".", label=label)


def plot_kinds(axes, visits):
    """The last visit of each set at the guidance that all sets have in common, by kinds."""
    last = {v.get("set", "grid"): v for v in visits}
    scale = min((v["scale"] for v in visits), default=1.0)
    last |= {v.get("set", "grid"): v for v in visits if v["scale"] == scale}
    kinds = list(dict.fromkeys(kind for v in last.values() for kind in v["kind"]))
    for number, name in enumerate(name for name in SETS if name in last):
        shares = last[name]["kind"]
        places = [kinds.index(kind) + 0.27 * (number - 1) for kind in shares]
        axes.bar(places, [100 * share for share in shares.values()], 0.25, color=f"C{SETS.index(name)}", label=name)
    axes.set_xticks(range(len(kinds)), kinds, rotation=45, ha="right")
    axes.set(ylim=(0, 100), title=f"by kind at the last visit, %: guidance {scale}")


def main():
    source, result = sys.argv[1:]
    with open(source) as file:
        lines = [json.loads(text) for text in file]
    figure, (losses, shares, kinds) = plt.subplots(1, 3, figsize=(19, 5))
    for stage, name in LOSSES:
        line(losses, [(l["seconds"], l[name]) for l in lines if l.get("stage") == stage and name in l], label=f"{stage}: {name}", linewidth=1)
    losses.set(yscale="log", xlabel="minutes", title="losses")
    visits = [l for l in lines if l.get("stage") == "judge" and l["sampler_steps"] == 28]
    plot_shares(shares, visits)
    shares.set(xlabel="minutes", ylim=(0, 100), title="held-out edits right, %: 28 steps")
    plot_kinds(kinds, visits)
    for axes in (losses, shares, kinds):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(result, dpi=110)


if __name__ == "__main__":
    main()
