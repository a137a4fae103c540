"""The fused dense block is the plain one: each item of what it has to show, by name."""

import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import outcome, start
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.dense_block import Work, bytes_saved, prepare
from candid.errors import InputError
from candid.models import build_model, compiling, dense_pieces
from candid.models.dense_block import choose_memory, run_dense_block
from candid.models.dense_pieces import COMPILED, EAGER, choose_pieces, describe_pieces
from candid.models.densenet import DenseBlock, DenseNetConfig

CPU = torch.device("cpu")
FUSED = ["shared", "recompute"]
NETWORKS = ["densenet-bc-40-12", "densenet-40-12"]  # with and without bottlenecks
BOUND = 1e-11  # float64 leaves only rounding
PIECES = ["compiled", "eager"]


@pytest.fixture(params=PIECES)
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which pieces the blocks of a test are made of."""
    if request.param == "compiled":
        assert describe_pieces(CPU) == COMPILED
    else:
        monkeypatch.setattr("candid.models.dense_block.choose_pieces", lambda device: EAGER)
    return request.param


def images(seed: int = 0, number: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(name: str, memory: str, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """The same network, plain and fused, in float64."""
    torch.manual_seed(0)
    plain = build_model(name, 10, image_size=16, dropout=dropout, memory="plain").double()
    fused = build_model(name, 10, image_size=16, dropout=dropout, memory=memory).double()
    fused.load_state_dict(plain.state_dict())
    return plain.to(memory_format=torch.channels_last), fused.to(memory_format=torch.channels_last)


def learn(network: nn.Module, num_steps: int = 3, *, micro_batches: int = 1) -> dict[str, Tensor]:
    """Losses, gradients, weights and buffers of some steps of gradient descent."""
    found: dict[str, Tensor] = {}
    for step in range(num_steps):
        torch.manual_seed(step)  # for dropout
        network.zero_grad()
        for part in images(step).tensor_split(micro_batches):
            loss = network(part).logsumexp(dim=1).sum()
            loss.backward()
        found[f"loss {step}"] = loss.detach()
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} {name}"] = parameter.grad.clone()
                parameter.data -= 1e-3 * parameter.grad
    return found | {name: value.double().clone() for name, value in network.state_dict().items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float = BOUND) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", FUSED)
def test_loss_gradients_and_every_buffer_after_several_steps(name: str, memory: str, pieces: str):
    plain, fused = both(name, memory)
    assert_same(learn(fused), learn(plain))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", FUSED)
def test_evaluation_mode(name: str, memory: str, pieces: str):
    networks = both(name, memory)
    for network in networks:
        learn(network)
        network.eval()
    outputs = [network(images(5)) for network in networks]
    gradients = [
        torch.autograd.grad(o.square().sum(), list(n.parameters())) for o, n in zip(outputs, networks, strict=True)
    ]
    assert (outputs[0] - outputs[1]).abs().max() < BOUND
    assert all((a - b).abs().max() < BOUND * b.abs().max().clamp(min=1) for b, a in zip(*gradients, strict=True))
    with torch.no_grad():
        assert (networks[1](images(5)) - outputs[0]).abs().max() < BOUND


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_several_threads_in_evaluation(name: str, mode: Callable[[], AbstractContextManager[None]]):
    networks = [network.eval() for network in both(name, "shared")]
    x = images(number=32)
    torch.set_num_threads(2)
    try:
        with mode():
            outputs = [network(x) for network in networks]
    finally:
        torch.set_num_threads(1)
    assert (outputs[0] - outputs[1]).abs().max() < BOUND


@pytest.mark.parametrize("name", NETWORKS)
def test_several_threads_in_training(name: str):
    torch.set_num_threads(2)
    try:
        found = [learn(network, 2) for network in both(name, "recompute")]
    finally:
        torch.set_num_threads(1)
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", FUSED)
def test_dropout_draws_the_same(name: str, memory: str, pieces: str):
    plain, fused = both(name, memory, dropout=0.2)
    assert_same(learn(fused), learn(plain))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", FUSED)
def test_gradient_accumulation(name: str, memory: str):
    plain, fused = both(name, memory)
    assert_same(learn(fused, micro_batches=2), learn(plain, micro_batches=2))


@pytest.mark.parametrize("memory", FUSED)
@pytest.mark.parametrize("frozen", ["all", "norm1", "norm2", "one layer"])
def test_frozen_normalisation(memory: str, frozen: str, pieces: str):
    found: list[dict[str, Tensor]] = []
    for network in both("densenet-bc-40-12", memory):
        learn(network, 1)
        chosen = {"all": "norm", "one layer": "blocks.1.layers.2."}.get(frozen, frozen)
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d) and chosen in name:
                module.eval()
        found.append(learn(network))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("memory", FUSED)
def test_cumulative_averages_where_momentum_is_none(memory: str):
    found: list[dict[str, Tensor]] = []
    for network in both("densenet-bc-40-12", memory):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        found.append(learn(network))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("memory", FUSED)
def test_a_block_used_twice_in_one_graph(memory: str):
    torch.manual_seed(0)
    config = DenseNetConfig(growth_rate=4, memory="plain")
    plain = DenseBlock(config, num_layers=3, in_channels=8).double()
    fused = copy.deepcopy(plain)
    fused.memory = memory
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    for block in (plain, fused):
        (block(x).sum() + block(x * 2).square().sum()).backward()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < BOUND * theirs.grad.abs().max()
    assert_same(dict(fused.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("memory", FUSED)
def test_an_input_that_needs_no_gradient_and_one_that_does(memory: str):
    torch.manual_seed(0)
    block = DenseBlock(DenseNetConfig(growth_rate=4, memory=memory), num_layers=3, in_channels=8).double()
    plain = copy.deepcopy(block)
    plain.memory = "plain"
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with_gradient = [x.clone().requires_grad_() for _ in range(2)]
    for network, leaf in zip((block, plain), with_gradient, strict=True):
        network(leaf).square().sum().backward()
    assert (with_gradient[0].grad - with_gradient[1].grad).abs().max() < BOUND * with_gradient[1].grad.abs().max()
    gradients = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    block(x).square().sum().backward()
    assert all(torch.equal(p.grad, before) for p, before in zip(block.parameters(), gradients, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory", FUSED)
def test_any_memory_format_of_the_input(memory: str, memory_format: torch.memory_format):
    plain, fused = both("densenet-bc-40-12", memory)
    x = images().contiguous(memory_format=memory_format)
    assert (plain(x) - fused.to(memory_format=memory_format)(x)).abs().max() < BOUND


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("memory", FUSED)
def test_bf16_autocast_is_as_near_to_the_truth_as_the_plain_block(name: str, memory: str, pieces: str):
    networks = both(name, memory)
    truth = gradients_of(networks[0], images())
    errors: list[float] = []
    for network in networks:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients_of(network.float(), images(dtype=torch.float32))
        pairs = zip(found, truth, strict=True)
        errors.append(sum(float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9)) for ours, theirs in pairs))
    assert errors[1] < 1.2 * errors[0]


def gradients_of(network: nn.Module, x: Tensor) -> list[Tensor]:
    logits = network(x)
    with torch.autocast("cpu", enabled=False):
        loss = logits.to(x.dtype).logsumexp(dim=1).sum()
    return [gradient.double() for gradient in torch.autograd.grad(loss, list(network.parameters()))]


def test_ranks_under_ddp(tmp_path: Path):
    ranks = [start(compare_under_ddp, rank, tmp_path / "store") for rank in range(2)]
    assert [outcome(rank) for rank in ranks] == [0, 0]


def compare_under_ddp(rank: int, store: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found: list[dict[str, Tensor]] = []
    for network in both("densenet-bc-40-12", "shared"):
        wrapped = DistributedDataParallel(network, find_unused_parameters=True)
        wrapped(images(rank)).logsumexp(dim=1).sum().backward()
        found.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert_same(found[1], found[0])
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_model_with_a_switch(name: str):
    networks = [build_model(name, 10, memory=memory) for memory in ("plain", "shared", "recompute", "auto")]
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in networks]
    assert all(found == shapes[0] for found in shapes)
    networks[1].load_state_dict(networks[2].state_dict())


@pytest.mark.parametrize(
    ("name", "shared_at_most", "recompute_at_most"),
    [("densenet-bc-100-12", 0.22, 0.10), ("densenet-40-12", 0.25, 0.25)],
)
def test_bytes_saved_for_the_way_back(name: str, shared_at_most: float, recompute_at_most: float):
    saved = {memory: measure_saved(name, memory) for memory in ("plain", "shared", "recompute")}
    assert saved["shared"] <= shared_at_most * saved["plain"]
    assert saved["recompute"] <= recompute_at_most * saved["plain"]


def measure_saved(name: str, memory: str) -> int:
    work = Work("", batch_size=2, image_size=32, contenders={}, bars=[])
    return bytes_saved(prepare(work, build_model(name, 10, memory=memory)))


def test_layers_are_called_where_someone_waits_for_it():
    network = build_model("densenet-bc-40-12", 10, memory="shared").eval()
    called: list[str] = []
    network.blocks[1].layers[3].conv2.register_forward_hook(lambda *_: called.append("conv2"))
    with torch.no_grad():
        network(torch.randn(2, 3, 32, 32))
    assert called == ["conv2"]
    assert choose_memory("shared", network.blocks[1], torch.randn(2, 48, 8, 8)) == "plain"
    assert choose_memory("shared", network.blocks[0], torch.randn(2, 24, 8, 8)) == "shared"


def test_a_single_pixel_has_no_variance():
    block = DenseBlock(DenseNetConfig(memory="shared"), num_layers=1, in_channels=8)
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
        block(torch.randn(1, 8, 1, 1))


def test_gradients_of_gradients_are_refused():
    block = DenseBlock(DenseNetConfig(memory="shared"), num_layers=1, in_channels=8)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        gradient.sum().backward()


def test_other_networks_have_no_such_choice():
    with pytest.raises(InputError) as caught:
        build_model("resnet18", 10, memory="shared")
    assert str(caught.value) == (
        "memory is 'shared', but resnet18 has no dense blocks. Use 'plain', or choose a DenseNet."
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pixels", [1, 15, 4099])
def test_compiled_pieces_compute_what_torch_computes(dtype: torch.dtype, pixels: int):
    assert describe_pieces(CPU) == COMPILED
    torch.manual_seed(0)
    vectors = torch.float64 if dtype == torch.float64 else torch.float32
    maps, gradient, product = (torch.randn(pixels, width).to(dtype) for width in (40, 24, 24))
    scale, shift, mean, constant, factor = torch.randn(5, 24, dtype=vectors).unbind()
    wide_scale, wide_shift, wide_mean = torch.randn(3, 21, dtype=vectors).unbind()
    weight, mask = torch.randn(24, 21).to(dtype), (torch.rand(pixels, 24) < 0.8).to(dtype)
    prefix, own = maps[:, :21], maps[:, 16:]  # rows with gaps between them

    def call(name: str, pieces: object) -> list[Tensor]:
        piece: Callable[..., object] = getattr(pieces, name)
        place = torch.zeros(pixels, 40, dtype=dtype)
        arguments: dict[str, tuple[object, ...]] = {
            "norm_relu": (own, scale, shift),
            "moments": (own,),
            "append": (product, place[:, 16:]),
            "correct": (gradient, own, mean, constant, factor),
            "norm_product": (prefix, wide_scale, wide_shift, weight, shift),
            "norm_sums": (gradient, product, scale, shift, mean),
            "norm_backward": (gradient, own, scale, shift, mean, place[:, 16:]),
            "norm_product_backward": (
                *(gradient, product, scale, shift, mean, constant, factor, mask),
                *(prefix, wide_scale, wide_shift, wide_mean, weight, place[:, :21]),
            ),
        }
        result = piece(*arguments[name])
        return [*(result if isinstance(result, tuple) else (result,)), place]

    digits = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    for name in (name for name in vars(dense_pieces.Pieces) if not name.startswith("_")):
        for ours, theirs in zip(call(name, choose_pieces(CPU)), call(name, EAGER), strict=True):
            assert ours.dtype == theirs.dtype, name
            assert ours.shape == theirs.shape, name
            size = theirs.double().abs().max().clamp(min=1.0)
            assert (ours.double() - theirs.double()).abs().max() <= digits * size, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype: torch.dtype):
    maps = torch.zeros(3, 20, dtype=dtype)
    maps[1, 2] = torch.nan
    one = torch.ones(20)
    assert describe_pieces(CPU) == COMPILED
    assert choose_pieces(CPU).norm_relu(maps, one, one)[1, 2].isnan()
    assert choose_pieces(CPU).moments(maps)[0][2].isnan()


def test_pieces_are_told_by_their_shapes_alone():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        network = build_model("densenet-bc-40-12", 10, memory="recompute")
        network(torch.randn(2, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters())


@pytest.fixture
def not_loaded():
    """As in a process that has not looked for compiled pieces yet."""
    dense_pieces._load.cache_clear()
    yield
    dense_pieces._load.cache_clear()


@pytest.mark.usefixtures("not_loaded")
def test_without_a_compiler_the_pieces_are_torchs_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "COMPILERS", ("no-such-compiler",))
    assert describe_pieces(CPU) == ("uncompiled pieces, which are slower: there is no C++ compiler (no-such-compiler)")
    assert choose_pieces(CPU) is EAGER
    block = DenseBlock(DenseNetConfig(), num_layers=1, in_channels=8)
    assert choose_memory("auto", block, torch.randn(1, 8, 4, 4)) == "plain"
    assert run_dense_block(block.layers, torch.randn(2, 8, 4, 4), "shared").shape == (2, 40, 4, 4)


@pytest.mark.usefixtures("not_loaded")
def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "cc: no header" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(compiling, "COMPILERS", (str(compiler),))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert describe_pieces(CPU) == f"uncompiled pieces, which are slower: {compiler} fails: cc: no header"
    assert not list((tmp_path / "cache" / "candid").iterdir())


@pytest.mark.usefixtures("not_loaded")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "cache").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = describe_pieces(CPU)
    assert said.startswith("uncompiled pieces, which are slower: they could not be compiled (")
    assert str(tmp_path / "cache") in said
