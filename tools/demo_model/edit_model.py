"""Text encoder, connector and transformer together: from prompts and pictures to velocities and edited latents."""
import torch
from torch import nn

import config
import sampler
from cases import LABELS, TAIL
from dit import Dit
from prompt import PICTURE_TOKENS, VISION_SIDE, Prompter, patches
from qwen import Qwen

GRID = (8, 8)  # packed tokens of 128×128 pixels
TOKENS = GRID[0] * GRID[1]


class EditModel(nn.Module):
    def __init__(self, prompter: Prompter):
        super().__init__()
        self.qwen, self.dit = Qwen(config.qwen(prompter.tokenizer)), Dit(config.DIT)
        self.labeller = nn.Linear(config.DIT["context"], sum(LABELS.values()))  # for training alone
        self.prefix_kept = prompter.cut
        self.register_buffer("prefix", torch.tensor(prompter.prefix), persistent=False)
        self.register_buffer("positions", prompter.positions(PICTURE_TOKENS + TAIL), persistent=False)
        self.register_buffer("pads", torch.full([PICTURE_TOKENS], prompter.image_pad), persistent=False)
        empty = prompter.tail("")
        self.empty_length = len(empty)
        self.register_buffer("empty", torch.tensor(empty + [0] * (TAIL - len(empty))), persistent=False)

    def embed(self, ids, length, pictures):
        """Ids after the picture [B, TAIL], of which `length` [B] count, and pictures uint8 [B, 3, 140, 140].

        Gives the connector's rows [B, 64, D] and which hold tokens [B, 64].
        """
        tails = torch.cat([self.pads.expand(len(ids), -1), ids], dim=1)
        side = VISION_SIDE // 14
        prefix, tail = self.qwen(self.prefix, tails, patches(pictures), (side, side), self.positions)
        rows = torch.cat([prefix[:, self.prefix_kept :].expand(len(ids), -1, -1), tail], dim=1)
        before = rows.shape[1] - TAIL
        valid = (torch.arange(rows.shape[1], device=ids.device) < before + length[:, None]).to(rows.dtype)
        return rows * valid[..., None], valid

    def label_losses(self, rows, valid, labels):
        """Cross entropy [B] of saying from the mean row what the instruction names, summed over kinds of labels."""
        logits = self.labeller((rows * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)).float()
        parts = zip(logits.split(list(LABELS.values()), dim=1), labels.long().unbind(1))
        return sum(nn.functional.cross_entropy(part, label, reduction="none") for part, label in parts)

    @torch.no_grad()
    def edit(self, ids, length, pictures, reference, noise, steps: int, scale: float = sampler.SCALE):
        """Packed latents of the edited pictures; the negative prompt is the empty one with the same picture."""
        cond = self.embed(ids, length, pictures)
        uncond = self.embed(self.empty.expand_as(ids), torch.full_like(length, self.empty_length), pictures)
        rows, valid = (torch.cat(pair) for pair in zip(cond, uncond))

        def velocity(x, t):
            img = torch.cat([x, reference], dim=1).repeat(2, 1, 1)
            return self.dit(img, rows, valid, torch.full([len(img)], t, device=x.device), GRID).chunk(2)

        return sampler.denoise(velocity, noise, sampler.schedule(steps, TOKENS), scale)


def initialise(model: nn.Module):
    """Xavier for products; gates and the last layer begin at zero, so that every block begins as the identity."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
        if name.endswith((".mod.lin", "_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear", "labeller")):
            nn.init.zeros_(module.weight)
