# %% [markdown] lang="en"
# # 08 Residuals
#
# Afterwards you can
#
# - show why plain networks stop learning when they become deep,
# - write a residual block and say what its shortcut does on the way back,
# - count the layers and parameters of a ResNet,
# - find the defect that leaves a ResNet with half of its blocks.
#
# Paper: He, Zhang, Ren and Sun 2015, *Deep Residual Learning for Image Recognition*, arXiv:1512.03385. Time: about 40
# minutes with the exercises.

# %% [markdown] lang="zh"
# # 08 残差
#
# 学完本课，你将能够：
#
# - 说明普通网络变深之后为什么学不动，
# - 写出一个残差块，并说出捷径在反向传播中的作用，
# - 数出 ResNet 的层数和参数量，
# - 找出让 ResNet 少掉一半残差块的那个缺陷。
#
# 论文：何恺明、张祥雨、任少卿和孙剑 2015，*Deep Residual Learning for Image Recognition*，arXiv:1512.03385。
# 用时：连同练习约 40 分钟。

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid import Recipe, build_model
from candid.data.catalog import open_data_set
from candid.data.loading import TrainingBatches, open_training_data
from candid.models.resnet import BasicBlock, ResNetConfig

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")

# %% [markdown] lang="en"
# ## A layer that does nothing
#
# A deeper network can do what a shallow one does: its further layers only have to pass on what they read. For a
# convolution with ReLU that is hard to learn. A residual block computes $y = F(x) + x$. To pass on $x$, it only needs
# $F(x) = 0$.

# %% [markdown] lang="zh"
# ## 什么也不做的层
#
# 浅的网络能做的，深的网络也能做：多出来的层只要把读到的东西原样传下去。对带 ReLU 的卷积来说，这很难学。
# 残差块计算 $y = F(x) + x$。要把 $x$ 传下去，只需要 $F(x) = 0$。

# %%
torch.manual_seed(0)
block = BasicBlock(ResNetConfig(), in_channels=16, width=16, stride=1, dilations=(1, 1)).eval()
x = torch.rand(2, 16, 8, 8)  # behind a ReLU: nothing is negative
with torch.no_grad():
    block.norm2.weight.zero_()  # the branch ends in this normalisation
    print("largest difference", (block(x) - x).abs().max().item())
    assert torch.equal(block(x), x)

# %% [markdown] lang="en"
# ## What the shortcut does on the way back
#
# The gradient of $F(x) + x$ is that of $F$ plus the gradient itself. Whatever happens in the branch, the gradient
# arrives. Below are chains of blocks with and without shortcuts, both without normalisation, and the size of the
# gradient at the input.

# %% [markdown] lang="zh"
# ## 捷径在反向传播中的作用
#
# $F(x) + x$ 的梯度是 $F$ 的梯度加上梯度本身。无论支路里发生什么，梯度都传得过去。下面把块连成两条链，一条有捷径，
# 一条没有，都不带归一化，然后比较输入处梯度的大小。


# %%
class Bare(nn.Module):
    """Two convolutions of 16 channels, with a shortcut around them or without."""

    def __init__(self, has_shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, kernel_size=3, padding=1) for _ in range(2))
        self.has_shortcut = has_shortcut

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.conv1(x).relu())
        return (branch + x if self.has_shortcut else branch).relu()


# %%
def gradient_size(depth: int, has_shortcut: bool) -> float:
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Bare(has_shortcut) for _ in range(depth)))
    x = torch.rand(4, 16, 8, 8, requires_grad=True)
    [gradient] = torch.autograd.grad(blocks(x).sum(), [x])
    return gradient.norm().item()


depths = range(1, 21)
sizes = {shortcut: [gradient_size(depth, shortcut) for depth in depths] for shortcut in (False, True)}
for depth in (1, 5, 10, 20):
    print(f"{depth:2} blocks: {sizes[False][depth - 1]:.1e} without, {sizes[True][depth - 1]:.1e} with shortcuts")
assert sizes[True][-1] > 1e6 * sizes[False][-1]

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.semilogy(depths, sizes[True], "o-", label="with shortcuts")
axis.semilogy(depths, sizes[False], "o-", label="without")
axis.set(xlabel="blocks", ylabel="gradient at the input", xticks=[1, 5, 10, 15, 20])
axis.legend()
plt.show()

# %% [markdown] lang="en"
# ## With normalisation too
#
# Normalisation keeps gradients from fading, and plain networks can be deeper with it. But they still learn slower as
# they become deeper: that is what the paper begins with. Here are ResNet-20 and the same network without its
# shortcuts, on pictures of half their side.

# %% [markdown] lang="zh"
# ## 有了归一化也一样
#
# 归一化使梯度不会消失，普通网络因此可以更深。但它们变深之后仍然学得更慢：论文正是从这里开始的。
# 下面是 ResNet-20 和去掉捷径的同一个网络，图像边长减半。


