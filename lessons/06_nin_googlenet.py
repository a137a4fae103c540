# %% [markdown] lang="en"
# # 06 NiN and GoogLeNet
#
# Afterwards you can
#
# - show that a 1x1 convolution is a linear layer across channels,
# - say what the mean of each map saves, in place of linear layers,
# - take an inception module apart into its branches, and count what a 1x1 convolution in front of another one saves,
# - fold two convolutions without an activation between them into one, and so find two defects.
#
# Papers: Lin, Chen and Yan 2013, *Network In Network*, arXiv:1312.4400; Szegedy et al. 2014, *Going Deeper with
# Convolutions*, arXiv:1409.4842. Time: about 45 minutes with the exercises.

# %% [markdown] lang="zh"
# # 06 NiN 与 GoogLeNet
#
# 学完本课，你将能够：
#
# - 说明 1x1 卷积就是跨通道的线性层，
# - 说出用每张特征图的均值代替线性层能省下什么，
# - 把 Inception 模块拆成各条支路，并数出在另一个卷积之前加 1x1 卷积能省下多少，
# - 把中间没有激活函数的两个卷积合成一个，并由此找出两个缺陷。
#
# 论文：Lin、Chen 和 Yan 2013，*Network In Network*，arXiv:1312.4400；Szegedy 等 2014，*Going Deeper with
# Convolutions*，arXiv:1409.4842。用时：连同练习约 45 分钟。

# %%
import os
from collections.abc import Callable
from itertools import islice, product

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

# %%
from candid import Recipe, build_model, scratch
from candid.data.catalog import open_data_set
from candid.data.loading import EvaluationBatches, TrainingBatches, open_training_data
from candid.models import count_parameters, smallest_image_size
from candid.models.googlenet import ConvLayer, GoogLeNetConfig, Inception
from candid.models.summary import summarize

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")
SEEDS = (0,) if QUICK else (0, 1, 2)

# %% [markdown] lang="en"
# ## A 1x1 convolution is a linear layer across channels
#
# A window of one px sees no neighbours. At each place it makes new channels from the channels there, always with the
# same weights: that is a linear layer, applied to every place.

# %% [markdown] lang="zh"
# ## 1x1 卷积就是跨通道的线性层
#
# 一个像素的窗口看不到邻居。它在每个位置上由该处的各通道得到新的通道，所用的权重处处相同：这就是应用于每个位置的线性层。

