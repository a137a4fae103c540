# %% [markdown] lang="en"
# # 10 Memory
#
# Afterwards you can say what training keeps in memory and why, count it for a dense block in three forms, and choose
# settings that fit a budget without changing what is learned.
#
# Paper: Pleiss, Chen, Huang, Li, van der Maaten and Weinberger, 2017, "Memory-Efficient Implementation of DenseNets",
# arXiv:1707.06990.
#
# Time: about 40 minutes with the exercises.

# %% [markdown] lang="zh"
# # 10 内存
#
# 学完本课，你能说清训练时内存里保留了什么、为什么要保留，能算出三种写法的稠密块各保留多少，
# 还能在不改变学习结果的前提下选出符合内存预算的设置。
#
# 论文：Pleiss、Chen、Huang、Li、van der Maaten 和 Weinberger，2017，“Memory-Efficient Implementation of
# DenseNets”，arXiv:1707.06990。
#
# 用时：连同练习约 40 分钟。

# %%
import copy
import os
import time

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

# %%
from candid import InputError, Recipe, workflow
from candid.models.densenet import DenseBlock, DenseNetConfig
from candid.sizes import size

QUICK = os.environ.get("LESSONS") == "quick"

# %% [markdown] lang="en"
# ## What autograd keeps
#
# The gradient of a product needs both factors, the gradient of ReLU needs to know where it was zero. So each
# operation keeps tensors of the way forward until the way back has used them. `saved_tensors_hooks` calls a function
# for each tensor that is kept. Ours notes the memory behind it, each piece once, and leaves out the parameters and
# buffers, which are there anyway.

# %% [markdown] lang="zh"
# ## 自动求导保留了什么
#
# 乘积的梯度需要两个因子，ReLU 的梯度需要知道哪里是零。所以每个运算都会保留前向传播中的一些张量，
# 直到反向传播用完为止。`saved_tensors_hooks` 会对每个被保留的张量调用一个函数。
# 我们的函数记下张量背后的内存，每块只记一次；参数和缓冲区本来就在，不计入。


# %%
def bytes_kept(network: nn.Module, images: Tensor) -> int:
    """What a forward pass of `network` keeps for the way back."""
    there = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(images)  # the name holds the graph, and so the memory, until all is noted
    del output
    return sum(kept.values())


# %%
images = torch.randn(8, 16, 16, 16)
one_map = images[:, 0].numel() * images.element_size()  # bytes of one channel of all pictures
for layers in ([nn.ReLU()], [nn.Conv2d(16, 16, 1)], [nn.BatchNorm2d(16)], [nn.Conv2d(16, 16, 1), nn.ReLU()]):
    network = nn.Sequential(*layers)
    names = ", ".join(type(layer).__name__ for layer in layers)
    images.requires_grad_()
    print(f"{names:<14} keeps {bytes_kept(network, images) / one_map:5.1f} maps")

# %% [markdown] lang="en"
# The input has sixteen maps. A convolution keeps its input, ReLU its output, normalisation its input and two vectors.
#
# ## The obvious dense block
#
# Written as it is drawn, a layer of a dense block concatenates what it reads and normalises the result. Both copies
# are kept: the normalisation needs the one, the convolution the other. Layer $i$ reads $C + i k$ maps, so $L$ layers
# keep $2 (C + (C + k) + \dots + (C + (L - 1) k))$ maps. Bottlenecks add $8 k$ for each layer: $4 k$ products of the
# 1x1 convolution, and the same normalised. The sum grows as $L^2$.

# %% [markdown] lang="zh"
# 输入有十六张特征图。卷积保留输入，ReLU 保留输出，归一化保留输入和两个向量。
#
# ## 直接写出的稠密块
#
# 照图直接写，稠密块的每一层先拼接要读的特征图，再做归一化。两份都要保留：归一化需要前一份，卷积需要后一份。第 $i$
# 层读 $C + i k$ 张特征图，所以 $L$ 层一共保留 $2 (C + (C + k) + \dots + (C + (L - 1) k))$ 张。瓶颈使每层再多 $8 k$
# 张：1x1 卷积的结果 $4 k$ 张，归一化之后的也有这么多。总和按 $L^2$ 增长。

# %%
C, K = 24, 12
CONFIG = DenseNetConfig(growth_rate=K)


def build_block(num_layers: int, memory: str) -> DenseBlock:
    torch.manual_seed(0)
    block = DenseBlock(CONFIG, num_layers, in_channels=C)
    block.memory = memory
    return block


