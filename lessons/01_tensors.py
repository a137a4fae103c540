# %% [markdown] lang="en"
# # 01 Tensors
#
# Everything in this course is a tensor: pictures, weights, losses and gradients. Afterwards you can
#
# - make tensors and choose their types,
# - say when a tensor and a NumPy array share their memory,
# - read and change shapes, and know what N, C, H and W stand for,
# - split tensors and put them together again,
# - move tensors between devices,
# - find a gradient by hand, by a difference quotient and by autograd, and get the same from all three.
#
# Paper: Paszke et al. 2019, *PyTorch: An Imperative Style, High-Performance Deep Learning Library*, arXiv:1912.01703.
# Time: about 50 minutes with the exercises.

# %% [markdown] lang="zh"
# # 01 张量
#
# 这门课里的一切都是张量：图像、权重、损失和梯度。学完本课，你将能够：
#
# - 创建张量并选择数据类型，
# - 判断一个张量和一个 NumPy 数组何时共享内存，
# - 读懂并改变形状，知道 N、C、H、W 各指什么，
# - 把张量拆开，再拼回去，
# - 在设备之间移动张量，
# - 用手算、差商和自动求导三种办法求梯度，并得到相同的结果。
#
# 论文：Paszke 等 2019，*PyTorch: An Imperative Style, High-Performance Deep Learning Library*，arXiv:1912.01703。
# 用时：连同练习约 50 分钟。

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from candid.data.catalog import open_data_set
from candid.device import choose_device

# %% [markdown] lang="en"
# ## Creating tensors
#
# A tensor is a table of numbers with any number of dimensions. It has a shape, and all of its numbers have one type.

# %% [markdown] lang="zh"
# ## 创建张量
#
# 张量是一张数表，可以有任意多个维度。它有自己的形状，其中所有的数都是同一种类型。

# %%
for tensor in (
    torch.tensor([[1, 2], [3, 4]]),
    torch.zeros(2, 3),
    torch.full((2,), 7.0),
    torch.arange(0, 1, 0.25),
    torch.linspace(0, 1, 5),
):
    print(tuple(tensor.shape), tensor.dtype, tensor.tolist())

# %% [markdown] lang="en"
# Random numbers come from a generator. The same seed gives the same numbers, so that a result can be repeated.

# %% [markdown] lang="zh"
# 随机数由生成器产生。随机种子相同，得到的数就相同，结果因此可以重现。

# %%
first = torch.randn(3, generator=torch.Generator().manual_seed(0))
second = torch.randn(3, generator=torch.Generator().manual_seed(0))
print(first.tolist())
assert torch.equal(first, second)

# %% [markdown] lang="en"
# Pictures are stored as `uint8`, one byte for each number from 0 to 255. Sums that leave this range begin again at 0,
# without a warning. Turn pictures into `float32` before you calculate with them.

# %% [markdown] lang="zh"
# 图像以 `uint8` 存储，每个数占一个字节，范围是 0 到 255。结果一旦超出这个范围，就会从 0 重新数起，而且没有任何警告。
# 所以在计算之前，先把图像转成 `float32`。

# %%
pixels = torch.tensor([200, 250], dtype=torch.uint8)
print("uint8  ", (pixels + 100).tolist())
print("float32", (pixels.float() + 100).tolist())

# %% [markdown] lang="en"
# ## NumPy and shared memory
#
# `torch.from_numpy` and `.numpy()` copy nothing: array and tensor are two names for the same memory. `torch.tensor`
# always copies. What writes into the memory, such as `+=`, is seen by both; `array + 1` makes a new array.

# %% [markdown] lang="zh"
# ## NumPy 与共享内存
#
# `torch.from_numpy` 和 `.numpy()` 什么都不复制：数组和张量只是同一块内存的两个名字。`torch.tensor` 则总是复制。像
# `+=` 这样原地写入的操作，两边都看得到；而 `array + 1` 会生成一个新数组。

# %%
array = np.zeros(3)
shared, copied = torch.from_numpy(array), torch.tensor(array)
array += 1
print("after array += 1:       shared", shared.tolist(), "copied", copied.tolist())
array = array + 1
print("after array = array + 1: shared", shared.tolist(), "array", array.tolist())
assert shared.tolist() == [1, 1, 1]
assert copied.tolist() == [0, 0, 0]

# %% [markdown] lang="en"
# NumPy's floating-point numbers are `float64` unless one says otherwise, those of torch's layers are `float32`. Layers
# do not mix them.

# %% [markdown] lang="zh"
# NumPy 的浮点数默认是 `float64`，而 torch 各层的参数是 `float32`。层不会替你把两者混在一起计算。