# %%
generator = torch.Generator().manual_seed(0)
maps, weights = torch.randn(2, 6, 5, 5, generator=generator), torch.randn(4, 6, generator=generator)
mixed = scratch.conv1x1(maps, weights)
linear = nn.Linear(6, 4, bias=False)
with torch.no_grad():
    linear.weight.copy_(weights)
    by_place = linear(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # a linear layer takes the last dimension
print(tuple(maps.shape), "->", tuple(mixed.shape))
assert torch.allclose(mixed, by_place, atol=1e-5)
assert torch.allclose(mixed, torch.conv2d(maps, weights[:, :, None, None]), atol=1e-5)

# %% [markdown] lang="en"
# ## NiN: a small network at each place
#
# A block of NiN is a convolution and two of 1x1, with an activation behind each: what a window sees passes through a
# small network with two hidden layers. The last block has a map for each class, and the mean of that map is the
# class's logit.

# %% [markdown] lang="zh"
# ## NiN：每个位置上的小网络
#
# NiN 的一个块由一个卷积和两个 1x1 卷积组成，每个之后都有激活函数：窗口看到的内容要通过一个有两个隐藏层的小网络。
# 最后一个块为每个类别给出一张特征图，这张图的均值就是该类别的 logit。

# %%
layers = summarize("nin-notes").layers
for layer in layers:
    if layer.kind.startswith(("conv", "max pool", "average")):
        print(f"{layer.kind:<15}{' x '.join(map(str, layer.output)):<15}{layer.parameters:9,} parameters")
widest = [layer.output for layer in layers if layer.kind != "conv 1x1" and layer.kind.startswith(("conv", "max pool"))]
assert [shape[1] for shape in widest] == [54, 26, 26, 12, 12, 5, 5]

# %% [markdown] lang="en"
# ## The mean of a map in place of linear layers
#
# AlexNet and VGG have most of their parameters in linear layers. NiN has none, and GoogLeNet a single one behind the
# means. How many would it take to put AlexNet's three linear layers behind the last maps of NiN's third block?

# %% [markdown] lang="zh"
# ## 用均值代替线性层
#
# AlexNet 和 VGG 的大部分参数都在线性层里。NiN 没有线性层，GoogLeNet 只在取平均之后有一个。
# 如果在 NiN 第三个块最后的特征图之后接上 AlexNet 的三个线性层，需要多少参数？

# %%
totals = {name: count_parameters(f"{name}-notes", 10, 1) for name in ("alexnet", "vgg11", "nin", "googlenet")}
for name, total in totals.items():
    print(f"{name:<10}{total:12,} parameters")
assert totals["nin"] < totals["alexnet"] / 20
assert totals["googlenet"] < totals["alexnet"] / 5
linear = sum((before + 1) * after for before, after in ((384 * 5 * 5, 4096), (4096, 4096), (4096, 10)))
means = sum(layer.parameters for layer in layers if layer.output[0] == 10)
print(f"behind 384 maps of 5 x 5 px: {linear:,} in linear layers, {means:,} in NiN's last block")
assert linear > 1000 * means

# %% [markdown] lang="en"
# ## Defect: a block of NiN with one convolution too many
#
# The notes' block has three 1x1 convolutions in place of two, and no activation behind its first convolution. Their
# third block goes in steps of 2 px. Here are both forms.

# %% [markdown] lang="zh"
# ## 缺陷：NiN 块里多了一个卷积
#
# 笔记里的块有三个 1x1 卷积而不是两个，而且第一个卷积之后没有激活函数。笔记的第三个块步幅为 2 像素。下面是两种形式。


# %%
def block(in_channels: int, width: int, kernel: int, stride: int, padding: int, has_defect: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel, stride, padding)]
    for number in range(3 if has_defect else 2):
        if number > 0 or not has_defect:
            layers.append(nn.ReLU())
        layers.append(nn.Conv2d(width, width, kernel_size=1))
    return [*layers, nn.ReLU()]


def draw_he(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)


# %%
def build_nin(
    widths: tuple[int, int, int], window: tuple[int, int, int], has_defect: bool, seed: int = 0
) -> nn.Sequential:
    """`window` is side, stride and padding of the first convolution."""
    torch.manual_seed(seed)
    one, two, three = widths
    sizes = (1, one, *window), (one, two, 5, 1, 2), (two, three, 3, 2 if has_defect else 1, 1), (three, 10, 3, 1, 1)
    layers = [layer for size in sizes for layer in (*block(*size, has_defect), nn.MaxPool2d(3, stride=2))]
    means = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers[:-2], *means)  # without a last ReLU: logits may be negative
    draw_he(network)
    return network


# %% [markdown] lang="en"
# In full size: the sides of the maps, the parameters and the multiply-adds of a picture. `FlopCounterMode` counts a
# multiply-add as two operations.

# %% [markdown] lang="zh"
# 完整大小时：特征图的边长、参数量，以及一张图像的乘加次数。`FlopCounterMode` 把一次乘加算作两次运算。

# %%
counts, sides = {}, {}
for has_defect in (False, True):
    network, maps, seen = build_nin((96, 256, 384), (11, 4, 0), has_defect), torch.zeros(1, 1, 224, 224), [224]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for layer in network[:-2]:
            maps = layer(maps)
            seen.append(maps.shape[2])
    counts[has_defect] = sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2
    sides[has_defect] = list(dict.fromkeys(seen))
    print(f"{'with the defects' if has_defect else 'paper':<17}{' - '.join(map(str, sides[has_defect])):<26}", end="")
    print(f"{counts[has_defect][0]:,} parameters, {counts[has_defect][1] / 1e6:.0f} M multiply-adds")

