"""Processes on several GPUs of one host: each trains on cases of its own, and their gradients are averaged.

`torchrun --standalone --nproc-per-node 4 train.py ...` starts them; without it there is one.
"""
import os

import torch
from torch import distributed

RANK, COUNT = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
FIRST = RANK == 0  # it alone writes and judges


def start(device: str):
    if COUNT > 1:
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(RANK)
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def average(values: torch.Tensor):
    """In place, over all processes, without waiting for the device."""
    if COUNT > 1:
        distributed.all_reduce(values)
        values.div_(COUNT)


def agreed(value: float) -> float:
    """The first process's value, in all."""
    if COUNT > 1:
        told = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(told, 0)
        value = told.item()
    return value


def end():
    if COUNT > 1:
        distributed.destroy_process_group()