# %%
layer = torch.nn.Linear(3, 1)
try:
    layer(shared)
except RuntimeError as error:
    print(shared.dtype, "into", layer.weight.dtype, "-", error)
print(tuple(layer(shared.float()).shape))

# %% [markdown] lang="en"
# ## Views
#
# Memory is one long row of numbers. A shape only says how to walk along it, so `view`, `.T`, `permute` and slices
# give new tensors without copying: they are views. `reshape` is a view where that is possible, and a copy where it is
# not, as behind `.T`, where the numbers would have to lie in another order.

# %% [markdown] lang="zh"
# ## 视图
#
# 内存是长长的一排数，形状只说明怎样沿着它走。因此 `view`、`.T`、`permute` 和切片都不复制数据就给出新张量：
# 它们是视图。`reshape` 能用视图时就用视图，不能时才复制，例如在 `.T` 之后，因为那时数必须换一种顺序排列。

# %%
numbers = torch.arange(6)
table = numbers.view(2, 3)
table[0, 0] = 100
flat = table.T.reshape(-1)
flat[1] = -1
print("numbers", numbers.tolist(), "flat", flat.tolist())
assert numbers.tolist() == [100, 1, 2, 3, 4, 5]
assert table.data_ptr() == numbers.data_ptr() == table.T.data_ptr() != flat.data_ptr()

# %% [markdown] lang="en"
# ## Pictures: N, C, H, W
#
# A batch of pictures has four dimensions: N pictures, C channels (1 for grey, 3 for red, green and blue), H rows and
# W columns. Fashion-MNIST has pictures of clothes in ten classes, grey, 28 x 28 px.

# %% [markdown] lang="zh"
# ## 图像：N、C、H、W
#
# 一批图像有四个维度：N 张图像，C 个通道（灰度图为 1，红绿蓝三色图为 3），H 行，W 列。Fashion-MNIST
# 是十类服饰的灰度图像，大小为 28 x 28 像素。

# %%
data_set = open_data_set("fashion-mnist-mini")
examples = data_set.openers["train"]()
images, labels = examples.images, examples.labels
print("images", tuple(images.shape), images.dtype, "labels", tuple(labels.shape), labels.dtype)

# %%
figure, axes = plt.subplots(1, 10, figsize=(6.4, 0.95), layout="constrained")
for label, axis in enumerate(axes):
    image = images[labels == label][0, 0]  # [H, W]: the first of its class, its only channel
    axis.imshow(image.numpy(), cmap="gray_r")
    axis.set_title(data_set.class_names[label].partition("/")[0], fontsize=7)
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# Matplotlib and Pillow put the channels last, [H, W, C]. `permute` changes the order of the dimensions; `view` would
# keep the order of the numbers and tear the pictures apart.

# %% [markdown] lang="zh"
# Matplotlib 和 Pillow 把通道放在最后，即 [H, W, C]。`permute` 改变维度的顺序；`view` 则保持数的顺序，会把图像打散。

# %%
rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
channels_last = torch.stack([rows, columns, rows + columns], dim=2)  # [H, W, C]
right, wrong = channels_last.permute(2, 0, 1), channels_last.view(3, 4, 6)
print("permute: first channel", right[0].tolist())
print("view:    first channel", wrong[0].tolist())
assert torch.equal(right[0], rows)
assert not torch.equal(wrong[0], rows)

# %% [markdown] lang="en"
# ## Sums over dimensions, and broadcasting
#
# Networks learn best from numbers around 0. So the mean of each channel is taken away, and what is left is divided by
# the standard deviation: both over all pictures and all places, which are the dimensions 0, 2 and 3.

# %% [markdown] lang="zh"
# ## 沿维度求和，以及广播
#
# 数值在 0 附近时，网络学得最好。所以先减去每个通道的均值，再除以标准差：两者都是对所有图像、所有位置求的，
# 也就是对维度 0、2、3。

# %%
scaled = images.float() / 255
mean, std = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3))  # [C] each
print("mean", mean.tolist(), "std", std.tolist(), "in the catalog", data_set.mean, data_set.std)
normalised = (scaled - mean[:, None, None]) / std[:, None, None]
print(f"afterwards {normalised.mean():.4f} and {normalised.std():.4f}")
assert abs(mean - torch.tensor(data_set.mean)).max() < 1e-4
assert abs(normalised.mean()) < 1e-4

# %% [markdown] lang="en"
# `mean` has the shape [C], and the pictures have [N, C, H, W]. Broadcasting compares shapes from the right: [C] would
# meet W. `mean[:, None, None]` has the shape [C, 1, 1], and a 1 fits everything. Without it there is mostly an error;
# where W happens to be equal to C there is none, and the numbers are wrong.

