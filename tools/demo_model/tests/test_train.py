"""A run of some minutes on the CPU: losses, a kill, resuming, export. Set DEMO_TRAIN=1; without it the test is skipped."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export
from checkpoint import load_weights
from edit_model import EditModel
from prompt import Prompter, tokenizer_at

HERE = Path(__file__).resolve().parents[1]
SMALL = ("--total 3 --batch 4 --vae-batch 2 --cases 200 --pool 16 --workers 1 --held-out 11 --eval-seconds 15 --device cpu "
         "--learning-rate 5e-4 --frames 3 --judge-steps 2").split()

pytestmark = pytest.mark.skipif("DEMO_TRAIN" not in os.environ, reason="DEMO_TRAIN is not set; the test takes minutes")


def test_killed_and_resumed(tmp_path):
    run, command = tmp_path / "run", [sys.executable, str(HERE / "train.py"), "--out", str(tmp_path / "run"), *SMALL]
    with pytest.raises(subprocess.TimeoutExpired):  # killed, after the autoencoder's time
        subprocess.run([*command, "--minutes", "5"], timeout=120)
    before = json.loads((run / "state.json").read_text())
    assert before["edit_steps"] > 0
    subprocess.run([*command, "--minutes", "5"], check=True)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "done" and lines[-1]["seconds"] < 300
    assert json.loads((run / "state.json").read_text())["edit_steps"] > before["edit_steps"]
    losses = [line["target"] for line in lines if line.get("stage") == "edit"]
    assert losses[-1] < 0.7 * losses[0]
    assert all(path.stat().st_size < 14e6 for path in run.iterdir())
    model = tmp_path / "model"
    subprocess.run([sys.executable, str(HERE / "export.py"), "--run", str(run), "--out", str(model)], check=True)
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) < 24e6
    again = EditModel(Prompter(tokenizer_at(run / "tokenizer.json")))
    export.read(model, "edit", again)
    weights = load_weights(run, "edit")
    for key, tensor in again.state_dict().items():
        assert key.startswith("labeller.") or torch.equal(tensor, weights[key].bfloat16().float())
