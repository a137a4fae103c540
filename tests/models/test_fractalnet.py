import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from parity import State, assert_close, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters
from candid.models.fractalnet import VARIANTS, ConvLayer, FractalNet, FractalNetConfig, Join

torch.set_num_threads(1)

SMALL = FractalNetConfig(widths=(3, 4), image_size=4, num_columns=3, dropout=0.0, drop_path=0.0)


def conv_bn_relu(state: State, x: Tensor, place: str, training: bool) -> Tensor:
    norm = f"{place}.norm"
    mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
    x = F.conv2d(x, state[f"{place}.conv.weight"], padding=1)
    return F.relu(F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training))


def section_3(state: State, x: Tensor, training: bool) -> Tensor:
    """Larsson et al. 2017, written from the paper: f_1 = conv, f_{c+1}(z) = [f_c . f_c](z) joined with conv(z).

    Joins that follow one another are one: what `fractal` gives is what the last join reads, after the pooling.
    """
    used = Counter()  # convolutions of each (block, column) so far: the recursion meets them from bottom to top
    num_columns = len({name.split(".")[3] for name in state if name.startswith("blocks.0.columns")})

    def conv(z: Tensor, block: int, column: int) -> Tensor:
        used[block, column] += 1
        return conv_bn_relu(state, z, f"blocks.{block}.columns.{column}.{used[block, column] - 1}", training)

    def join(maps: list[Tensor]) -> Tensor:
        return sum(maps) / len(maps)

    def fractal(c: int, z: Tensor, block: int) -> list[Tensor]:
        alone = [conv(z, block, num_columns - c)]
        return alone if c == 1 else [*fractal(c - 1, join(fractal(c - 1, z, block)), block), *alone]

    for block in range(len({name.split(".")[1] for name in state if name.startswith("blocks")})):
        x = join([F.max_pool2d(z, 2) for z in fractal(num_columns, x, block)])
    assert all(used[block, column] == 2**column for block, column in used)
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("num_columns", [1, 2, 3, 4])
def test_is_the_recursive_definition_of_section_3(num_columns: int) -> None:
    model = FractalNet(replace(SMALL, num_columns=num_columns), 7)
    assert_same_network(model, section_3, random_images(4, 3, 11))


def test_evaluation_joins_all_columns_and_drops_nothing() -> None:
    torch.manual_seed(0)
    model, plain = build_model("fractalnet-small", 7), FractalNet(replace(VARIANTS["fractalnet-small"], drop_path=0), 7)
    plain.load_state_dict(model.state_dict())
    images = random_images(2, 3, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), plain.eval()(images))
        assert_close(model.double()(images.double()), section_3(model.state_dict(), images.double(), False), "logits")


@pytest.mark.parametrize("name", VARIANTS)
def test_has_21_layers_and_the_papers_rates(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, 10)
    assert sum(len(block.columns[-1]) for block in model.blocks) + 1 == 21
    assert [[len(column) for column in block.columns] for block in model.blocks] == 5 * [[1, 2, 4]]
    rates = [{layer.dropout.p for layer in block.modules() if isinstance(layer, ConvLayer)} for block in model.blocks]
    assert [rate for (rate,) in rates] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {module.drop_path for module in model.modules() if isinstance(module, Join)} == {0.15}


@pytest.mark.parametrize(("num_inputs", "drop_path"), [(2, 0.15), (3, 0.15), (3, 0.9)])
def test_local_drop_path_drops_at_its_rate_and_never_all(num_inputs: int, drop_path: float) -> None:
    torch.manual_seed(0)
    join, maps, kept = Join(drop_path), list(torch.eye(num_inputs)), torch.zeros(num_inputs)
    for _ in range(2000):
        joined = join(maps)
        assert joined.sum().item() == pytest.approx(1)  # a mean of those that are left, however many
        kept += joined > 0
    expected = 1 - drop_path + drop_path**num_inputs / num_inputs  # where all would go, one of them stays
    assert kept.numpy() / 2000 == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 2000))
    assert torch.equal(join.eval()(maps), torch.full((num_inputs,), 1 / num_inputs))


def test_global_drop_path_leaves_one_column_in_half_of_the_passes() -> None:
    torch.manual_seed(0)
    model, ran = FractalNet(replace(SMALL, drop_path=0.15), 7), []
    for name, layer in model.named_modules():
        if isinstance(layer, ConvLayer):
            layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    everything = {name for name, layer in model.named_modules() if isinstance(layer, ConvLayer)}
    columns = [{n for n in everything if n.split(".")[3] == str(c)} for c in range(3)]  # of all blocks
    times = Counter()
    for _ in range(600):
        ran.clear()
        model.train()(random_images(2, 3, 8))
        assert set(ran) in [everything, *columns]
        times[columns.index(set(ran)) if set(ran) in columns else "all"] += 1
    assert times["all"] / 600 == pytest.approx(0.5, abs=0.08)
    assert [times[column] / 600 for column in range(3)] == pytest.approx([1 / 6] * 3, abs=0.06)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_the_column_that_global_drop_path_leaves_is_a_plain_network(column: int, monkeypatch) -> None:
    model, images = FractalNet(replace(SMALL, drop_path=0.15), 7).double(), random_images(4, 3, 8).double()
    monkeypatch.setattr(model, "draw_column", lambda: column)
    x = images
    for block in range(2):
        for index in range(2**column):
            x = conv_bn_relu(model.state_dict(), x, f"blocks.{block}.columns.{column}.{index}", training=True)
        x = F.max_pool2d(x, 2)
    assert_close(model(images), model.head(x.mean(dim=(2, 3))), "logits")


def test_initialisation_is_uniform_with_variance_one_over_fan_in() -> None:
    torch.manual_seed(0)
    model = build_model("fractalnet-small", 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 1000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.05)
            assert 0.98 * math.sqrt(3 / fan_in) < module.weight.abs().max().item() <= math.sqrt(3 / fan_in) * 1.0001
    assert model.head.bias.eq(0).all()


def formula(first: int, num_columns: int, num_classes: int) -> int:
    """Trained values: of the 2^C - 1 convolutions of a block, C read the block before, the others their own."""
    convolutions = 2**num_columns - 1
    total, before = (8 * first + 1) * num_classes, 3
    for width in (first, 2 * first, 4 * first, 8 * first, 8 * first):
        total += 9 * (num_columns * before + (convolutions - num_columns) * width) * width + convolutions * 2 * width
        before = width
    return total


@pytest.mark.parametrize(
    ("num_columns", "printed"), [(1, "0.3"), (2, "0.8"), (3, "2.1"), (4, "4.8"), (5, "10.2"), (6, "21.1")]
)
def test_count_is_what_the_paper_prints_for_5_to_160_layers(num_columns: int, printed: str) -> None:
    with torch.device("meta"):
        model = FractalNet(replace(VARIANTS["fractalnet-small"], num_columns=num_columns), 100)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == formula(16, num_columns, 100)
    assert f"{count / 1e6:.1f}" == printed


def test_counts_of_the_variants_follow_from_the_formula() -> None:
    assert count_parameters("fractalnet", 10) == formula(64, 3, 10) == 33_724_618  # imgclsmob's count as well
    assert count_parameters("fractalnet-small", 10) == formula(16, 3, 10)
