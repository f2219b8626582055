"""Trains the demo model, in calls of a few minutes that go on where the last one stopped.

    python train.py --out run --minutes 8.5 --total 24       # the same command again until it says that it is done

The schedule follows the clock: of `total` minutes over all calls, the first fifth goes to the autoencoder, the rest to text
model, vision tower, connector and transformer by flow matching. A call ends by itself after `minutes`; one that is killed
loses what came after its last checkpoint.
"""
import argparse
import copy
import os
import time
from pathlib import Path

import torch

import judge
import sampler
import train_vae
from cases import held_out_cases, training_cases
from checkpoint import Log, State, load_weights, save_weights
from config import VAE_BLOCKS, VAE_CHANNELS
from edit_model import TOKENS, EditModel, initialise
from prompt import Prompter, enlarge, tokenizer_at
from render import Renderer
from stepper import Stepper
from vae import AutoEncoder, ResnetBlock

EMPTY_SHARE = 0.1  # of prompts replaced by the empty one
CHANGED_WEIGHT = 4.0  # of tokens that the edit changes, above that of others
LABEL_WEIGHT = 0.05
PREFETCHED = 16  # times that a rendered and encoded case is used, with other noise


def parse():
    parser = argparse.ArgumentParser(description="Train the demo model; call again to go on.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and sample sheets; resumed if it exists")
    parser.add_argument("--minutes", type=float, default=8.5, help="of this call")
    parser.add_argument("--total", type=float, default=24, help="minutes of all calls together")
    parser.add_argument("--vae-share", type=float, default=0.2, help="of the total time, for the autoencoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--cases", type=int, default=400_000, help="instructions made at the start of each call")
    parser.add_argument("--pool", type=int, default=32_768, help="encoded cases kept on the device")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count()))
    parser.add_argument("--held-out", type=int, default=500, help="cases that the judge sees")
    parser.add_argument("--eval-seconds", type=float, default=75, help="between two visits of the judge")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--matrix-rate", type=float, default=5e-3, help="of the blocks' matrices, by Muon")
    parser.add_argument("--vae-rate", type=float, default=1e-3, help="of AdamW, for the autoencoder")
    parser.add_argument("--vae-matrix-rate", type=float, default=3e-3, help="of the autoencoder's filters, by Muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


class Run:
    """What all stages share: options, clock, state, log, renderer."""

    def __init__(self, options):
        self.options, self.device, self.began = options, options.device, time.time()
        options.out.mkdir(parents=True, exist_ok=True)
        self.state, self.log = State(options.out), Log(options.out / "log.jsonl")
        self.state.values["calls"] += 1
        self.before = self.state.values["seconds"]
        torch.manual_seed(options.seed + 1000 * self.state.values["calls"])
        torch.set_float32_matmul_precision("high")
        self.render = Renderer(self.device)
        self.compiled = self.device.startswith("cuda") and not options.no_compile
        torch._dynamo.config.recompile_limit = 64  # blocks of one kind are compiled once for every shape
        self.amp = torch.autocast(self.device.split(":")[0], torch.bfloat16)
        seed = options.seed * 100 + self.state.values["calls"]
        tokenizer = options.out / "tokenizer.json"
        self.prompter = Prompter(tokenizer_at(tokenizer))
        cases = training_cases(seed, options.cases, options.workers, tokenizer)
        self.cases = {name: values.to(self.device) for name, values in cases.items()}
        self.log(event="start", call=self.state.values["calls"], cases=options.cases, seconds=self.seconds(), device=self.card())

    def card(self):
        return torch.cuda.get_device_name() if self.device.startswith("cuda") else self.device

    def seconds(self) -> float:
        """Of all calls so far."""
        return self.before + time.time() - self.began

    def progress(self, first: float, last: float) -> float:
        """How much of a stage's share of the total time is over."""
        return min(1.0, (self.seconds() / (60 * self.options.total) - first) / (last - first))

    def must_stop(self) -> bool:
        return time.time() - self.began > 60 * self.options.minutes

    def save(self, name: str, averaged: torch.nn.Module, steps: int):
        weights = averaged.state_dict()
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise SystemExit("weights are not finite any more; call again to go on from the last checkpoint")
        save_weights(self.options.out, name, weights)
        self.state.values[f"{name}_steps"] = steps
        self.state.values["seconds"] = self.seconds()
        self.state.save()

    def restore(self, name: str, module: torch.nn.Module) -> int:
        """Steps done before; the weights are the averaged ones, and the optimiser begins anew with a short warmup."""
        weights = load_weights(self.options.out, name)
        if weights:
            module.load_state_dict(weights)
        return self.state.values.get(f"{name}_steps", 0)


def filters(vae) -> list:
    """Weights of the convolutions inside blocks."""
    return [p for name, p in vae.named_parameters() if p.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out"))]


def compile_each(modules):
    """Each kind of block once; its copies share the code."""
    for module in modules:
        module.compile(dynamic=False)


def decay(run: Run, span: tuple[float, float]):
    """Constant, then linear to nothing over the last half of a stage, by the clock."""
    return lambda: min(1.0, (1 - run.progress(*span)) / 0.5)


def unit(pictures):
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def bytes_of(pictures):
    """[-1, 1] to 8 bits, truncated as the official code does."""
    return ((pictures.clamp(-1, 1) * 0.5 + 0.5) * 255).byte()


def learn(run: Run, stage: str, stepper: Stepper, span: tuple[float, float], done: int, judged):
    """Steps until the stage's share of the time, or this call, is over; checkpoints, of which `judged()` sees all but the last."""
    visited = time.time()
    while run.progress(*span) < 1 and not run.must_stop():
        stepper.step()
        if stepper.due():
            run.log(stage=stage, step=done + stepper.steps, seconds=run.seconds(), **stepper.means())
        if time.time() - visited > run.options.eval_seconds:
            run.save(stage, stepper.averaged, done + stepper.steps)
            judged()
            stepper.restart()
            visited = time.time()
    run.save(stage, stepper.averaged, done + stepper.steps)


def train_autoencoder(run: Run, held_out):
    """Until its share of the time, or this call, is over. Gives the averaged weights."""
    options, span = run.options, (0.0, run.options.vae_share)
    vae = AutoEncoder(VAE_CHANNELS, VAE_BLOCKS).to(run.device, memory_format=torch.channels_last)
    train_vae.initialise(vae)
    done = run.restore("vae", vae)

    def loss():
        index = torch.randint(options.cases, (options.vae_batch,), device=run.device)
        sources = torch.rand(options.vae_batch, 1, device=run.device) < 0.5
        pictures = unit(run.render(torch.where(sources, run.cases["source"][index], run.cases["target"][index])))
        with run.amp:
            return train_vae.loss_of(vae, pictures)

    stepper = Stepper(vae, loss, decay(run, span), options.vae_rate, filters(vae), options.vae_matrix_rate)
    if run.compiled:
        compile_each(module for module in vae.modules() if isinstance(module, ResnetBlock))
    learn(run, "vae", stepper, span, done, lambda: held_out.ceiling(stepper.averaged))
    return stepper.averaged


class Latents:
    """A pool of encoded cases on the device, of which a part is made anew for every batch."""

    def __init__(self, run: Run, vae):
        self.run, self.size = run, run.options.pool
        self.count = max(1, run.options.batch // PREFETCHED)
        self.vae = copy.deepcopy(vae)
        if run.compiled:
            compile_each(module for module in self.vae.encoder.modules() if isinstance(module, ResnetBlock))
        self.at = torch.zeros((), dtype=torch.long, device=run.device)
        self.fresh = torch.arange(self.count, device=run.device)
        self.store = {}
        for _ in range(0, self.size, self.count):
            self.renew()

    @torch.no_grad()
    def encode(self, index):
        source, target = (self.run.render(self.run.cases[name][index]) for name in ("source", "target"))
        with self.run.amp:
            latents = self.vae.encode(unit(torch.cat([source, target]))).float()
        reference, wanted = sampler.pack(latents).chunk(2)
        texts = {name: self.run.cases[name][index] for name in ("ids", "length", "labels")}
        return {"reference": reference.bfloat16(), "target": wanted.bfloat16(), "picture": enlarge(source)} | texts

    def renew(self):
        index = torch.randint(self.run.options.cases, (self.count,), device=self.run.device)
        places = (self.at + self.fresh) % self.size
        self.at.add_(self.count)
        for name, values in self.encode(index).items():
            if name not in self.store:
                self.store[name] = torch.empty(self.size, *values.shape[1:], dtype=values.dtype, device=values.device)
            self.store[name][places] = values

    def batch(self) -> dict:
        self.renew()
        places = torch.randint(self.size, (self.run.options.batch,), device=self.run.device)
        return {name: values[places] for name, values in self.store.items()}


def flow_loss(model: EditModel, batch: dict):
    """Flow matching: x = (1 − t)·target + t·noise has the velocity noise − target. Gives the loss and its parts."""
    target, reference, count = batch["target"].float(), batch["reference"].float(), len(batch["ids"])
    device = target.device
    empty = torch.rand(count, device=device) < EMPTY_SHARE
    ids = torch.where(empty[:, None], model.empty, batch["ids"].long())
    length = torch.where(empty, model.empty_length, batch["length"].long())
    rows, valid = model.embed(ids, length, batch["picture"])
    named = (model.label_losses(rows, valid, batch["labels"]) * ~empty).mean()

    t = sampler.bend(torch.rand(count, device=device).clamp(min=1e-4), TOKENS)
    noise, change = torch.randn_like(target), target - reference
    # Strong guidance overshoots in the direction of the edit by up to about min(5·(1 − t), t) times its size. Half of the
    # samples begin beyond their target in that way, so that the model has learnt the way back.
    wide = t[:, None, None]
    beyond = torch.rand(count, 1, 1, device=device) * (torch.rand(count, 1, 1, device=device) < 0.5)
    beyond = beyond * torch.minimum(5 * (1 - wide), wide) * change
    x = (1 - wide) * target + wide * noise + beyond
    velocity = noise - target + beyond / wide
    weight = 1 + CHANGED_WEIGHT * (change.abs().mean(2) > 0.15) * ~empty[:, None]  # without a prompt, any change is as likely
    predicted = model.dit(torch.cat([x, reference], dim=1), rows, valid, t, (8, 8)).float()
    errors = (predicted - velocity).square().mean(2)
    flow = (errors * weight / weight.mean(1, keepdim=True)).mean()
    return flow + LABEL_WEIGHT * named, {"flow": flow, "named": named}


class HeldOut:
    """The held-out cases, edited by the batched sampler and judged."""

    def __init__(self, run: Run):
        self.run = run
        self.described, arrays = held_out_cases(run.options.held_out, run.prompter)
        self.source, self.target = run.render(arrays["source"]), run.render(arrays["target"])
        self.ids, self.length = (arrays[name].long().to(run.device) for name in ("ids", "length"))
        generator = torch.Generator().manual_seed(42)
        noise = torch.randn(len(self.ids), 16, 16, 16, generator=generator)
        self.noise = sampler.pack(noise.bfloat16().float()).to(run.device)  # as the official code draws it

    @torch.no_grad()
    def ceiling(self, vae):
        """Logs how many targets the judge takes for right after the autoencoder alone."""
        pictures = []
        for part in self.target.split(250):
            with self.run.amp:
                pictures.append(vae.decode(vae.encode(unit(part)).float()).float())
        decoded = torch.cat(pictures)
        error = (decoded.clamp(-1, 1) - unit(self.target)).abs().mean() * 127.5
        right = judge.judge(self.source, self.target, bytes_of(decoded))["right"].float().mean()
        self.run.log(stage="ceiling", seconds=self.run.seconds(), right=right.item(), mean_error=error.item())

    def edited(self, model, vae, steps: int, scale: float):
        with torch.no_grad(), self.run.amp:
            pieces = []
            for part in torch.arange(len(self.ids)).split(250):
                reference = sampler.pack(vae.encode(unit(self.source[part])).float())
                shown = enlarge(self.source[part])
                noise = self.noise[part]
                latents = model.edit(self.ids[part], self.length[part], shown, reference, noise, steps, scale)
                pictures = vae.decode(sampler.unpack(latents, 16, 16)).float()
                pieces.append(bytes_of(pictures))
        return torch.cat(pieces)

    def visit(self, averaged: EditModel, vae, steps: int, scale: float = sampler.SCALE):
        """Judges the averaged weights as they would be shipped, rounded to bf16; logs the shares and writes a sheet."""
        began, rounded = time.time(), copy.deepcopy(averaged)
        for p in rounded.parameters():
            p.data = p.data.bfloat16().float()
        edited = self.edited(rounded, vae, steps, scale)
        measures = judge.judge(self.source, self.target, edited)
        result = judge.report(self.described, measures["right"].tolist())
        took = time.time() - began
        self.run.log(stage="judge", sampler_steps=steps, scale=scale, seconds=self.run.seconds(), took=took, **result)
        sheet = judge.sheet(self.source.cpu(), self.target.cpu(), edited.cpu(), 44)
        sheet.save(self.run.options.out / f"sheet_{steps}_{scale:g}.png")


def blocks_of(model: EditModel) -> list:
    return [*model.qwen.model.layers, *model.qwen.visual.blocks, *model.dit.double_blocks, *model.dit.single_blocks]


def block_matrices(model: EditModel) -> list:
    """Weights of products of rows; modulation works on one vector, and is not among them."""
    refiners = model.dit.connector.S.individual_token_refiner["blocks"]
    named = [pair for block in [*blocks_of(model), *refiners] for pair in block.named_parameters()]
    return [p for name, p in named if p.ndim == 2 and not any(part in name for part in ("mod.", "modulation", "adaLN"))]


def train_edits(run: Run, vae, held_out):
    """Until the total time, or this call, is over. True if all is done."""
    options = run.options
    span = (options.vae_share, 1.0)
    model = EditModel(run.prompter).to(run.device)
    initialise(model)
    done = run.restore("edit", model)
    latents = Latents(run, vae)
    held_out.ceiling(vae)

    def loss():
        batch = latents.batch()
        with run.amp:
            return flow_loss(model, batch)

    stepper = Stepper(model, loss, decay(run, span), options.learning_rate, block_matrices(model), options.matrix_rate)
    if run.compiled:
        compile_each(blocks_of(model))
    run.log(event="edits", step=done, seconds=run.seconds(), parameters=sum(p.numel() for p in model.parameters()))
    learn(run, "edit", stepper, span, done, lambda: held_out.visit(stepper.averaged, vae, 28))
    for steps, scale in ((28, 1.0), (8, sampler.SCALE), (28, sampler.SCALE)):
        held_out.visit(stepper.averaged, vae, steps, scale)
    return run.progress(*span) >= 1


def main():
    run = Run(parse())
    held_out = HeldOut(run)
    vae = train_autoencoder(run, held_out)
    finished = False
    if not run.must_stop():
        for p in vae.parameters():
            p.data = p.data.bfloat16().float()  # as it is shipped
        finished = train_edits(run, vae, held_out)
    run.state.values["seconds"] = run.seconds()
    run.state.save()
    run.log(event="done" if finished else "stopped", seconds=run.seconds())


if __name__ == "__main__":
    main()
