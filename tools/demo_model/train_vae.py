"""The autoencoder's training: sharp pictures from latents of about unit variance that bear some noise."""
import torch
from torch import nn
from torch.nn import functional as F

from vae import SCALE, SHIFT

NOISE_MOST = 0.2  # deviation of the noise that the decoder learns to bear, in latents of unit variance
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
    loss = l1 + edge + 0.05 * moments + 0.001 * spread + 0.1 * outliers
    return loss, {"l1": l1, "edge": edge, "moments": moments}


def initialise(vae):
    """Products that keep their input's variance: with the smaller default, colours fade on their way and are learnt late."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