# %% [markdown] lang="zh"
# `mean` 的形状是 [C]，图像的形状是 [N, C, H, W]。广播从右边开始对齐形状，于是 [C] 会碰上 W。`mean[:, None, None]`
# 的形状是 [C, 1, 1]，而 1 与任何大小都相配。不这样写，多数时候会报错；可要是 W 恰好等于 C，就不会报错，而结果是错的。

# %%
square = torch.zeros(2, 3, 3, 3)  # three channels and, by chance, three columns
offsets = torch.tensor([1.0, 2, 3])
right, wrong = square + offsets[:, None, None], square + offsets
print("right: first pixel", right[0, :, 0, 0].tolist(), " wrong:", wrong[0, :, 0, 0].tolist())
try:
    torch.zeros(2, 3, 28, 28) + offsets
except RuntimeError as error:
    print(error)

# %% [markdown] lang="en"
# ## Split and chunk
#
# `split` is told how long the parts are, `chunk` how many there are at most, `tensor_split` how many there are
# exactly. All three give views. `torch.cat` puts parts together, `torch.stack` puts tensors side by side along a new
# dimension.

# %% [markdown] lang="zh"
# ## 拆分与分块
#
# `split` 规定每一份有多长，`chunk` 规定最多有几份，`tensor_split` 规定恰好有几份。三者给出的都是视图。`torch.cat`
# 把各份首尾相接，`torch.stack` 则沿一个新的维度把张量并排放好。

# %%
numbers = torch.arange(10)
parts = {
    "split(4)": numbers.split(4),
    "chunk(4)": numbers.chunk(4),
    "chunk(6)": numbers.chunk(6),
    "tensor_split(4)": numbers.tensor_split(4),
}
for call, tensors in parts.items():
    print(f"{call:15}", [tensor.tolist() for tensor in tensors])
    assert torch.equal(torch.cat(tensors), numbers)
assert len(numbers.chunk(6)) == 5  # parts of two are enough

# %% [markdown] lang="en"
# Networks use both along the channels, which is dimension 1: DenseNet concatenates the maps of its layers there, and
# ShuffleNet sends one half of the channels past its convolutions.

# %% [markdown] lang="zh"
# 网络沿通道（维度 1）使用这两种操作：DenseNet 在这里把各层的特征图拼接起来，ShuffleNet 让一半的通道绕过它的卷积。

# %%
maps = torch.zeros(8, 64, 14, 14)  # [N, C, H, W]
left, right = maps.chunk(2, dim=1)
print(tuple(left.shape), tuple(torch.cat([maps, left, right], dim=1).shape), tuple(torch.stack([left, right]).shape))

# %% [markdown] lang="en"
# ## Devices
#
# A tensor lives on a device: the processor (`cpu`), a graphics card (`cuda`, on Apple machines `mps`), or `meta`,
# which keeps shapes and no numbers. `.to` copies to another device, and gives the tensor itself where it is there
# already. One operation works on one device.

# %% [markdown] lang="zh"
# ## 设备
#
# 张量位于某个设备上：处理器（`cpu`）、显卡（`cuda`，苹果电脑上是 `mps`），或者只记形状、不存数的 `meta`。`.to`
# 把张量复制到另一个设备；如果它已经在那里，就直接返回它自己。一次运算只能在一个设备上进行。

# %%
device = choose_device()  # a graphics card where there is one
moved = scaled[:4].to(device)
assert moved.to(device) is moved
print("this machine calculates on", moved.device)
huge = torch.zeros(1_000_000, 1_000_000, device="meta")  # 4 TB, had it numbers
print(tuple((huge @ huge).shape), huge.device)
try:
    layer.to("meta")(torch.zeros(2, 3))
except RuntimeError as error:
    print(error)

# %% [markdown] lang="en"
# ## A gradient in three ways
#
# A line $w x + b$ shall go through points $(x_i, y_i)$. The loss says how badly it does, and its gradient says in
# which direction it grows:
#
# $$L = \frac{1}{n} \sum_i (w x_i + b - y_i)^2$$
#
# $$\frac{\partial L}{\partial w} = \frac{2}{n} \sum_i (w x_i + b - y_i)\, x_i$$
#
# $$\frac{\partial L}{\partial b} = \frac{2}{n} \sum_i (w x_i + b - y_i)$$
#
# Autograd finds the same: it remembers what was done to a tensor with `requires_grad`, and `backward` goes back
# through it.

