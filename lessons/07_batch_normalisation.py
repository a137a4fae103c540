# %% [markdown] lang="en"
# # 07 Batch normalisation
#
# Afterwards you can
#
# - write batch normalisation by hand, for features and for maps,
# - say what is different in evaluation, and why,
# - find the defect that makes an own layer lose its statistics when it is saved,
# - show what normalisation does for a network with sigmoids.
#
# Paper: Ioffe and Szegedy 2015, *Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
# Shift*, arXiv:1502.03167. Time: about 40 minutes with the exercises.

# %% [markdown] lang="zh"
# # 07 批量归一化
#
# 学完本课，你将能够：
#
# - 手写批量归一化，既用于特征也用于特征图，
# - 说出评估时有什么不同，以及为什么，
# - 找出自己写的层在保存时丢失统计量的那个缺陷，
# - 说明归一化对使用 sigmoid 的网络有什么作用。
#
# 论文：Ioffe 和 Szegedy 2015，*Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
# Shift*，arXiv:1502.03167。用时：连同练习约 40 分钟。

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid import Recipe, build_model, scratch
from candid.data.catalog import open_data_set
from candid.data.loading import TrainingBatches, open_training_data

QUICK = os.environ.get("LESSONS") == "quick"
CPU = torch.device("cpu")

# %% [markdown] lang="en"
# ## Mean 0, variance 1
#
# Each channel has its mean over the batch removed and is divided by its standard deviation. With $\gamma$ and $\beta$,
# which are learned, the layer can undo that where it hurts:
#
# $$y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# For features [N, C] the mean goes over N. For maps [N, C, H, W] it goes over N, H and W, because a convolution
# treats all places alike.

# %% [markdown] lang="zh"
# ## 均值为 0，方差为 1
#
# 每个通道先减去它在这一批上的均值，再除以标准差。$\gamma$ 和 $\beta$ 是学出来的，如果归一化反而有害，
# 这一层可以用它们把归一化抵消掉：
#
# $$y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$
#
# 对特征 [N, C]，均值沿 N 计算。对特征图 [N, C, H, W]，均值沿 N、H 和 W 计算，因为卷积对所有位置一视同仁。

