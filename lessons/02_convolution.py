# %% [markdown] lang="en"
# # 02 Convolution by hand
#
# A convolution looks at a picture through a small window that goes over all places. Afterwards you can
#
# - calculate one on paper, and in a few lines,
# - say how it differs from what mathematics calls a convolution,
# - find edges with a kernel, and have a kernel learned from examples,
# - read the shape of a layer's weights with several channels in and out,
# - write a convolution as a product of matrices.
#
# Paper: LeCun, Bottou, Bengio and Haffner 1998, *Gradient-based learning applied to document recognition*. Time:
# about 60 minutes with the exercises.

# %% [markdown] lang="zh"
# # 02 手写卷积
#
# 卷积就是透过一个小窗口看图像，窗口依次走过所有位置。学完本课，你将能够：
#
# - 在纸上算出一个卷积，也用几行代码算出来，
# - 说出它与数学上的卷积有什么不同，
# - 用一个卷积核找出边缘，并从样本中学出一个卷积核，
# - 读懂有多个输入、输出通道的层的权重形状，
# - 把卷积写成矩阵乘法。
#
# 论文：LeCun、Bottou、Bengio 和 Haffner 1998，*Gradient-based learning applied to document recognition*。用时：
# 连同练习约 60 分钟。

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from candid import scratch
from candid.data.catalog import open_data_set
from candid.models import build_model

# %% [markdown] lang="en"
# ## A window that moves
#
# At each place the numbers under the window are multiplied with those of the kernel, and the products are added:
#
# $$Y_{ij} = \sum_{a,b} K_{ab} X_{i+a,\,j+b}$$
#
# A window of 2 x 2 px has two places in each direction of a picture of 3 x 3 px. Calculate the four numbers on paper
# first.

# %% [markdown] lang="zh"
# ## 移动的窗口
#
# 在每个位置，窗口下的数与卷积核的数对应相乘，再把乘积相加：
#
# $$Y_{ij} = \sum_{a,b} K_{ab} X_{i+a,\,j+b}$$
#
# 在 3 x 3 像素的图像上，2 x 2 像素的窗口在每个方向有两个位置。请先在纸上算出这四个数。

# %%
image = torch.tensor([[5.0, 6, 2], [3, 4, 5], [6, 7, 8]])
kernel = torch.tensor([[0.0, 4], [8, 3]])
for i in range(2):
    for j in range(2):
        window = image[i : i + 2, j : j + 2]
        print(f"row {i}, column {j}: window {window.tolist()}, sum of products {(window * kernel).sum():.0f}")
print(scratch.correlate(image, kernel).tolist())
assert scratch.correlate(image, kernel).tolist() == [[60, 55], [85, 100]]

# %% [markdown] lang="en"
# ## Correlation and convolution
#
# Mathematics turns the kernel by 180 degrees first, and calls what we did a cross-correlation. `np.convolve` turns
# it, layers of networks do not: a kernel that is learned comes out as it is needed. One can see the turn in a picture
# of a single bright point, in which the kernel appears the wrong way round.

# %% [markdown] lang="zh"
# ## 互相关与卷积
#
# 数学上的卷积会先把卷积核旋转 180 度，而我们刚才做的叫互相关。`np.convolve` 会旋转，网络的层不旋转：
# 卷积核既然是学出来的，需要什么样就会学成什么样。用一张只有一个亮点的图像就能看出这个旋转：卷积核会倒着出现在结果里。

# %%
row, step = np.array([1.0, 2, 4]), np.array([1.0, -1])
correlated = scratch.correlate(torch.tensor(row[None]), torch.tensor(step[None]))
print("np.convolve", np.convolve(row, step, "valid").tolist(), "correlate", correlated[0].tolist())
point = torch.zeros(3, 3)
point[1, 1] = 1
seen = scratch.correlate(point, kernel)
print("kernel", kernel.tolist(), "seen at a point", seen.tolist())
assert torch.equal(seen, kernel.flip(0, 1))

# %% [markdown] lang="en"
# ## Edges
#
# The kernel `[[1, -1]]` subtracts from each pixel its right neighbour. Where both are equal the result is 0; what
# remains are edges that run from top to bottom. The turned kernel `[[1], [-1]]` finds those that run from left to
# right. Red is positive, blue is negative.

# %% [markdown] lang="zh"
# ## 边缘
#
# 卷积核 `[[1, -1]]` 从每个像素中减去它右边的邻居。两者相等的地方结果为 0，留下的是上下走向的边缘。转过来的卷积核
# `[[1], [-1]]` 找出左右走向的边缘。图中红色为正，蓝色为负。

