import torch

from candid.randomness import beta, seed_for, shuffled, uniform


def test_seed_depends_on_every_part_and_on_nothing_else():
    assert seed_for(0, "order", 3) == seed_for(0, "order", 3)
    assert (
        len({seed_for(0, "order", 3), seed_for(1, "order", 3), seed_for(0, "mirror", 3), seed_for(0, "order", 4)}) == 4
    )
    assert seed_for(1, 23) != seed_for(12, 3)


def test_seed_is_the_same_on_every_machine():
    # BLAKE2b of b"0/order/0", 8 bytes, big-endian, halved; remake: hashlib.blake2b(b"0/order/0", digest_size=8)
    assert seed_for(0, "order", 0) == 1829853113658518448


def test_draws_are_uniform_and_differ_between_epochs():
    first, second = uniform(100_000, 0, "mirror", 0), uniform(100_000, 0, "mirror", 1)
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean() - 0.5) < 0.005
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.015


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    uniform(10, 0), shuffled(10, 0), beta(10, 0.2, 0)
    assert torch.equal(torch.rand(3), expected)


def test_beta_has_the_moments_of_its_distribution():
    draws = beta(200_000, 0.2, 0, "mixup")
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.003  # Beta(a, a): 1 / (4 (2a + 1))
