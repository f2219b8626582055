"""The networks against outputs of the official code: the files of tests/data/golden, or of the folder STEP1X_GOLDEN."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sampler
from goldens import dit_of, load, vae_of
from qwen import Qwen
from vae import SCALE, SHIFT

GOLDEN = Path(os.environ.get("STEP1X_GOLDEN", Path(__file__).resolve().parents[3] / "tests" / "data" / "golden"))
BOUND, VAE_BOUND = 5e-5, 2e-4  # float32 in another summation order


class Golden:
    def __init__(self, name: str):
        file = safe_open(GOLDEN / name, "pt")
        self.meta, self.tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        self.seed = int(self.meta["seed"])

    def __getitem__(self, name):
        return self.tensors[name]

    def close(self, name, value, bound=BOUND):
        torch.testing.assert_close(value.squeeze(), self[name].squeeze(), rtol=0, atol=bound, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("version", ["v1p0", "v1p1"])
def test_dit_step(version):
    golden = Golden("dit_step.safetensors")
    model, seen = dit_of(golden.meta, version), {}
    grid = json.loads(golden.meta["packed_grid"])
    given = [golden[f"in.{name}"] for name in ("img", "llm_embedding", "mask", "timestep")]
    velocity = model(*given, grid, seen.__setitem__)
    golden.close(f"{version}.velocity", torch.cat([velocity, golden[f"{version}.velocity"][:, velocity.shape[1]:]], 1))
    inner = {n for n in golden.tensors if n.startswith(version) and not n.endswith((".img_ids", ".velocity"))}
    assert {f"{version}.{name}" for name in seen} == inner
    for name, value in seen.items():
        golden.close(f"{version}.{name}", value)


def runs():
    names = [n.removesuffix(".final") for n in Golden("sampler.safetensors").tensors if n.endswith(".final")]
    return [n for n in names if "teacache" not in n]


@pytest.mark.parametrize("run", runs())
def test_sampler(run):
    golden = Golden("sampler.safetensors")
    model, (h, w) = dit_of(golden.meta, run[:4]), golden["in.noise"].shape[2:]
    noise, reference = sampler.pack(golden["in.noise"]), sampler.pack(golden["in.reference_latent"])
    alone = "t2i" in run
    steps = 4 if alone else int(run.split(".")[1].removeprefix("steps"))
    times = sampler.schedule(steps, noise.shape[1])
    np.testing.assert_allclose(times, golden[f"{run}.timesteps" if alone else f"timesteps.{steps}"], rtol=0, atol=1e-6)

    def velocity(x, t):
        img = torch.cat([x] if alone else [x, reference], dim=1).expand(2, -1, -1)
        return model(img, golden["in.llm_embedding"], golden["in.mask"], torch.full([2], t), (h // 2, w // 2)).split(1)

    latents = []
    limit = 1.0 if run.endswith("plain") else sampler.LIMIT
    x = sampler.denoise(velocity, noise, times, float(golden.meta["cfg"]), limit, latents.append)
    golden.close(f"{run}.final", sampler.unpack(x, h, w))
    if not alone:
        golden.close(f"{run}.latents", torch.cat(latents))


def test_vae():
    golden = Golden("vae.safetensors")
    vae = vae_of(golden.meta)
    mean, logvar = vae.moments(golden["in.image"])
    golden.close("out.mean", mean, VAE_BOUND)
    golden.close("out.logvar", logvar, VAE_BOUND)
    sampled = mean + torch.exp(logvar / 2) * golden["in.posterior_noise"]
    golden.close("out.encoded", SCALE * (sampled - SHIFT), VAE_BOUND)
    golden.close("out.decoded", vae.decode(golden["in.latent"]), VAE_BOUND)


@pytest.mark.parametrize("image", ["image0", "image1"])
def test_qwen(image):
    golden = Golden("qwen.safetensors")
    config = json.loads((GOLDEN / "config_tiny.json").read_text())
    model, seen = load(Qwen(config), golden.seed), {}
    grid, ids = golden[f"{image}.image_grid_thw"][0, 1:].tolist(), golden[f"{image}.input_ids"][0]
    start = ids.tolist().index(config["image_token_id"])
    visible = golden[f"{image}.attention_mask"][:, start:].bool()
    prefix, tail = model(ids[:start], ids[None, start:], golden[f"{image}.pixel_values"][None], grid,
                         golden[f"{image}.position_ids"], visible, seen.__setitem__)
    golden.close(f"{image}.vision_output", seen["vision"])
    for i in range(config["num_hidden_layers"]):
        golden.close(f"{image}.hidden.{i}", torch.cat(seen[f"hidden.{i}"], 1))
    golden.close(f"{image}.final_hidden", torch.cat([prefix, tail], 1))
