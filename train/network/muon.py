"""Muon, an optimizer for trainings of few steps: all directions of a convolution's weights learn at one rate.

The momentum of a weight, as a matrix with a row for each output channel, is replaced by a matrix with the same singular
vectors and singular values of about 1 (Jordan et al. 2024, "Muon"). The step is as long as one of AdamW: 0.2 times the
root of the longer side, per learning rate (Liu et al. 2025, "Muon is scalable for LLM training"; `match_rms_adamw` in
torch). torch's own class takes matrices only. Parameters that are not of a convolution have steps of AdamW.

It is the default of `slicemill train`. Measured once each, on two cores or one:

- The classifier of nodules, on the same candidates of 120 synthetic chests (seeds 9002 to 9004, 168 nodules): trained
  by Muon for 17 minutes, 32 crops a step, it has a CPM 0.06 (0.03 to 0.08) above that of AdamW for 20 minutes, 64
  crops a step. On two cores, it took 80 crops a second, and AdamW 82 (medians of the epochs).
- Malignancy of nodules, all layers, for 3.5 minutes of one core on 50 synthetic chests (seed 41): 200 nodules of 20
  other ones have an AUC of 0.891 by Muon and 0.888 by AdamW, so no difference shows; the diameter alone has 0.83.
- The segmentation of nodules, width 8, for 10 minutes of one core each, side by side, on the same 60 chests: nodules
  of 4 validation chests have a Dice of 0.62 by Muon and 0.46 by AdamW, and 40 chests (seed 9001, 59 nodules) a CPM of
  0.32 and 0.22 (difference 0.04 to 0.16). Muon took 41 slices of 64 pixels a second, AdamW 50.
- Liver and tumor, width 8, 600 steps of batch 8 (``bench/studies/pixels.toml`` with and without it, seed 0), Dice on
  16 unseen phantoms: with a stem of 2, liver 0.992 by Muon and 0.980 by AdamW, tumor 0.449 and 0.405 (difference 0.02
  to 0.07); with pixels of 1.5 mm, liver 0.992 and 0.975, tumor 0.487 and none found.
- The demo, 12 epochs of 24 phantoms, Dice of tumor in 6 unseen ones: 0.70 by Muon, 0.51 by AdamW.
- Soft-tissue sarcomas, 4 minutes of one core each (``bench/studies/optimizers.toml``): 0.497 by Muon and 0.501
  by AdamW over 17 patients (difference -0.05 to 0.04), so no difference shows. With AdamW for the 1x1 convolution of
  the output, the training's loss falls to 0.4 instead of 0.9; Dice is 0.519 instead of 0.505 on the patients of the
  validation parts, and 0.442 instead of 0.497 on those of the test parts.

Longer trainings, and trainings on a GPU, were not compared. Its cost does not depend on the slices: `Muon.step`, median
of 9 on one core, takes 21, 76 and 217 ms at width 8, 16 and 32. When these runs were made, it multiplied the whole
matrix in each iteration, and took 35, 165 and 560 ms.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.9
ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial that is applied to the singular values (Jordan et al. 2024)."""
ITERATIONS = 5
STEP_LENGTH = 0.2
MUON_MEMORY, ADAM_MEMORY = {"momentum"}, {"step", "mean", "square"}


class Muon(Optimizer):
    """Muon for weights of convolutions, float[out, in, ...], and AdamW for all other parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient.

        Raises
        ------
        TypeError
            A closure was passed.
        """
        if closure is not None:
            raise TypeError("Muon takes no closure.")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    change = _muon_change if _is_kernel(parameter) else _adam_change
                    parameter.sub_(change(self.state[parameter], parameter.grad), alpha=group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state.

        Raises
        ------
        ValueError
            The state is of another optimizer.
        """
        parameters = [one for group in self.param_groups for one in group["params"]]
        for index, memory in state_dict["state"].items():
            if set(memory) != (MUON_MEMORY if _is_kernel(parameters[index]) else ADAM_MEMORY):
                raise ValueError("another optimizer wrote it, that of an earlier version")
        super().load_state_dict(state_dict)


def _is_kernel(parameter: Tensor) -> bool:
    """Return whether a parameter is the weights of a convolution."""
    return parameter.ndim > 2


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return float[m, n] with the singular vectors of a matrix, and singular values between about 0.7 and 1.2.

    Each iteration multiplies the matrix by a polynomial of its Gram matrix. These are small and commute, so that they
    are multiplied first: the long side of the matrix is in two products instead of ten.
    """
    transposed = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if transposed else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = _polynomial(gram)
    factor = product
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    x = product @ x
    return cast("Tensor", x.T if transposed else x)


def _polynomial(gram: Tensor) -> Tensor:
    """Return a + b G + c G^2 of a Gram matrix G, float[m, m]."""
    a, b, c = NEWTON_SCHULZ
    result = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal().add_(a)
    return result


def _muon_change(memory: dict[str, Any], gradient: Tensor) -> Tensor:
    """Update the momentum, and return what is subtracted from the weights per learning rate."""
    if not memory:
        memory["momentum"] = torch.zeros_like(gradient)
    momentum = memory["momentum"].mul_(MOMENTUM).add_(gradient)
    direction = (gradient + MOMENTUM * momentum).reshape(len(gradient), -1)
    length = STEP_LENGTH * float(max(direction.shape)) ** 0.5
    return cast("Tensor", length * orthogonalize(direction)).reshape(gradient.shape)


def _adam_change(memory: dict[str, Any], gradient: Tensor) -> Tensor:
    """Update both averages, and return what is subtracted from the parameter per learning rate."""
    if not memory:
        memory |= {"step": torch.zeros(()), "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    memory["step"] += 1
    first, second = ADAM_BETAS
    mean = memory["mean"].lerp_(gradient, 1 - first) / (1 - first ** memory["step"])
    square = memory["square"].lerp_(gradient.square(), 1 - second) / (1 - second ** memory["step"])
    return cast("Tensor", mean / (square.sqrt() + ADAM_EPSILON))
