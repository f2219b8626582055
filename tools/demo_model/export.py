"""Writes a checkpoint of train.py as a model folder that step1x-edit reads: official names, everything in bf16.

    python export.py --run run --out demo-model
"""
import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

import config
from checkpoint import load_weights
from edit_model import EditModel, initialise
from prompt import PICTURE_TOKENS, Prompter, tokenizer_at, train_tokenizer
from scenes import SIDE
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


def write(out: Path, prompter: Prompter, model: EditModel, vae: AutoEncoder):
    (out / QWEN).mkdir(parents=True, exist_ok=True)
    for module, path in ((model.dit, DIT), (vae, "vae.safetensors"), (model.qwen, f"{QWEN}/model.safetensors")):
        weights = {name: tensor.bfloat16().contiguous() for name, tensor in module.state_dict().items()}
        save_file(weights, out / path, METADATA)
    tokenizer = json.loads(prompter.tokenizer.to_str())
    (out / QWEN / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n")
    (out / QWEN / "config.json").write_text(json.dumps(config.qwen(prompter.tokenizer), indent=1) + "\n")
    pixels = PICTURE_TOKENS * 28 * 28
    settings = {"cut": prompter.cut, "max_text": config.MAX_TEXT, "min_pixels": pixels, "max_pixels": pixels, "size_level": SIDE}
    (out / "step1x.json").write_text(json.dumps(settings) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Write a model folder for step1x-edit.")
    parser.add_argument("--run", type=Path, help="folder of train.py; without it the weights are untrained")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    write(options.out, *models(options.run))
    sizes = [path.stat().st_size for path in options.out.rglob("*") if path.is_file()]
    print(f"{options.out}: {len(sizes)} files, {sum(sizes) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
