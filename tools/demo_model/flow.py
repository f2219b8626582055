"""The loss of edits: of velocities, and of the pictures that the decoder makes of what they lead to."""
import torch
from torch import nn
from torch.nn import functional as F

import sampler
from edit_model import EditModel
from frames import Frame
from judge import MARGIN
from judging import unit
from train_vae import NOISE_MOST, edges
from vae import AutoEncoder

FIRST_SHARE, LED_SHARE = 0.25, 0.5  # of samples of pure noise, and of those to which the model itself leads; the others hold their target
EMPTY_SHARE = 0.25  # of the others: prompts replaced by the empty one, with which x alone says what to make
EMPTY_EVERY = 4  # of those led to t below 0.5, likewise
BEYOND_SHARE = 0.4  # of the others, that begin beyond their target
TWICE_EVERY = 2  # every second of those that are led is led in two steps
CHANGED_WEIGHT = 4.0  # of tokens that the edit changes, above that of others
LABEL_WEIGHT = 0.003
SEEN_EVERY = 6  # samples, of which one is decoded and compared as a picture
CLEAN_EVERY = 4  # of those, how many targets are decoded without an edit, to one each
PICTURE_WEIGHT = 1.0


class Whole(nn.Module):
    """All that learns from edits. The encoder is fixed: the pools hold its latents."""

    def __init__(self, edit: EditModel, vae: AutoEncoder):
        super().__init__()
        self.edit, self.vae = edit, vae
        vae.encoder.requires_grad_(False)
        vae.decoder.requires_grad_(True)


@torch.no_grad()
def led(model: EditModel, noise, reference, rows, valid, t, frame: Frame):
    """Where the model leads from pure noise to times t [B]: in one step, or by way of a time between."""

    def step(x, part, start, end):
        velocity = model.dit(torch.cat([x, reference[part]], dim=1), rows[part], valid[part], start, frame.grid).float()
        return x + (end - start)[:, None, None] * velocity

    twice = slice(None, None, TWICE_EVERY)
    between = t.clone()
    between[twice] += torch.rand_like(t[twice]) * (1 - t[twice])
    x = step(noise, slice(None), torch.ones_like(t), between)
    x[twice] = step(x[twice], twice, between[twice], t[twice])
    return x


def strata(count: int, device):
    """Numbers from 0 to 1, one in each part of that range: less noise than any numbers."""
    return ((torch.arange(count, device=device) + torch.rand(count, device=device)) / count).clamp(min=1e-4)


def picture_loss(decoded, pictures, changed):
    """Errors [B] of decoded pictures in [-1, 1] and of their edges: the mean near the changed pixels [B, H, W], plus the mean elsewhere."""
    error = (decoded - pictures).abs().mean(1)
    down, right = ((a - b).abs().mean(1) for a, b in zip(edges(decoded), edges(pictures)))
    error = error + F.pad(down, (0, 0, 0, 1)) + F.pad(right, (0, 1))
    near = F.max_pool2d(changed[:, None].float(), 2 * MARGIN + 1, stride=1, padding=MARGIN)[:, 0]
    return sum((error * region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1) for region in (near, 1 - near))


def seen_loss(vae: AutoEncoder, guesses, known, batch: dict, frame: Frame):
    """What is wrong with some of the samples as pictures. A few are targets with some noise, so that the decoder stays one of an autoencoder."""
    edited, clean = slice(None, None, SEEN_EVERY), slice(1, None, SEEN_EVERY * CLEAN_EVERY)
    pictures, changed = (torch.cat([batch[name][edited], batch[name][clean]]) for name in ("wanted", "changed"))
    clean = batch["target"][clean].float()
    clean = clean + NOISE_MOST * torch.rand(len(clean), 1, 1, device=clean.device) * torch.randn_like(clean)
    latents = torch.cat([guesses[edited], clean])
    decoded = vae.decode(sampler.unpack(latents, frame.height // 8, frame.width // 8)).float()
    weights = torch.cat([known[edited].float(), torch.ones(len(clean), device=clean.device)])
    return (picture_loss(decoded, unit(pictures), changed) * weights).mean()


def flow_loss(whole: Whole, batch: dict, frame: Frame):
    """x = (1 − t)·target + t·noise has the velocity noise − target, and x − t·velocity is the guess at the target. Gives the loss and its parts.

    An edit has one right result, so errors of the guess count alike at every t. A sampler never sees the target in x but as far as the
    model has guessed it; with x that hold it, a model learns to trust x, and the sampler's later steps keep the errors of its first.
    """
    model, target, reference, count = whole.edit, batch["target"].float(), batch["reference"].float(), len(batch["ids"])
    device, first = target.device, int(FIRST_SHARE * len(batch["ids"]))
    held = first + int(LED_SHARE * count)  # from here on x holds the target
    empty = torch.rand(count, device=device) < EMPTY_SHARE
    empty[:held] = False
    ids = torch.where(empty[:, None], model.empty, batch["ids"].long())
    length = torch.where(empty, model.empty_length, batch["length"].long())
    rows, valid = model.embed(ids, length, batch["picture"], frame)
    named = (model.label_losses(rows, valid, batch["labels"]) * ~empty).mean()
    unprompted = slice(first, (first + held) // 2, EMPTY_EVERY)  # times of those that are led ascend
    without = model.embed(model.empty.expand_as(ids[unprompted]), torch.full_like(length[unprompted], model.empty_length),
                          batch["picture"][unprompted], frame)

    noise, change = torch.randn_like(target), target - reference
    t = torch.cat([torch.ones(first, device=device), strata(held - first, device), sampler.bend(strata(count - held, device), frame.tokens)])
    own = slice(first, held)
    x = noise.clone()
    x[own] = led(model, noise[own], reference[own], rows[own], valid[own], t[own], frame)
    rows, valid, empty = rows.clone(), valid.clone(), empty.clone()
    rows[unprompted], valid[unprompted] = without
    empty[unprompted] = True
    # Strong guidance overshoots in the direction of the edit by up to about min(5·(1 − t), t) times its size. Some
    # samples begin beyond their target in that way, so that the model has learnt the way back.
    wide = t[:, None, None]
    beyond = torch.rand(count - held, 1, 1, device=device) * (torch.rand(count - held, 1, 1, device=device) < BEYOND_SHARE)
    beyond = beyond * torch.minimum(5 * (1 - wide[held:]), wide[held:]) * change[held:]
    x[held:] = torch.lerp(target[held:], noise[held:], wide[held:]) + beyond
    predicted = model.dit(torch.cat([x, reference], dim=1), rows, valid, t, frame.grid).float()
    guesses = x - wide * predicted
    errors = (guesses - target).square().mean(2)
    weight = 1 + CHANGED_WEIGHT * (change.abs().mean(2) > 0.15) * ~empty[:, None]  # without a prompt, any change is as likely
    errors = (errors * weight / weight.mean(1, keepdim=True)).mean(1)
    errors = torch.cat([errors[:held], errors[held:] / t[held:]])  # guidance multiplies the errors of the last steps
    target_loss = errors.mean()
    loss, parts = target_loss + LABEL_WEIGHT * named, {"target": target_loss, "named": named}
    parts |= {name: errors[part].mean() for name, part in {"first": slice(first), "led": own, "held": slice(held, None)}.items()}
    parts["seen"] = seen_loss(whole.vae, guesses, ~empty, batch, frame)
    return loss + PICTURE_WEIGHT * parts["seen"], parts