def maps_kept(num_layers: int, memory: str) -> float:
    """In units of one channel of all pictures."""
    entering = torch.randn(8, C, 16, 16, requires_grad=True)
    return bytes_kept(build_block(num_layers, memory), entering) / one_map


# %%
depths = (4, 8, 12) if QUICK else (4, 8, 16, 24, 32, 40)
plain = [maps_kept(depth, "plain") for depth in depths]
for depth, maps in zip(depths, plain, strict=True):
    by_hand = sum(2 * (C + index * K) + 8 * K for index in range(depth))
    print(f"{depth:3} layers keep {maps:8,.0f} maps; by hand {by_hand:6,}")
    assert abs(maps / by_hand - 1) < 0.02  # the vectors of the normalisations are the rest

# %% [markdown] lang="en"
# ## One buffer
#
# Three observations make the block linear.
#
# 1. The mean and the variance of a map do not depend on who reads it. They are computed once, when the map is made.
# 2. All maps of a block fit into one buffer. A layer reads the front part of it and writes its own maps behind that.
#    Nothing is concatenated.
# 3. On the way back, what the batch statistics add to the gradient of a map is two numbers a channel. They are added
#    up over all readers, and applied once.
#
# What a layer reads is normalised again on the way back, which is quick, and so need not be kept. The derivation is
# in `docs/dense-block.md`. The first observation in numbers:

# %% [markdown] lang="zh"
# ## 一块缓冲区
#
# 利用三点观察，可以使稠密块占用的内存只随层数线性增长。
#
# 1. 一张特征图的均值和方差与谁来读它无关。在它产生时计算一次就够了。
# 2. 一个稠密块的所有特征图放得进一块缓冲区。每层读它的前面一段，把自己的特征图写在后面。什么都不用拼接。
# 3. 反向传播时，批量统计量对一张特征图的梯度的贡献，每个通道只是两个数。把各层读取时的这两个数累加起来，
#    最后一次性用上。
#
# 每层读到的内容在反向传播时重新归一化一遍，这很快，所以不必保留。推导见 `docs/dense-block.md`。
# 下面用数字看第一点：

# %%
maps = torch.randn(8, 24, 16, 16)
first = torch.var_mean(maps[:, :12], dim=(0, 2, 3))  # as the first reader sees them
second = torch.var_mean(maps, dim=(0, 2, 3))  # as a later one does
for name, ours, theirs in zip(("variance", "mean"), first, second, strict=True):
    print(f"{name}: largest difference {(ours - theirs[:12]).abs().max():.0e}")
    assert torch.allclose(ours, theirs[:12], atol=1e-6)

# %% [markdown] lang="en"
# candid's block has this form as `memory="shared"`. It keeps the buffer and, with bottlenecks, each layer's product:
# $C + L k + 4 k L$ maps. With `memory="recompute"` the products are computed again as well, and the buffer of
# $C + L k$ maps is all.

# %% [markdown] lang="zh"
# candid 的稠密块用 `memory="shared"` 表示这种写法。它保留缓冲区；有瓶颈时还保留每层 1x1 卷积的结果，一共
# $C + L k + 4 k L$ 张。用 `memory="recompute"` 时这些结果也重新计算，只剩下缓冲区的 $C + L k$ 张特征图。

# %%
curves = {
    "plain": plain,
    **{memory: [maps_kept(depth, memory) for depth in depths] for memory in ("shared", "recompute")},
}
for depth, shared, recompute in zip(depths, curves["shared"], curves["recompute"], strict=True):
    print(f"{depth:3} layers: shared {shared:6,.0f}, recompute {recompute:6,.0f} maps")
    assert abs(shared / (C + depth * K + 4 * K * depth) - 1) < 0.02
    assert abs(recompute / (C + depth * K) - 1) < 0.02

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for memory, maps in curves.items():
    axes.plot(depths, [number * one_map / 2**20 for number in maps], "o-", label=memory)
axes.set(xlabel="layers in the block", ylabel="kept (MiB)", ylim=(0, None), title="C = 24, k = 12, 8 pictures, 16 px")
axes.legend()
plt.show()

# %% [markdown] lang="en"
# ## The same mathematics
#
# Less memory is worth nothing if another network comes out. So we compare, in float64, the output, all gradients and
# the running statistics of the three forms after one step.

# %% [markdown] lang="zh"
# ## 数学上完全相同
#
# 如果训练出的是另一个网络，省下内存就没有意义。所以我们在 float64 下比较三种写法走一步之后的输出、
# 全部梯度和滑动统计量。


