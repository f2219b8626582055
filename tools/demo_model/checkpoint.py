"""Weights, training state and the log on disk, in files small enough to be copied about."""
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PART_BYTES = 13_000_000


def write_aside(path: Path, write):
    """A file is there whole or not at all, whenever the process is killed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    write(aside)
    os.replace(aside, path)


def save_weights(folder: Path, name: str, weights: dict[str, torch.Tensor]):
    """`name`-00.safetensors and so on, none larger than PART_BYTES unless a tensor is."""
    parts, size = [{}], 0
    for key, tensor in weights.items():
        size += tensor.numel() * tensor.element_size()
        if size > PART_BYTES and parts[-1]:
            parts.append({})
            size = tensor.numel() * tensor.element_size()
        parts[-1][key] = tensor.detach().cpu().contiguous()
    for i, part in enumerate(parts):
        write_aside(folder / f"{name}-{i:02}.safetensors", lambda path: save_file(part, path))


def load_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    weights = {}
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        weights |= load_file(path)
    return weights


class State:
    """Seconds and steps of each stage so far, over all calls."""

    def __init__(self, folder: Path):
        self.path = folder / "state.json"
        self.values = json.loads(self.path.read_text()) if self.path.exists() else {"calls": 0, "seconds": 0.0}

    def save(self):
        write_aside(self.path, lambda path: path.write_text(json.dumps(self.values, indent=1) + "\n"))


class Log:
    """JSON lines on disk, and the same on the terminal."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, **values):
        values = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps(values)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
