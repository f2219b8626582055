"""The networks against outputs of the official code: the files of tests/golden, or of the folder STEP1X_GOLDEN."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import sampler
from dit import Dit
from qwen import Qwen
from vae import SCALE, SHIFT, AutoEncoder

GOLDEN = Path(os.environ.get("STEP1X_GOLDEN", Path(__file__).resolve().parents[3] / "tests" / "golden"))
BOUND, VAE_BOUND = 5e-5, 2e-4  # float32 in another summation order
MASK64 = (1 << 64) - 1


def synthetic(name: str, shape, seed: int) -> torch.Tensor:
    """Recipe splitmix-v1: a tensor's values from its name, shape and seed."""
    base = 0xCBF29CE484222325
    for byte in name.encode():
        base = (base ^ byte) * 0x100000001B3 & MASK64
    step = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        z = np.uint64(base ^ seed * int(step) & MASK64) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * step
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    v = np.float32(2) * ((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)) - np.float32(1)
    if name.endswith("scale_factor"):
        mean, amp = -0.91, 0
    elif "embed_tokens" in name:
        mean, amp = 0, 3**0.5 * 0.02
    elif len(shape) == 1:
        mean, amp = (0, 0.02) if name.endswith("bias") else (1, 0.1)
    else:
        mean, amp = 0, (3 / np.prod(shape[1:], dtype=np.float64)) ** 0.5
    return torch.from_numpy(np.float32(mean) + np.float32(amp) * v).reshape(shape)


def load(module, seed: int, rounded: bool = True):
    weights = {name: synthetic(name, p.shape, seed) for name, p in module.state_dict().items()}
    module.load_state_dict({n: w.bfloat16().float() if rounded else w for n, w in weights.items()})
    return module.eval().requires_grad_(False)


class Golden:
    def __init__(self, name: str):
        file = safe_open(GOLDEN / name, "pt")
        self.meta, self.tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        self.seed = int(self.meta["seed"])

    def __getitem__(self, name):
        return self.tensors[name]

    def close(self, name, value, bound=BOUND):
        torch.testing.assert_close(value.squeeze(), self[name].squeeze(), rtol=0, atol=bound, msg=lambda m: f"{name}: {m}")

    def dit(self, version):
        c, connector = json.loads(self.meta["config_dit"]), json.loads(self.meta["config_connector"])
        width = connector["hidden_size"]
        config = {
            "in_channels": c["in_channels"], "vec_in": c["vec_in_dim"], "context": c["context_in_dim"],
            "hidden": c["hidden_size"], "mlp": int(c["mlp_ratio"] * c["hidden_size"]), "depth": c["depth"],
            "depth_single": c["depth_single_blocks"], "connector_hidden": width, "connector_mlp": 4 * width,
            "connector_depth": connector["depth"],
        }
        return load(Dit(config, version == "v1p0"), self.seed)


@pytest.mark.parametrize("version", ["v1p0", "v1p1"])
def test_dit_step(version):
    golden = Golden("dit_step.safetensors")
    model, seen = golden.dit(version), {}
    grid = json.loads(golden.meta["packed_grid"])
    velocity = model(golden["in.img"], golden["in.llm_embedding"], golden["in.mask"], golden["in.timestep"], grid, seen.__setitem__)
    golden.close(f"{version}.velocity", torch.cat([velocity, golden[f"{version}.velocity"][:, velocity.shape[1]:]], 1))
    assert {f"{version}.{name}" for name in seen} == {n for n in golden.tensors if n.startswith(version) and ".in." not in n and "velocity" not in n}
    for name, value in seen.items():
        golden.close(f"{version}.{name}", value)


def runs():
    names = [n.removesuffix(".final") for n in Golden("sampler.safetensors").tensors if n.endswith(".final")]
    return [n for n in names if "teacache" not in n]


@pytest.mark.parametrize("run", runs())
def test_sampler(run):
    golden = Golden("sampler.safetensors")
    model, (h, w) = golden.dit(run[:4]), golden["in.noise"].shape[2:]
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
    c = json.loads(golden.meta["config_vae"])
    vae = load(AutoEncoder([c["ch"] * m for m in c["ch_mult"]], c["num_res_blocks"]), golden.seed, rounded=False)
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
