"""The training log as a picture: losses, and the judge's shares over time.

    python plot.py run/log.jsonl curve.png
"""
import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main():
    source, result = sys.argv[1:]
    with open(source) as file:
        lines = [json.loads(line) for line in file]
    figure, (losses, shares) = plt.subplots(1, 2, figsize=(13, 5))
    for stage, name in (("vae", "l1"), ("vae", "edge"), ("edit", "target"), ("edit", "named")):
        points = [(line["seconds"] / 60, line[name]) for line in lines if line.get("stage") == stage]
        losses.plot(*zip(*points), label=f"{stage}: {name}", linewidth=1)
    losses.set(yscale="log", xlabel="minutes", title="losses")
    visits = [line for line in lines if line.get("stage") == "judge" and (line["sampler_steps"], line["scale"]) == (28, 6.0)]
    minutes = [line["seconds"] / 60 for line in visits]
    shares.plot(minutes, [100 * line["right"] for line in visits], "k", linewidth=2.5, label="all")
    for kind in visits[-1]["kind"] if visits else []:
        shares.plot(minutes, [100 * line["kind"][kind] for line in visits], linewidth=1, label=kind)
    shares.set(xlabel="minutes", ylim=(0, 100), title="held-out edits right, %: 28 steps, guidance 6.0")
    for axes in (losses, shares):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(result, dpi=110)


if __name__ == "__main__":
    main()