# %%
assert sides == {False: [224, 54, 26, 12, 5], True: [224, 54, 26, 12, 6, 2]}
assert counts[False] == (count_parameters("nin-notes", 10, 1), summarize("nin-notes").multiply_adds)
assert counts[True][0] > counts[False][0]
assert counts[True][1] < counts[False][1]
extra = sum(width**2 + width for width in (96, 256, 384, 10))
print(f"{extra:,} parameters are those of four 1x1 convolutions")
assert counts[True][0] - counts[False][0] == extra

# %% [markdown] lang="en"
# There are more parameters, but fewer operations, because the stride leaves a quarter of the places. The last maps
# have 2 x 2 px in place of 5 x 5 px.
#
# What does the extra convolution add? Without an activation between them, the first convolution and the 1x1 behind it
# are one convolution. So a block of the paper's form can do the same, with kernels that are calculated here.

# %% [markdown] lang="zh"
# 参数更多，运算却更少，因为步幅只留下四分之一的位置。最后的特征图是 2 x 2 像素，而不是 5 x 5 像素。
#
# 多出来的卷积带来了什么？第一个卷积与它后面的 1x1 卷积之间没有激活函数，它们就是一个卷积。
# 所以论文形式的块也能做同样的事，所需的卷积核在这里算出。

# %%
torch.manual_seed(0)
notes, paper = (nn.Sequential(*block(3, 16, 5, 1, 2, has_defect)) for has_defect in (True, False))
mix = notes[1].weight[:, :, 0, 0]  # [16, 16]
with torch.no_grad():
    paper[0].weight.copy_(torch.einsum("ed,dchw->echw", mix, notes[0].weight))
    paper[0].bias.copy_(mix @ notes[0].bias + notes[1].bias)
    for place in (2, 4):
        paper[place].load_state_dict(notes[place + 1].state_dict())
    pictures = torch.randn(2, 3, 12, 12)
    print(f"largest difference {(paper(pictures) - notes(pictures)).abs().max():.0e}")
    assert torch.allclose(paper(pictures), notes(pictures), atol=1e-5)

# %% [markdown] lang="en"
# The two mistakes cancel in what the block can do: one convolution is too many, and one activation too few. What
# remains is more work, and the stride.
#
# ## What the defects do in training
#
# The networks are narrow, and the pictures have 48 px. A fifth of the training split is held out for validation. All
# networks see the same batches; each form begins from several draws of its weights. The spread between the draws is
# the measure: a difference that is smaller says nothing.

# %% [markdown] lang="zh"
# 就这个块能做的事而言，两个错误相互抵消：多了一个卷积，少了一个激活函数。余下的是多出的运算，以及步幅。
#
# ## 缺陷对训练的影响
#
# 网络是窄的，图像边长 48 像素。训练集的五分之一留作验证集。所有网络看到同样的批量；
# 每种形式各从几组随机抽取的初始权重开始。各组之间的离散程度就是衡量的标准：差别若小于它，就什么也说明不了。

# %%
settings = {"data.name": "fashion-mnist-mini", "data.image_size": 48, "data.channels": 1, "data.validation": 0.2}
recipe = Recipe().replace(settings | {"training.batch_size": 64})
data = open_training_data(open_data_set("fashion-mnist-mini"), recipe)
batches = TrainingBatches(data, recipe, num_classes=10, device=CPU)


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    """Of the validation pictures."""
    network.eval()
    batches = EvaluationBatches(data.validation, data.preprocessing, CPU)
    return torch.cat([network(inputs).argmax(dim=1) == labels for inputs, labels in batches]).double().mean().item()


