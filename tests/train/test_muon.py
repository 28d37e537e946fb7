"""Muon: torch's own Muon and AdamW are the oracles."""

import pytest
import torch
from torch import Tensor, nn

from slicemill.train.network.muon import ITERATIONS, NEWTON_SCHULZ, Muon, orthogonalize


def train_pair(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], steps: int) -> None:
    """Take steps with the same random gradients."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        gradient = torch.randn(parameters[0].shape, generator=generator)
        for optimizer, parameter in zip(optimizers, parameters, strict=True):
            parameter.grad = gradient.reshape(parameter.shape).clone()
            optimizer.step()


@pytest.mark.parametrize("shape", [(24, 216), (64, 30), (32, 32)], ids=str)
def test_orthogonal_matrix_keeps_the_singular_vectors(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ orthogonalize(matrix) @ right.T
    assert values.diagonal().min() > 0.3
    assert values.diagonal().max() < 1.3
    torch.testing.assert_close(values - values.diagonal().diag(), torch.zeros_like(values), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(128, 1152), (96, 27)], ids=str)
@pytest.mark.parametrize(
    ("noise", "tolerance"), [(1.0, 2e-5), (1e-4, 1e-3)], ids=["full rank", "three strong directions"]
)
def test_the_product_of_polynomials_equals_newton_schulz_on_the_matrix(
    shape: tuple[int, int], noise: float, tolerance: float
) -> None:
    """Iteration by iteration in float64, as Jordan et al. write it."""
    torch.manual_seed(0)
    matrix = torch.randn(shape[0], 3) @ torch.randn(3, shape[1]) + noise * torch.randn(shape)
    tall = shape[0] > shape[1]
    x = matrix.double().T if tall else matrix.double()
    x = x / x.norm()
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = NEWTON_SCHULZ[0] * x + (NEWTON_SCHULZ[1] * square + NEWTON_SCHULZ[2] * square @ square) @ x
    expected = x.T if tall else x
    assert (orthogonalize(matrix) - expected).norm() < tolerance * expected.norm()


def test_gradient_of_zero_changes_nothing() -> None:
    assert not orthogonalize(torch.zeros(4, 8)).any()


@pytest.mark.parametrize("shape", [(24, 216), (64, 30)], ids=str)
def test_convolution_equals_muon_of_torch(shape: tuple[int, int]) -> None:
    """That of torch computes the directions in bfloat16, so steps differ by some percent."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    matrix, kernel = nn.Parameter(start.clone()), nn.Parameter(start.clone()[:, :, None, None, None])
    theirs = torch.optim.Muon(
        [matrix], lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    train_pair([theirs, Muon([kernel], lr=0.01, weight_decay=0.1)], [matrix, kernel], steps=8)
    moved = (matrix - start).detach()
    assert (kernel.detach().reshape(shape) - start - moved).norm() < 0.03 * moved.norm()


@pytest.mark.parametrize("shape", [(5,), (4, 7)], ids=str)
def test_other_parameters_equal_adamw_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape)
    pair = [nn.Parameter(start.clone()), nn.Parameter(start.clone())]
    train_pair(
        [torch.optim.AdamW(pair[:1], lr=0.01, weight_decay=0.1), Muon(pair[1:], lr=0.01, weight_decay=0.1)],
        pair,
        steps=20,
    )
    torch.testing.assert_close(pair[1], pair[0])


def test_parameter_without_gradient_stays() -> None:
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3))
    optimizer = Muon([kernel], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert bool((kernel == 1).all())
    assert not optimizer.state_dict()["state"]


def test_state_continues_bit_for_bit() -> None:
    def learn(steps: int, stop: int | None = None) -> Tensor:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(), nn.Linear(32, 1))
        optimizer = Muon(layers.parameters(), lr=0.01, weight_decay=0.1)
        for step in range(steps):
            if step == stop:
                state, groups = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"]
                optimizer = Muon(layers.parameters(), lr=0.01, weight_decay=0.1)
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            optimizer.zero_grad()
            layers(torch.full((2, 1, 4, 4, 4), float(step))).square().mean().backward()
            optimizer.step()
        return torch.cat([one.detach().reshape(-1) for one in layers.parameters()])

    assert torch.equal(learn(6), learn(6, stop=3))


def test_closure_is_refused() -> None:
    with pytest.raises(TypeError, match="closure"):
        Muon([nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=0.0).step(lambda: 0.0)


def test_state_of_another_optimizer_is_refused() -> None:
    kernel = nn.Parameter(torch.ones(2, 2, 3, 3))
    other = torch.optim.AdamW([kernel])
    kernel.grad = torch.ones_like(kernel)
    other.step()
    with pytest.raises(ValueError, match="another optimizer"):
        Muon([kernel], lr=0.1, weight_decay=0.0).load_state_dict(other.state_dict())
