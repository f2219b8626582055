"""Qwen2.5-VL's vision tower and text model, as far as an edit's prompt needs them."""
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

PATCH, MERGE = 14, 2


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        full = x.float()
        return self.weight * (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotate_half(x, rope):
    """x [..., L, C] with the pairs (j, j + C/2); (cos, sin) [L, C/2]."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width: int, mlp: int, bias: bool):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, mlp, bias=bias), nn.Linear(width, mlp, bias=bias)
        self.down_proj = nn.Linear(mlp, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = Mlp(width, mlp, bias=True)

    def forward(self, x, rope, mask):
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = rotate_half(qkv[0], rope), rotate_half(qkv[1], rope), qkv[2]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](attended)
        return x + self.mlp(self.norm2(x))


def window_order(grid, window: int):
    """Merged tokens in window order, and each one's window, for a grid of patches (height, width)."""
    height, width = grid[0] // MERGE, grid[1] // MERGE
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    number = (y // window * -(-width // window) + x // window).flatten()
    order = torch.argsort(number, stable=True)
    return order, number[order]


class Merger(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.ln_q = RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.GELU(), nn.Linear(4 * width, out))

    def forward(self, x):
        return self.mlp(self.ln_q(x).unflatten(1, (-1, 4)).flatten(2))


class Vision(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width = config["hidden_size"]
        self.window, self.full = config["window_size"] // (PATCH * MERGE), config["fullatt_block_indexes"]
        self.head = width // config["num_heads"]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, (2, PATCH, PATCH), (2, PATCH, PATCH), bias=False)})
        self.blocks = nn.ModuleList(
            VisionBlock(width, config["num_heads"], config["intermediate_size"]) for _ in range(config["depth"])
        )
        self.merger = Merger(width, config["out_hidden_size"])

    def rope(self, grid, rows):
        """(cos, sin) [P, head/2] of patches in block order, taken at `rows`; first the pairs of the row, then of the column."""
        y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        blocks = torch.stack([y, x], dim=2).reshape(grid[0] // 2, 2, grid[1] // 2, 2, 2).transpose(1, 2).reshape(-1, 2)
        freqs = 1 / 10000 ** (torch.arange(0, self.head // 2, 2, dtype=torch.float32) / (self.head // 2))
        angles = (blocks[rows].float()[:, :, None] * freqs).flatten(1)
        return angles.cos(), angles.sin()

    @lru_cache
    def layout(self, grid, device):
        """Order of merged tokens and of patches, which patches share a window, rotary table: all in window order."""
        order, number = window_order(grid, self.window)
        rows = (4 * order[:, None] + torch.arange(4)).flatten()
        number = number.repeat_interleave(4).to(device)
        rope = [part.to(device) for part in self.rope(grid, rows)]
        return order.to(device), rows.to(device), number[:, None] == number, rope

    def forward(self, pixel_values, grid, observe=lambda name, value: None):
        """Patches in block order [B, P, 1176] to merged tokens in reading order [B, P/4, out]."""
        order, rows, same_window, rope = self.layout(tuple(grid), pixel_values.device)
        x = pixel_values @ self.patch_embed["proj"].weight.flatten(1).T.to(pixel_values.dtype)
        observe("patch_embed", x)
        x = x[:, rows]
        for i, block in enumerate(self.blocks):
            x = block(x, rope, None if i in self.full else same_window)
            observe(f"block{i}", x)
        return self.merger(x)[:, torch.argsort(order)]


class TextLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, self.queries, self.keys = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
        self.head = width // self.queries
        kv = self.keys * self.head
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)
        self.self_attn = nn.ModuleDict({
            "q_proj": nn.Linear(width, width), "k_proj": nn.Linear(width, kv), "v_proj": nn.Linear(width, kv),
            "o_proj": nn.Linear(width, width, bias=False),
        })
        self.mlp = Mlp(width, config["intermediate_size"], bias=False)

    def project(self, x, rope):
        n = self.input_layernorm(x)
        q, k, v = (self.self_attn[f"{name}_proj"](n).unflatten(2, (-1, self.head)).transpose(1, 2) for name in "qkv")
        return rotate_half(q, rope), rotate_half(k, rope), v

    def finish(self, x, attended):
        x = x + self.self_attn["o_proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))

    def forward(self, prefix, x, ropes, masks):
        """The rows that all sequences of the batch begin with [1, P, D], computed once, and what follows [B, T, D]."""
        repeat = self.queries // self.keys
        (qp, kp, vp), (q, k, v) = self.project(prefix, ropes[0]), self.project(x, ropes[1])
        everything = [torch.cat([a.expand(len(x), -1, -1, -1), b], dim=2) for a, b in ((kp, k), (vp, v))]
        results = []
        for rows, query, pair, mask in ((prefix, qp, (kp, vp), masks[0]), (x, q, everything, masks[1])):
            key, value = (part.repeat_interleave(repeat, dim=1) for part in pair)
            results.append(self.finish(rows, F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))
        return results


class TextModel(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"])


def mrope(positions, config: dict):
    """(cos, sin) [L, 64] of positions (time, row, column) [3, L]."""
    device, sections = positions.device, config["rope_scaling"]["mrope_section"]
    axis = torch.cat([torch.full([pairs], i, device=device) for i, pairs in enumerate(sections)])
    freqs = 1 / config["rope_theta"] ** (torch.arange(0, 128, 2, dtype=torch.float32, device=device) / 128)
    angles = positions[axis].float().T * freqs
    return angles.cos(), angles.sin()


class Qwen(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config, self.visual, self.model = config, Vision(config["vision_config"]), TextModel(config)

    def forward(self, prefix, tails, pixel_values, grid, positions, visible=None, observe=lambda name, value: None):
        """Hidden states after the final norm, of the prefix [1, P, D] and of the tails [B, T, D].

        The first rows of `tails` [B, T] are the picture's; positions [3, P + T] hold for every sequence. `visible`
        [B, T] is False where a token of the tail is no key to others.
        """
        device, (p, t) = tails.device, (len(prefix), tails.shape[1])
        picture = self.visual(pixel_values, grid)
        observe("vision", picture)
        x = self.model.embed_tokens(tails)
        x = torch.cat([picture.to(x.dtype), x[:, picture.shape[1]:]], dim=1)
        first = self.model.embed_tokens(prefix)[None]
        cos, sin = (part.to(device) for part in mrope(positions, self.config))
        ropes = [(cos[:p], sin[:p]), (cos[p:], sin[p:])]
        causal = torch.ones(p + t, p + t, dtype=torch.bool, device=device).tril()
        masks = [causal[:p, :p], causal[p:]]
        if visible is not None:
            keys = torch.cat([torch.ones(len(tails), p, dtype=torch.bool, device=device), visible], dim=1)
            masks[1] = masks[1] & keys[:, None, None, :]
        for i, layer in enumerate(self.model.layers):
            observe(f"hidden.{i}", (first, x))
            first, x = layer(first, x, ropes, masks)
        return self.model.norm(first), self.model.norm(x)