# %%
def train(network: nn.Module, epochs: int = 3) -> list[float]:
    """The loss of each step."""
    optimizer, losses = torch.optim.Adam(network.train().parameters(), lr=1e-3), []
    for epoch in range(1 if QUICK else epochs):
        for batch in islice(batches.epoch(epoch), 3 if QUICK else None):
            loss = cross_entropy(network(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


# %%
Results = dict[str, list[tuple[list[float], float]]]
"""Of each form and draw: the losses of the steps, and the accuracy."""


def compare(build: Callable[[bool, int], nn.Module]) -> Results:
    """`build` takes whether there is a defect, and a seed."""
    results: Results = {"paper": [], "with the defect": []}
    for (has_defect, name), seed in product(enumerate(results), SEEDS):
        network = build(bool(has_defect), seed)
        results[name].append((train(network), accuracy(network)))
    for name, draws in results.items():
        losses = " ".join(f"{sum(losses[-40:]) / len(losses[-40:]):.3f}" for losses, _ in draws)
        print(f"{name:<16} loss {losses}, accuracy {' '.join(f'{share:.3f}' for _, share in draws)}")
    return results


# %%
def draw(results: Results) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.8), layout="constrained", width_ratios=(2, 1))
    for place, (name, draws) in enumerate(results.items()):
        for number, (losses, share) in enumerate(draws):
            means = torch.tensor(losses).unfold(0, min(20, len(losses)), 1).mean(dim=1)
            left.plot(means, color=f"C{place}", linewidth=0.8, label=None if number else name)
            right.plot(place, share, "o", color=f"C{place}", alpha=0.6)
    left.set(xlabel="step", ylabel="loss, mean of 20 steps")
    right.set(xticks=[0, 1], xticklabels=["paper", "defect"], xlim=(-0.5, 1.5), ylabel="validation accuracy")
    left.legend()
    plt.show()


# %%
results = compare(lambda has_defect, seed: build_nin((16, 40, 64), (5, 2, 2), has_defect, seed))
draw(results)
assert QUICK or min(share for draws in results.values() for _, share in draws) > 0.3  # a tenth is chance

# %% [markdown] lang="en"
# ## GoogLeNet: branches side by side
#
# In an inception module four branches read the same maps, and their results are put together along the channels. They
# are a 1x1 convolution, a 3x3 and a 5x5 one, each with a 1x1 in front that makes fewer channels, and a pooling with a
# 1x1 behind it. All keep the side.

# %% [markdown] lang="zh"
# ## GoogLeNet：并列的支路
#
# 在 Inception 模块中，四条支路读取同样的特征图，结果再沿通道拼接起来。一条是 1x1 卷积；两条分别是 3x3 和 5x5 卷积，
# 前面各有一个减少通道的 1x1 卷积；还有一条是汇聚，后面跟一个 1x1 卷积。它们都保持边长不变。

# %%
torch.manual_seed(0)
googlenet = build_model("googlenet-notes", num_classes=10, in_channels=1).eval()
module, maps = googlenet.inception3a, torch.randn(1, 192, 12, 12, generator=generator)
with torch.no_grad():
    branches = [branch(maps) for branch in (module.branch1, module.branch2, module.branch3, module.branch4)]
    assert torch.equal(module(maps), torch.cat(branches, dim=1))
for name, branch in zip(("1x1", "1x1, 3x3", "1x1, 5x5", "pooling, 1x1"), branches, strict=True):
    print(f"{name:<13}{tuple(branch.shape[1:])}")
print(f"{'together':<13}{tuple(module(maps).shape[1:])}")
assert sum(branch.shape[1] for branch in branches) == 256

# %% [markdown] lang="en"
# Here is the whole network of the notes, for pictures of 96 px. A forward hook on each part notes what the part
# gives.

# %% [markdown] lang="zh"
# 下面是笔记里的整个网络，图像边长 96 像素。给每个部分挂上一个前向钩子，记下它的输出。

