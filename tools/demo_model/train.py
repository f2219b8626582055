"""Trains the demo model, in calls of a few minutes that go on where the last one stopped.

    python train.py --out run --minutes 9 --total 24                  # again until it is done, the last time with --last
    python train.py --out run --from ../../assets/demo-model ...      # begins with a model folder's weights
    torchrun --standalone --nproc-per-node 4 train.py --out run ...   # on four GPUs, each with its share of a batch

The schedule follows the clock: of `total` minutes over all calls, the first fifth goes to the autoencoder, the rest to text
model, vision tower, connector and transformer by flow matching. A call ends by itself after `minutes`; one that is killed
loses what came after its last checkpoint.
"""
import argparse
import copy
import math
import os
import random
import time
from collections import Counter
from pathlib import Path

import torch

import export
import ranks
import sampler
import train_vae
from cases import SETS
from checkpoint import Log, State, load_weights, save_weights
from config import VAE_BLOCKS, VAE_CHANNELS
from draw import Drawer
from edit_model import EditModel, initialise
from flow import Whole, flow_loss
from frames import FRAMES, SQUARE, Frame
from judge import changed_region
from judging import Judges, unit
from prompt import Prompter, enlarge, tokenizer_at
from render import Renderer
from stepper import Stepper
from stream import GRID, Stream, workers
from vae import AutoEncoder, ResnetBlock

DECAY = 0.7  # of a stage's time, in which its rates go to nothing
PREFETCHED = 24  # times that a rendered and encoded case is used, with other noise
RENEWED = 6  # batches of a size between two renewals of its pool
SAVED = 60  # seconds between two checkpoints
SQUARE_SHARE = 0.4  # of batches; the other frames share the rest
GRID_SHARE = 0.35  # of the cases in square batches; the others are wide ones
FIRST = 0.125  # of a pool is filled before training begins
POLLED = 64  # steps between two looks for new cases
TICKED = 16  # steps between two looks at the clock
RANKS_MOST = 64  # processes


