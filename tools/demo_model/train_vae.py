"""The autoencoder's training: sharp pictures from latents of about unit variance that bear some noise."""
import torch
from torch import nn
from torch.nn import functional as F

from vae import GROUPS, SCALE, SHIFT

NOISE_MOST = 0.3  # deviation of the noise that the decoder learns to bear, in latents of unit variance
REFERENCE = 3.0  # value of the constant channels that norms begin with
POSTERIOR_LOGVAR = -3.2  # of the encoder's own latents (deviation 2.8): a small, fixed spread


def edges(x):
    return x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1]


def loss_of(vae, pictures):
    """Pictures in [-1, 1]. The loss and its parts."""
    mean, logvar = vae.moments(pictures)
    mean, logvar = mean.float(), logvar.float()
    latents = SCALE * (mean + torch.exp(logvar.clamp(-10, 4) / 2) * torch.randn_like(mean) - SHIFT)
    level = NOISE_MOST * torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    decoded = vae.decode(latents + level * torch.randn_like(latents)).float()
    l1 = F.l1_loss(decoded, pictures)
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(pictures)))
    # Each channel's mean and variance over the batch, so that the official scale and shift give about N(0, 1).
    clean = SCALE * (mean - SHIFT)
    moments = clean.mean((0, 2, 3)).square().mean() + (clean.var((0, 2, 3)) - 1).square().mean()
    spread = (logvar - POSTERIOR_LOGVAR).square().mean()
    outliers = F.relu(clean.abs() - 3).mean()
    loss = l1 + 0.5 * edge + 0.05 * moments + 0.001 * spread + 0.1 * outliers
    return loss, {"l1": l1, "edge": edge, "moments": moments}


def initialise(vae):
    """One channel of every normalised group begins as a large constant.

    A group has but 2 to 4 channels here, so its norm would wipe out what they have in common over the picture: colours of
    large areas. With the constant, which the statistics then mostly follow, a norm begins as nearly a fixed scale.
    """
    begins = ("conv_in", "conv1", "downsample.conv", "upsample.conv", "nin_shortcut")
    adds = ("conv2", "proj_out")
    for name, module in vae.named_modules():
        if name.endswith(begins + adds) and isinstance(module, nn.Conv2d):
            every = module.out_channels // GROUPS
            with torch.no_grad():
                module.weight[::every] = 0
                module.bias[::every] = REFERENCE if name.endswith(begins) else 0
