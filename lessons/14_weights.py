# %% [markdown] lang="en"
# # 14 Weights and checkpoints
#
# Afterwards you can say what a state dict is and what can go wrong when one is loaded, bring weights with other names
# or another head into a network without filtering keys by hand, tell what a checkpoint must hold, and explain why a
# pickle from elsewhere must not be opened.
#
# There is no paper. The formats are described in the documentation of safetensors and of Python's `pickle`.
#
# Time: about 35 minutes with the exercises.

# %% [markdown] lang="zh"
# # 14 权重与检查点
#
# 学完本课，你能说清状态字典是什么、加载时会出什么错，能把名称不同或分类头不同的权重装进网络而不必手工筛选键，
# 能说出检查点必须包含什么，还能解释为什么不能打开来历不明的 pickle 文件。
#
# 本课没有对应的论文。文件格式见 safetensors 的文档和 Python 的 `pickle` 文档。
#
# 用时：连同练习约 35 分钟。

# %%
import hashlib
import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

# %%
from candid import CheckpointError, build_model, evaluate, scratch, workflow
from candid.checkpoint import RunFolder
from candid.recipes import find_recipe
from candid.training.progress import Reporter
from candid.training.run import train_run
from candid.weights import load_weights, open_weights

QUICK = os.environ.get("LESSONS") == "quick"

# %%
temporary = tempfile.TemporaryDirectory()  # removed at the end of the lesson
FOLDER = Path(temporary.name)


def tell(error: CheckpointError) -> None:
    """What candid says, without the name of our temporary folder."""
    print("candid:", str(error).replace(f"{FOLDER}/", ""))


# %% [markdown] lang="en"
# ## A state dict
#
# What a network has learned is a dictionary: names and tensors. The name says where in the network the tensor
# belongs. There are two kinds of tensors. Parameters are moved by the optimiser. Buffers, such as the running
# statistics of batch normalisation, are not, but the network needs them in evaluation.

# %% [markdown] lang="zh"
# ## 状态字典
#
# 网络学到的东西是一个字典：名称和张量。名称说明张量属于网络的哪个位置。张量有两种。
# 参数由优化器更新。缓冲区不由优化器更新，例如批量归一化的滑动统计量，但网络在评估时需要它们。

# %%
torch.manual_seed(0)
network = build_model("lenet-bn", num_classes=10, in_channels=1)
parameters = dict(network.named_parameters())
for name, tensor in list(network.state_dict().items())[:7]:
    print(f"{name:<28}{'parameter' if name in parameters else 'buffer':<11}{tuple(tensor.shape)}")
print(f"... {len(network.state_dict())} tensors")

# %% [markdown] lang="en"
# Only what is registered gets into the dictionary. The course's notes write batch normalisation with its running
# statistics as plain attributes. Here is that defect, and its effect: the layer that is saved and loaded again is
# another one.

# %% [markdown] lang="zh"
# 只有注册过的张量才会进入字典。课程笔记里自己写的批量归一化把滑动统计量存成普通属性。下面就是这个缺陷和它的后果：
# 保存再加载之后，这一层变成了另一层。