# %%
def step(memory: str) -> dict[str, Tensor]:
    """All that a step leaves behind."""
    block, entering = build_block(4, memory).double(), images.detach().double().repeat(1, 2, 1, 1)[:, :C]
    entering.requires_grad_()
    output = block(entering)
    (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
    gradients = {f"gradient of {name}": value.grad for name, value in block.named_parameters()}
    return {"output": output.detach(), "gradient of the input": entering.grad} | gradients | dict(block.named_buffers())


# %%
expected = step("plain")
for memory in ("shared", "recompute"):
    found = step(memory)
    errors = [(found[name] - expected[name]).abs().max() / expected[name].abs().max() for name in expected]
    print(f"{memory}: {len(errors)} tensors, largest relative difference {max(errors):.1e}")
    assert max(errors) < 1e-9  # float64 leaves only rounding

# %% [markdown] lang="en"
# ## The usual remedy and its defect
#
# The usual way to save this memory is activation checkpointing: a layer keeps its input alone, and is run a second
# time on the way back. But a layer with batch normalisation that runs twice moves its running statistics twice. The
# gradients are right, and yet the network is not the one that the plain code trains.

# %% [markdown] lang="zh"
# ## 常见办法及其缺陷
#
# 省下这部分内存的常见办法是激活检查点：一层只保留输入，反向传播时再运行一次。
# 但是，带批量归一化的层运行两次，滑动统计量也就更新了两次。梯度是对的，得到的却不是直接写法训练出来的那个网络。

# %%
norm = nn.BatchNorm2d(C)
twice = copy.deepcopy(norm)
entering = torch.randn(8, C, 16, 16, requires_grad=True) + 1
norm(entering).sum().backward()
checkpoint(twice, entering.detach().requires_grad_(), use_reentrant=False).sum().backward()
for name, layer in (("plain", norm), ("checkpointed", twice)):
    print(f"{name:<13}{layer.num_batches_tracked} updates, mean of running means {layer.running_mean.mean():.3f}")
assert (norm.num_batches_tracked, twice.num_batches_tracked) == (1, 2)

# %% [markdown] lang="en"
# candid's block moved them once, as the comparison above has shown: the buffers were among the tensors.
#
# ## What it costs in time
#
# To compute something again takes time, to write and read memory does too. So the form that keeps less can be the
# faster one. The machine decides: with a C++ compiler the pieces of candid's block are compiled at first use, without
# one PyTorch's own operations do the same.

# %% [markdown] lang="zh"
# candid 的稠密块只更新了一次，上面的比较已经说明了这一点：缓冲区就在被比较的张量之中。
#
# ## 时间上的代价
#
# 重新计算要花时间，读写内存也要花时间。所以保留得少的写法也可能更快。这取决于机器：有 C++ 编译器时，candid
# 的稠密块在第一次使用时编译其中的部件；没有时，由 PyTorch 自己的运算完成同样的事。


# %%
def fastest_step_s(memory: str, tries: int) -> float:
    block = build_block(4 if QUICK else 16, memory).to(memory_format=torch.channels_last)
    entering = torch.randn(4 if QUICK else 16, C, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    seconds: list[float] = []
    for _ in range(tries + 1):
        started_at_s = time.perf_counter()
        block(entering).sum().backward()
        seconds.append(time.perf_counter() - started_at_s)
    return min(seconds[1:])  # the first one compiles and allocates


for memory in ("plain", "shared", "recompute"):
    print(f"{memory:<10}{1000 * fastest_step_s(memory, tries=2 if QUICK else 5):7.0f} ms a step")

# %% [markdown] lang="en"
# ## A plan for a budget
#
# The DenseNet of the course's notes ran out of memory on a GPU of 2 GB. candid predicts what a run will hold before
# it trains anything: it goes through one step with tensors that have shapes and no values. On the command line that
# is `candid plan --model densenet-bc-100-12 --memory 2GiB`, in Python it is `workflow.plan`.
#
# The prediction has parts: the floor, which this process holds anyway, the pictures, weights, gradients, what the
# optimiser keeps, and the activations, which are what autograd keeps.

# %% [markdown] lang="zh"
# ## 按预算制定方案
#
# 课程笔记里的 DenseNet 在 2 GB 的 GPU 上内存不够用。candid 在训练之前就能预测一次训练会占用多少：它用只有形状、
# 没有数值的张量走完一步。在命令行上是 `candid plan --model densenet-bc-100-12 --memory 2GiB`，在 Python 里是
# `workflow.plan`。
#
# 预测由几部分组成：固定占用（floor，即这个进程本来就占用的内存）、图像、权重、梯度、优化器保留的数值，以及激活值，
# 也就是自动求导保留的那些。

# %%
recipe = Recipe().replace({"data.name": "fashion-mnist-mini", "model.name": "densenet-bc-40-12"})
recipe = recipe.replace({"training.batch_size": 256, "training.precision": "fp32"})
planned = workflow.plan(recipe, device="cpu")
needed = {}
for memory in ("plain", "shared", "recompute"):
    prediction = planned.predictor.predict(planned.chosen.recipe.replace({"training.memory": memory}))
    parts = ", ".join(f"{part} {size(value)}" for part, value in prediction.parts.items() if value > 2**22)
    print(f"{memory:<10}{size(prediction.total)}: {parts}")
    needed[memory] = prediction.total
assert needed["plain"] > needed["shared"] > needed["recompute"]

# %% [markdown] lang="en"
# Now a budget between the last two. The plan tries the ways to train in an order that leaves the mathematics alone:
# what the forward pass keeps, then smaller micro-batches, whose gradients add up to those of the batch.

# %% [markdown] lang="zh"
# 现在给出介于后两者之间的预算。方案依次尝试各种训练方式，它们都不改变数学结果：先是前向传播保留什么，
# 再是更小的微批量，它们的梯度加起来就是整个批量的梯度。

# %%
budget = (needed["shared"] + needed["recompute"]) / 2
plan = workflow.plan(recipe.replace({"limits.memory": f"{budget / 2**20:.0f}MiB"}), device="cpu")
print(plan.text())
assert plan.chosen.recipe.training.memory == "recompute"
assert plan.chosen.recipe.training.micro_batch_size == 0  # the batch stays whole

# %% [markdown] lang="en"
# `candid train --memory` takes the chosen settings. A budget in which nothing fits is refused before training, with
# the least that would do.

# %% [markdown] lang="zh"
# `candid train --memory` 会采用选出的设置。如果哪种方式都超出预算，训练之前就会拒绝，并说明至少需要多少。

# %%
try:
    workflow.plan(recipe.replace({"limits.memory": "100MiB"}), device="cpu")
except InputError as error:
    print(error)

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# How much does a block of 16 layers without bottlenecks keep in the plain and in the shared form, in maps? Count it
# by hand, then measure it with `DenseNetConfig(growth_rate=12, bottleneck=False)`.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 没有瓶颈的 16 层稠密块，用直接写法和共享缓冲区的写法各保留多少张特征图？先手工计算，再用
# `DenseNetConfig(growth_rate=12, bottleneck=False)` 测量。

# %% tags=["solution"]
config, depth = DenseNetConfig(growth_rate=12, bottleneck=False), 16
entering = torch.randn(8, C, 16, 16, requires_grad=True)
by_hand = {"plain": sum(2 * (C + index * K) for index in range(depth)), "shared": C + depth * K}
for memory, expected_maps in by_hand.items():
    block = DenseBlock(config, depth, in_channels=C)
    block.memory = memory
    maps = bytes_kept(block, entering) / one_map
    print(f"{memory}: {expected_maps} maps by hand, {maps:.0f} measured")
    assert abs(maps / expected_maps - 1) < 0.02

# %% [markdown] lang="en"
# ### Exercise 2
#
# How much is kept under `torch.no_grad()`? Where should it stand, then?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 在 `torch.no_grad()` 之下保留多少？那么它应该用在哪里？

# %% tags=["solution"]
with torch.no_grad():
    kept = bytes_kept(build_block(8, "plain"), entering)
print(f"{kept} bytes: evaluation and prediction belong under it, because nobody goes back.")
assert kept == 0

# %% [markdown] lang="en"
# ### Exercise 3
#
# There is room for ten thousand maps. How many layers can a block have in each of the three forms? Use the formulas,
# with $C = 24$, $k = 12$ and bottlenecks.

# %% [markdown] lang="zh"
# ### 练习 3
#
# 内存里放得下一万张特征图。三种写法的稠密块各能有多少层？用公式计算，取 $C = 24$、$k = 12$，带瓶颈。

# %% tags=["solution"]
forms = {
    "plain": lambda depth: sum(2 * (C + index * K) + 8 * K for index in range(depth)),
    "shared": lambda depth: C + depth * K + 4 * K * depth,
    "recompute": lambda depth: C + depth * K,
}
deepest = {memory: max(depth for depth in range(1000) if maps(depth) <= 10_000) for memory, maps in forms.items()}
print(deepest)
assert deepest["plain"] < deepest["shared"] < deepest["recompute"]
