# %% [markdown] lang="en"
# # 13 Your own pictures
#
# A folder of pictures is never clean. Afterwards you can find out what is wrong with one before anything is trained
# on it, say what a decoder has to do, split pictures so that a test picture stays one, say what a probability is
# worth, find labels that are probably wrong, and train on few pictures by beginning from other weights.
#
# Papers: Yosinski, Clune, Bengio and Lipson 2014, *How transferable are features in deep neural networks?*,
# arXiv:1411.1792; Guo, Pleiss, Sun and Weinberger 2017, *On Calibration of Modern Neural Networks*, arXiv:1706.04599;
# Northcutt, Jiang and Chuang 2021, *Confident Learning: Estimating Uncertainty in Dataset Labels*, arXiv:1911.00068.
#
# Time: about an hour with the exercises.

# %% [markdown] lang="zh"
# # 13 自己的图像
#
# 装图像的文件夹从来都不干净。学完本课，你能在训练之前查出一个文件夹有哪些毛病，能说出解码器必须做什么，
# 能把图像划分得使测试图像始终留在测试集里，还能说出一个概率有多可信，找出很可能标错的标签，并且从别的网络的权重开始，
# 用很少的图像训练。
#
# 论文：Yosinski、Clune、Bengio 和 Lipson 2014，*How transferable are features in deep neural
# networks?*，arXiv:1411.1792；Guo、Pleiss、Sun 和 Weinberger 2017，*On Calibration of Modern Neural
# Networks*，arXiv:1706.04599；Northcutt、Jiang 和 Chuang 2021，*Confident Learning: Estimating Uncertainty in Dataset
# Labels*，arXiv:1911.00068。
#
# 用时：连同练习约一小时。

# %%
import json
import os
import random
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# %%
import candid
from candid import workflow
from candid.audit import audit
from candid.calibration import Calibration
from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.data.decoding import ORIENTATION_TAG, decode_file, to_image
from candid.data.doctor import diagnose
from candid.data.examples import DataSet, StoredExamples, stratified_holdout
from candid.evaluation import evaluate_checkpoint
from candid.recipes import find_recipe
from candid.scores import reliability
from candid.training.progress import Reporter
from candid.training.run import train_run
from candid.words import interval, percent

# %%
QUICK = os.environ.get("LESSONS") == "quick"
FOLDER = Path("lesson-13")  # all that this lesson writes is in it
shutil.rmtree(FOLDER, ignore_errors=True)  # what an earlier run of the lesson left
PICTURES = FOLDER / "pictures"
CLASSES = ("Coat", "Dress", "Shirt", "Sneaker")
PER_CLASS = 50 if QUICK else 500
mini = open_data_set("fashion-mnist-mini")


def train(name: str, changes: dict[str, object], data_set: DataSet | None = None) -> Path:
    """The folder of a run of the default recipe with changes."""
    recipe = find_recipe("default").replace(changes)
    return train_run(recipe, FOLDER / name, effort="off", data_set=data_set, reporter=Reporter.silent()).path


# %%
def choose(names: Sequence[str]) -> DataSet:
    """Fashion-MNIST's pictures of these classes alone, one class behind the other."""
    numbers = [mini.class_names.index(name) for name in names]

    def open_split(split: str) -> StoredExamples:
        examples = mini.openers[split]()
        parts = [torch.nonzero(examples.labels == number).flatten() for number in numbers]
        labels = [torch.full_like(part, label) for label, part in enumerate(parts)]
        return replace(examples.select(torch.cat(parts)), labels=torch.cat(labels))

    openers = {split: partial(open_split, split) for split in mini.openers}
    return replace(mini, class_names=tuple(names), openers=openers)


# %% [markdown] lang="en"
# ## A folder with trouble in it
#
# candid takes a folder that has one folder for each class. We write one with four kinds of clothes as JPEG files, and
# put into it what such folders have:
#
# - pictures of a camera that was held sideways: the pixels lie on their side, and a number in the EXIF part says so,
# - grey pictures of 16 bits, as scanners and microscopes write them,
# - pictures in a wrong folder, which makes their labels wrong,
# - pictures that were saved a second time, and one that is in two classes,
# - a file that was cut off.

