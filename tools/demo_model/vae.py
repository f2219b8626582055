"""FLUX's autoencoder: pictures [B, 3, H, W] in [-1, 1] to latents [B, 16, H/8, W/8] and back."""
import torch
from torch import nn
from torch.nn import functional as F

SCALE, SHIFT = 0.3611, 0.1159  # of the latents that the transformer sees
LATENT_CHANNELS = 16
GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """Of sums by channel, in float32: channels lie side by side in memory, and a compiler makes few passes of it."""

    def __init__(self, channels: int, swish: bool = True):
        super().__init__(GROUPS, channels, eps=1e-6)
        self.swish = swish

    def forward(self, x):
        full = x.float()
        groups = len(x), GROUPS, -1
        mean = full.mean((2, 3)).reshape(groups).mean(2, keepdim=True)
        square = full.square().mean((2, 3)).reshape(groups).mean(2, keepdim=True)
        scale = torch.rsqrt((square - mean * mean).clamp(min=0) + self.eps) * self.weight.reshape(1, GROUPS, -1)
        shift = self.bias.reshape(1, GROUPS, -1) - mean * scale
        normed = full * scale.flatten(1)[:, :, None, None] + shift.flatten(1)[:, :, None, None]
        return (F.silu(normed) if self.swish else normed).to(x.dtype)


def conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class ResnetBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(channels_in), conv3(channels_in, channels)
        self.norm2, self.conv2 = GroupNorm(channels), conv3(channels, channels)
        self.nin_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x):
        return self.nin_shortcut(x) + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class AttnBlock(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels, swish=False)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        n = self.norm(x)
        rows = [conv(n).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v)]  # [B, pixels, C]
        h = F.scaled_dot_product_attention(*rows).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # zeros on the right and at the bottom alone


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, then at most one change of it."""

    def __init__(self, channels_in: int, channels: int, blocks: int, change: str | None):
        super().__init__()
        widths = [channels_in] + [channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:]))
        if change == "downsample":
            self.downsample = Downsample(channels)
        if change == "upsample":
            self.upsample = Upsample(channels)
        self.change = change

    def forward(self, x):
        for block in self.block:
            x = block(x)
        return getattr(self, self.change)(x) if self.change else x


class Encoder(nn.Module):
    def __init__(self, channels: list[int], blocks: int):
        super().__init__()
        self.conv_in = conv3(3, channels[0])
        last = len(channels) - 1
        self.down = nn.ModuleList(
            Level(channels[max(i - 1, 0)], c, blocks, "downsample" if i < last else None) for i, c in enumerate(channels)
        )
        self.mid = Middle(channels[-1])
        self.norm_out, self.conv_out = GroupNorm(channels[-1]), conv3(channels[-1], 2 * LATENT_CHANNELS)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    def __init__(self, channels: list[int], blocks: int):
        super().__init__()
        self.conv_in = conv3(LATENT_CHANNELS, channels[-1])
        self.mid = Middle(channels[-1])
        last = len(channels) - 1
        self.up = nn.ModuleList(
            Level(channels[min(i + 1, last)], c, blocks + 1, "upsample" if i > 0 else None) for i, c in enumerate(channels)
        )
        self.norm_out, self.conv_out = GroupNorm(channels[0]), conv3(channels[0], 3)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):  # named by level, so the coarsest comes last in the file and runs first
            h = level(h)
        return self.conv_out(self.norm_out(h))


class AutoEncoder(nn.Module):
    def __init__(self, channels: list[int], blocks: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(channels, blocks), Decoder(channels, blocks)

    def moments(self, pictures):
        """Mean and logarithm of the variance, each [B, 16, H/8, W/8]."""
        return self.encoder(pictures).chunk(2, dim=1)

    def encode(self, pictures):
        """The posterior's mean, as the transformer sees it."""
        return SCALE * (self.moments(pictures)[0] - SHIFT)

    def decode(self, latents):
        return self.decoder(latents / SCALE + SHIFT)
