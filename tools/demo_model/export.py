"""Writes a checkpoint of train.py as a model folder that step1x-edit reads: official names, everything in bf16.

    python export.py --run run --out demo-model
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import config
from checkpoint import load_weights, write_aside
from edit_model import EditModel, initialise
from frames import SIZE_LEVEL, VISION_PIXELS
from prompt import Prompter, tokenizer_at, train_tokenizer
from vae import AutoEncoder

QWEN = "Qwen2.5-VL-7B-Instruct"
DIT = "step1x-edit-v1p1-official.safetensors"
METADATA = {"what": "demo model of procedural pictures, trained by tools/demo_model; not the released weights"}


def models(run: Path | None):
    """Prompter, edit model and autoencoder of a run's checkpoint, or untrained."""
    prompter = Prompter(train_tokenizer() if run is None else tokenizer_at(run / "tokenizer.json"))
    model, vae = EditModel(prompter), AutoEncoder(config.VAE_CHANNELS, config.VAE_BLOCKS)
    if run is None:
        initialise(model)
    else:
        model.load_state_dict(load_weights(run, "edit"))
        vae.load_state_dict(load_weights(run, "vae"))
    for module in (model, vae):
        module.requires_grad_(False)
        for p in module.parameters():
            p.copy_(p.bfloat16())
    return prompter, model, vae


def write(out: Path, prompter: Prompter, model: EditModel, vae: AutoEncoder, cfg_scale: float | None = None):
    (out / QWEN).mkdir(parents=True, exist_ok=True)
    for module, path in ((model.dit, DIT), (vae, "vae.safetensors"), (model.qwen, f"{QWEN}/model.safetensors")):
        weights = {name: tensor.bfloat16().contiguous() for name, tensor in module.state_dict().items()}
        save_file(weights, out / path, METADATA)
    tokenizer = json.loads(prompter.tokenizer.to_str())
    (out / QWEN / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    (out / QWEN / "config.json").write_text(json.dumps(config.qwen(prompter.tokenizer), indent=1) + "\n")
    settings = {"cut": prompter.cut, "max_text": config.MAX_TEXT, "min_pixels": VISION_PIXELS, "max_pixels": VISION_PIXELS,
                "size_level": SIZE_LEVEL} | ({} if cfg_scale is None else {"cfg_scale": cfg_scale})
    (out / "step1x.json").write_text(json.dumps(settings) + "\n")


def read(folder: Path, name: str, module: torch.nn.Module):
    """Weights of a model folder into a run's "edit" model, but for its labeller, or into its "vae"."""
    if name == "vae":
        weights = load_file(folder / "vae.safetensors")
    else:
        parts = {"dit": load_file(folder / DIT), "qwen": load_file(folder / QWEN / "model.safetensors")}
        weights = {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}
    missing, unknown = module.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, strict=False)
    if unknown or any(not key.startswith("labeller.") for key in missing):
        raise SystemExit(f"{folder} is no model of this size: lacks {missing}, has {unknown}")


def copy_tokenizer(folder: Path, path: Path):
    """A run that begins with a model's weights must have its token ids."""
    write_aside(path, lambda aside: aside.write_bytes((folder / QWEN / "tokenizer.json").read_bytes()))


def main():
    parser = argparse.ArgumentParser(description="Write a model folder for step1x-edit.")
    parser.add_argument("--run", type=Path, help="folder of train.py; without it the weights are untrained")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cfg-scale", type=float, help="guidance that is best for the model, its default")
    options = parser.parse_args()
    torch.manual_seed(0)
    write(options.out, *models(options.run), options.cfg_scale)
    sizes = [path.stat().st_size for path in options.out.rglob("*") if path.is_file()]
    print(f"{options.out}: {len(sizes)} files, {sum(sizes) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
