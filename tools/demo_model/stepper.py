"""Training steps without the host: on a GPU a whole step, its data and the optimisers included, is one CUDA graph.

Batches of other sizes are other losses, each with a graph of its own; weights, optimisers and memory are common to all.
"""
import copy
import time
from collections import Counter

import torch

import ranks
from muon import Muon

EMA = 0.999
WARMUP = 200  # steps, after each start
AHEAD = 32  # steps that the host may be ahead of the GPU
LOGGED = 10  # seconds between two lines
WARM = 3  # steps of each loss before it is captured


class Graphs:
    """Work by name that, once it has run a few times, is launched as one graph. Graphs run one after another and keep nothing, so that
    all may use the same memory."""

    def __init__(self, cuda: bool):
        self.cuda, self.pool, self.graphs, self.warm = cuda, None, {}, Counter()
        self.aside = torch.cuda.Stream() if cuda else None

    def run(self, name, work):
        if not self.cuda:
            work()
        elif self.warm[name] >= WARM:  # by then all is compiled, and the optimisers have their states
            if name not in self.graphs:
                self.capture(name, work)
            self.graphs[name].replay()
        else:
            self.aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.aside):
                work()
            torch.cuda.current_stream().wait_stream(self.aside)
        self.warm[name] += 1

    def capture(self, name, work):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # other threads look after other ranks
            work()
        self.graphs[name], self.pool = graph, graph.pool()


def one_buffer(parameters) -> torch.Tensor:
    """Gradients of all parameters side by side, with the layouts that theirs have, so that one operation reaches all."""
    places, size = [], 0
    for p in parameters:
        places.append(size)
        size += -(-p.numel() // 4) * 4  # 16 bytes, for wide loads
    buffer = torch.zeros(size, device=parameters[0].device)
    for p, at in zip(parameters, places):
        p.grad = buffer.as_strided(p.shape, p.stride(), at)
    return buffer


class Stepper:
    """AdamW, and Muon for the `matrices`, with clipped gradients and averaged weights.

    Each of `losses` gives the loss and its parts by name; it draws its batch on the device. `rate()` is the share of the peak rates
    that holds now.
    """

    def __init__(self, module, losses: dict, rate, peak: float, matrices=(), matrix_peak: float = 0.0):
        self.module, self.losses, self.rate, self.steps = module, losses, rate, 0
        device = next(module.parameters()).device
        self.cuda = device.type == "cuda"
        self.graphs = Graphs(self.cuda)
        apart = {id(p) for p in matrices}
        decayed = [p for p in module.parameters() if p.ndim > 1 and id(p) not in apart]
        others = [p for p in module.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]

        def scalar(value):
            return torch.tensor(value, device=device)

        adamw = torch.optim.AdamW(groups, lr=scalar(peak), betas=(0.9, 0.98), fused=True, capturable=self.cuda)
        self.optimisers = [adamw] + ([Muon(matrices, scalar(matrix_peak), weight_decay=0.01)] if matrices else [])
        self.peaks = [peak, matrix_peak]
        self.averaged = copy.deepcopy(module).requires_grad_(False)
        self.pairs = list(self.averaged.parameters()), list(module.parameters())
        self.gain = scalar(1.0)  # of the averaged weights
        self.gradient = one_buffer([p for p in module.parameters() if p.requires_grad])
        self.sums, self.summed, self.since = {}, 0, time.time()

    def sum_up(self, parts: dict):
        for name, value in parts.items():
            value = value.detach().float()
            self.sums.setdefault(name, torch.zeros(2, device=value.device)).add_(torch.stack([value, torch.ones_like(value)]))

    def backward(self, name):
        """Gradients of a loss. Nothing in it, or in `update`, waits for the device or comes from the host."""
        self.gradient.zero_()
        loss, parts = self.losses[name]()
        loss.backward()
        self.sum_up(parts)

    @torch.no_grad()
    def update(self):
        norm = self.gradient.norm()
        self.gradient.mul_((1 / (norm + 1e-6)).clamp(max=1))
        for optimiser in self.optimisers:
            optimiser.step()
        averaged, weights = self.pairs
        change = torch._foreach_sub(weights, averaged)
        torch._foreach_mul_(change, self.gain)
        torch._foreach_add_(averaged, change)
        self.sum_up({"gradient": norm})

    def once(self, name):
        self.backward(name)
        self.update()

    def set_rates(self):
        now = min(1.0, (self.steps + 1) / WARMUP) * max(self.rate(), 0.01)
        for optimiser, peak in zip(self.optimisers, self.peaks):
            optimiser.param_groups[0]["lr"].fill_(now * peak)  # one tensor for all groups
        self.gain.fill_(1 - min(EMA, (self.steps + 1) / (self.steps + 11)))
        return now

    def prepare(self):
        """The first steps of all losses, before the first graph takes its memory."""
        for name in self.losses:
            for _ in range(WARM):
                self.step(name)

    def step(self, name):
        self.last_rate = self.set_rates()
        if ranks.COUNT == 1:
            self.graphs.run(name, lambda: self.once(name))
        else:
            self.graphs.run(name, lambda: self.backward(name))
            ranks.average(self.gradient)
            self.graphs.run("update", self.update)
        self.steps, self.summed = self.steps + 1, self.summed + 1
        if self.cuda and self.steps % AHEAD == 0:
            torch.cuda.synchronize()

    def due(self) -> bool:
        return time.time() - self.since > LOGGED

    def means(self) -> dict:
        """Of the parts of the loss since the last call, the rate and the steps a second."""
        values = {name: (total / times).item() for name, (total, times) in self.sums.items()}
        values |= {"rate": self.last_rate, "per_second": self.summed / (time.time() - self.since)}
        self.restart()
        return values

    def restart(self):
        for value in self.sums.values():
            value.zero_()
        self.summed, self.since = 0, time.time()
