"""The loss of edits: every weight learns, also those that the model's own step used before without gradients; but the encoder."""
from pathlib import Path

import torch

import stream
from config import VAE_BLOCKS, VAE_CHANNELS
from edit_model import EditModel
from flow import Whole, flow_loss
from frames import SQUARE
from prompt import Prompter, tokenizer_at
from vae import AutoEncoder

TOKENIZER = Path(__file__).resolve().parents[3] / "assets" / "demo-model" / "Qwen2.5-VL-7B-Instruct" / "tokenizer.json"


def test_every_weight_has_a_gradient():
    torch.manual_seed(1)
    prompter = Prompter(tokenizer_at(TOKENIZER))
    stream.PROMPTERS[:] = [prompter]
    whole, count = Whole(EditModel(prompter), AutoEncoder(VAE_CHANNELS, VAE_BLOCKS)), 4
    made = stream.chunk("grid", 1, count)
    batch = {name: torch.from_numpy(made[name]) for name in ("ids", "length", "labels")}
    batch |= {name: torch.randn(count, SQUARE.tokens, 64) for name in ("reference", "target")}
    batch["picture"] = torch.randint(0, 256, (count, 3, 140, 140), dtype=torch.uint8)
    batch["wanted"] = torch.randint(0, 256, (count, 3, 128, 128), dtype=torch.uint8)
    batch["changed"] = torch.rand(count, 128, 128) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = flow_loss(whole, batch, SQUARE)
    loss.backward()
    assert all(part.isfinite() for part in parts.values())
    unused = [name for name, p in whole.named_parameters() if not name.startswith("vae.encoder") and (p.grad is None or not p.grad.abs().sum() > 0)]
    assert unused == [] and whole.vae.encoder.conv_in.weight.grad is None
