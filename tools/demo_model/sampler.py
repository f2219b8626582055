"""Schedule, packing, guidance and Euler steps, as the official sampler has them."""
import math

import torch

LIMIT = 0.93  # times above it use the norm-limited guidance rule
SCALE = 6.0


def bend(t, tokens: int):
    """Times of a schedule, moved towards 1, more so for more noisy tokens."""
    shift = math.exp(0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256))
    return shift / (shift + (1 / t - 1))


def schedule(steps: int, tokens: int) -> list[float]:
    return bend(torch.linspace(1, 0, steps + 1), tokens).tolist()  # in float32, as the official one


def pack(latents):
    """[B, 16, H, W] to tokens [B, H/2·W/2, 64]; a token's channels are (latent channel, row, column)."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens, height: int, width: int):
    """The inverse; height and width of the latents."""
    b, _, c = tokens.shape
    grid = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def guided(cond, uncond, scale: float, limited: bool):
    difference = cond - uncond
    if limited:
        length = difference.norm(dim=-1, keepdim=True)  # of each token
        difference = difference / torch.where(length > 1, length**0.4, torch.ones_like(length))
    return uncond + scale * difference


def denoise(velocity, noise, times, scale: float = SCALE, limit: float = LIMIT, observe=lambda x: None):
    """`velocity(x, t)` gives conditional and unconditional velocities of packed x [B, n, 64]; gives x at the last time."""
    x = noise
    for t, following in zip(times, times[1:]):
        cond, uncond = velocity(x, t)
        x = x + (following - t) * guided(cond.float(), uncond.float(), scale, t > limit)
        observe(x)
    return x