# %%
class Nothing(nn.Module):
    """In place of a shortcut: what is added is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros((), dtype=x.dtype)


def build(has_shortcuts: bool) -> nn.Module:
    torch.manual_seed(0)
    network = build_model("resnet20-cifar", num_classes=10, in_channels=1)
    for block in network.modules():
        if isinstance(block, BasicBlock) and not has_shortcuts:
            block.shortcut = Nothing()
    return network


# %%
settings = {"data.name": "fashion-mnist-mini", "data.image_size": 14, "data.channels": 1}
recipe = Recipe().replace(settings | {"training.batch_size": 64})
data = open_training_data(open_data_set("fashion-mnist-mini"), recipe)
batches = TrainingBatches(data, recipe, num_classes=10, device=CPU)
STEPS = 3 if QUICK else batches.steps_per_epoch


# %%
def train(network: nn.Module, epochs: int) -> list[float]:
    """The loss of each step."""
    optimizer, losses = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9), []
    for epoch in range(epochs):
        for _, batch in zip(range(STEPS), batches.epoch(epoch), strict=False):
            loss = cross_entropy(network(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


# %%
names = {True: "ResNet-20", False: "without its shortcuts"}
curves = {name: train(build(has_shortcuts), epochs=1 if QUICK else 3) for has_shortcuts, name in names.items()}
last = {name: sum(losses[-20:]) / len(losses[-20:]) for name, losses in curves.items()}
for name, loss in last.items():
    print(f"{name:<22} loss of the last steps {loss:.3f}")
assert QUICK or last["ResNet-20"] < last["without its shortcuts"]

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, losses in curves.items():
    axis.plot(losses, label=name, linewidth=0.8)
axis.set(xlabel="step", ylabel="loss")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# ## Defect: a return inside the loop
#
# The notes' function that builds a stage returns inside its loop, so that every stage has one block in place of two.
# The network runs, learns, and is not ResNet-18. Counting its layers and parameters shows it.

# %% [markdown] lang="zh"
# ## 缺陷：循环里的 return
#
# 笔记里搭建一个阶段的函数在循环里就返回了，于是每个阶段只有一个块，而不是两个。网络能运行，也能学习，却不是 ResNet-18。
# 数一数层数和参数量就能看出来。


# %%
def build_stage(in_channels: int, width: int, num_blocks: int, stride: int) -> nn.Sequential:
    """With the defect."""
    blocks = []
    for index in range(num_blocks):
        first = index == 0
        blocks.append(
            BasicBlock(ResNetConfig(), in_channels if first else width, width, stride if first else 1, (1, 1))
        )
        return nn.Sequential(*blocks)  # it should stand behind the loop


stages = [build_stage(*sizes) for sizes in ((64, 64, 2, 1), (64, 128, 2, 2), (128, 256, 2, 2), (256, 512, 2, 2))]
halved = sum(parameter.numel() for stage in stages for parameter in stage.parameters())

# %%
whole = build_model("resnet18", num_classes=1000)
right = sum(
    parameter.numel() for name, parameter in whole.named_parameters() if "stem" not in name and "head" not in name
)
print(
    f"blocks in the stages: {sum(map(len, stages))} with the defect, "
    f"{sum(isinstance(module, BasicBlock) for module in whole.modules())} in ResNet-18"
)
print(f"parameters of the stages: {halved:,} with the defect, {right:,} in ResNet-18")
assert halved < 0.5 * right

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# A ResNet for images of 32 px has three stages of $n$ blocks. Why is its depth $6 n + 2$? Which $n$ belongs to
# ResNet-20, 56 and 110?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 用于 32 像素图像的 ResNet 有三个阶段，每个阶段 $n$ 个块。为什么它的深度是 $6 n + 2$？ResNet-20、56 和 110 各对应哪个
# $n$？

# %% tags=["solution"]
for name in ("resnet20-cifar", "resnet56-cifar", "resnet110-cifar"):
    network = build_model(name, num_classes=10)
    blocks = sum(isinstance(module, BasicBlock) for module in network.modules())
    n, depth = blocks // 3, 2 * blocks + 2  # two convolutions in each block, the stem and the linear layer
    print(f"{name}: n = {n}, depth {depth}")
    assert depth == 6 * n + 2 == int(name.removeprefix("resnet").removesuffix("-cifar"))

# %% [markdown] lang="en"
# ### Exercise 2
#
# Leave out one block of a trained network. What happens to a ResNet, and what to the network without shortcuts?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 从训练好的网络中去掉一个块。ResNet 会怎样，没有捷径的网络又会怎样？

# %% tags=["solution"]
batch, lost = next(iter(batches.epoch(0))), {}
labels = batch.targets.argmax(dim=1)
for has_shortcuts, name in names.items():
    network = build(has_shortcuts)
    train(network, epochs=1)
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock)]
    with torch.no_grad():
        whole = network.eval()(batch.inputs)
        blocks[1].forward = lambda x: x  # a block of the first stage; shapes stay
        shortened = network(batch.inputs)
    before, after = ((logits.argmax(dim=1) == labels).double().mean().item() for logits in (whole, shortened))
    print(f"{name:<22} {before:.2f} of a batch right, {after:.2f} without a block")
    assert not torch.equal(whole, shortened)
    lost[name] = before - after
assert QUICK or lost["ResNet-20"] < lost["without its shortcuts"]
