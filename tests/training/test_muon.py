from collections.abc import Iterable

import torch
from torch import nn

from candid.recipe_parts import Optimizer
from candid.training.muon import Muon, orthogonal
from candid.training.optimization import build_optimizer, set_rate

torch.set_num_threads(1)
SETTINGS = Optimizer(name="muon", rate=0.1, momentum=0.6, vector_factor=0.05, head_factor=2, weight_decay=0.01)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten())
    network.add_module("head", nn.Linear(8, 2))
    return network


def take_steps(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: Iterable[int]) -> None:
    for seed in seeds:
        images = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
        network(images).square().sum().backward()
        set_rate(optimizer, SETTINGS.rate)
        optimizer.step()
        optimizer.zero_grad()


def test_singular_values_come_near_one():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 27), (27, 8), (64, 64)):
        matrix = torch.randn(shape, generator=generator)
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert orthogonal(matrix).shape == shape
        assert values.max() < 1.35
        assert values.median() > 0.6
        directions = torch.linalg.svd(matrix, full_matrices=False)
        exact = directions.U @ directions.Vh
        assert torch.nn.functional.cosine_similarity(orthogonal(matrix).flatten(), exact.flatten(), dim=0) > 0.9


def test_a_step_of_filters_is_momentum_made_orthogonal():
    network = small_network()
    optimizer = build_optimizer(SETTINGS, network)
    filters = network[0].weight
    before, momentum = filters.detach().clone(), torch.zeros_like(filters)
    for seed in range(3):
        gradient = torch.randn(filters.shape, generator=torch.Generator().manual_seed(seed))
        filters.grad = gradient.clone()
        optimizer.step()
        momentum = 0.6 * momentum + gradient
        before = before * (8**0.5 / before.norm())
        before = before - 0.1 * orthogonal((gradient + 0.6 * momentum).flatten(1)).view_as(before)
        torch.testing.assert_close(filters.detach(), before, atol=4e-3, rtol=0)  # products are rounded to bf16


def test_everything_else_learns_by_adamw_at_its_own_rate():
    network, theirs = small_network(), small_network()
    optimizer = build_optimizer(SETTINGS, network)
    assert isinstance(optimizer, Muon)
    rates = {round(group["rate_factor"], 3): len(group["params"]) for group in optimizer.param_groups}
    assert rates == {1.0: 1, 0.05: 3, 0.1: 2}  # filters; bias, gain and shift; the head
    adamw = torch.optim.AdamW(
        [{"params": list(theirs[1].parameters()), "lr": 0.005}, {"params": theirs.head.parameters(), "lr": 0.01}],
        betas=(0.6, 0.98), weight_decay=0.01,
    )  # fmt: skip
    for part, other in ((network[1], theirs[1]), (network.head, theirs.head)):
        for ours, its in zip(part.parameters(), other.parameters(), strict=True):
            ours.grad, its.grad = torch.full_like(ours, 0.3), torch.full_like(its, 0.3)
    set_rate(optimizer, SETTINGS.rate)
    optimizer.step()
    adamw.step()
    for part, other in ((network[1], theirs[1]), (network.head, theirs.head)):
        for ours, its in zip(part.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, its)


def test_goes_on_from_its_state_with_the_same_bits():
    straight, interrupted = small_network(), small_network()
    take_steps(straight, build_optimizer(SETTINGS, straight), range(4))
    first = build_optimizer(SETTINGS, interrupted)
    take_steps(interrupted, first, range(2))
    restored = build_optimizer(SETTINGS, interrupted)
    restored.load_state_dict(first.state_dict())
    take_steps(interrupted, restored, range(2, 4))
    for ours, theirs in zip(interrupted.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)
