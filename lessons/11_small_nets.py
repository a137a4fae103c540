# %% [markdown] lang="en"
# # 11 Small networks
#
# Afterwards you can count the multiply-adds of a standard, a depthwise separable and a grouped convolution and of a
# ghost module, say where the parameters and the operations of MobileNetV2, ShuffleNetV2 and GhostNet are, and why
# fewer operations need not mean less time.
#
# Papers: Sandler, Howard, Zhu, Zhmoginov and Chen, 2018, arXiv:1801.04381; Ma, Zhang, Zheng and Sun, 2018,
# arXiv:1807.11164; Han, Wang, Tian, Guo, Xu and Xu, 2020, arXiv:1911.11907.
#
# Time: about 40 minutes with the exercises.

# %% [markdown] lang="zh"
# # 11 小型网络
#
# 学完本课，你能数出标准卷积、深度可分离卷积、分组卷积和 Ghost 模块的乘加次数，
# 能说出 MobileNetV2、ShuffleNetV2 和 GhostNet 的参数和运算各在哪里，还能说明为什么运算少不等于时间短。
#
# 论文：Sandler、Howard、Zhu、Zhmoginov 和 Chen，2018，arXiv:1801.04381；Ma、Zhang、Zheng 和
# Sun，2018，arXiv:1807.11164；Han、Wang、Tian、Guo、Xu 和 Xu，2020，arXiv:1911.11907。
#
# 用时：连同练习约 40 分钟。

# %%
import os
import time
from collections import Counter
from math import prod

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# %%
from candid import build_model, scratch
from candid.models import count_parameters
from candid.models.fusion import fuse_norms
from candid.models.ghostnet import GhostModule
from candid.models.mobilenetv2 import InvertedResidual
from candid.models.summary import Layer, summarize

QUICK = os.environ.get("LESSONS") == "quick"
SMALL_NETS = ("mobilenetv2-1.0", "shufflenetv2-1.0", "ghostnet-1.0")

# %% [markdown] lang="en"
# ## Counting by hand
#
# A standard convolution with kernels of $k \times k$ px makes each value of $D$ maps of $H \times W$ px from $k^2 C$
# products. With $g$ groups, an output map reads only $C / g$ input maps. A depthwise convolution is the extreme: as
# many groups as channels. A depthwise separable one is that, followed by a 1x1 convolution that mixes the channels. A
# ghost module makes half of the maps by a 1x1 convolution, and the other half from these by a depthwise one.

# %% [markdown] lang="zh"
# ## 手工计数
#
# 标准卷积的卷积核为 $k \times k$ 像素，输出 $D$ 张 $H \times W$ 像素的特征图，其中每个值由 $k^2 C$ 个乘积相加而得。
# 分成 $g$ 组时，一张输出特征图只读 $C / g$ 张输入特征图。深度卷积是极端情形：组数等于通道数。
# 深度可分离卷积就是先做深度卷积，再用 1x1 卷积混合通道。Ghost 模块用 1x1 卷积得到一半的特征图，
# 另一半由这一半经深度卷积得到。

# %%
C = D = 128
H = W = 28


def multiply_adds(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> int:
    """Of one convolution that keeps the size."""
    return H * W * out_channels * kernel**2 * in_channels // groups


by_hand = {
    "standard 3x3": multiply_adds(C, D, 3),
    "grouped 3x3, g = 4": multiply_adds(C, D, 3, groups=4),
    "depthwise separable": multiply_adds(C, C, 3, groups=C) + multiply_adds(C, D, 1),
    "ghost module": multiply_adds(C, D // 2, 1) + multiply_adds(D // 2, D // 2, 3, groups=D // 2),
}

# %% [markdown] lang="en"
# PyTorch counts too, while the layers run: `FlopCounterMode` counts a multiply-add as two operations.

# %% [markdown] lang="zh"
# PyTorch 也能在各层运行时计数：`FlopCounterMode` 把一次乘加算作两次运算。

# %%
layers = {
    "standard 3x3": nn.Conv2d(C, D, 3, padding=1, bias=False),
    "grouped 3x3, g = 4": nn.Conv2d(C, D, 3, padding=1, groups=4, bias=False),
    "depthwise separable": nn.Sequential(
        nn.Conv2d(C, C, 3, padding=1, groups=C, bias=False), nn.Conv2d(C, D, 1, bias=False)
    ),
    "ghost module": GhostModule(C, D, activation=None).eval(),
}
for name, layer in layers.items():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, C, H, W))
    share = by_hand[name] / by_hand["standard 3x3"]
    print(f"{name:<21}{by_hand[name] / 1e6:7.1f} M multiply-adds, {share:6.1%} of the standard one")
    assert counter.get_total_flops() == 2 * by_hand[name]

