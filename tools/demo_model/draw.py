"""Scenes of wide.py as pictures of any size, in batches on any device, from distance fields."""
import math

import numpy as np
import torch
from torch.nn import functional as F

from fields import EXTENT, fields
from paints import PAINTS
from render import NOISE_AMPLITUDE, OUTLINE
from scenes import NOISES
from wide import EDGES, MOST_OBJECTS, UNIT

REACH, FINE = 4.0, 50  # edge widths that a profile reaches to either side, and its points in one


def profiles() -> torch.Tensor:
    """Coverage at a signed distance from an edge, for each of EDGES [4, points]; Lanczos' resampling overshoots."""
    x = np.arange(-REACH, REACH + 1e-6, 1 / FINE)
    kernel = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    lanczos = 1 - np.cumsum(kernel) / kernel.sum()
    blur = [0.5 * math.erfc(v / math.sqrt(2)) for v in x]
    assert EDGES == ("hard", "ramp", "lanczos", "blur")
    return torch.tensor(np.stack([x < 0, np.clip(0.5 - x, 0, 1), lanczos, blur]), dtype=torch.float32)


class Drawer:
    def __init__(self, device="cpu"):
        self.fields = torch.from_numpy(fields()).to(device)
        self.paints = torch.tensor(PAINTS, dtype=torch.float32, device=device)
        self.profiles = profiles().to(device)
        coarse = np.random.default_rng(7).uniform(-1, 1, (NOISES, 1, 9, 9)).astype(np.float32)
        self.noise = NOISE_AMPLITUDE * torch.from_numpy(coarse).to(device)

    def covered(self, edge, softness, distance):
        """Coverage [B, 1, H, W] at a distance [B, H, W] in the drawn picture's pixels."""
        at = ((distance / softness[:, None, None] + REACH) * FINE).clamp(0, 2 * REACH * FINE - 1e-3)
        low = at.long()
        flat = edge[:, None, None] * self.profiles.shape[1] + low
        values = self.profiles.flatten()
        return torch.lerp(values[flat], values[flat + 1], at - low)[:, None]

    def ground(self, rows, x, y, edge, softness, scale, size):
        """[B, 3, H, W] in 0..255; x and y [B, W] and [B, H] are in lengths of the scene."""
        period, phase, kind = rows[:, 3] / UNIT, rows[:, 4] / UNIT, rows[:, 6].long()
        first, last = (self.paints[rows[:, i].long()][:, :, None, None] for i in (7, 8))
        across, pattern = rows[:, 9, None, None] > 0, rows[:, 10].long()
        h, w = size
        right, down = (torch.linspace(0, 1, side, device=x.device) for side in (w, h))
        share = torch.where(across, right[None, None, :], down[None, :, None])
        along = torch.where(across, x[:, None, :], y[:, :, None]) + phase[:, None, None]
        period = period[:, None, None]
        off = torch.remainder(along - 1.5 * period, 2 * period)  # from the middle of a second stripe
        stripes = self.covered(edge, softness, (torch.minimum(off, 2 * period - off) - period / 2) * scale)
        kind = kind[:, None, None, None]
        mix = torch.where(kind == 1, share[:, None], torch.where(kind == 2, stripes, 0.0))
        noise = F.interpolate(self.noise[pattern], size=size, mode="bilinear", align_corners=True)
        return first + mix * (last - first) + torch.where(kind == 3, noise, 0.0)

    def distance(self, entry, radius, x, y):
        """Of points x [B, W] and y [B, H] from the edge of one object each, in lengths of the scene [B, H, W]."""
        h, w = y.shape[1], x.shape[1]
        across, down = (v / radius[:, None] / EXTENT for v in (x, y))
        across, down = across[:, None, :].expand(-1, h, w), down[:, :, None].expand(-1, h, w)
        field = F.grid_sample(self.fields[entry][:, None], torch.stack([across, down], dim=3), mode="bilinear",
                              padding_mode="border", align_corners=True)[:, 0]
        beyond = torch.hypot(F.relu(across.abs() - 1), F.relu(down.abs() - 1)) * EXTENT
        return (field + beyond) * radius[:, None, None]

    def __call__(self, rows, width: int, height: int, objects: int = MOST_OBJECTS):
        """Rows of `Picture.row` [B, 53], with at most so many objects, to pictures, uint8 [B, 3, height, width]."""
        rows = rows.to(self.paints.device).float()
        scene_width, scene_height, softness = (rows[:, i, None] / UNIT for i in range(3))
        softness, edge = softness[:, 0], rows[:, 5].long()
        device = rows.device
        x = (torch.arange(width, device=device) + 0.5)[None] / width * scene_width
        y = (torch.arange(height, device=device) + 0.5)[None] / height * scene_height
        scale = (width * height / (scene_width * scene_height)).sqrt()[:, :, None]  # pixels of a length
        picture = self.ground(rows, x, y, edge, softness, scale, (height, width))
        for slot in range(objects):
            entry, paint, radius, left, top, outline = rows[:, 11 + 6 * slot : 17 + 6 * slot].unbind(1)
            there = (entry >= 0)[:, None, None]
            distance = self.distance(entry.long().clamp(min=0), radius / UNIT, x - left[:, None] / UNIT, y - top[:, None] / UNIT)
            for grown, of, seen in ((OUTLINE, outline, there & (outline >= 0)[:, None, None]), (0.0, paint, there)):
                cover = self.covered(edge, softness, torch.where(seen, (distance - grown) * scale, 1e4))
                picture = torch.lerp(picture, self.paints[of.long().clamp(min=0)][:, :, None, None], cover)
        return picture.round().clamp(0, 255).byte()
