"""An edit by step1x-edit against this implementation's, from one model folder, picture, prompt and noise.

Set STEP1X_EDIT to the binary; without it the test is skipped.
"""
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

import config
import export
import sampler
from edit_model import EditModel
from prompt import Prompter, enlarge_with_pillow, train_tokenizer
from render import Renderer
from scenes import Background, Object, Scene
from stream import padded
from vae import AutoEncoder

BINARY = os.environ.get("STEP1X_EDIT")
SEED = 7
PROMPTS = ["Please change the color of the purple circle to yellow.", "用“N”代替字母'B'", "make the one bigger"]
PSNR_LEAST = 75.0  # dB: one value in 500 off by one level, from those next to a truncation

pytestmark = pytest.mark.skipif(not BINARY, reason="STEP1X_EDIT does not name the binary of step1x-edit")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights in all parts: where training starts, gates and velocities are zero."""
    torch.manual_seed(0)
    prompter = Prompter(train_tokenizer())
    edit, vae = EditModel(prompter), AutoEncoder(config.VAE_CHANNELS, config.VAE_BLOCKS)
    for module in (edit, vae):
        module.requires_grad_(False)
        for p in module.parameters():
            p.copy_(p.bfloat16())
    folder = tmp_path_factory.mktemp("model")
    export.write(folder, prompter, edit, vae)
    return folder, prompter, edit, vae


def picture(path):
    scene = Scene(Background(1, 5, 8), (Object(0, 6, 2, 24, 25), Object(3, 2, 1, 104, 63), Object(10, 0, 1, 64, 104)))
    pixels = Renderer()(torch.tensor([scene.row()]))
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(path)
    return pixels


def by_torch(model, path, pixels, prompt, steps):
    _, prompter, edit, vae = model
    ids = prompter.tail(prompt)
    given = torch.tensor([padded(ids)])
    shown = enlarge_with_pillow(Image.open(path))[None]
    reference = sampler.pack(vae.encode(pixels.float() / 127.5 - 1))
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(SEED))
    noise = sampler.pack(noise.bfloat16().float())  # as the official code draws it
    latents = edit.edit(given, torch.tensor([len(ids)]), shown, reference, noise, steps)
    decoded = vae.decode(sampler.unpack(latents, 16, 16))
    return ((decoded.clamp(-1, 1) * 0.5 + 0.5) * 255).byte()[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_same_picture(model, tmp_path, prompt):
    source, result, steps = tmp_path / "source.png", tmp_path / "result.png", 5
    pixels = picture(source)
    subprocess.run(
        [BINARY, "edit", "-m", model[0], "-i", source, "-p", prompt, "-o", result, "--device", "cpu", "--rng", "cpu",
         "--size-level", "128", "--steps", str(steps), "--seed", str(SEED)], check=True)
    ours = by_torch(model, source, pixels, prompt, steps).astype(float)
    theirs = np.array(Image.open(result)).astype(float)
    assert theirs.std() > 2  # not a flat picture, which would prove little
    psnr = 10 * np.log10(255**2 / max(np.mean((ours - theirs) ** 2), 1e-9))
    print(f"{prompt}: {psnr:.1f} dB, deviation of the picture {theirs.std():.1f}")
    assert psnr >= PSNR_LEAST