# %% [markdown] lang="en"
# The depthwise separable convolution needs $1 / D + 1 / k^2$ of the standard one, a ninth and a little more for
# kernels of 3 px.
#
# ## Depthwise: each channel for itself
#
# The library's grouped convolution and one convolution for each channel, written with `candid.scratch`, give the
# same.

# %% [markdown] lang="zh"
# 深度可分离卷积的运算量是标准卷积的 $1 / D + 1 / k^2$，卷积核为 3 像素时是九分之一多一点。
#
# ## 深度卷积：各通道互不相干
#
# 库里的分组卷积，与用 `candid.scratch` 对每个通道单独做的卷积，结果相同。

# %%
torch.manual_seed(0)
images, kernels = torch.randn(2, 6, 8, 8, dtype=torch.float64), torch.randn(6, 1, 3, 3, dtype=torch.float64)
apart = [scratch.conv2d(images[:, c : c + 1], kernels[c : c + 1], padding=1) for c in range(6)]
together = torch.conv2d(images, kernels, padding=1, groups=6)
assert torch.allclose(torch.cat(apart, dim=1), together)
print(f"{len(apart)} channels, {kernels.numel()} weights; a standard convolution has {6 * 6 * 9}")

# %% [markdown] lang="en"
# MobileNetV2's block turns the residual block inside out. It is wide in the middle, where the depthwise convolution
# works, and narrow at its ends, where the shortcut is. Its last 1x1 convolution has no activation behind it.

# %% [markdown] lang="zh"
# MobileNetV2 的块把残差块反了过来：中间宽，深度卷积在那里进行；两端窄，捷径接在那里。最后一个 1x1
# 卷积之后没有激活函数。

# %%
block = InvertedResidual(24, 24, expansion=6, stride=1).eval()
for name, part in (("expand", block.expand), ("filter", block.filter), ("project", block.project)):
    convolution = part[0]
    activation = type(part[2]).__name__ if len(part) > 2 else "none"
    sides = "x".join(map(str, convolution.kernel_size))
    print(f"{name:<8}{sides} {convolution.in_channels:4} -> {convolution.out_channels:3} channels, {activation}")

# %% [markdown] lang="en"
# ## Groups need a shuffle
#
# Two grouped convolutions, one behind the other, keep the groups apart for ever: what enters in one group never meets
# the others. A shuffle between them deals the channels out anew, like cards. The pictures show which input channel
# reaches which output channel.

# %% [markdown] lang="zh"
# ## 分组之后要混洗
#
# 两个分组卷积直接相连，各组就永远互不往来：从一组进来的信息碰不到别的组。
# 在两者之间做通道混洗，就像洗牌一样把通道重新分配。下图显示哪个输入通道能到达哪个输出通道。


# %%
def shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of x [N, C, H, W] dealt out: the first of each group, then the second of each, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


GROUPS, CHANNELS = 3, 12
first, second = (nn.Conv2d(CHANNELS, CHANNELS, 1, groups=GROUPS, bias=False) for _ in range(2))
one_by_one = torch.eye(CHANNELS)[:, :, None, None]  # picture i has a single channel that is not zero, channel i
with torch.no_grad():
    reaches = {
        "without a shuffle": second(first(one_by_one)).flatten(1) != 0,
        "with a shuffle": second(shuffle(first(one_by_one), GROUPS)).flatten(1) != 0,
    }