# %%
data_set = open_data_set("fashion-mnist-mini")
examples = data_set.openers["train"]()
is_shirt = examples.labels == data_set.class_names.index("Pullover")
picture = examples.images[is_shirt][1, 0].float() / 255  # [28, 28]

# %%
upright, level = torch.tensor([[1.0, -1]]), torch.tensor([[1.0], [-1]])
figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.3), layout="constrained")
axes[0].imshow(picture.numpy(), cmap="gray_r")
axes[0].set_title(f"picture, {picture.shape[0]} x {picture.shape[1]}", fontsize=9)
for axis, kernel in zip(axes[1:], (upright, level), strict=True):
    seen = scratch.correlate(picture, kernel)
    axis.imshow(seen.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_title(f"{kernel.int().tolist()}, {seen.shape[0]} x {seen.shape[1]}", fontsize=9)
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# ## A kernel that is learned
#
# Nobody has to invent kernels. Here a picture of 6 x 8 px is white with a black bar, and its map of edges is given. A
# kernel of two numbers begins at random, and gradient descent changes it until its map is the given one.
# `scratch.SGD` does what lesson 01 did by hand.

# %% [markdown] lang="zh"
# ## 学出来的卷积核
#
# 卷积核不必由人来设计。这里有一张 6 x 8 像素的图像，白底上有一道黑条，它的边缘图是已知的。
# 由两个数构成的卷积核从随机值开始，梯度下降不断修改它，直到它给出的边缘图就是已知的那张。`scratch.SGD` 做的正是第 01
# 课里手工做过的事。

# %%
bar = torch.ones(6, 8)
bar[:, 2:6] = 0
edges = scratch.correlate(bar, upright)  # 1 where white turns black, -1 where black turns white


def learn(seed: int, rate: float = 0.01, steps: int = 80) -> tuple[list[float], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    kernel, bias = nn.Parameter(torch.randn(1, 2, generator=generator)), nn.Parameter(torch.zeros(1))
    optimizer, losses = scratch.SGD([kernel, bias], rate), []
    for _ in range(steps):
        loss = ((scratch.correlate(bar, kernel) + bias - edges) ** 2).sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses, [*kernel.flatten().tolist(), bias.item()]


# %% [markdown] lang="en"
# The study notes that this course grew out of give their losses at three steps. Their start was another one, so that
# the first losses differ; the end is the same.

# %% [markdown] lang="zh"
# 本课程源自一组学习笔记，笔记给出了三个步数上的损失。它们的起点与这里不同，所以前面的损失不一样，终点却相同。

# %%
losses, learned = learn(seed=0)
for step, in_the_notes in {5: 4.430, 30: 0.007, 45: 0.000}.items():
    print(f"step {step:2}: loss {losses[step - 1]:.3f}, in the notes {in_the_notes:.3f}")
print("kernel and bias", [round(value, 4) for value in learned])
assert np.allclose(learned, [1, -1, 0], atol=1e-3)

# %% [markdown] lang="en"
# One start may be luck. The figure has twenty, and all of them arrive: this loss is a bowl with a single lowest
# point. Losses of networks are not, but the steps are the same.

# %% [markdown] lang="zh"
# 单独一个起点也许只是运气。图中有二十个起点，全都到达了终点：这个损失像一只碗，只有一个最低点。网络的损失不是这样，
# 但走法相同。

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for seed in range(20):
    losses, learned = learn(seed)
    axis.semilogy(range(1, 81), losses, color="tab:blue", linewidth=0.6)
    assert np.allclose(learned, [1, -1, 0], atol=1e-2)
axis.plot([5, 30], [4.430, 0.007], "o", color="tab:red", label="in the notes")
axis.set(xlabel="step", ylabel="loss")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# ## Several channels in
#
# A colour picture has three channels, and the maps inside a network have hundreds. A kernel then has a part for each
# channel, and the results of all parts are added: one map comes out.

# %% [markdown] lang="zh"
# ## 多个输入通道
#
# 彩色图像有三个通道，网络内部的特征图有几百个。这时卷积核对每个通道各有一部分，各部分的结果相加，得到一张特征图。

# %%
first = torch.arange(9.0).view(3, 3)
channels = torch.stack([first, first + 1])  # [C, H, W]
kernels = torch.tensor([[[0.0, 1], [2, 3]], [[1, 2], [3, 4]]])  # [C, h, w]
parts = [scratch.correlate(channel, kernel) for channel, kernel in zip(channels, kernels, strict=True)]
print("parts", [part.tolist() for part in parts], "sum", sum(parts).tolist())
assert torch.equal(scratch.conv2d(channels[None], kernels[None])[0, 0], sum(parts))
assert sum(parts).tolist() == [[56, 72], [104, 120]]

# %% [markdown] lang="en"
# ## Several channels out
#
# A layer looks for many things at once: it has D kernels, each with C parts, and D maps come out. So its weights have
# the shape [D, C, h, w], and there is a bias for each map. Below are six kernels for one grey picture.

# %% [markdown] lang="zh"
# ## 多个输出通道
#
# 一层要同时寻找许多东西：它有 D 个卷积核，每个卷积核有 C 个部分，输出 D 张特征图。所以权重的形状是 [D, C, h, w]，
# 每张特征图还有一个偏置。下面是作用于一张灰度图像的六个卷积核。

# %%
six = {
    "as it is": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "blurred": [[1 / 9] * 3] * 3,
    "upright edges": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
    "level edges": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
    "falling edges": [[0, -1, -2], [1, 0, -1], [2, 1, 0]],
    "points": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
}
kernels = torch.tensor(list(six.values()), dtype=torch.float32)[:, None]  # [6, 1, 3, 3]

# %%
maps = scratch.conv2d(picture[None, None], kernels)  # [1, 6, 26, 26]
assert torch.allclose(maps, functional.conv2d(picture[None, None], kernels), atol=1e-5)
figure, axes = plt.subplots(1, 6, figsize=(6.4, 1.4), layout="constrained")
for axis, title, values in zip(axes, six, maps[0], strict=True):
    axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-values.abs().max(), vmax=values.abs().max())
    axis.set_title(title, fontsize=8)
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# The kernels of LeNet look like this. A linear layer between the same numbers of values would have a weight for each
# pair of them.

# %% [markdown] lang="zh"
# LeNet 的卷积核就是这样的形状。如果换成线性层来连接同样多的数，那么每一对数都要有一个权重。

# %%
lenet = build_model("lenet", num_classes=10, in_channels=1)
for name in ("conv1", "conv2"):
    layer = getattr(lenet, name)
    print(name, tuple(layer.weight.shape), "parameters", layer.weight.numel() + layer.bias.numel())
values_in, values_out = 28 * 28, 6 * 24 * 24
print("a linear layer in place of conv1:", values_in * values_out + values_out)

# %% [markdown] lang="en"
# ## What moves in the picture moves in the map
#
# The same kernel looks at all places. So a shirt that stands 2 px lower and 3 px further to the right gives the same
# map, 2 px lower and 3 px further to the right. A linear layer has to learn a shirt anew at each place.

# %% [markdown] lang="zh"
# ## 图像里的东西移动，特征图也跟着移动
#
# 所有位置都由同一个卷积核来看。因此一件上衣下移 2 像素、右移 3 像素，得到的还是同样的特征图，只是也下移 2 像素、右移
# 3 像素。线性层则要在每个位置把上衣重新学一遍。

# %%
canvas = functional.pad(picture[None, None], (6, 6, 6, 6))  # room to move in
moved = canvas.roll((2, 3), dims=(2, 3))
after, before = scratch.conv2d(moved, kernels), scratch.conv2d(canvas, kernels)
assert torch.allclose(after, before.roll((2, 3), dims=(2, 3)))
torch.manual_seed(0)
linear = nn.Linear(40 * 40, 100)
change = (linear(moved.flatten()) - linear(canvas.flatten())).abs().mean()
print(f"a linear layer's values are {linear(canvas.flatten()).abs().mean():.2f} in size and change by {change:.2f}")

# %% [markdown] lang="en"
# ## Kernels of one pixel
#
# A kernel of 1 x 1 px sees no neighbours. It mixes the channels of each pixel, the same way everywhere: a product of
# a matrix [D, C] with the channels. NiN, GoogLeNet, ResNet and DenseNet use it to change the number of channels
# cheaply.

# %% [markdown] lang="zh"
# ## 一个像素的卷积核
#
# 1 x 1 像素的卷积核看不到邻居。它只把每个像素的各个通道混合起来，而且处处方式相同：这就是矩阵 [D, C]
# 与通道相乘。NiN、GoogLeNet、ResNet 和 DenseNet 都用它来低成本地改变通道数。

# %%
generator = torch.Generator().manual_seed(0)
maps, weights = torch.randn(4, 64, 14, 14, generator=generator), torch.randn(16, 64, generator=generator)
mixed = scratch.conv1x1(maps, weights)
pixel = maps[2, :, 5, 7]  # [64]
print(tuple(maps.shape), "to", tuple(mixed.shape))
assert torch.allclose(mixed[2, :, 5, 7], weights @ pixel, atol=1e-4)
assert torch.allclose(mixed, functional.conv2d(maps, weights[:, :, None, None]), atol=1e-4)

# %% [markdown] lang="en"
# ## Every convolution is a product of matrices
#
# Write each window as a column, and each kernel as a row. Then all places and all kernels are one product of
# matrices, the operation that processors are best at. The price is memory: a pixel is written down once for each
# window that sees it.

# %% [markdown] lang="zh"
# ## 每个卷积都是矩阵乘法
#
# 把每个窗口写成一列，把每个卷积核写成一行，那么所有位置和所有卷积核就是一次矩阵乘法，这是处理器最擅长的运算。
# 代价是内存：有多少个窗口看到一个像素，它就要被写多少次。

# %%
maps, kernels = maps[:, :6], torch.randn(16, 6, 5, 5, generator=generator)
windows = scratch.windows(maps, (5, 5), padding=0, stride=1)  # [N, C, h, w, H', W']
columns = windows.flatten(4).flatten(1, 3)  # [N, C * h * w, H' * W']
rows = kernels.flatten(1)  # [D, C * h * w]
product = (rows @ columns).unflatten(2, windows.shape[4:])  # [N, D, H', W']
print(tuple(rows.shape), "@", tuple(columns.shape[1:]), "gives", tuple(product.shape[1:]))
print(f"memory: {columns.numel() / maps.numel():.1f} times that of the maps")
assert torch.allclose(product, functional.conv2d(maps, kernels), atol=1e-4)

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# A picture and its map are given. Find the kernel of 3 x 3 px without a single gradient step: each place of the map
# is an equation for nine unknown numbers.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 给定一张图像和它的特征图。请不走一步梯度下降就求出 3 x 3 像素的卷积核：
# 特征图的每个位置都是关于九个未知数的一个方程。

# %%
secret = torch.tensor(six["falling edges"], dtype=torch.float32)
given = scratch.correlate(picture, secret)  # [26, 26]

# %% tags=["solution"]
equations = scratch.windows(picture[None, None], (3, 3), padding=0, stride=1)[0, 0]  # [3, 3, 26, 26]
solved = torch.linalg.lstsq(equations.flatten(2).flatten(0, 1).T, given.flatten()[:, None]).solution
print(solved.view(3, 3).round().int().tolist())
assert torch.allclose(solved.view(3, 3), secret, atol=1e-3)

# %% [markdown] lang="en"
# ### Exercise 2
#
# With which rates does `learn` arrive, and from which on does the loss grow? For a bowl there is an exact answer: 2
# divided by the largest eigenvalue of the matrix of second derivatives. Find it, and try rates on both sides.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 用哪些学习率时 `learn` 能到达终点，从多大开始损失反而增大？对于碗形的损失有一个精确的答案：2
# 除以二阶导数矩阵的最大特征值。请求出它，并在两侧各试一个学习率。


# %% tags=["solution"]
def bowl(values: torch.Tensor) -> torch.Tensor:
    return ((scratch.correlate(bar, values[:2].view(1, 2)) + values[2] - edges) ** 2).sum()


hessian = torch.autograd.functional.hessian(bowl, torch.zeros(3))
limit = 2 / torch.linalg.eigvalsh(hessian)[-1].item()
below, above = learn(0, rate=0.95 * limit)[0], learn(0, rate=1.05 * limit)[0]
print(f"limit {limit:.4f}: losses after 80 steps {below[-1]:.2g} below and {above[-1]:.2g} above")
assert below[-1] < below[0] < above[-1]

# %% [markdown] lang="en"
# ### Exercise 3
#
# The kernel `[[1, 2, 1], [2, 4, 2], [1, 2, 1]]` / 16 blurs. It is the product of a column and a row. Blur the picture
# with two small kernels in turn, and count the multiplications for each pixel in both ways.

# %% [markdown] lang="zh"
# ### 练习 3
#
# 卷积核 `[[1, 2, 1], [2, 4, 2], [1, 2, 1]]` / 16 使图像模糊。它是一列与一行的乘积。请依次用两个小卷积核来模糊图像，
# 并比较两种做法每个像素各要做多少次乘法。

# %% tags=["solution"]
row = torch.tensor([[1.0, 2, 1]]) / 4
in_two = scratch.correlate(scratch.correlate(picture, row.T), row)
in_one = scratch.correlate(picture, row.T @ row)
print("multiplications: in two", 2 * row.numel(), "in one", (row.T @ row).numel())
assert torch.allclose(in_two, in_one, atol=1e-6)