def parse():
    parser = argparse.ArgumentParser(description="Train the demo model; call again to go on.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and sample sheets; resumed if it exists")
    parser.add_argument("--from", dest="folder", type=Path, help="model folder to begin with, for weights that the run lacks")
    parser.add_argument("--minutes", type=float, default=8.5, help="of this call")
    parser.add_argument("--total", type=float, default=24, help="minutes of all calls together")
    parser.add_argument("--last", action="store_true", help="this call ends the schedule, whatever the total")
    parser.add_argument("--vae-share", type=float, default=0.2, help="of the total time, for the autoencoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--cases", type=int, default=320_000, help="instructions made while each call trains")
    parser.add_argument("--pool", type=int, default=16_384, help="encoded square cases kept on the device; a quarter of other sizes")
    parser.add_argument("--frames", type=int, default=len(FRAMES), help="how many sizes, the square first")
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count()))
    parser.add_argument("--held-out", type=int, help="cases of each set that the judge sees [default: all, of drawn ones a third]")
    parser.add_argument("--judge-steps", type=int, default=28, help="sampler steps of the judge's edits")
    parser.add_argument("--eval-seconds", type=float, default=150, help="between two visits of the judge")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW")
    parser.add_argument("--matrix-rate", type=float, default=5e-3, help="of the blocks' matrices, by Muon")
    parser.add_argument("--vae-rate", type=float, default=1e-3, help="of AdamW, for the autoencoder")
    parser.add_argument("--vae-matrix-rate", type=float, default=3e-3, help="of the autoencoder's filters, by Muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    for name in ("batch", "vae_batch", "cases", "pool"):  # of all processes together
        setattr(options, name, max(1, getattr(options, name) // ranks.COUNT))
    return options


class Run:
    """What all stages share: options, clock, state, log, cases, renderers."""

    def __init__(self, options):
        self.options, self.device, self.began, self.elapsed = options, options.device, time.time(), 0.0
        options.out.mkdir(parents=True, exist_ok=True)
        self.state, self.log = State(options.out), Log(options.out / "log.jsonl") if ranks.FIRST else lambda **values: None
        self.state.values["calls"] += 1
        self.before = self.state.values["seconds"]
        self.total = self.before + 60 * options.minutes if options.last else 60 * options.total
        call = options.seed * 100 + self.state.values["calls"]
        tokenizer = options.out / "tokenizer.json"
        if options.folder and not tokenizer.exists():
            export.copy_tokenizer(options.folder, tokenizer)
        self.prompter = Prompter(tokenizer_at(tokenizer))
        self.frames = FRAMES[: options.frames]
        pool = workers(max(1, options.workers // ranks.COUNT), tokenizer)  # before the GPU is opened
        ranks.start(self.device)
        self.tick()
        self.stream = Stream(pool, call * RANKS_MOST + ranks.RANK, self.counts())
        held_out = {"grid": options.held_out, "wide": options.held_out, "drawn": options.held_out or 450}
        self.judges = Judges(self, pool, held_out if ranks.FIRST else {})
        self.noise = call * RANKS_MOST + ranks.RANK
        torch.manual_seed(call)
        torch.set_float32_matmul_precision("high")
        torch.backends.cuda.enable_cudnn_sdp(False)  # its gradients are not finite where logits are large
        self.render, self.draw = Renderer(self.device), Drawer(self.device)
        self.compiled = self.device.startswith("cuda") and not options.no_compile
        torch._dynamo.config.recompile_limit = 64  # blocks of one kind are compiled once for every shape
        self.amp = torch.autocast(self.device.split(":")[0], torch.bfloat16)
        self.stream.attach(self.device)
        self.log(event="start", call=self.state.values["calls"], cases=options.cases, seconds=self.seconds(), device=self.card())

    def counts(self) -> dict[str, int]:
        """Instructions of each source, as they are needed."""
        square, others = SQUARE_SHARE, self.frames[1:]
        if not others:
            square = 1.0
        shares = {GRID: square * GRID_SHARE, str(SQUARE): square * (1 - GRID_SHARE)}
        shares |= {str(frame): (1 - square) / len(others) for frame in others}
        return {source: max(1, round(share * self.options.cases)) for source, share in shares.items()}

    def card(self):
        return torch.cuda.get_device_name() if self.device.startswith("cuda") else self.device

    def seconds(self) -> float:
        """Of all calls so far."""
        return self.before + self.elapsed

    def tick(self):
        """Looks at the clock, so that all processes see the same time."""
        self.elapsed = ranks.agreed(time.time() - self.began)

    def progress(self, first: float, last: float) -> float:
        """How much of a stage's share of the total time is over."""
        return min(1.0, (self.seconds() / self.total - first) / (last - first))

    def must_stop(self) -> bool:
        return self.elapsed > 60 * self.options.minutes

    def pictures(self, source: str, rows, frame: Frame):
        """Rows of a source's scenes as pictures, uint8 [B, 3, H, W]."""
        return self.render(rows) if source == GRID else self.draw(rows, frame.width, frame.height)

    def save(self, stage: str, averaged: dict[str, torch.nn.Module], steps: int):
        if not ranks.FIRST:
            return
        weights = {name: module.state_dict() for name, module in averaged.items()}
        if not all(tensor.isfinite().all() for tensors in weights.values() for tensor in tensors.values()):
            raise SystemExit("weights are not finite any more; call again to go on from the last checkpoint")
        for name, tensors in weights.items():
            save_weights(self.options.out, name, tensors)
        self.state.values[f"{stage}_steps"] = steps
        self.state.values["seconds"] = self.seconds()
        self.state.save()

    def restore(self, name: str, module: torch.nn.Module) -> int:
        """Steps done before; the weights are the averaged ones, and the optimiser begins anew with a short warmup."""
        weights = load_weights(self.options.out, name)
        if weights:
            module.load_state_dict(weights)
        elif self.options.folder:
            export.read(self.options.folder, name, module)
        return self.state.values.get(f"{name}_steps", 0)


def filters(vae) -> list:
    """Weights of the convolutions inside blocks."""
    return [p for name, p in vae.named_parameters() if p.ndim == 4 and not any(part in name for part in ("conv_in", "conv_out"))]


def compile_each(modules, dynamic: bool | None = None):
    """Each kind of block once; its copies share the code. By default once for the first size, and once more for all others."""
    for module in modules:
        module.compile(dynamic=dynamic)


def decay(run: Run, span: tuple[float, float]):
    """Constant, then linear to nothing, by the clock."""
    return lambda: min(1.0, (1 - run.progress(*span)) / DECAY)


def learn(run: Run, stage: str, stepper: Stepper, span: tuple[float, float], done: int, next_loss, averaged: dict, judged):
    """Steps until the stage's share of the time, or this call, is over; checkpoints, of which `judged()` sees all but the last."""
    visited = saved = time.time()
    torch.manual_seed(run.noise)  # weights began alike in all processes; their cases and noise are not
    stepper.prepare()
    run.tick()
    while run.progress(*span) < 1 and not run.must_stop():
        stepper.step(next_loss())
        if stepper.steps % TICKED == 0:
            run.tick()
        if stepper.steps % POLLED == 0:
            run.stream.poll()
        if not ranks.FIRST:
            continue
        if stepper.due():
            means = stepper.means()
            run.log(stage=stage, step=done + stepper.steps, seconds=run.seconds(), **means)
            if not all(math.isfinite(value) for value in means.values()):
                raise SystemExit("losses are not finite any more; call again to go on from the last checkpoint")
            if time.time() - saved > SAVED:
                run.save(stage, averaged, done + stepper.steps)
                saved = time.time()
        if time.time() - visited > run.options.eval_seconds:
            run.save(stage, averaged, done + stepper.steps)
            judged()
            stepper.restart()
            visited = time.time()
    run.save(stage, averaged, done + stepper.steps)


def train_autoencoder(run: Run):
    """Until its share of the time, or this call, is over. Gives the averaged weights."""
    options, span = run.options, (0.0, run.options.vae_share)
    vae = AutoEncoder(VAE_CHANNELS, VAE_BLOCKS).to(run.device, memory_format=torch.channels_last)
    train_vae.initialise(vae)
    done = run.restore("vae", vae)
    if run.progress(*span) >= 1:
        return vae
    shares = {GRID: options.vae_batch // 4, str(SQUARE): options.vae_batch - options.vae_batch // 4}

    def loss():
        parts = []
        for source, count in shares.items():
            picked = run.stream.pick(source, count)
            before = torch.rand(count, 1, device=run.device) < 0.5
            parts.append(run.pictures(source, torch.where(before, picked["source"], picked["target"]), SQUARE))
        with run.amp:
            return train_vae.loss_of(vae, unit(torch.cat(parts)))

    stepper = Stepper(vae, {"square": loss}, decay(run, span), options.vae_rate, filters(vae), options.vae_matrix_rate)
    if run.compiled:
        compile_each((module for module in vae.modules() if isinstance(module, ResnetBlock)), dynamic=False)
    learn(run, "vae", stepper, span, done, lambda: "square", {"vae": stepper.averaged}, lambda: run.judges.ceiling(stepper.averaged))
    run.judges.ceiling(stepper.averaged)
    return stepper.averaged


class Latents:
    """A pool of one frame's encoded cases on the device, of which parts are made anew from time to time."""

    def __init__(self, run: Run, vae, frame: Frame):
        self.run, self.frame, self.vae = run, frame, vae
        fresh = max(2, RENEWED * run.options.batch // PREFETCHED)
        self.parts = {str(frame): fresh}
        self.size = max(fresh, run.options.pool // 4)
        if frame == SQUARE:
            self.parts, self.size = {GRID: round(fresh * GRID_SHARE), str(frame): fresh - round(fresh * GRID_SHARE)}, run.options.pool
        self.fresh = torch.arange(fresh, device=run.device)
        self.at, self.filled = (torch.zeros((), dtype=torch.long, device=run.device) for _ in range(2))
        self.store = {}
        for _ in range(max(1, round(FIRST * self.size / fresh))):
            self.renew()

    @torch.no_grad()
    def encode(self):
        picked = {source: self.run.stream.pick(source, count) for source, count in self.parts.items()}
        drawn = {side: [self.run.pictures(name, cases[side], self.frame) for name, cases in picked.items()] for side in ("source", "target")}
        source, target = (torch.cat(parts) for parts in drawn.values())
        with self.run.amp:
            latents = self.vae.encode(unit(torch.cat([source, target]))).float()
        reference, wanted = sampler.pack(latents).chunk(2)
        texts = {name: torch.cat([cases[name] for cases in picked.values()]) for name in ("ids", "length", "labels")}
        encoded = {"reference": reference.bfloat16(), "target": wanted.bfloat16(), "picture": enlarge(source, self.frame)}
        return encoded | {"wanted": target, "changed": changed_region(source, target)} | texts

    def renew(self):
        places = (self.at + self.fresh) % self.size
        self.at.add_(len(self.fresh))
        self.filled.copy_(self.at.clamp(max=self.size))
        for name, values in self.encode().items():
            if name not in self.store:
                self.store[name] = torch.zeros(self.size, *values.shape[1:], dtype=values.dtype, device=values.device)
            self.store[name][places] = values

    def batch(self) -> dict:
        places = (torch.rand(self.run.options.batch, device=self.run.device) * self.filled).long()
        return {name: values[places] for name, values in self.store.items()}


def blocks_of(model: EditModel) -> list:
    return [*model.qwen.model.layers, *model.qwen.visual.blocks, *model.dit.double_blocks, *model.dit.single_blocks]


def block_matrices(model: EditModel) -> list:
    """Weights of products of rows; modulation works on one vector, and is not among them."""
    refiners = model.dit.connector.S.individual_token_refiner["blocks"]
    named = [pair for block in [*blocks_of(model), *refiners] for pair in block.named_parameters()]
    return [p for name, p in named if p.ndim == 2 and not any(part in name for part in ("mod.", "modulation", "adaLN"))]


def train_edits(run: Run, vae):
    """Until the total time, or this call, is over. True if all is done."""
    options = run.options
    span = (options.vae_share, 1.0)
    model = EditModel(run.prompter).to(run.device)
    initialise(model)
    done = run.restore("edit", model)
    whole = Whole(model, vae)
    square = copy.deepcopy(vae)
    if run.compiled:  # for square pictures alone: each of its levels is compiled for its own size
        compile_each((module for module in square.encoder.modules() if isinstance(module, ResnetBlock)), dynamic=False)
    latents = {frame: Latents(run, square if frame == SQUARE else vae, frame) for frame in run.frames}

    def loss_of(frame: Frame):
        def loss():
            batch = latents[frame].batch()
            with run.amp:
                return flow_loss(whole, batch, frame)

        return loss

    losses = {frame: loss_of(frame) for frame in run.frames}
    matrices = [*block_matrices(model), *filters(vae.decoder)]
    stepper = Stepper(whole, losses, decay(run, span), options.learning_rate, matrices, options.matrix_rate)
    if run.compiled:
        compile_each(blocks_of(model))
        compile_each((module for module in vae.decoder.modules() if isinstance(module, ResnetBlock)), dynamic=True)
    run.log(event="edits", step=done, seconds=run.seconds(), parameters=sum(p.numel() for p in model.parameters()))
    rng, others, used = random.Random(run.state.values["calls"]), run.frames[1:], Counter()

    def next_loss():
        frame = rng.choice(others) if others and rng.random() > SQUARE_SHARE else SQUARE
        used[frame] += 1
        if used[frame] % RENEWED == 0:
            stepper.graphs.run(("renewal", frame), latents[frame].renew)
        return frame

    def judged(*plan):
        if ranks.FIRST:
            run.judges.visit(stepper.averaged, plan)

    averaged, steps = {"edit": stepper.averaged.edit, "vae": stepper.averaged.vae}, options.judge_steps
    few = [(name, steps, 1.0) for name in SETS]
    learn(run, "edit", stepper, span, done, next_loss, averaged, lambda: judged(*few, ("grid", steps, sampler.SCALE)))
    finished = run.progress(*span) >= 1
    judged(*few, *((name, steps, sampler.SCALE) for name, *_ in few if finished or name == "grid"))
    return finished


def main():
    run = Run(parse())
    vae = train_autoencoder(run)
    finished = False
    if not run.must_stop():
        for p in vae.encoder.parameters():
            p.data = p.data.bfloat16().float()  # as it is shipped
        finished = train_edits(run, vae)
    run.tick()
    run.state.values["seconds"] = run.seconds()
    if ranks.FIRST:
        run.state.save()
    run.log(event="done" if finished else "stopped", seconds=run.seconds())
    ranks.end()


if __name__ == "__main__":
    main()