assert reaches["without a shuffle"].sum() == CHANNELS**2 / GROUPS
assert reaches["with a shuffle"].all()

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
for place, (name, reached) in zip(axes, reaches.items(), strict=True):
    place.imshow(reached.T.numpy(), cmap="Blues", vmin=0, vmax=1.5)
    place.set(title=name, xlabel="input channel", ylabel="output channel")
plt.show()

# %% [markdown] lang="en"
# ShuffleNetV2 keeps the shuffle and gives up the groups: half of the channels pass a unit untouched, the other half
# goes through 1x1, depthwise and 1x1 convolutions, and a shuffle of two groups mixes both halves.

# %% [markdown] lang="zh"
# ShuffleNetV2 保留混洗，放弃分组：一半通道原样通过一个单元，另一半经过 1x1 卷积、深度卷积和 1x1 卷积，
# 再用两组的混洗把两半混在一起。

# %%
unit = build_model("shufflenetv2-1.0", num_classes=10).eval().stages[0][1]  # the first that keeps the size
x = torch.randn(1, 116, 28, 28)
left, right = x.chunk(2, dim=1)
with torch.no_grad():
    by_parts = shuffle(torch.cat((left, unit.right(right)), dim=1), groups=2)
    assert torch.allclose(unit(x), by_parts, atol=1e-5)
print(f"{left.shape[1]} of {x.shape[1]} channels pass untouched")

# %% [markdown] lang="en"
# ## A whole network by hand
#
# The same formula counts whole networks. `summarize` gives candid's own count, layer by layer, as
# `candid models mobilenetv2-1.0` prints it. We compute each convolution again, from its weights and its output.

# %% [markdown] lang="zh"
# ## 手工计算整个网络
#
# 同一个公式可以数整个网络。`summarize` 给出 candid 自己逐层的计数，也就是
# `candid models mobilenetv2-1.0` 打印的内容。我们由权重和输出把每个卷积重新算一遍。

# %%
summaries = {name: summarize(name) for name in SMALL_NETS}
for name, summary in summaries.items():
    with torch.device("meta"):  # shapes without memory
        weights = dict(build_model(name, summary.num_classes).named_parameters())
    total = 0
    for layer in summary.layers:
        if layer.is_module and layer.multiply_adds:
            expected = prod(layer.output) * prod(weights[f"{layer.name}.weight"].shape[1:])
            assert layer.multiply_adds == expected
            total += expected
    print(f"{name:<18}{total / 1e6:6.0f} M multiply-adds, {summary.parameters / 1e6:5.2f} M parameters")
    assert total == summary.multiply_adds
    assert summary.parameters == count_parameters(name, summary.num_classes)

# %% [markdown] lang="en"
# ## Where they are
#
# First by the kind of layer. The depthwise convolutions, which see the neighbours of a pixel, are the smaller part.
# The 1x1 convolutions, which mix channels, do nearly all of the work.

# %% [markdown] lang="zh"
# ## 参数和运算在哪里
#
# 先按层的种类看。深度卷积负责看像素的邻域，只占小部分；1x1 卷积负责混合通道，几乎承担了全部运算。

# %%
KINDS = ("3x3", "depthwise", "1x1", "linear", "other")


def kind_of(layer: Layer) -> str:
    if layer.kind.startswith("depthwise"):
        return "depthwise"
    if layer.kind.startswith("conv"):
        return "1x1" if "1x1" in layer.kind else "3x3"
    return layer.kind if layer.kind == "linear" else "other"


def side_of(layer: Layer) -> str:
    return f"{layer.output[1]} px" if len(layer.output) == 3 else "1 px"


# %%
def shares(layers: tuple[Layer, ...], what: str, group) -> Counter:
    """The share of each group of layers in `what`, which is parameters or multiply_adds."""
    total = sum(getattr(layer, what) for layer in layers)
    sums = Counter()
    for layer in layers:
        sums[group(layer)] += getattr(layer, what) / total
    return sums


