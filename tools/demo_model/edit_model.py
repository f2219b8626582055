"""Text encoder, connector and transformer together: from prompts and pictures to velocities and edited latents."""
import torch
from torch import nn

import config
import sampler
from dit import Dit
from frames import SQUARE, Frame
from prompt import Prompter, patches
from qwen import Qwen
from stream import AFTER, LABELS, padded

ROWS = config.MAX_TEXT - AFTER  # of the connector, from the picture's first on


class EditModel(nn.Module):
    def __init__(self, prompter: Prompter):
        super().__init__()
        self.qwen, self.dit = Qwen(config.qwen(prompter.tokenizer)), Dit(config.DIT)
        self.labeller = nn.Linear(config.DIT["context"], sum(LABELS.values()))  # for training alone
        self.prefix_kept = prompter.cut
        self.register_buffer("prefix", torch.tensor(prompter.prefix), persistent=False)
        self.positions, self.prompter = {}, prompter
        self.register_buffer("pads", torch.full([ROWS], prompter.image_pad), persistent=False)
        empty = prompter.tail("")
        self.empty_length = len(empty)
        self.register_buffer("empty", torch.tensor(padded(empty)), persistent=False)

    def positions_in(self, frame: Frame):
        if frame not in self.positions:
            self.positions[frame] = self.prompter.positions(ROWS, frame.merged).to(self.prefix.device)
        return self.positions[frame]

    def embed(self, ids, length, pictures, frame: Frame = SQUARE):
        """Ids after the picture [B, TAIL], of which `length` [B] count, and pictures uint8 [B, 3, H, W] of the vision tower's size.

        Gives the connector's rows [B, 64, D] and which hold tokens [B, 64].
        """
        taken = frame.picture_tokens
        ids = nn.functional.pad(ids, (0, ROWS - taken - ids.shape[1]))  # fewer ids, where the picture takes more
        tails = torch.cat([self.pads[:taken].expand(len(ids), -1), ids], dim=1)
        grid = tuple(2 * side for side in frame.merged)
        prefix, tail = self.qwen(self.prefix, tails, patches(pictures), grid, self.positions_in(frame))
        rows = torch.cat([prefix[:, self.prefix_kept :].expand(len(ids), -1, -1), tail], dim=1)
        before = AFTER + taken
        valid = (torch.arange(rows.shape[1], device=ids.device) < before + length[:, None]).to(rows.dtype)
        return rows * valid[..., None], valid

    def label_losses(self, rows, valid, labels):
        """Cross entropy [B] of saying from the mean row what the instruction names, summed over kinds of labels."""
        logits = self.labeller((rows * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)).float()
        parts = zip(logits.split(list(LABELS.values()), dim=1), labels.long().unbind(1))
        return sum(nn.functional.cross_entropy(part, label, reduction="none") for part, label in parts)

    @torch.no_grad()
    def edit(self, ids, length, pictures, reference, noise, steps: int, scale: float = sampler.SCALE, frame: Frame = SQUARE):
        """Packed latents of the edited pictures; the negative prompt is the empty one with the same picture."""
        rows, valid = self.embed(ids, length, pictures, frame)
        if scale != 1:
            lengths = torch.full_like(length, self.empty_length)
            without = self.embed(self.empty.expand_as(ids), lengths, pictures, frame)
            rows, valid = (torch.cat(pair) for pair in zip((rows, valid), without))

        def velocity(x, t):
            img = torch.cat([x, reference], dim=1).repeat(2 if scale != 1 else 1, 1, 1)
            velocities = self.dit(img, rows, valid, torch.full([len(img)], t, device=x.device), frame.grid)
            return velocities.chunk(2) if scale != 1 else (velocities, velocities)

        return sampler.denoise(velocity, noise, sampler.schedule(steps, frame.tokens), scale)


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