# %% [markdown] lang="zh"
# ## 用三种办法求一个梯度
#
# 要让直线 $w x + b$ 穿过各点 $(x_i, y_i)$。损失说明它离目标有多远，梯度说明损失朝哪个方向增大：
#
# $$L = \frac{1}{n} \sum_i (w x_i + b - y_i)^2$$
#
# $$\frac{\partial L}{\partial w} = \frac{2}{n} \sum_i (w x_i + b - y_i)\, x_i$$
#
# $$\frac{\partial L}{\partial b} = \frac{2}{n} \sum_i (w x_i + b - y_i)$$
#
# 自动求导得到同样的结果：凡是带有 `requires_grad` 的张量，它会记住对其做过的运算，`backward` 再沿着这些运算往回走。

# %%
x = torch.linspace(-1, 1, 50)
y = 2 * x + 0.5 + 0.2 * torch.randn(50, generator=torch.Generator().manual_seed(1))


def line_loss(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((w * x + b - y) ** 2).mean()


w, b = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
line_loss(w, b).backward()
residuals = (w * x + b - y).detach()
by_hand = 2 * (residuals * x).mean(), 2 * residuals.mean()
print("autograd", w.grad.item(), b.grad.item(), " by hand", by_hand[0].item(), by_hand[1].item())
assert torch.allclose(torch.stack([w.grad, b.grad]), torch.stack(by_hand))

# %% [markdown] lang="en"
# The third way needs no formula for the derivative: move $w$ by a small $h$ to both sides, and see by how much the
# loss changes.
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}$$
#
# How small may $h$ be? Two losses that are nearly equal have most of their digits in common, and these cancel. The
# figure shows it for $e^x$ at 1, whose derivative is known. With the 7 digits of `float32` the quotient is a poor
# test of a gradient; with the 16 digits of `float64` it is a good one. That is why this project compares gradients in
# `float64`.

# %% [markdown] lang="zh"
# 第三种办法不需要导数公式：让 $w$ 向两边各移动一个小量 $h$，看损失改变多少。
#
# $$\frac{\partial L}{\partial w} \approx \frac{L(w + h) - L(w - h)}{2h}$$
#
# $h$ 可以取多小呢？两个几乎相等的损失，大部分数字相同，一减就抵消了。下图以 $e^x$ 在 1 处为例，
# 它的导数是已知的。`float32` 只有约 7 位数字，用差商检验梯度并不可靠；`float64` 有约 16 位，差商就是很好的检验。
# 这正是本项目用 `float64` 比较梯度的原因。

# %%
h = 1e-3
quotient = (line_loss(w + h, b) - line_loss(w - h, b)).item() / (2 * h)
print("autograd", w.grad.item(), "quotient", quotient)
assert abs(quotient / w.grad.item() - 1) < 1e-2

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
errors = {}
for dtype in (torch.float32, torch.float64):
    h = 10.0 ** torch.arange(-12, 0, dtype=dtype)
    quotients = ((1 + h).exp() - (1 - h).exp()) / (2 * h)
    errors[dtype] = abs(quotients.double() / np.e - 1)
    axis.loglog(h, errors[dtype], ".-", label=str(dtype).removeprefix("torch."))
axis.set(xlabel="h", ylabel="relative error of the quotient")
axis.legend()
plt.show()
assert errors[torch.float64].min() < 1e-9
assert errors[torch.float32].min() > 1e-7

# %% [markdown] lang="en"
# ## Following the gradient downhill
#
# `backward` adds to what is in `.grad` already, so that parts of a batch can be added up. Whoever forgets to empty it
# walks by the sum of all gradients so far.

# %% [markdown] lang="zh"
# ## 沿梯度下山
#
# `backward` 会把新梯度加到 `.grad` 里已有的值上，因此可以把一个批量分成几份，再把各份的梯度累加起来。如果忘了清空它，
# 每一步走的就是至今所有梯度之和。

# %%
for _ in range(2):
    line_loss(w, b).backward()
    print(f"{w.grad:.4f} is {w.grad / by_hand[0]:.0f} times the gradient")

# %%
w, b = torch.tensor(-1.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
losses = []
for _ in range(60):
    loss = line_loss(w, b)
    loss.backward()
    losses.append(loss.item())
    with torch.no_grad():  # the step itself is no part of the loss
        for parameter in (w, b):
            parameter -= 0.3 * parameter.grad
            parameter.grad = None
best = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], dim=1), y[:, None]).solution.flatten()
print(f"found {w:.4f} and {b:.4f}, the best line has {best[0]:.4f} and {best[1]:.4f}")
assert torch.allclose(torch.stack([w, b]), best, atol=1e-3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.4), layout="constrained")
left.plot(x, y, ".")
left.plot(x, (w * x + b).detach(), label="found")
left.set(xlabel="x", ylabel="y")
left.legend()
right.semilogy(losses)
right.set(xlabel="step", ylabel="loss")
plt.show()

