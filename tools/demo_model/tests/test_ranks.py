"""Two processes, each with half of the cases, learn what one learns with all of them."""
import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve()


def train(out: Path):
    sys.path.insert(0, str(HERE.parents[1]))
    import ranks
    from stepper import Stepper

    ranks.start("cpu")
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    cases = torch.randn(64, 16)[ranks.RANK :: ranks.COUNT]

    def loss():
        value = (model(cases) - cases[:, :1] * cases[:, 1:2]).square().mean()
        return value, {"error": value}

    stepper = Stepper(model, {"all": loss}, lambda: ranks.agreed(1.0 - ranks.RANK), 3e-3, [model[0].weight], 3e-3)
    for _ in range(300):
        stepper.step("all")
    torch.save(model.state_dict(), out / f"{ranks.COUNT}-{ranks.RANK}.pt")
    ranks.end()


def test_two_learn_as_one(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1"}
    for launcher in ([sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        subprocess.run([*launcher, str(HERE), str(tmp_path)], check=True, env=environment)
    alone, first, second = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    begun = torch.nn.Linear(16, 32)
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name])
        assert (first[name] - weight).abs().max() < 0.02 * weight.abs().max(), name
    assert (alone["0.weight"] - begun.weight).abs().max() > 0.1


if __name__ == "__main__":
    train(Path(sys.argv[1]))
