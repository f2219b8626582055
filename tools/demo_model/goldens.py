"""Golden files of this implementation: the official files' names, tensors and headers, with another seed and other shapes.

    python goldens.py --official ../../tests/data/golden --out goldens --seed 1

The runtime's golden tests read the folder that STEP1X_GOLDEN names.
"""
import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import sampler
from dit import Dit, positions
from prompt import patches
from qwen import Qwen
from vae import SCALE, SHIFT, AutoEncoder

MASK64 = (1 << 64) - 1
LENGTH, VALID = 48, (29, 9)  # text rows, and how many of each branch hold tokens
VAE_INNER = ("encoder.down.0.downsample", "encoder.mid.attn_1", "decoder.mid.block_2", "decoder.up.3.upsample")
MADE_BY = {"made_by": "tools/demo_model, not the official code"}


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


def dit_of(meta: dict, version: str) -> Dit:
    c, connector = json.loads(meta["config_dit"]), json.loads(meta["config_connector"])
    width = connector["hidden_size"]
    config = {
        "in_channels": c["in_channels"], "vec_in": c["vec_in_dim"], "context": c["context_in_dim"], "hidden": c["hidden_size"],
        "mlp": int(c["mlp_ratio"] * c["hidden_size"]), "depth": c["depth"], "depth_single": c["depth_single_blocks"],
        "connector_hidden": width, "connector_mlp": 4 * width, "connector_depth": connector["depth"],
    }
    return load(Dit(config, version == "v1p0"), int(meta["seed"]))


def vae_of(meta: dict) -> AutoEncoder:
    c = json.loads(meta["config_vae"])
    return load(AutoEncoder([c["ch"] * m for m in c["ch_mult"]], c["num_res_blocks"]), int(meta["seed"]), rounded=False)


def prompts(generator, width: int) -> dict:
    mask = (torch.arange(LENGTH) < torch.tensor(VALID)[:, None]).int()
    embedding = torch.randn(2, LENGTH, width, generator=generator) * mask[..., None]
    return {"in.llm_embedding": embedding, "in.mask": mask}


def dit_step(meta: dict, generator) -> dict:
    grid = (5, 3)
    n = grid[0] * grid[1]
    given = prompts(generator, json.loads(meta["config_dit"])["context_in_dim"])
    given["in.img"] = torch.randn(2, 2 * n, 64, generator=generator)
    given["in.timestep"] = torch.tensor([0.37, 0.37])
    meta |= {"packed_grid": json.dumps(grid), "latent_grid": json.dumps([10, 6]), "valid_text_rows": json.dumps(VALID)}
    tensors = dict(given)
    for version in ("v1p0", "v1p1"):
        model, seen = dit_of(meta, version), {}
        model(given["in.img"], given["in.llm_embedding"], given["in.mask"], given["in.timestep"], grid, seen.__setitem__)
        last = seen[f"single.{len(model.single_blocks) - 1}"]
        seen["velocity"] = model.final_layer(last[:, LENGTH:], seen["vec"])  # of all image rows, as the official file has it
        seen["in.img_ids"] = positions(0, *grid, model.shift).float().expand(2, -1, -1)
        tensors |= {f"{version}.{name}": value for name, value in seen.items()}
    return tensors