# %%
def draw_shares(group, groups: tuple[str, ...]) -> None:
    """Two panels, parameters and multiply-adds; a bar for each network."""
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 4.4), sharex=True, layout="constrained")
    for place, what in zip(axes, ("parameters", "multiply_adds"), strict=True):
        start = dict.fromkeys(summaries, 0.0)
        for number, one in enumerate(groups):
            values = [shares(summary.layers, what, group)[one] for summary in summaries.values()]
            place.barh(list(summaries), values, left=list(start.values()), label=one, color=f"C{number}")
            start = {name: start[name] + value for name, value in zip(start, values, strict=True)}
        place.set(title=what.replace("_", "-"), xlim=(0, 1))
        place.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=len(groups), loc="outside lower center", fontsize=8)
    plt.show()


# %%
draw_shares(kind_of, KINDS)
assert all(shares(summary.layers, "multiply_adds", kind_of)["1x1"] > 0.75 for summary in summaries.values())

# %% [markdown] lang="en"
# Then by the side of the maps that a layer gives. Early layers have large maps and few channels: many operations, few
# parameters. Late layers are the other way round. Most parameters lie where maps have seven pixels a side or only
# one.

# %% [markdown] lang="zh"
# 再按各层输出特征图的边长看。靠前的层特征图大、通道少：运算多，参数少。靠后的层正好相反。
# 大部分参数都在特征图边长只有七个像素或一个像素的地方。

# %%
draw_shares(side_of, ("112 px", "56 px", "28 px", "14 px", "7 px", "1 px"))
for summary in summaries.values():
    by_side = {what: shares(summary.layers, what, side_of) for what in ("parameters", "multiply_adds")}
    late = {what: by_side[what]["7 px"] + by_side[what]["1 px"] for what in by_side}
    print(f"{summary.name:<18}{late['parameters']:.0%} of parameters, {late['multiply_adds']:.0%} of operations")
    assert late["parameters"] > 0.5 > late["multiply_adds"]

# %% [markdown] lang="en"
# ## Operations are not time
#
# A processor can multiply faster than memory can bring values. What counts is how often a value is used once it is
# there. A standard 3x3 convolution uses each input value $9 D$ times, a depthwise one nine times. So we time both and
# divide by the operations.

# %% [markdown] lang="zh"
# ## 运算不等于时间
#
# 处理器做乘法的速度，比内存送来数值的速度快。要紧的是一个数值取来之后能用多少次。
# 标准 3x3 卷积把每个输入值用 $9 D$ 次，深度卷积只用九次。下面给两者计时，再除以运算次数。


# %%
@torch.inference_mode()
def fastest_s(network: nn.Module, images: Tensor, tries: int = 3 if QUICK else 10) -> float:
    """Seconds of the fastest of several passes, after one to warm up."""
    images = images.contiguous(memory_format=torch.channels_last)
    seconds: list[float] = []
    for _ in range(tries + 1):
        started_at_s = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - started_at_s)
    return min(seconds[1:])


# %%
images = torch.randn(8, C, H, W)
for name in ("standard 3x3", "grouped 3x3, g = 4", "depthwise separable", "ghost module"):
    layer = layers[name].to(memory_format=torch.channels_last)
    seconds = fastest_s(layer, images) / len(images)
    print(f"{name:<21}{1e3 * seconds:7.3f} ms a picture, {by_hand[name] / seconds / 1e9:6.1f} G multiply-adds a second")

# %% [markdown] lang="en"
# Now whole networks, as `candid predict` runs them: each normalisation folded into the convolution before it. The
# dotted line is where they would lie if time were operations, drawn through ResNet-18.

# %% [markdown] lang="zh"
# 再看整个网络，按 `candid predict` 的方式运行：每个归一化都并入它前面的卷积。
# 如果时间就是运算，各点就会落在虚线上；虚线经过 ResNet-18。

# %%
names = ("resnet18", *SMALL_NETS, *(() if QUICK else ("googlenet", "resnet50", "densenet121")))
size_px, batch_size = (64, 1) if QUICK else (224, 8)
images = torch.randn(batch_size, 3, size_px, size_px)
millions, milliseconds = {}, {}
for name in names:
    network = fuse_norms(build_model(name, num_classes=1000, image_size=size_px).eval())
    network = network.to(memory_format=torch.channels_last)
    millions[name] = summarize(name, image_size=size_px).multiply_adds / 1e6
    milliseconds[name] = 1e3 * fastest_s(network, images) / batch_size
    rate = millions[name] / milliseconds[name]
    print(f"{name:<18}{millions[name]:7.0f} M{milliseconds[name]:8.1f} ms{rate:8.1f} G multiply-adds a second")

