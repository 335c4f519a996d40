"""K optimisers at once equal K times torch.optim.AdamW."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.training.optim import AdamW

SHAPES = {"site.A": (2, 5), "site.B": (4, 2), "site.gate": (2,)}


def random_theta(clients, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(clients, *shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }


@settings(max_examples=40)
@given(
    clients=st.integers(1, 4),
    weight_decay=st.sampled_from([0.0, 0.3]),
    max_grad_norm=st.sampled_from([0.0, 0.5, 100.0]),
    data=st.data(),
)
def test_equals_torch_adamw_client_by_client(clients, weight_decay, max_grad_norm, data):
    theta = random_theta(clients, 0)
    twins = [{name: leaf[k].clone().requires_grad_() for name, leaf in theta.items()} for k in range(clients)]
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    oracles = [torch.optim.AdamW(list(twin.values()), **options) for twin in twins]
    optimizer = AdamW(theta, max_grad_norm=max_grad_norm, unclipped=frozenset({"gate"}), **options)
    for step in range(5):
        gradients = list(random_theta(clients, step + 1).values())
        active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=clients, max_size=clients)))
        optimizer.step(theta, gradients, active)
        for k in active.nonzero().flatten().tolist():
            for leaf, gradient in zip(twins[k].values(), gradients, strict=True):
                leaf.grad = gradient[k].clone()
            if max_grad_norm:
                torch.nn.utils.clip_grad_norm_([twins[k]["site.A"], twins[k]["site.B"]], max_grad_norm)
            oracles[k].step()
    for k, twin in enumerate(twins):
        for name, leaf in twin.items():
            torch.testing.assert_close(theta[name][k], leaf.detach(), rtol=0, atol=1e-12)


def test_an_inactive_client_is_untouched_even_by_a_gradient_of_nan():
    theta = random_theta(2, 0)
    before = {name: leaf.clone() for name, leaf in theta.items()}
    optimizer = AdamW(theta, lr=0.1, weight_decay=0.5)
    gradients = [torch.full_like(leaf, float("nan")) for leaf in theta.values()]
    for gradient in gradients:
        gradient[0] = 1.0
    optimizer.step(theta, gradients, torch.tensor([True, False]))
    assert all(torch.equal(theta[name][1], before[name][1]) for name in theta)
    assert all(torch.isfinite(theta[name][0]).all() for name in theta)
    assert optimizer.steps.tolist() == [1, 0]
    assert not optimizer.m[1].any()
    assert not optimizer.v[1].any()


def test_one_clients_huge_gradient_does_not_shrink_anothers_step():
    steps = []
    for size in (1.0, 1e6):
        theta = random_theta(2, 0)
        optimizer = AdamW(theta, lr=0.1, eps=1.0, max_grad_norm=1.0)
        gradients = [torch.ones_like(leaf) for leaf in theta.values()]
        for gradient in gradients:
            gradient[0] *= size
        optimizer.step(theta, gradients, torch.tensor([True, True]))
        steps.append({name: leaf[1].clone() for name, leaf in theta.items()})
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])
