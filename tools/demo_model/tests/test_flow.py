"""The loss of edits: every weight learns, also those that the model's own step used before without gradients."""
from pathlib import Path

import torch

import stream
import train
from edit_model import EditModel
from frames import SQUARE
from prompt import Prompter, tokenizer_at

TOKENIZER = Path(__file__).resolve().parents[3] / "assets" / "demo-model" / "Qwen2.5-VL-7B-Instruct" / "tokenizer.json"


def test_every_weight_has_a_gradient():
    torch.manual_seed(1)
    prompter = Prompter(tokenizer_at(TOKENIZER))
    stream.PROMPTERS[:] = [prompter]
    model, count = EditModel(prompter), 4
    made = stream.chunk("grid", 1, count)
    batch = {name: torch.from_numpy(made[name]) for name in ("ids", "length", "labels")}
    batch |= {name: torch.randn(count, SQUARE.tokens, 64) for name in ("reference", "target")}
    batch["picture"] = torch.randint(0, 256, (count, 3, 140, 140), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = train.flow_loss(model, batch, SQUARE)
    loss.backward()
    assert all(part.isfinite() for part in parts.values())
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []
