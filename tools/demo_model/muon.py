"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, for weights of products and convolutions in blocks."""
import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that takes singular values from (0, 1] to about 1


def orthogonal(x, iterations: int = 5):
    """Matrices [n, a, b] to the nearest ones with singular values of about 1 (0.7 to 1.2), by Newton-Schulz steps in bf16."""
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    x = x.mT if tall else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Matrices, and filters as matrices [out, rest]; those of one shape go together.

    Updates are scaled to a mean square of 0.2², about that of AdamW's. `lr` is on the device.
    """

    def __init__(self, matrices, lr: torch.Tensor, momentum: float = 0.95, weight_decay: float = 0.0):
        shapes = {}
        for p in matrices:
            shapes.setdefault(tuple(p.shape), []).append(p)
        groups = [{"params": group} for group in shapes.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group["params"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            kept = state["momentum"]
            kept.lerp_(grads, 1 - group["momentum"])
            update = orthogonal(grads.lerp(kept, group["momentum"]).flatten(2))  # Nesterov
            size = 0.2 * max(update.shape[1:]) ** 0.5 * group["lr"]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(params, list(size * update.view_as(grads).to(grads.dtype)))