# %% [markdown] lang="en"
# ## Two layers by hand
#
# Through several layers the chain rule goes from the loss back to the first weights. Each line below is one operation
# of the way forward, read from behind: a product with weights becomes one with their transpose, and ReLU lets a
# gradient pass where it let the value pass.

# %% [markdown] lang="zh"
# ## 手算两层网络
#
# 网络有多层时，链式法则从损失一直往回走到最前面的权重。下面每一行都是前向传播的一步，只是倒过来读：与权重相乘，
# 变成与权重的转置相乘；而 ReLU 让值通过的地方，也让梯度通过。

# %%
generator = torch.Generator().manual_seed(2)
inputs, targets = torch.randn(8, 2, generator=generator), torch.randn(8, 1, generator=generator)
first = torch.randn(2, 4, generator=generator, requires_grad=True)
second = torch.randn(4, 1, generator=generator, requires_grad=True)
hidden = inputs @ first  # [8, 4]
outputs = hidden.relu() @ second  # [8, 1]
((outputs - targets) ** 2).mean().backward()
with torch.no_grad():
    to_outputs = 2 * (outputs - targets) / len(outputs)  # [8, 1]
    to_second = hidden.relu().T @ to_outputs  # [4, 1]
    to_hidden = (to_outputs @ second.T) * (hidden > 0)  # [8, 4]
    to_first = inputs.T @ to_hidden  # [2, 4]
print("largest difference", max(abs(to_first - first.grad).max().item(), abs(to_second - second.grad).max().item()))
assert torch.allclose(to_first, first.grad, atol=1e-6)
assert torch.allclose(to_second, second.grad, atol=1e-6)

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# `photographs` is a NumPy array of two colour pictures with the channels last, `uint8`. Make a `float32` tensor [N,
# C, H, W] of values from 0 to 1 of it. It must not share memory with the array.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# `photographs` 是一个 NumPy 数组，存有两张彩色图像，通道在最后，类型为 `uint8`。请由它得到一个形状为 [N, C, H, W]、
# 取值从 0 到 1 的 `float32` 张量，并且不与数组共享内存。

# %%
photographs = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)

# %% tags=["solution"]
batch = torch.from_numpy(photographs).permute(0, 3, 1, 2).float() / 255  # float() copies
assert batch.shape == (2, 3, 5, 7)
assert batch.dtype == torch.float32
assert batch[1, 2, 3, 4] == photographs[1, 3, 4, 2] / np.float32(255)
photographs[:] = 0
assert batch.max() > 0.9

# %% [markdown] lang="en"
# ### Exercise 2
#
# Losses of 10 pictures are looked at in batches of 4. The mean of the means of the batches is not the mean of all
# pictures: the last batch has only two. Find the right mean batch by batch. Accuracies are often averaged wrongly in
# the same way.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 有 10 张图像的损失，每批处理 4 张。各批均值的均值并不是全部图像的均值，因为最后一批只有两张。请逐批求出正确的均值。
# 对准确率取平均时，也常犯同样的错误。

# %%
picture_losses = torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 3.0, 5.0])
print("mean of means", torch.stack([part.mean() for part in picture_losses.split(4)]).mean().item())

# %% tags=["solution"]
total, number = 0.0, 0
for part in picture_losses.split(4):
    total += part.sum().item()
    number += len(part)
print("mean", total / number)
assert abs(total / number - picture_losses.mean().item()) < 1e-6

# %% [markdown] lang="en"
# ### Exercise 3
#
# The sigmoid is $s(x) = 1 / (1 + e^{-x})$. Show that its derivative is $s(x) (1 - s(x))$, and that it is never above
# a quarter. What is left of a gradient behind four sigmoids?

# %% [markdown] lang="zh"
# ### 练习 3
#
# sigmoid 函数是 $s(x) = 1 / (1 + e^{-x})$。请验证它的导数是 $s(x) (1 - s(x))$，并且从不超过四分之一。梯度穿过四个
# sigmoid 之后，还剩下多少？

# %% tags=["solution"]
x = torch.linspace(-6, 6, 241, dtype=torch.float64, requires_grad=True)
s = x.sigmoid()
[slope] = torch.autograd.grad(s.sum(), [x])
assert torch.allclose(slope, (s * (1 - s)).detach())
assert slope.max() == 0.25 == slope[120]  # at x = 0
print("at most", slope.max().item() ** 4, "of it: LeNet with sigmoids has to begin with large weights")