# %%
class ForgetfulNorm(scratch.BatchNorm):
    """With the defect: running statistics that the module does not know of."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        mean, var = self.running_mean, self.running_var
        del self.running_mean, self.running_var  # no buffers any more
        self.running_mean, self.running_var = mean, var


# %%
x = 3 + 2 * torch.randn(64, 5)
for kind in (scratch.BatchNorm, ForgetfulNorm):
    norm, loaded = kind(5), kind(5)
    for _ in range(50):
        norm(x)
    loaded.load_state_dict(norm.state_dict())  # strict, and yet no complaint
    difference = (norm.eval()(x) - loaded.eval()(x)).abs().max()
    print(f"{kind.__name__:<14}saves {list(norm.state_dict())}; largest difference {difference:.2f}")
assert difference > 1

# %% [markdown] lang="en"
# ## A trained network in a foreign file
#
# We train LeNet for a moment and save it as many programs do: wrapped by data parallelism, whose names all begin with
# `module.`, inside a dictionary with epoch and accuracy.

# %% [markdown] lang="zh"
# ## 外来文件中训练好的网络
#
# 先把 LeNet 训练一小会儿，再像许多程序那样保存：外面套着数据并行的包装，所有名称因此都以 `module.` 开头，
# 放在一个带有周期数和准确率的字典里。

# %%
recipe = find_recipe("default").replace({"training.epochs": 2 if QUICK else 10})
run = train_run(recipe, FOLDER / "run", reporter=Reporter.silent(), effort="off").path
trained = RunFolder.open(run).load()
weights, accuracy = trained.weights, trained.validation_accuracy
network = build_model("lenet-relu", num_classes=10, in_channels=1)
network.load_state_dict(weights)
wrapped = nn.DataParallel(network)
checkpoint = {
    "epoch": recipe.training.epochs,
    "arch": "lenet-relu",
    "state_dict": wrapped.state_dict(),
    "best_acc1": 100 * accuracy,
}
torch.save(checkpoint, FOLDER / "checkpoint.pth.tar")
print(list(checkpoint["state_dict"])[:3])

# %% [markdown] lang="en"
# Loaded strictly, nothing fits. Loaded with `strict=False`, which is the advice that one finds, nothing fits either,
# but nothing is said: the network stays as it was drawn.

# %% [markdown] lang="zh"
# 严格加载时，一个键都对不上。用网上常见的建议 `strict=False` 加载，同样一个都对不上，却没有任何提示：
# 网络仍是随机初始化的样子。

# %%
fresh = build_model("lenet-relu", num_classes=10, in_channels=1)
before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
try:
    fresh.load_state_dict(checkpoint["state_dict"])
except RuntimeError as error:
    print(str(error)[:110], "...")
fresh.load_state_dict(checkpoint["state_dict"], strict=False)
unchanged = sum(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
print(f"strict=False: {unchanged} of {len(before)} tensors are what they were before")
assert unchanged == len(before)

# %% [markdown] lang="en"
# `load_weights` knows the wrappers, looks into the dictionary, and reports what it did. What it gives fits strictly.

# %% [markdown] lang="zh"
# `load_weights` 认识这些包装，会到字典里面去找，并报告做了什么。它给出的结果可以严格加载。

# %%
loaded = load_weights(FOLDER / "checkpoint.pth.tar", fresh, "lenet-relu")
fresh.load_state_dict(loaded.state)
print(loaded.report.text())
assert all(torch.equal(tensor, weights[name]) for name, tensor in fresh.state_dict().items())

# %% [markdown] lang="en"
# ## Another number of classes
#
# The head of our file has ten outputs. A network for five classes cannot take it. To leave it out must be a decision,
# so candid refuses until it is asked for a new head.

# %% [markdown] lang="zh"
# ## 类别数不同
#
# 文件里的分类头有十个输出。用于五个类别的网络不能直接使用它。舍弃分类头必须是明确的决定，
# 所以 candid 会先拒绝，直到你要求换一个新的分类头。

# %%
for_five = build_model("lenet-relu", num_classes=5, in_channels=1)
try:
    load_weights(FOLDER / "checkpoint.pth.tar", for_five, "lenet-relu")
except CheckpointError as error:
    tell(error)
loaded = load_weights(FOLDER / "checkpoint.pth.tar", for_five, "lenet-relu", new_head=True)
for_five.load_state_dict(loaded.state)
print(loaded.report.notes[-1])
assert torch.equal(for_five.conv1.weight, weights["conv1.weight"])
assert for_five.head.weight.shape == (5, 84)

# %% [markdown] lang="en"
# The usual way is to filter: keep the keys whose name and shape fit, drop the rest. A filter cannot tell a head from
# a mistake. Here it takes the file of another network, LeNet with batch normalisation, finds a value for every
# tensor, and drops the normalisation in silence. candid says what is wrong, and which network the file is of.

# %% [markdown] lang="zh"
# 常见的做法是筛选：保留名称和形状都对得上的键，丢掉其余的。筛选分不清分类头和错误。这里它拿到的是另一个网络的文件，
# 即带批量归一化的 LeNet；每个张量都找到了值，归一化却被悄悄丢掉了。candid 会说出哪里不对，以及这个文件属于哪个网络。

# %%
torch.save(build_model("lenet-bn", num_classes=10, in_channels=1).state_dict(), FOLDER / "other.pth")
theirs, ours = torch.load(FOLDER / "other.pth", weights_only=True), fresh.state_dict()
kept = {name: tensor for name, tensor in theirs.items() if name in ours and tensor.shape == ours[name].shape}
print(f"The filter found {len(kept)} of {len(ours)} tensors and dropped {len(theirs) - len(kept)}.")
assert len(kept) == len(ours)
try:
    load_weights(FOLDER / "other.pth", fresh, "lenet-relu")
except CheckpointError as error:
    tell(error)

# %% [markdown] lang="en"
# The command `candid import` makes a whole run of a file. It then is evaluated like any other run, and gives what the
# original gave.

# %% [markdown] lang="zh"
# 命令 `candid import` 把一个文件变成完整的运行目录。它可以像其他运行一样评估，结果与原来的相同。

# %%
command = ["import", "checkpoint.pth.tar", "--model", "lenet-relu", "--data", "fashion-mnist-mini", "--out", "imported"]
print("candid", *command)
subprocess.run([sys.executable, "-m", "candid", *command], cwd=FOLDER, capture_output=True, check=True)
accuracies = [evaluate(path, "test").accuracy for path in (run, FOLDER / "imported")]
print(f"trained here {accuracies[0]:.3f}, imported {accuracies[1]:.3f}")
assert accuracies[0] == accuracies[1]

# %% [markdown] lang="en"
# ## What a checkpoint is
#
# Weights alone do not name a picture. One also needs the network, the names of the classes in their order, and how a
# picture becomes numbers; to go on training, the state of the optimiser too. candid keeps all of it in one folder.

# %% [markdown] lang="zh"
# ## 检查点是什么
#
# 只有权重还认不出图像里是什么。还需要知道是哪个网络、类别名称及其顺序，以及图像如何变成数值；要继续训练，
# 还需要优化器的状态。candid 把这些都放在一个文件夹里。

# %%
folder = sorted((run / "checkpoints").iterdir())[-1]
for path in sorted(folder.iterdir()):
    print(f"{path.name:<24}{path.stat().st_size:9,} bytes")
facts = json.loads((folder / "state.json").read_text())
print("classes:", ", ".join(facts["class_names"][:4]), "...")
print("preprocessing:", facts["preprocessing"])

# %% [markdown] lang="en"
# The tensors are in the safetensors format, which is so plain that it can be read by hand: eight bytes with the
# length of a JSON text, that text, and then nothing but numbers. There is no place for code.

# %% [markdown] lang="zh"
# 张量用 safetensors 格式保存。这种格式很简单，手工就能读：八个字节写明一段 JSON 文本的长度，接着是这段文本，
# 之后全是数值。没有放代码的地方。

# %%
data = (folder / "model.safetensors").read_bytes()
length = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + length])
for name in list(header)[:3]:
    print(name, header[name])

# %% [markdown] lang="en"
# `manifest.json` is written last. It has the size and the SHA-256 of every file, so that a single changed byte is
# found.

# %% [markdown] lang="zh"
# `manifest.json` 最后写入，里面有每个文件的大小和 SHA-256，所以哪怕改动一个字节也会被发现。

# %%
manifest = json.loads((folder / "manifest.json").read_text())
for name, description in manifest["files"].items():
    sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    print(f"{name:<24}{sha256[:16]}...  {'as saved' if sha256 == description['sha256'] else 'changed'}")
    assert sha256 == description["sha256"]


# %%
def change_a_byte(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1  # turns one bit round
    path.write_bytes(data)


damaged = Path(shutil.copytree(run, FOLDER / "damaged"))
changed = damaged / "checkpoints" / folder.name / "model.safetensors"
change_a_byte(changed, changed.stat().st_size // 2)
for name, problem in workflow.verify(damaged).items():
    print(f"{name}: {'every file is as it was saved' if problem is None else 'damaged'}")
try:
    RunFolder.open(damaged).load("latest")
except CheckpointError as error:
    tell(error)

# %% [markdown] lang="en"
# Does it matter? We change one byte of a file of `torch.save`, at two hundred places, one at a time, and open it with
# `torch.load` and with candid's `open_weights`.

# %% [markdown] lang="zh"
# 这要紧吗？我们在 `torch.save` 保存的文件里改动一个字节，换两百个位置，每次改一处，分别用
# `torch.load` 和 candid 的 `open_weights` 打开。


# %%
def is_loaded_wrong(load) -> bool:
    """Whether a changed file gives other weights, and nobody is told."""
    try:
        found = load()
    except Exception:  # any complaint will do
        return False
    return not all(torch.equal(found[name], weights[name]) for name in weights)


# %%
original, copy = FOLDER / "weights.pth", FOLDER / "copy.pth"
torch.save(weights, original)
places = torch.randperm(original.stat().st_size, generator=torch.Generator().manual_seed(0))[:200].tolist()
silent = {"torch.load": 0, "open_weights": 0}
for place in places:
    shutil.copy(original, copy)
    change_a_byte(copy, place)
    silent["torch.load"] += is_loaded_wrong(lambda: torch.load(copy, weights_only=True))
    silent["open_weights"] += is_loaded_wrong(lambda: open_weights(copy).entries[""])
print("other weights in silence:", silent, "of", len(places))
assert silent["torch.load"] > len(places) / 2
assert silent["open_weights"] == 0

# %% [markdown] lang="en"
# ## Why not pickle
#
# A pickle is not data but a small program: instructions that build an object. One of them calls a function. Which one
# is written in the file. Ours calls `print`; it could as well delete your files.

# %% [markdown] lang="zh"
# ## 为什么不用 pickle
#
# pickle 文件不是数据，而是一段小程序：一串构造对象的指令。其中一条会调用函数，调用哪个函数由文件决定。
# 我们的文件调用 `print`；它同样可以删除你的文件。


# %%
class Surprise:
    """Something that pickle saves as a call."""

    def __reduce__(self):
        return print, ("This was printed by the file, while it was opened.",)


data = pickle.dumps(Surprise())
for instruction, argument, _ in pickletools.genops(data):
    print(f"{instruction.name:<18}{'' if argument is None else argument}")

# %%
pickle.loads(data)

# %% [markdown] lang="en"
# `torch.save` writes pickles. The call can stand among good weights, and nobody sees it. With `weights_only=False`
# the file runs. With `weights_only=True` it is refused, and candid opens files in no other way.

# %% [markdown] lang="zh"
# `torch.save` 写出的就是 pickle。这样的调用可以藏在正常的权重之间，谁也看不出来。用 `weights_only=False` 打开，
# 文件里的指令就会执行。用 `weights_only=True` 则被拒绝，candid 打开文件只用这一种方式。

# %%
torch.save({**weights, "note": Surprise()}, FOLDER / "surprise.pth")
opened = torch.load(FOLDER / "surprise.pth", weights_only=False)
print(f"{len(opened)} entries; the weights are right: {torch.equal(opened['conv1.weight'], weights['conv1.weight'])}")

# %%
try:
    torch.load(FOLDER / "surprise.pth", weights_only=True)
except pickle.UnpicklingError as error:
    print("torch:", str(error).partition(".")[0])
try:
    open_weights(FOLDER / "surprise.pth")
except CheckpointError as error:
    tell(error)

# %% [markdown] lang="en"
# A whole model that was saved with `torch.save(model)` is such a file too. It also needs the very code that made it.
# candid refuses it, and says how to save the weights alone.

# %% [markdown] lang="zh"
# 用 `torch.save(model)` 保存的整个模型也是这样的文件，而且离不开当初定义它的那份代码。candid 会拒绝它，
# 并说明怎样只保存权重。

# %%
torch.save(network, FOLDER / "whole.pth")
try:
    open_weights(FOLDER / "whole.pth")
except CheckpointError as error:
    tell(error)

# %% [markdown] lang="en"
# ## Exercises
#
# ### Exercise 1
#
# Write a function that takes `module.` out of the names of a state dict, wherever it stands. Show that
# `load_state_dict` takes the result strictly.

# %% [markdown] lang="zh"
# ## 练习
#
# ### 练习 1
#
# 写一个函数，把状态字典的名称里出现在任何位置的 `module.` 去掉。验证
# `load_state_dict` 可以严格加载其结果。


# %% tags=["solution"]
def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {".".join(part for part in name.split(".") if part != "module"): value for name, value in state.items()}


fresh = build_model("lenet-relu", num_classes=10, in_channels=1)
fresh.load_state_dict(unwrapped(checkpoint["state_dict"]))
assert torch.equal(fresh.head.bias, weights["head.bias"])
print(list(unwrapped({"conv1.module.weight": weights["conv1.weight"]})))  # as some wrappers write it

# %% [markdown] lang="en"
# ### Exercise 2
#
# In `model.safetensors`, find `conv1.bias` without any library for the format: with `json` and `torch.frombuffer`.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 不用任何读取该格式的库，从 `model.safetensors` 读出 `conv1.bias`：只用 `json` 和 `torch.frombuffer`。

# %% tags=["solution"]
data = (folder / "model.safetensors").read_bytes()
length = int.from_bytes(data[:8], "little")
begin, end = json.loads(data[8 : 8 + length])["conv1.bias"]["data_offsets"]
values = torch.frombuffer(bytearray(data[8 + length + begin : 8 + length + end]), dtype=torch.float32)
print(values)
assert torch.equal(values, RunFolder.open(run).load("latest").weights["conv1.bias"])

# %% [markdown] lang="en"
# ### Exercise 3
#
# Change one byte in one of the files of a checkpoint. Write the function that finds which, from `manifest.json`.

# %% [markdown] lang="zh"
# ### 练习 3
#
# 在检查点的某个文件里改动一个字节。写一个函数，根据 `manifest.json` 找出是哪个文件。


# %% tags=["solution"]
def find_changed(folder: Path) -> list[str]:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    return [
        name
        for name, description in files.items()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != description["sha256"]
    ]


copied = Path(shutil.copytree(folder, FOLDER / "copied"))
change_a_byte(copied / "state.json", 10)
print(find_changed(copied))
assert find_changed(copied) == ["state.json"]
assert find_changed(folder) == []

# %%
temporary.cleanup()