# %%
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
axes.set(xscale="log", yscale="log", xlabel="multiply-adds of a picture (millions)", ylabel="time of a picture (ms)")
for name in names:
    axes.plot(millions[name], milliseconds[name], "o", color="tab:orange" if name in SMALL_NETS else "tab:blue")
    place = (millions[name], milliseconds[name])
    side, offset = ("left", 6) if name in ("densenet121", "resnet50") else ("right", -6)  # else labels would meet
    up = -10 if name == "densenet121" else 3
    axes.annotate(name, place, xytext=(offset, up), textcoords="offset points", ha=side, fontsize=8)
ends = [min(millions.values()), max(millions.values())]
slope = milliseconds["resnet18"] / millions["resnet18"]
axes.plot(ends, [slope * end for end in ends], ":", color="tab:gray")
axes.margins(x=0.3)
plt.show()
rates = [millions[name] / milliseconds[name] for name in names]
assert max(rates) > 1.5 * min(rates)  # the same number of operations takes very different times

# %% [markdown] lang="en"
# A network with a tenth of the operations need not take a tenth of the time. The authors of ShuffleNetV2 begin with
# this finding and design by measured time. Do the same: measure on the machine that will run the network.

# %% [markdown] lang="zh"
# 运算只有十分之一的网络，时间不一定就是十分之一。ShuffleNetV2 的作者正是从这一发现出发，按实测时间设计网络。
# 你也应当这样做：在将要运行网络的机器上测量。

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# Show from the formulas that a depthwise separable convolution needs $1 / D + 1 / k^2$ of the multiply-adds of a
# standard one. Check it for kernels of 5 px.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 由公式说明深度可分离卷积的乘加次数是标准卷积的 $1 / D + 1 / k^2$。用 5 像素的卷积核验证。

# %% tags=["solution"]
separable = multiply_adds(C, C, 5, groups=C) + multiply_adds(C, D, 1)
share = separable / multiply_adds(C, D, 5)
print(f"{share:.4f}")
assert abs(share - (1 / D + 1 / 25)) < 1e-12

# %% [markdown] lang="en"
# ### Exercise 2
#
# By what factor do the multiply-adds of MobileNetV2 change if the picture has half the side? And the parameters?

# %% [markdown] lang="zh"
# ### 练习 2
#
# 图像边长减半时，MobileNetV2 的乘加次数变为原来的几分之几？参数呢？

# %% tags=["solution"]
large, small = summarize("mobilenetv2-1.0", image_size=224), summarize("mobilenetv2-1.0", image_size=112)
print(
    f"multiply-adds: {small.multiply_adds / large.multiply_adds:.3f}, parameters {small.parameters / large.parameters}"
)
assert small.parameters == large.parameters
assert 0.25 < small.multiply_adds / large.multiply_adds < 0.3  # the head does not get smaller

# %% [markdown] lang="en"
# ### Exercise 3
#
# `mobilenetv2-0.5` has half the channels. By what factor should its multiply-adds change, and by what factor do they?
# Which layers are responsible for the difference?

# %% [markdown] lang="zh"
# ### 练习 3
#
# `mobilenetv2-0.5` 的通道减半。它的乘加次数应当变为几分之几，实际是几分之几？差别来自哪些层？

# %% tags=["solution"]
full, half = (Counter(), Counter())
for sums, name in ((full, "mobilenetv2-1.0"), (half, "mobilenetv2-0.5")):
    for layer in summarize(name).layers:
        sums["last" if layer.name.startswith("last") else kind_of(layer)] += layer.multiply_adds
print(f"all: {half.total() / full.total():.3f}, where 1/4 is expected")
for kind in ("1x1", "depthwise", "3x3", "last", "linear"):
    print(f"{kind:<10}{half[kind] / full[kind]:.3f}")
assert half["depthwise"] / full["depthwise"] > 0.4  # these grow with the channels, not with their square
