"""Held-out cases while training: edited by the batched sampler at the model's own size, and judged."""
import copy
import random
import time

import torch
from PIL import Image

import cases
import judge
import sampler
from edit_model import EditModel
from frames import SIZE_LEVEL, Frame, working_size
from prompt import enlarge
from stream import padded

BATCH = 250
SEED = 42  # of the noise


def unit(pictures):
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def bytes_of(pictures):
    """[-1, 1] to 8 bits, truncated as the official code does."""
    return ((pictures.clamp(-1, 1) * 0.5 + 0.5) * 255).byte()


class Group:
    """Cases of a set that are edited at one size."""

    def __init__(self, frame: Frame, numbers: list[int], made: list[tuple], prompter, device):
        self.frame, self.numbers = frame, numbers
        chosen = [made[i] for i in numbers]
        self.source, self.target = (
            torch.cat([judge.at_working_size(Image.fromarray(case[at]), SIZE_LEVEL) for case in chosen]).to(device) for at in (1, 2)
        )
        self.shown = enlarge(self.source, frame)
        ids = [prompter.tail(case[0]["instruction"]) for case in chosen]
        self.ids = torch.tensor([padded(i) for i in ids], device=device)
        self.length = torch.tensor([len(i) for i in ids], device=device)
        noise = torch.randn(len(ids), 16, frame.height // 8, frame.width // 8, generator=torch.Generator().manual_seed(SEED))
        self.noise = sampler.pack(noise.bfloat16().float()).to(device)  # as the official code draws it

    def edited(self, model, vae, steps: int, scale: float):
        pieces, size = [], (self.frame.height // 8, self.frame.width // 8)
        for part in torch.arange(len(self.ids)).split(BATCH):
            reference = sampler.pack(vae.encode(unit(self.source[part])).float())
            given = self.ids[part], self.length[part], self.shown[part], reference, self.noise[part]
            latents = model.edit(*given, steps, scale, self.frame)
            pieces.append(bytes_of(vae.decode(sampler.unpack(latents, *size)).float()))
        return torch.cat(pieces)

    def decoded(self, vae):
        """Targets after the autoencoder alone."""
        return torch.cat([vae.decode(vae.encode(unit(part)).float()).float() for part in self.target.split(BATCH)])


class HeldOut:
    """A set of held-out cases."""

    def __init__(self, run, name: str, made: list[tuple]):
        self.run, self.name, self.described = run, name, [case[0] for case in made]
        self.any_edges = judge.any_edges(self.described[0])  # one rule for the set
        by_frame = {}
        for i, (_, source, _) in enumerate(made):
            height, width = source.shape[:2]
            by_frame.setdefault(Frame(*working_size(width, height)), []).append(i)
        self.groups = [Group(frame, numbers, made, run.prompter, run.device) for frame, numbers in by_frame.items()]

    @torch.no_grad()
    def ceiling(self, vae):
        """Logs how many targets the judge takes for right after the autoencoder alone."""
        right, errors = [], []
        with self.run.amp:
            decoded = [group.decoded(vae) for group in self.groups]
        for group, pictures in zip(self.groups, decoded):
            errors.append((pictures.clamp(-1, 1) - unit(group.target)).abs().mean((1, 2, 3)) * 127.5)
            right.append(judge.judge(group.source, group.target, bytes_of(pictures), self.any_edges)["right"].float())
        shares = {"right": torch.cat(right).mean().item(), "mean_error": torch.cat(errors).mean().item()}
        self.run.log(stage="ceiling", set=self.name, seconds=self.run.seconds(), **shares)

    @torch.no_grad()
    def visit(self, model: EditModel, vae, steps: int, scale: float) -> list:
        """Logs the shares of right edits; gives sources, targets and results, in the set's order."""
        began, right, pictures = time.time(), [False] * len(self.described), [None] * len(self.described)
        for group in self.groups:
            with self.run.amp:
                edited = group.edited(model, vae, steps, scale)
            verdicts = judge.judge(group.source, group.target, edited, self.any_edges)["right"].tolist()
            triples = zip(*(part.cpu().split(1) for part in (group.source, group.target, edited)))
            for number, verdict, triple in zip(group.numbers, verdicts, triples):
                right[number], pictures[number] = verdict, triple
        result = judge.report(self.described, right)
        took = time.time() - began
        self.run.log(stage="judge", set=self.name, sampler_steps=steps, scale=scale, seconds=self.run.seconds(), took=took, **result)
        return pictures


class Judges:
    """The three sets, made by other processes while training begins."""

    def __init__(self, run, pool, counts: dict[str, int | None]):
        self.run, self.sets, self.rounded = run, {}, None
        self.waiting = {name: cases.cases_of(name, count, pool.map) for name, count in counts.items()}

    def ready(self) -> dict[str, HeldOut]:
        for name, made in self.waiting.items():
            self.sets[name] = HeldOut(self.run, name, list(made))
        self.waiting = {}
        return self.sets

    def ceiling(self, vae):
        for held_out in self.ready().values():
            held_out.ceiling(vae)

    def visit(self, averaged, plan):
        """Judges the averaged weights as they would be shipped, rounded to bf16; `plan` lists sets, steps and guidance."""
        if self.rounded is None:
            self.rounded = copy.deepcopy(averaged)
        with torch.no_grad():
            for p, exact in zip(self.rounded.parameters(), averaged.parameters()):
                p.copy_(exact.bfloat16())
        seen, sets = {}, self.ready()
        for name, steps, scale in plan:
            seen[name] = sets[name].visit(self.rounded.edit, self.rounded.vae, steps, scale)
        chosen = [picture for name in seen for picture in random.Random(1).sample(seen[name], min(22, len(seen[name])))]
        judge.sheet(chosen).save(self.run.options.out / "sheet.png")