# %%
shapes = {}
for name, part in googlenet.named_children():
    part.register_forward_hook(lambda part, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
with torch.no_grad():
    googlenet(torch.zeros(1, 1, 96, 96))
for name, shape in shapes.items():
    print(f"{name:<13}{' x '.join(map(str, shape))}")
modules = {name.removeprefix("inception"): shape for name, shape in shapes.items() if name.startswith("inception")}
assert [shape[0] for shape in modules.values()] == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
assert shapes["stem"] == (192, 12, 12)

# %%
figure, axis = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
start = dict.fromkeys(modules, 0)
for number, label in enumerate(("1x1", "3x3", "5x5", "pooling"), start=1):
    for name in modules:
        branch = getattr(googlenet.get_submodule(f"inception{name}"), f"branch{number}")
        width = (branch if number == 1 else branch[1]).conv.out_channels
        axis.bar(name, width, bottom=start[name], color=f"C{number - 1}", label=label if name == "3a" else None)
        start[name] += width
axis.set(xlabel="module", ylabel="channels")
axis.legend(fontsize=8)
plt.show()
assert list(start.values()) == [shape[0] for shape in modules.values()]

# %% [markdown] lang="en"
# ## Defect: a stem without the activation between two convolutions
#
# In GoogLeNet's stem a 1x1 convolution from 64 to 64 channels stands before a 3x3 convolution to 192. The notes leave
# out the activation between them. Then both are one 3x3 convolution from 64 to 192 channels: the sum over the
# channels between can be done once for all, in the kernels. Biases begin at 0 and are left out here.

# %% [markdown] lang="zh"
# ## 缺陷：起始层的两个卷积之间没有激活函数
#
# 在 GoogLeNet 的起始层里，3x3 卷积（输出 192 个通道）之前有一个从 64 到 64 个通道的 1x1 卷积。
# 笔记漏掉了两者之间的激活函数。于是它们合起来就是一个从 64 到 192 个通道的 3x3 卷积：
# 对中间通道的求和，可以事先在卷积核里一次做完。偏置从 0 开始，这里略去。

# %%
mix, kernels = (googlenet.stem[place].conv.weight.detach().double() for place in (3, 4))
mix = mix[:, :, 0, 0]  # [64, 64]; kernels [192, 64, 3, 3]
maps = torch.randn(1, 64, 24, 24, generator=generator, dtype=torch.float64)
composed = torch.einsum("edhw,dc->echw", kernels, mix)
in_two = scratch.conv2d(scratch.conv1x1(maps, mix), kernels, padding=1)
in_one = scratch.conv2d(maps, composed, padding=1)
print(f"one convolution of {tuple(composed.shape)}; largest difference {(in_two - in_one).abs().max():.0e}")
assert torch.allclose(in_two, in_one)
with_relu = scratch.conv2d(scratch.conv1x1(maps, mix).relu(), kernels, padding=1)
print(f"with the ReLU between them {(with_relu - in_one).abs().max():.1f}")
assert not torch.allclose(with_relu, in_one, atol=1)

# %% [markdown] lang="en"
# And in training? The narrow network has the stem and the modules 3a, 3b and 4a, with a quarter of their widths.

# %% [markdown] lang="zh"
# 训练时又如何？窄网络有起始层和模块 3a、3b、4a，宽度都是四分之一。


# %%
def build_googlenet(has_defect: bool, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    config, halve = GoogLeNetConfig(normalisation="none"), nn.MaxPool2d(3, stride=2, ceil_mode=True)
    activation = nn.Identity() if has_defect else nn.ReLU()
    stem = ConvLayer(config, 1, 16, 7, stride=2), halve, nn.Conv2d(16, 16, 1), activation, ConvLayer(config, 16, 48, 3)
    modules = (
        Inception(config, 48, 16, 24, 32, 4, 8, 8),
        Inception(config, 64, 32, 32, 48, 8, 24, 16),
        halve,
        Inception(config, 120, 48, 24, 52, 4, 12, 16),
    )
    network = nn.Sequential(*stem, halve, *modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    draw_he(network)
    return network


# %%
results = compare(build_googlenet)
draw(results)
assert QUICK or min(share for draws in results.values() for _, share in draws) > 0.3  # a tenth is chance

# %% [markdown] lang="en"
# Compare the distance of the colours with the spread within a colour before you name a winner. A curve alone tells
# nobody that an activation is missing. To fold two layers into one does.

# %% [markdown] lang="zh"
# 先比较两种颜色的距离和同一颜色内部的离散程度，再说谁更好。
# 单凭一条曲线，谁也看不出少了一个激活函数；把两层合成一层就能看出来。

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# GoogLeNet takes the mean of each map and then a linear layer. Exchange the two: a 1x1 convolution first and the mean
# behind it, as in NiN. Are the logits the same, and what do the maps between show?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# GoogLeNet 先对每张特征图取平均，再做线性层。请把两者对调：先做 1x1 卷积，再取平均，如 NiN 那样。
# 得到的 logit 相同吗？中间的特征图表示什么？

# %% tags=["solution"]
maps = torch.randn(2, 1024, 3, 3, generator=generator)  # as of module 5b
with torch.no_grad():
    logits = googlenet.head(maps.mean(dim=(2, 3)))
    of_classes = scratch.conv1x1(maps, googlenet.head.weight) + googlenet.head.bias[:, None, None]
print(f"largest difference {(of_classes.mean(dim=(2, 3)) - logits).abs().max():.0e}")
assert of_classes.shape == (2, 10, 3, 3)  # what each place says for each class
assert torch.allclose(of_classes.mean(dim=(2, 3)), logits, atol=1e-4)

# %% [markdown] lang="en"
# ### Exercise 2
#
# Module 3a makes 32 maps with 5x5 windows from 192 maps of 28 px. How many multiply-adds does that take with the 1x1
# convolution to 16 channels in front, and how many without?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 模块 3a 用 5x5 窗口从 192 张 28 像素的特征图得到 32 张。
# 前面有减到 16 个通道的 1x1 卷积时需要多少次乘加，没有时又需要多少次？

# %% tags=["solution"]
with_reduction, without = 28**2 * (192 * 16 + 16 * 32 * 5**2), 28**2 * 192 * 32 * 5**2
rows = [layer for layer in summarize("googlenet").layers if layer.name.startswith("inception3a.branch3")]
print(f"{with_reduction:,} with it, {without:,} without: {without / with_reduction:.1f} times as many")
assert with_reduction == sum(layer.multiply_adds for layer in rows)
assert without > 9 * with_reduction

# %% [markdown] lang="en"
# ### Exercise 3
#
# What is the smallest side of a picture for the NiN of the paper's form, and with the stride of 2 in its third block?

# %% [markdown] lang="zh"
# ### 练习 3
#
# 论文形式的 NiN 能接受的图像边长最小是多少？第三个块的步幅为 2 时呢？

# %% tags=["solution"]
smallest = {}
for stride in (1, 2):
    side = 1  # of the last maps, and from there back to the picture: kernel, padding and stride of each window
    for kernel, padding, step in ((3, 1, 1), (3, 0, 2), (3, 1, stride), (3, 0, 2), (5, 2, 1), (3, 0, 2), (11, 0, 4)):
        side = (side - 1) * step + kernel - 2 * padding
    smallest[stride] = side
    print(f"stride {stride}: {side} px")
assert smallest[1] == smallest_image_size("nin-notes") < smallest[2]
for has_defect in (False, True):
    network = build_nin((8, 8, 8), (11, 4, 0), has_defect)
    assert network(torch.zeros(1, 1, smallest[1 + has_defect], smallest[1 + has_defect])).shape == (1, 10)