# %% [markdown] lang="zh"
# ## 一个有毛病的文件夹
#
# candid 接受的文件夹里，每个类别各占一个子文件夹。我们用四种服装的 JPEG 文件建立这样一个文件夹，
# 再放进这类文件夹常有的毛病：
#
# - 相机侧着拿时拍的图像：像素是躺着存的，EXIF 部分里有一个数说明这一点，
# - 16 位灰度图像，扫描仪和显微镜常写这种文件，
# - 放错文件夹的图像，它们的标签因此是错的，
# - 又保存过一遍的图像，还有一张同时出现在两个类别里，
# - 一个被截断的文件。


# %%
def save(pixels: Tensor, place: Path, kind: str = "plain") -> None:
    """Write a picture uint8 [1, 28, 28]: plain, turned (on its side, with a note in EXIF) or deep (16 bits)."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "deep":
        Image.fromarray(pixels[0].numpy().astype(np.uint16) * 257).save(f"{place}.png")  # 255 becomes 65,535
        return
    image, exif = to_image(pixels), Image.Exif()
    if kind == "turned":
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ORIENTATION_TAG] = 6  # turn it clockwise to see it
    image.save(f"{place}.jpg", quality=95, exif=exif)


# %%
shipped = choose(CLASSES).openers["train"]()
for label, name in enumerate(CLASSES):
    for index in torch.nonzero(shipped.labels == label).flatten()[:PER_CLASS].tolist():
        save(shipped.images[index], PICTURES / name / Path(shipped.files[index]).name)
files = {name: sorted((PICTURES / name).iterdir()) for name in CLASSES}
truth: dict[str, str] = {}  # the true class of each file that lies in a wrong folder
for name, wrong in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
    for path in files[name][: PER_CLASS // 25]:
        path.rename(PICTURES / wrong / path.name)
        truth[f"{wrong}/{path.name}"] = name

# %%
coats, dresses, shirts, sneakers = (files[name][30:] for name in CLASSES)
for path in shirts[:20]:
    with Image.open(path) as image:
        image.save(path.with_name(f"{path.stem}-again.jpg"), quality=80)
shutil.copy(dresses[0], PICTURES / "Coat")
sneakers[0].write_bytes(sneakers[0].read_bytes()[:-100])
for kind, paths in (("turned", coats[1:6]), ("deep", dresses[1:6])):
    for path in paths:
        pixels = decode_file(path, channels=1)
        path.unlink()
        save(pixels, path.with_suffix(""), kind)

# %% [markdown] lang="en"
# ## The doctor
#
# `candid doctor lesson-13/pictures` decodes each file once and says what is wrong, with the cure. In Python it is
# `diagnose`. Copies are found by the bytes of the files, and by what the pictures look like: when a picture is
# saved again or resized, nearly all signs of its lowest frequencies stay the same.

# %% [markdown] lang="zh"
# ## 体检
#
# `candid doctor lesson-13/pictures` 把每个文件解码一次，说出哪里不对、怎样改正。在 Python 里是 `diagnose`。
# 重复的图像按文件的字节查找，也按图像的样子查找：图像重新保存或缩放之后，它最低的那些频率的正负号几乎都不变。

# %%
diagnosis = diagnose(PICTURES)
print(f"{diagnosis.num_files:,} files: {diagnosis.kinds}")
for sentence in (*diagnosis.errors, *diagnosis.unreadable.values(), *diagnosis.notes):
    print("-", sentence)
assert len(diagnosis.unreadable) == 1
assert any(copies.are_exact and copies.cross_classes for copies in diagnosis.copies)
assert any(not copies.are_exact and copies.cross_splits for copies in diagnosis.copies)

# %% [markdown] lang="en"
# Which one of several copies stays, a person decides. Here the last one of each group is right. Nothing was said of
# the wrong labels: to see them takes a network, and we come back to them.

# %% [markdown] lang="zh"
# 几份重复的图像留哪一份，由人来决定。这里每组的最后一份是对的。标错的标签没有被提到：要看出它们需要网络，后面再讲。

# %%
copied = [file for copies in diagnosis.copies for file in copies.files[:-1]]
for file in (*diagnosis.unreadable, *copied):
    (PICTURES / file).unlink()
mended = diagnose(PICTURES)
for split, numbers in mended.counts.items():
    print(f"{split:<11}{numbers}")
print("To start:", mended.suggestion.command)
assert not mended.errors

# %% [markdown] lang="en"
# ## Defect: one line of code as the decoder
#
# Most programs read a picture by `Image.open(path).convert("RGB")`. That line ignores EXIF, so the coat lies on its
# side. And it takes 16-bit values for 8-bit ones: whatever is above 255 of 65,535 becomes white, which is all that is
# not quite black. candid's decoder turns pictures upright, scales 16 bits to 8, and lays transparency over white.

# %% [markdown] lang="zh"
# ## 缺陷：用一行代码当解码器
#
# 多数程序用 `Image.open(path).convert("RGB")` 读取图像。这行代码不理会 EXIF，所以大衣躺着。
# 它还把 16 位的数值当作 8 位：在 65,535 个等级中凡是超过 255 的都变成白色，
# 也就是除了近乎全黑之外的一切。candid 的解码器把图像转正，把 16 位换算成 8 位，并给透明部分衬上白底。


# %%
def usual(path: Path) -> Image.Image:
    """A picture as most programs read it."""
    with Image.open(path) as image:
        return image.convert("RGB")


# %%
figure, axes = plt.subplots(1, 4, figsize=(6.4, 1.9), layout="constrained")
for place, kind, path in ((0, "EXIF", coats[1]), (2, "16 bits", dresses[1].with_suffix(".png"))):
    ours, theirs = decode_file(path, channels=1)[0].numpy(), np.asarray(usual(path))
    axes[place].imshow(ours, cmap="gray", vmin=0, vmax=255)
    axes[place + 1].imshow(theirs)
    axes[place].set_title(f"{kind}: candid", fontsize=9)
    axes[place + 1].set_title(f"{kind}: usual", fontsize=9)
    print(f"{kind}: white pixels {percent((ours == 255).mean())} by candid, {percent((theirs == 255).mean())} usual")
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# ## Split by content
#
# A tenth of each class is for the test, a tenth for validation. candid decides by the SHA-256 of a file's bytes: it is
# as good as chance, equal files share a split, and a file stays where it is whatever else comes into the folder. The
# usual code shuffles the list of files with a fixed seed and cuts it. That looks repeatable, until ten pictures are
# added.

# %% [markdown] lang="zh"
# ## 按内容划分
#
# 每个类别的十分之一用于测试，十分之一用于验证。candid 由文件字节的 SHA-256 决定：它和随机一样好，相同的文件归入同一份，
# 而且无论文件夹里再加入什么，一个文件都留在原来那一份。常见的代码用固定的随机种子打乱文件列表，再切成几段。
# 看上去可以重现，可是一加入十张图像就不行了。


# %%
def splits_of(folder: Path) -> dict[str, str]:
    """The split of each file, as candid has it."""
    openers = open_data_set(str(folder)).openers
    return {file: split for split, opener in openers.items() for file in opener().files}


def shuffled_test_split(files: Collection[str]) -> set[str]:
    """A tenth of the files, as the usual code has it."""
    shuffled = sorted(files)
    random.Random(0).shuffle(shuffled)
    return set(shuffled[: len(files) // 10])


# %%
before = splits_of(PICTURES)
for index in range(len(shipped) - 10, len(shipped)):  # sneakers, the last class
    save(shipped.images[index], PICTURES / "Sneaker" / Path(shipped.files[index]).name)
after = splits_of(PICTURES)
moved = sum(after[file] != split for file, split in before.items())
old, new = shuffled_test_split(before), shuffled_test_split(after)
print(f"by content: {moved} of {len(before):,} files are in another split now")
print(f"shuffled: {len(old - new)} of {len(old)} test pictures are learned from now")
assert moved == 0
assert len(old - new) > len(old) / 2

# %% [markdown] lang="en"
# ## Training, and the report
#
# `candid train --data lesson-13/pictures` trains, looks at the test split once and writes the page `report.html` into
# the run folder. It is one file; open it in a browser. It has the test accuracy with its interval and how it came
# about, the curves, each class, which class is taken for which, the surest mistakes with what spoke for them, how far
# probabilities can be trusted, suspected labels, and the settings and the machine.

# %% [markdown] lang="zh"
# ## 训练与报告
#
# `candid train --data lesson-13/pictures` 完成训练，把测试集看一次，并把网页 `report.html` 写进运行目录。
# 它只有一个文件，用浏览器打开即可。里面有测试准确率、它的区间和来历，有训练曲线、各个类别的结果、哪一类被认作哪一类、
# 最自信的错误以及图像的哪些部分支持了它们、概率的可信程度、可疑的标签，还有各项设置和所用的机器。

# %%
epochs = 20 if QUICK else 40
run = train("own", {"data.name": str(PICTURES), "training.epochs": epochs})
result = json.loads((run / "result.json").read_text())
page = workflow.report(run)
print(f"test accuracy {percent(result['test_accuracy'])}, interval {interval(result['test_accuracy_interval'])}")
print(f"{page}: {page.stat().st_size:,} bytes; figures: {', '.join(sorted(os.listdir(run / 'figures')))}")

# %% [markdown] lang="en"
# ## What the decoder costs
#
# Here are pictures that nobody has seen yet, each in three files: plain, on its side with its note, and in 16 bits.
# Then the last two once more, as the usual line reads them. One network names them all.

# %% [markdown] lang="zh"
# ## 解码器的代价
#
# 下面是谁都没见过的图像，每张存成三个文件：普通的、躺着并带说明的、16 位的。
# 后两种再按常见的那一行代码读出的样子各存一遍。全部由同一个网络来识别。

# %%
fresh = choose(CLASSES).openers["test"]()
fresh = fresh.select(torch.arange(0, len(fresh), 8 if QUICK else 1))
for kind in ("plain", "turned", "deep"):
    for pixels, label, file in zip(fresh.images, fresh.labels.tolist(), fresh.files, strict=True):
        save(pixels, FOLDER / kind / CLASSES[label] / Path(file).name, kind)
for kind in ("turned", "deep"):
    for path in sorted((FOLDER / kind).rglob("*.*")):
        place = FOLDER / f"{kind}, usual" / path.parent.name / f"{path.stem}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        usual(path).save(place)

# %%
predictor, accuracies = candid.load(run), {}
for kind in ("plain", "turned", "turned, usual", "deep", "deep, usual"):
    said = predictor.predict(FOLDER / kind, top=1)
    accuracies[kind] = fmean(one.answer == Path(one.file).parent.name for one in said)
    print(f"{kind:<14}{percent(accuracies[kind])} right")
assert accuracies["turned, usual"] < accuracies["turned"]
assert accuracies["deep, usual"] < accuracies["deep"]

# %% [markdown] lang="en"
# ## What a probability is worth
#
# A network that says 90 % should be right in nine of ten such cases. Trained networks are usually right less often
# than they say. Guo and others found that one number mends most of it: divide all logits by a temperature $T$ that
# makes the validation loss smallest. No answer changes by that. candid fits $T$ at the end of each run, and all of
# its probabilities have it.

# %% [markdown] lang="zh"
# ## 概率有多可信
#
# 网络说 90 % 时，这样的情形十次里应当答对九次。训练出来的网络答对的往往比它自己说的少。Guo 等人发现，
# 一个数就能改正大部分：把所有 logit 除以一个温度 $T$，它使验证集上的损失最小。
# 这不会改变任何一个答案。candid 在每次训练结束时求出 $T$，它给出的所有概率都用上了这个温度。

# %%
calibration, checkpoint = Calibration.load(run), RunFolder.open(run).load()
print(calibration.text())
errors = []
figure, axis = plt.subplots(figsize=(4.2, 3), layout="constrained")
for temperature in (1.0, calibration.temperature):
    judged = evaluate_checkpoint(checkpoint, fresh, "test", torch.device("cpu"), temperature=temperature)
    bins = reliability(judged.confidences, judged.correct, num_bins=6)
    errors.append(judged.calibration_error)
    label = f"T = {temperature:.2f}: error {100 * errors[-1]:.1f} points"
    axis.plot([part.confidence for part in bins], [part.accuracy for part in bins], "o-", label=label)
axis.plot([0.3, 1], [0.3, 1], ":", color="tab:gray")
axis.set(xlabel="probability of the answer", ylabel="share that is right")
axis.legend(fontsize=8)
plt.show()

# %%
mislabelled = truth.keys() & set(open_data_set(str(PICTURES)).openers["validation"]().files)
print(f"{len(mislabelled)} of {calibration.images} validation pictures have a wrong label")
assert QUICK or errors[1] > errors[0]

# %% [markdown] lang="en"
# Here the temperature does harm: on pictures whose labels are right, probabilities were better without it. Among the
# few validation pictures are some of our wrong labels. An answer that is sure and right looks like a sure mistake
# there, and the loss is least where the network doubts too much. So labels come before calibration.
#
# With probabilities that are right one can ask for a precision: `candid.load(run, precision=0.95)` answers "unknown"
# below the confidence from which on 95 % of the validation pictures were right. Bags and trousers show what that is
# not. The network has never seen them, and yet it names some of them with confidence.

# %% [markdown] lang="zh"
# 在这里，温度反而有害：在标签正确的图像上，不用它时概率更可信。为数不多的验证图像里，有几张带着我们故意标错的标签。
# 有把握而正确的答案，在那里看上去就是有把握的错误，于是网络过于犹豫时，损失反而最小。所以先要有正确的标签，
# 才谈得上校准。
#
# 有了可信的概率，就可以要求一个精确率：`candid.load(run, precision=0.95)` 在置信度低于阈值时回答“unknown”，
# 而验证集里达到这个阈值的图像有 95 % 答对。包和裤子则说明这并不保证什么：网络从没见过它们，
# 却还是很有把握地说出了其中一些的“类别”。

# %%
strangers = choose(("Bag", "Trouser")).openers["test"]()
for pixels, file in zip(strangers.images, strangers.files, strict=True):
    save(pixels, FOLDER / "strangers" / Path(file).name)
careful, known = candid.load(run, precision=0.95), {}
for folder in ("plain", "strangers"):
    said = careful.predict(FOLDER / folder, top=1)
    known[folder] = [one for one in said if one.answer != "unknown"]
    print(f"{folder}: {len(known[folder])} of {len(said)} are named")
right = fmean(one.answer == Path(one.file).parent.name for one in known["plain"])
print(f"plain: {percent(right)} of the names are right, {percent(accuracies['plain'])} where all are named")
assert QUICK or right > accuracies["plain"]
assert QUICK or known["strangers"]

# %% [markdown] lang="en"
# ## Wrong labels
#
# `candid audit` deals the training pictures into four parts. Each part is judged by a network that has learned from
# the other three. A label is suspected where the network is as sure of another class as it usually is of pictures
# that have that class for a label. That is confident learning, by Northcutt and others. We know which labels are
# wrong here, so we can count.

# %% [markdown] lang="zh"
# ## 标错的标签
#
# `candid audit` 把训练图像分成四份，每一份都由在其余三份上学习的网络来判断。如果网络对另一个类别的把握，
# 达到了它平常对标为那个类别的图像的把握，这个标签就可疑。这就是 Northcutt 等人的置信学习。这里我们知道哪些标签是错的，
# 所以可以数一数。

# %%
recipe = find_recipe("default").replace({"data.name": str(PICTURES), "training.epochs": 10 if QUICK else 15})
suspects = audit(recipe, FOLDER / "audit", 2 if QUICK else 4, effort="off", reporter=Reporter.silent())
planted = truth.keys() & set(open_data_set(str(PICTURES)).openers["train"]().files)
found = [suspect for suspect in suspects if suspect.file in planted]
print(f"{len(suspects)} labels are suspected; {len(found)} of the {len(planted)} wrong ones are among them")
assert QUICK or len(found) > len(planted) / 2

# %%
figure, axes = plt.subplots(2, 6, figsize=(6.4, 2.9), layout="constrained")
for axis, suspect in zip(axes.flat, suspects[:12], strict=False):
    axis.imshow(decode_file(PICTURES / suspect.file, channels=1)[0].numpy(), cmap="gray")
    color = "tab:red" if suspect.file in truth else "black"
    axis.set_title(f"{suspect.label}?\n{suspect.suggestion}", fontsize=8, color=color)
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown] lang="en"
# Red are the labels that we made wrong. Of the others, some are mistakes of the network, and some are doubtful indeed.
# So the list says where to look; who looks decides.
#
# ## Few pictures
#
# Yosinski and others found that early layers learn what serves other classes too. So a network for few pictures can
# begin from the weights of one that has seen many. We train one on the six other classes. Then come 5, 20 or 80
# pictures of each of ours, by one recipe: once from random weights, once with `model.weights`, the run to begin from,
# and `model.new_head`, because the classes are others. What is held out would be too few to choose by, so the last
# epoch counts.

# %% [markdown] lang="zh"
# 红色的是我们故意标错的。其余的，有些是网络错了，有些确实可疑。所以这张清单告诉人该看哪里，由看的人来决定。
#
# ## 图像很少时
#
# Yosinski 等人发现，靠前的层学到的东西对别的类别也有用。所以图像很少时，网络可以从见过许多图像的网络的权重开始。
# 我们先在另外六个类别上训练一个网络。然后从我们自己的每个类别中各取 5、20 或 80 张图像，用同一个配方训练：
# 一次从随机权重开始；另一次用 `model.weights` 指定从哪次训练的权重开始，并用 `model.new_head` 换上新的分类头，
# 因为类别不同了。若留出验证集，张数太少，挑不出什么，所以取最后一个周期。

# %%
others = choose([name for name in mini.class_names if name not in CLASSES])
base = train("base", {"training.epochs": 2 if QUICK else 15}, others)
few_steps = {"data.validation": 0.0, "training.epochs": 4 if QUICK else 20, "training.batch_size": 8}
ways = {"random": {}, "fine-tuned": {"model.weights": str(base), "model.new_head": True}}


def take(number: int, seed: int) -> DataSet:
    """Our classes with so many training pictures of each."""
    whole = choose(CLASSES)
    many = whole.openers["train"]()
    some = many.select(stratified_holdout(many.labels, number * len(CLASSES), seed)[1])
    return replace(whole, openers={**whole.openers, "train": lambda: some})


# %%
numbers, seeds = ((5,), (0,)) if QUICK else ((5, 20, 80), (0, 1, 2))
tested: dict[str, list[list[float]]] = {way: [] for way in ways}
for way, weights in ways.items():
    for number in numbers:
        changes = {"optimizer.rate": 0.01, **few_steps, **weights}
        runs = [train(f"{way}-{number}-{seed}", {"seed": seed, **changes}, take(number, seed)) for seed in seeds]
        results = [json.loads((path / "result.json").read_text()) for path in runs]
        tested[way].append([result["test_accuracy"] for result in results])
        shown = ", ".join(percent(accuracy) for accuracy in tested[way][-1])
        print(f"{way:<11}{number:3} of each: {shown}")
gains = [fmean(tuned) - fmean(plain) for tuned, plain in zip(tested["fine-tuned"], tested["random"], strict=True)]
assert QUICK or gains[0] > max(gains[-1], 0)

# %%
figure, axis = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
for (way, accuracies_of), color in zip(tested.items(), ("tab:blue", "tab:orange"), strict=True):
    axis.plot(numbers, [fmean(row) for row in accuracies_of], "-", color=color, label=way)
    axis.plot(numbers, accuracies_of, "o", color=color, markersize=4)
axis.set(xscale="log", xlabel="training pictures of each class", ylabel="test accuracy")
axis.set_xticks(numbers, map(str, numbers))
axis.minorticks_off()
axis.legend()
plt.show()

# %% [markdown] lang="en"
# The points are three seeds, which also draw the pictures: so much depends on which they are. Where pictures are few,
# the weights are worth more than where there are many.
#
# ## Exercises
#
# ### Exercise 1
#
# `model.freeze` with the value `backbone` trains the head alone. Train so on five pictures of each class, and show
# that nothing else has changed.

# %% [markdown] lang="zh"
# 这些点来自三个随机种子，图像也由种子抽取：可见抽到哪些图像对结果影响多大。图像少的时候，
# 现成的权重比图像多的时候更有价值。
#
# ## 练习
#
# ### 练习 1
#
# 把 `model.freeze` 设为 `backbone`，就只训练分类头。请用每类五张图像这样训练，并说明其余的都没有变。

# %% tags=["solution"]
frozen = train("frozen", {**few_steps, **ways["fine-tuned"], "model.freeze": "backbone"}, take(5, seed=0))
begun, ended = (RunFolder.open(path).load().weights for path in (base, frozen))
changed = [name for name in begun if not torch.equal(begun[name], ended[name])]
print("changed:", changed, "; test", percent(json.loads((frozen / "result.json").read_text())["test_accuracy"]))
assert set(changed) == {"head.weight", "head.bias"}

# %% [markdown] lang="en"
# ### Exercise 2
#
# Mend the usual line for grey pictures: turn them by EXIF with Pillow's `ImageOps.exif_transpose`, and bring 16 bits
# to 8. Show that the pixels are those of candid.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 请针对灰度图像，改正那一行常见的代码：用 Pillow 的 `ImageOps.exif_transpose` 按 EXIF 转正，并把 16 位换算成 8 位。
# 请说明得到的像素与 candid 的相同。


# %% tags=["solution"]
def mended_read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.asarray(ImageOps.exif_transpose(image))
    return (pixels.astype(np.uint32) * 255 + 32767) // 65535 if pixels.dtype == np.uint16 else pixels


for kind in ("turned", "deep"):
    paths = sorted((FOLDER / kind).rglob("*.*"))
    assert all(np.array_equal(mended_read(path), decode_file(path, channels=1)[0]) for path in paths)
    print(f"{kind}: {len(paths)} pictures are the same")