# %%
torch.manual_seed(0)
maps = 3 + 2 * torch.randn(8, 4, 6, 6)
mean = maps.mean(dim=(0, 2, 3), keepdim=True)  # [1, 4, 1, 1]
variance = ((maps - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
normal = (maps - mean) / (variance + 1e-5).sqrt()
print("before", [round(value, 2) for value in maps.mean(dim=(0, 2, 3)).tolist()])
print("after ", [round(abs(value), 2) for value in normal.mean(dim=(0, 2, 3)).tolist()])
assert torch.allclose(normal, nn.BatchNorm2d(4)(maps), atol=1e-5)
assert torch.allclose(normal, scratch.BatchNorm(4)(maps), atol=1e-5)

# %% [markdown] lang="en"
# ## Evaluation has no batch
#
# In evaluation a picture's answer must not depend on the pictures beside it. So the layer keeps running averages of
# mean and variance while it trains, each new batch with a share of a tenth, and goes by them afterwards.

# %% [markdown] lang="zh"
# ## 评估时没有批量
#
# 评估时，一张图像的答案不能取决于同批的其他图像。所以这一层在训练时保存均值和方差的滑动平均，每个新批量占十分之一；
# 训练之后就以它们为准。

# %%
layer, seen = scratch.BatchNorm(1), []
for _ in range(60):
    layer(5 + 2 * torch.randn(32, 1))
    seen.append([layer.running_mean.item(), layer.running_var.item()])
figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
axis.plot(seen, label=["running mean", "running variance"])
axis.set(xlabel="batch", yticks=[0, 1, 4, 5])
axis.legend()
plt.show()

# %%
picture, others = torch.tensor([[4.0]]), torch.tensor([[100.0], [-100.0]])
alone, beside = layer.eval()(picture), layer(torch.cat((picture, others)))[:1]
print(f"evaluation: {alone.item():.3f} alone, {beside.item():.3f} beside others")
assert torch.equal(alone, beside)
beside = layer.train()(torch.cat((picture, others)))[:1]
print(f"training: {beside.item():.3f} beside others")

# %% [markdown] lang="en"
# ## Defect: statistics that are plain attributes
#
# The notes' own layer keeps its running averages as plain attributes. They are no part of `state_dict`, and do not
# move to a GPU with the module. Whoever saves the weights and loads them again gets a layer whose averages are those
# of the beginning. `register_buffer` mends it.

# %% [markdown] lang="zh"
# ## 缺陷：统计量只是普通属性
#
# 笔记里自己写的层把滑动平均存成普通属性。它们不在 `state_dict` 里，也不会随模块移到 GPU 上。
# 如果把权重保存下来再加载，得到的那一层的滑动平均仍是最初的值。用 `register_buffer` 就能改正。


# %%
class Forgetful(scratch.BatchNorm):
    """The same layer with its averages as plain attributes."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        averages = self.running_mean, self.running_var
        del self.running_mean, self.running_var
        self.running_mean, self.running_var = averages


# %%
for kind in (Forgetful, scratch.BatchNorm):
    trained, loaded = kind(1), kind(1)
    for _ in range(60):
        trained(5 + 2 * torch.randn(32, 1))
    loaded.load_state_dict(trained.state_dict())
    before, after = (layer.eval()(picture).item() for layer in (trained, loaded))
    print(f"{kind.__name__:<10} keys {list(trained.state_dict())}: {before:.3f} before, {after:.3f} loaded")

# %% [markdown] lang="en"
# ## In LeNet
#
# LeNet has sigmoids, whose slope is at most a quarter and next to nothing where a value is far from 0. Gradients fade
# on the way back. Normalisation before each sigmoid keeps the values where the slope is. Two networks see the same
# batches in the same order; here are their losses, and the size of the gradient at the first convolution.

# %% [markdown] lang="zh"
# ## 在 LeNet 中
#
# LeNet 使用 sigmoid，它的斜率最多四分之一，离 0 远的地方几乎为零。梯度在反向传播中逐渐消失。在每个 sigmoid
# 之前做归一化，可以让数值停留在有斜率的地方。两个网络按同样的顺序看到同样的批量；下面是它们的损失，
# 以及第一个卷积处梯度的大小。

# %%
recipe = Recipe().replace({"data.name": "fashion-mnist-mini", "data.image_size": 28, "data.channels": 1})
data = open_training_data(open_data_set("fashion-mnist-mini"), recipe)
batches = TrainingBatches(data, recipe, num_classes=10, device=CPU)


# %%
def train(network: nn.Module, epochs: int) -> tuple[list[float], list[float]]:
    """The loss of each step, and the size of the first convolution's gradient."""
    optimizer, losses, sizes = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), [], []
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            loss = cross_entropy(network(batch.inputs), batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            sizes.append(network.conv1.weight.grad.norm().item())
    return losses, sizes


# %%
curves = {}
for name in ("lenet", "lenet-bn"):
    torch.manual_seed(0)
    curves[name] = train(build_model(name, num_classes=10, in_channels=1), epochs=1 if QUICK else 6)
for name, (losses, sizes) in curves.items():
    print(f"{name:<9} loss of the last steps {sum(losses[-10:]) / 10:.2f}, gradient at first {sizes[0]:.4f}")
assert curves["lenet-bn"][1][0] > 5 * curves["lenet"][1][0]
assert sum(curves["lenet-bn"][0][-10:]) < sum(curves["lenet"][0][-10:])

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
for name, (losses, sizes) in curves.items():
    axes[0].plot(losses, label=name, linewidth=0.8)
    axes[1].semilogy(sizes, label=name, linewidth=0.8)
axes[0].set(xlabel="step", ylabel="loss")
axes[1].set(xlabel="step", ylabel="gradient of conv1")
axes[0].legend()
plt.show()

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# The weights in front of a normalisation are multiplied by ten. What happens to the output, and what to the gradient
# of these weights?

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 把归一化之前的权重都乘以十。输出会怎样，这些权重的梯度又会怎样？


# %% tags=["solution"]
def output_and_gradient(scale: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    weights = (scale * torch.randn(5, 3, dtype=torch.float64)).requires_grad_()
    output = scratch.BatchNorm(3).double()(torch.randn(16, 5, dtype=torch.float64) @ weights)
    [gradient] = torch.autograd.grad((output**3).sum(), [weights])
    return output, gradient


(one, slope), (ten, tenth) = output_and_gradient(1), output_and_gradient(10)
print(f"output changes by {(ten - one).abs().max():.0e}, gradient is {(tenth / slope).mean():.3f} of it")
assert torch.allclose(ten, one, atol=1e-3)
assert torch.allclose(10 * tenth, slope, rtol=1e-2, atol=1e-3)

# %% [markdown] lang="en"
# ### Exercise 2
#
# Behind a convolution in evaluation mode, normalisation is a fixed scale and shift. Fold it into the convolution's
# kernels and bias, so that one layer is left.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 在评估模式下，卷积之后的归一化只是固定的缩放和平移。请把它并入卷积核和偏置，使两层变成一层。

# %% tags=["solution"]
kernels, norm = torch.randn(4, 3, 3, 3), scratch.BatchNorm(4)
for _ in range(5):
    norm(scratch.conv2d(torch.randn(8, 3, 10, 10), kernels))
norm.eval()
scale = norm.weight / (norm.running_var + norm.eps).sqrt()
folded, bias = kernels * scale[:, None, None, None], norm.bias - scale * norm.running_mean
images = torch.randn(2, 3, 10, 10)
in_one, in_two = scratch.conv2d(images, folded, bias), norm(scratch.conv2d(images, kernels))
print(f"largest difference {(in_one - in_two).abs().max():.0e}")
assert torch.allclose(in_one, in_two, atol=1e-4)
