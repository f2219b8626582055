"""The optimiser of matrices, and a training step."""
import torch

from muon import Muon, orthogonal
from stepper import WARMUP, Stepper


def test_orthogonal_keeps_directions_and_evens_out_their_sizes():
    for shape in ((3, 64, 64), (2, 96, 32), (2, 32, 96)):
        u, s, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
        s = torch.linspace(1, 0.1, s.shape[1]).expand_as(s)
        x = u @ torch.diag_embed(s) @ v
        seen = u.mT @ orthogonal(x).float() @ v.mT  # diagonal in the bases of x
        sizes = seen.diagonal(dim1=1, dim2=2)
        assert 0.4 < sizes.min() and sizes.max() < 1.4
        assert (seen - torch.diag_embed(sizes)).abs().max() < 0.15


def test_muon_updates_matrices_and_filters_by_a_fifth_of_the_rate():
    matrix, filters = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((48, 48), (16, 8, 3, 3)))
    optimiser = Muon([matrix, filters], torch.tensor(0.01))
    for p in (matrix, filters):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    optimiser.step()
    for p in (matrix, filters):
        size = p.square().mean().sqrt().item()
        assert 0.6 * 0.002 < size < 1.2 * 0.002 and (p * p.grad).sum() < 0


def test_stepper_learns_and_averages():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    inputs = torch.randn(256, 16)
    wanted = inputs[:, :1] * inputs[:, 1:2]

    def loss():
        value = (model(inputs) - wanted).square().mean()
        return value, {"error": value}

    stepper = Stepper(model, {"all": loss}, lambda: 1.0, 3e-3, [model[0].weight], 3e-3)
    stepper.step("all")
    first = stepper.means()["error"]
    assert abs(stepper.last_rate - 1 / WARMUP) < 1e-9
    for _ in range(400):
        stepper.step("all")
    stepper.restart()
    stepper.step("all")
    assert stepper.last_rate == 1.0 and stepper.means()["error"] < 0.5 * first
    apart = (stepper.averaged[0].weight - model[0].weight).norm() / model[0].weight.norm()
    assert 0 < apart < 0.5
