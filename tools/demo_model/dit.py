"""The diffusion transformer with its connector: text rows, noisy and reference tokens to velocities (v1.0 and v1.1)."""
import math
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

HEAD = 128
AXES = (16, 56, 56)  # rotary channels of time, row and column


def timestep_embedding(t):
    """[B] to [B, 256], cosines first; t runs from 0 to 1."""
    freqs = torch.exp(-math.log(10000) * torch.arange(128, device=t.device, dtype=torch.float32) / 128)
    args = (1000 * t.float())[:, None] * freqs
    return torch.cat([args.cos(), args.sin()], dim=1)


def heads(x):
    """[B, L, heads·128] to [B, heads, L, 128]."""
    return x.unflatten(2, (-1, HEAD)).transpose(1, 2)


def attention(q, k, v, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Linear, SiLU, Linear, under the names that a part of the checkpoint has for them."""

    def __init__(self, first: str, second: str, width_in: int, width: int):
        super().__init__()
        self.names = (first, second)
        self.add_module(first, nn.Linear(width_in, width))
        self.add_module(second, nn.Linear(width, width))

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(F.silu(first(x)))


class Refiner(nn.Module):
    """A block of the connector: affine norms, no rotary positions; c only gates."""

    def __init__(self, width: int, mlp: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.self_attn_qkv, self.self_attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "fc2": nn.Linear(mlp, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h, c, mask):
        gate_attn, gate_mlp = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        q, k, v = (heads(part) for part in self.self_attn_qkv(self.norm1(h)).chunk(3, dim=2))
        h = h + gate_attn * self.self_attn_proj(attention(q, k, v, mask))
        return h + gate_mlp * self.mlp["fc2"](F.silu(self.mlp["fc1"](self.norm2(h))))


class TokenRefiner(nn.Module):
    def __init__(self, context: int, width: int, mlp: int, depth: int):
        super().__init__()
        self.t_embedder = nn.ModuleDict({"mlp": Mlp("0", "2", 256, width)})
        self.c_embedder = Mlp("linear_1", "linear_2", context, width)
        self.input_embedder = nn.Linear(context, width)
        self.individual_token_refiner = nn.ModuleDict({"blocks": nn.ModuleList(Refiner(width, mlp) for _ in range(depth))})

    def forward(self, x, mean, t, mask):
        c = self.t_embedder["mlp"](timestep_embedding(t)) + self.c_embedder(mean)
        h = self.input_embedder(x)
        for block in self.individual_token_refiner["blocks"]:
            h = block(h, c, mask)
        return h


class Connector(nn.Module):
    def __init__(self, config: dict, v1_0: bool):
        super().__init__()
        width, context = config["connector_hidden"], config["context"]
        self.S = TokenRefiner(context, width, config["connector_mlp"], config["connector_depth"])
        self.global_proj_out = nn.Linear(context, config["vec_in"])
        if v1_0:
            self.scale_factor = nn.Parameter(torch.zeros(1))

    def pooled(self, x, valid):
        """Mean of the valid rows [B, context], which joins the time embedding, and the vector made of it [B, 768]."""
        mean = (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        scaled = mean * (1 + self.scale_factor) if hasattr(self, "scale_factor") else mean  # v1.0 alone
        return mean, self.global_proj_out(scaled)

    def forward(self, x, valid, t):
        """x [B, L, context] and valid [B, L] to text rows [B, L, width] and the pooled vector [B, 768]."""
        seen = valid.bool()
        mask = seen[:, None, :, None] & seen[:, None, None, :]
        mask[:, :, :, 0] = True  # so that a padding row sees a key
        mean, pooled = self.pooled(x, valid)
        return self.S(x, mean, t, mask), pooled


def rope_table(ids):
    """(cos, sin) [L, 64] of positions [L, 3]; angles in float64."""
    freqs = [10000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64, device=ids.device) / d) for d in AXES]
    angles = torch.cat([ids[:, axis, None].double() * f for axis, f in enumerate(freqs)], dim=1)
    return angles.cos().float(), angles.sin().float()


def positions(text: int, height: int, width: int, shift: int | None):
    """[L, 3]: text rows at the origin, noisy tokens at (0, y, x), reference tokens `shift` further on every axis."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([torch.zeros_like(y), y, x], dim=2).reshape(-1, 3)
    parts = [torch.zeros(text, 3, dtype=grid.dtype), grid]
    return torch.cat(parts + ([] if shift is None else [grid + shift]))


@lru_cache
def rope_of(text: int, height: int, width: int, shift: int | None, device):
    return rope_table(positions(text, height, width, shift).to(device))


def rotate(x, rope):
    """Neighbouring channels turn as pairs; x [B, heads, L, 128]."""
    cos, sin = rope
    even, odd = x.float().unflatten(3, (-1, 2)).unbind(4)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=4).flatten(3)


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class QKNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_norm, self.key_norm = RMSNorm(HEAD), RMSNorm(HEAD)

    def forward(self, qkv):
        """[B, L, 3·D], ordered (q, k, v; head; channel), to normed q and k, and v."""
        q, k, v = (heads(part) for part in qkv.chunk(3, dim=2))
        return self.query_norm(q), self.key_norm(k), v