def sampler_runs(meta: dict, generator) -> dict:
    h, w = 6, 10
    given = prompts(generator, json.loads(meta["config_dit"])["context_in_dim"])
    given |= {f"in.{name}": torch.randn(1, 16, h, w, generator=generator) for name in ("noise", "reference_latent")}
    meta |= {"latent_grid": json.dumps([h, w]), "valid_text_rows": json.dumps(VALID)}
    noise, reference = sampler.pack(given["in.noise"]), sampler.pack(given["in.reference_latent"])
    tensors = dict(given)
    for version in ("v1p0", "v1p1"):
        model = dit_of(meta, version)

        def velocity(x, t):
            img = torch.cat([x, reference], dim=1).expand(2, -1, -1)
            return model(img, given["in.llm_embedding"], given["in.mask"], torch.full([2], t), (h // 2, w // 2)).split(1)

        for steps in (3, 12):
            times = sampler.schedule(steps, noise.shape[1])
            tensors[f"timesteps.{steps}"] = torch.tensor(times)
            for rule, limit in (("limited", sampler.LIMIT), ("plain", 1.0)):
                latents = []
                final = sampler.denoise(velocity, noise, times, float(meta["cfg"]), limit, latents.append)
                tensors[f"{version}.steps{steps}.{rule}.final"] = sampler.unpack(final, h, w)
                tensors[f"{version}.steps{steps}.{rule}.latents"] = torch.cat(latents)
    return tensors


def vae_tensors(meta: dict, generator) -> dict:
    image = torch.rand(1, 3, 48, 80, generator=generator) * 2 - 1
    noise, latent = (torch.randn(1, 16, 6, 10, generator=generator) for _ in range(2))
    vae, inner = vae_of(meta), {}
    for name in VAE_INNER:
        vae.get_submodule(name).register_forward_hook(lambda _, given, result, name=name: inner.update({name: result}))
    mean, logvar = vae.moments(image)
    encoded = SCALE * (mean + torch.exp(logvar / 2) * noise - SHIFT)
    decoded = vae.decode(latent)
    given = {"in.image": image, "in.posterior_noise": noise, "in.latent": latent}
    return given | inner | {"out.mean": mean, "out.logvar": logvar, "out.encoded": encoded, "out.decoded": decoded}


def qwen_tensors(meta: dict, generator, official: dict, config: dict) -> dict:
    """Other pixels and weights under the official ids, positions and windows."""
    model, tensors = load(Qwen(config), int(meta["seed"])), {}
    kept = ("attention_mask", "cu_window_seqlens", "image_grid_thw", "input_ids", "position_ids", "window_index")
    for image in ("image0", "image1"):
        own = {name: official[f"{image}.{name}"] for name in kept}
        own["rgb"] = torch.randint(0, 256, official[f"{image}.rgb"].shape, generator=generator, dtype=torch.uint8)
        own["pixel_values"] = patches(own["rgb"].permute(2, 0, 1)[None])[0]
        ids, seen = own["input_ids"][0], {}
        start = ids.tolist().index(config["image_token_id"])
        visible = own["attention_mask"][:, start:].bool()
        hidden = model(ids[:start], ids[None, start:], own["pixel_values"][None], own["image_grid_thw"][0, 1:].tolist(),
                       own["position_ids"], visible, seen.__setitem__)
        own["vision_output"] = seen["vision"][0]
        own |= {f"hidden.{i}": torch.cat(seen[f"hidden.{i}"], 1)[0] for i in range(config["num_hidden_layers"])}
        own["final_hidden"] = torch.cat(hidden, 1)[0]
        tensors |= {f"{image}.{name}": value for name, value in own.items()}
    return tensors


def main():
    parser = argparse.ArgumentParser(description="Write golden files of this implementation.")
    parser.add_argument("--official", type=Path, required=True, help="folder of the official golden files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((options.official / "config_tiny.json").read_text())
    shutil.copy(options.official / "config_tiny.json", options.out)
    makers = {"dit_step": dit_step, "sampler": sampler_runs, "vae": vae_tensors, "qwen": qwen_tensors}
    for name, make in makers.items():
        file = safe_open(options.official / f"{name}.safetensors", "pt")
        meta = file.metadata() | {"seed": str(options.seed)} | MADE_BY
        generator = torch.Generator().manual_seed(options.seed)
        more = ({key: file.get_tensor(key) for key in file.keys()}, config) if name == "qwen" else ()
        tensors = make(meta, generator, *more)
        save_file({key: value.contiguous() for key, value in tensors.items()}, options.out / f"{name}.safetensors", meta)


if __name__ == "__main__":
    main()