class Modulation(nn.Module):
    def __init__(self, width: int, vectors: int):
        super().__init__()
        self.vectors, self.lin = vectors, nn.Linear(width, vectors * width)

    def forward(self, vec):
        return self.lin(F.silu(vec))[:, None].chunk(self.vectors, dim=2)


def norm(x, shift, scale):
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift


class Stream(nn.ModuleDict):
    """One side of a double block."""

    def __init__(self, width: int, mlp: int):
        super().__init__({
            "mod": Modulation(width, 6),
            "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "norm": QKNorm(), "proj": nn.Linear(width, width)}),
            "mlp": nn.Sequential(nn.Linear(width, mlp), nn.GELU(approximate="tanh"), nn.Linear(mlp, width)),
        })


class DoubleBlock(nn.Module):
    def __init__(self, width: int, mlp: int):
        super().__init__()
        for side in ("img", "txt"):
            for name, module in Stream(width, mlp).items():
                self.add_module(f"{side}_{name}", module)

    def ask(self, side, x, modulation):
        attn = getattr(self, f"{side}_attn")
        return attn["norm"](attn["qkv"](norm(x, modulation[0], modulation[1])))

    def answer(self, side, x, attended, modulation):
        _, _, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * getattr(self, f"{side}_attn")["proj"](attended)
        return x + gate2 * getattr(self, f"{side}_mlp")(norm(x, shift2, scale2))

    def forward(self, txt, img, vec, rope):
        mod_txt, mod_img = self.txt_mod(vec), self.img_mod(vec)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(self.ask("txt", txt, mod_txt), self.ask("img", img, mod_img)))
        attended = attention(rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype), v)
        text = txt.shape[1]
        return self.answer("txt", txt, attended[:, :text], mod_txt), self.answer("img", img, attended[:, text:], mod_img)


class SingleBlock(nn.Module):
    def __init__(self, width: int, mlp: int):
        super().__init__()
        self.split = [3 * width, mlp]
        self.linear1, self.linear2 = nn.Linear(width, 3 * width + mlp), nn.Linear(width + mlp, width)
        self.norm, self.modulation = QKNorm(), Modulation(width, 3)

    def forward(self, x, vec, rope):
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(norm(x, shift, scale)).split(self.split, dim=2)
        q, k, v = self.norm(qkv)
        attended = attention(rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype), v)
        return x + gate * self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=2))


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, channels)

    def forward(self, x, vec):
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=2)  # shift first
        return self.linear(norm(x, shift, scale))


class Dit(nn.Module):
    def __init__(self, config: dict, v1_0: bool = False):
        super().__init__()
        width, mlp, channels = config["hidden"], config["mlp"], config["in_channels"]
        self.shift = 0 if v1_0 else 1  # of the reference tokens' positions
        self.connector = Connector(config, v1_0)
        self.img_in, self.txt_in = nn.Linear(channels, width), nn.Linear(config["connector_hidden"], width)
        self.time_in = Mlp("in_layer", "out_layer", 256, width)
        self.vector_in = Mlp("in_layer", "out_layer", config["vec_in"], width)
        self.double_blocks = nn.ModuleList(DoubleBlock(width, mlp) for _ in range(config["depth"]))
        self.single_blocks = nn.ModuleList(SingleBlock(width, mlp) for _ in range(config["depth_single"]))
        self.final_layer = FinalLayer(width, channels)

    def forward(self, img, embedding, valid, t, grid, observe=lambda name, value: None):
        """Velocities [B, n, 64] of the noisy tokens; img [B, 2n, 64] has n reference tokens after them, or [B, n, 64]."""
        text, pooled = self.connector(embedding, valid, t)
        vec = self.time_in(timestep_embedding(t)) + self.vector_in(pooled)
        observe("connector.text", text), observe("connector.pooled", pooled), observe("vec", vec)
        n = grid[0] * grid[1]
        shift = self.shift if img.shape[1] > n else None
        rope = rope_of(text.shape[1], *grid, shift, img.device)
        txt, img = self.txt_in(text), self.img_in(img)
        for i, block in enumerate(self.double_blocks):
            txt, img = block(txt, img, vec, rope)
            observe(f"double.{i}.txt", txt), observe(f"double.{i}.img", img)
        x = torch.cat([txt, img], dim=1)
        for i, block in enumerate(self.single_blocks):
            x = block(x, vec, rope)
            observe(f"single.{i}", x)
        return self.final_layer(x[:, text.shape[1]:][:, :n], vec)
