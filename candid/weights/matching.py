"""Tensors under foreign names and a network of ours become weights for it, and a report of how they matched.

Names decide, by one of the layouts known for the network's family; order and shapes alone only where no name is
known, and then that is said. What does not fit is refused in words, and the nearest network is named.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from candid.errors import CheckpointError
from candid.models import ALIASES, find_variant
from candid.weights.layouts import LOOKALIKES, Layout, as_it_is, layouts_of
from candid.weights.names import Shapes, bare, common_wrapper, is_counter, is_head, wrappers_in
from candid.weights.nearest import find_nearest, reads_images
from candid.weights.reading import Tensors, WeightsFile
from candid.words import count

NOT_NEEDED = {
    r"(.*\.)?num_batches_tracked": "counters of normalisation, which nothing reads",
    r"(.*\.)?total_(ops|params)": "counters of a profiler",
    r"n_averaged": "the number of averaged weights",
    r"aux\d*\..*|AuxLogits\..*": "auxiliary classifiers, which only training uses",
}
"""What a file may hold beside the weights of a network."""
BY_ORDER = "order and shapes"
UNSEEN = "strides, poolings and activations cannot be seen in a file. Measure the accuracy before you rely on it."


@dataclass(frozen=True)
class Report:
    """How the tensors of a file became the weights of a network."""

    file: str
    sha256: str
    model: str
    layout: str
    """Whose names the tensors had, or `BY_ORDER`."""
    tensors: int
    """How many were loaded."""
    entry: str
    """Where in the file they were; "" at the top."""
    facts: Mapping[str, str | float]
    """What the file tells beside them."""
    notes: tuple[str, ...]
    """What was removed, converted, left out or begun anew, and what is not certain; sentences."""

    def text(self) -> str:
        """The report for people, a sentence a line."""
        how = "their order and shapes alone" if self.layout == BY_ORDER else f"the names of {self.layout}"
        lines = [f"{self.file}: {count(self.tensors, 'tensor')} for {self.model}, found by {how}."]
        if self.facts:
            lines.append("It says: " + ", ".join(f"{name} {value}" for name, value in self.facts.items()) + ".")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Loaded:
    """Weights for a network, and how they were found."""

    state: Tensors
    """All that the network's `load_state_dict` asks for."""
    report: Report


@dataclass(frozen=True)
class Fit:
    """How tensors fit a network by the names of one layout."""

    layout: Layout
    expected: Shapes
    """Of the network, counters apart."""
    found: Tensors
    """By our names; still in their order and format."""
    left: tuple[str, ...]
    """Their names of what has no place in the network."""
    needless: tuple[str, ...]
    """The same, of what is known to be of no use to any network."""

    @property
    def share(self) -> float:
        """How much of the network was found, whatever its shape, in [0, 1]."""
        return sum(name in self.expected for name in self.found) / len(self.expected)

    @cached_property
    def missing(self) -> list[str]:
        """Our names of what was not found; auxiliary classifiers can be missing."""
        return [name for name in self.expected if name not in self.found and not name.startswith("auxiliary.")]

    @cached_property
    def misshapen(self) -> list[str]:
        """Our names of what was found with another shape."""
        both = ((name, shape, self.found[name].shape) for name, shape in self.expected.items() if name in self.found)
        return [name for name, ours, theirs in both if ours != theirs and not _is_same_layer(ours, theirs)]

    def is_whole(self, *, but_for_heads: bool) -> bool:
        """Whether nothing is missing, misshapen or left over; a head may be, and have another name, if asked so."""
        if not but_for_heads:
            return not (self.missing or self.misshapen or self.left)
        layers_left = {name.rpartition(".")[0] for name in self.left}
        may_be_its_head = len(layers_left) <= (1 if "head.weight" in self.missing else 0)
        return all(map(is_head, [*self.missing, *self.misshapen])) and may_be_its_head


def match(file: WeightsFile, model: nn.Module, name: str, *, new_head: bool = False) -> Loaded:
    """The weights in `file` for `model`, which was built as `name` and keeps what is begun anew.

    Raises:
        CheckpointError: if they are not the weights of such a network.
    """
    matchings = [_Matching(file, entry, tensors, model, name) for entry, tensors in file.entries.items()]
    for matching in matchings:
        for fit in matching.fits:
            if fit.is_whole(but_for_heads=new_head):
                return matching.load(fit, new_head)
    raise matchings[0].refusal()


def find_num_classes(file: WeightsFile, model: nn.Module, name: str) -> int | None:
    """How many classes the head in `file` has, as far as its names or the order of its tensors tell."""
    for entry, tensors in file.entries.items():
        matching = _Matching(file, entry, tensors, model, name)
        head = matching.fit.found.get("head.weight")
        if head is not None and head.dim():
            return head.shape[0]
        weights = [tensor for tensor in tensors.values() if tensor.dim() > 1]
        if matching.fit.share < 0.5 and file.has_order and weights:
            return weights[-1].shape[0]
    return None


def num_misshapen(file: WeightsFile, model: nn.Module, name: str) -> int:
    """How many tensors in `file` have another shape in `model`, built as `name`; heads apart."""
    entry, tensors = next(iter(file.entries.items()))
    return sum(not is_head(found) for found in _Matching(file, entry, tensors, model, name).fit.misshapen)


class _Matching:
    """One dictionary of tensors and one network."""

    def __init__(self, file: WeightsFile, entry: str, tensors: Tensors, model: nn.Module, name: str) -> None:
        self.file, self.entry, self.model = file, entry, model
        self.name = ALIASES.get(name, name)
        self.wrappers = wrappers_in(tensors)
        self.tensors: Tensors = {}
        for full, tensor in tensors.items():
            if bare(full) in self.tensors:
                raise CheckpointError(
                    f"{file.path} holds {bare(full)} more than once, in different wrappers; expected one network. "
                    "Save the weights of one alone."
                )
            self.tensors[bare(full)] = tensor
        self._refuse_lookalikes()
        self.fit = self._best_fit()
        wrapper = common_wrapper(self.tensors)
        if self.fit.share < 0.5 and wrapper:
            self.wrappers.append(wrapper)
            self.tensors = {full.removeprefix(f"{wrapper}."): tensor for full, tensor in self.tensors.items()}
            self.fit = self._best_fit()

    @property
    def fits(self) -> list[Fit]:
        """By names, and where those are not known, by order and shapes."""
        by_order = self._fit_by_order() if self.file.has_order and self.fit.share < 0.5 else None
        return [self.fit] if by_order is None else [self.fit, by_order]

    def _best_fit(self) -> Fit:
        """By the layout that finds most, in the right shape where that decides."""
        fits = [self._fit(layout) for layout in layouts_of(find_variant(self.name).family)]
        return max(fits, key=lambda fit: (fit.share, -len(fit.misshapen), -len(fit.left)))

    def _fit(self, layout: Layout) -> Fit:
        state = self.model.state_dict()
        theirs = {name: bare(layout.their_name(name)) for name in state}
        found = {name: self.tensors[their] for name, their in theirs.items() if their in self.tensors}
        found = {name: tensor for name, tensor in found.items() if not is_counter(name) or tensor.numel() == 1}
        used = {theirs[name] for name in found}
        left = [name for name in self.tensors if name not in used]
        needless = tuple(filter(_is_needless, left))
        return Fit(layout, self._expected, found, tuple(name for name in left if name not in needless), needless)

    @cached_property
    def _expected(self) -> Shapes:
        return {name: value.shape for name, value in self.model.state_dict().items() if not is_counter(name)}

    def _fit_by_order(self) -> Fit | None:
        """Layer by layer in order, if every layer has tensors of the same kinds; None if not."""
        theirs = [name for name in self.tensors if not _is_needless(name)]
        kinds = [name.rpartition(".")[2] for name in theirs]
        if kinds != [name.rpartition(".")[2] for name in self._expected]:
            return None
        found = dict(zip(self._expected, (self.tensors[name] for name in theirs), strict=True))
        return Fit(Layout(BY_ORDER, bare, lambda _: False), self._expected, found, (), ())

    def _refuse_lookalikes(self) -> None:
        for lookalike in LOOKALIKES:
            if any(re.fullmatch(lookalike.sign, name) for name in self.tensors):
                raise CheckpointError(
                    f"{self.file.path} holds the weights of {lookalike.network}, which candid does not have: "
                    f"{lookalike.reason}. Loaded into another network they would give other outputs; train that one."
                )

    def load(self, fit: Fit, new_head: bool) -> Loaded:
        """The network's whole state by `fit`, and the report."""
        config = find_variant(self.name).config
        state: Tensors = {}
        anew: list[str] = []
        for name, fresh in self.model.state_dict().items():
            if name not in fit.found or (new_head and is_head(name)):
                state[name] = fresh
                anew.append(name)
            else:
                value = fit.layout.rearrange(name, fit.found[name], config)
                state[name] = _convert(value, fresh, name, self.file.path)
        notes = (*self._notes_on_names(fit), *self._notes_on_values(fit, anew), *self._notes_on_doubts(fit))
        report = Report(
            file=self.file.path.name,
            sha256=self.file.sha256,
            model=self.name,
            layout=fit.layout.library,
            tensors=len(state) - len(anew),
            entry=self.entry,
            facts=self.file.facts,
            notes=notes,
        )
        return Loaded(state, report)

    def _notes_on_names(self, fit: Fit) -> list[str]:
        notes: list[str] = []
        others = [entry for entry in self.file.entries if entry != self.entry]
        if self.entry:
            average = ", an average over steps" if "ema" in self.entry else ""
            beside = f"; it also has {', '.join(others)}" if others else ""
            notes.append(f"Taken from its entry {self.entry}{average}{beside}.")
        if self.wrappers:
            notes.append(f"Removed from the names: {', '.join(self.wrappers)}.")
        if fit.layout.rearrange is not as_it_is:
            notes.append(
                f"Channels were put in our order: {fit.layout.library} has the newest maps of a block in front."
            )
        return notes

    def _notes_on_values(self, fit: Fit, anew: list[str]) -> list[str]:
        formats = Counter(_format(tensor) for name, tensor in fit.found.items() if not is_counter(name))
        ours = _format(next(self.model.parameters()))
        notes = [f"Converted to {ours}: {count(formats[k], 'tensor')} of {k}." for k in formats if k != ours]
        for pattern, what in NOT_NEEDED.items():
            left = [name for name in fit.needless if re.fullmatch(pattern, name)]
            if left:
                notes.append(f"Left out: {count(len(left), 'tensor')} ({left[0]}), {what}.")
        if fit.left:
            notes.append(f"Left out, as its head: {', '.join(fit.left)}.")
        heads = [name for name in anew if is_head(name) and not name.startswith("auxiliary.")]
        auxiliary = [name for name in anew if name.startswith("auxiliary.")]
        if heads:
            notes.append(f"Begun anew: {', '.join(heads)}.")
        if auxiliary:
            notes.append(
                f"Begun anew: {count(len(auxiliary), 'tensor')} of auxiliary classifiers, which only training uses."
            )
        return notes

    def _notes_on_doubts(self, fit: Fit) -> list[str]:
        if fit.layout.library == BY_ORDER:
            return [f"No name in the file is known: order and shapes fit {self.name}, but {UNSEEN}"]
        if not fit.layout.has(self.name):
            return [f"{fit.layout.library} has no {self.name}: names and shapes fit, but {UNSEEN}"]
        return []

    def refusal(self) -> CheckpointError:
        """Why the tensors are not the weights of the network, and what to do."""
        for fit in self.fits:
            if fit.is_whole(but_for_heads=True):
                return self._refusal_of_head(fit)
        path, fit = self.file.path, self.fit
        wrong = [name for name in fit.misshapen if not is_head(name)]
        if not fit.missing and not fit.left and wrong:
            theirs, ours = fit.found[wrong[0]].shape, fit.expected[wrong[0]]
            if len(wrong) == 1 and reads_images(ours, theirs):
                return CheckpointError(
                    f"{path} is for images of {count(theirs[1], 'channel')} and {self.name} was to read {ours[1]}; "
                    f"they must be equal. Use --channels {theirs[1]}, or data with as many."
                )
            if all(len(fit.expected[name]) == 2 for name in wrong) and theirs[0] == ours[0]:
                return CheckpointError(
                    f"{path} is for images of another size: {wrong[0]} reads {theirs[1]:,} values and {ours[1]:,} "
                    "at the size chosen; they must be equal. Give the size that it was trained with: --image-size."
                )
        return CheckpointError(
            f"{path} does not hold the weights of {self.name}: {self._differences(fit)}. {self._advice()}"
        )

    def _refusal_of_head(self, fit: Fit) -> CheckpointError:
        path, ours = self.file.path, fit.expected["head.weight"][0]
        if "head.weight" in fit.found:
            theirs = fit.found["head.weight"].shape[0]
            return CheckpointError(
                f"{path} has a head for {theirs:,} classes and {self.name} was to have {ours:,}; they must be equal. "
                f"Use data or class names with {theirs:,} classes, or keep all but the head with --new-head."
            )
        other = f" and {fit.left[0]}" if fit.left else ""
        return CheckpointError(
            f"{path} has no head of {self.name}, only the layers before it{other}; expected one for {ours:,} classes. "
            "Keep those layers and begin the head anew with --new-head."
        )

    def _differences(self, fit: Fit) -> str:
        if not fit.found:
            return f"none of its {len(self._expected):,} names is there, in any layout known"
        shape = next((n for n in fit.misshapen if not is_head(n)), "")
        facts: list[str] = []
        if fit.missing:
            facts.append(f"{len(fit.missing):,} of {count(len(fit.expected), 'tensor')} missing ({fit.missing[0]})")
        if fit.left:
            facts.append(f"{count(len(fit.left), 'tensor')} left over ({fit.left[0]})")
        if shape:
            facts.append(f"{shape} is {_sides(fit.found[shape])}, expected {_sides(fit.expected[shape])}")
        return ", ".join(facts)

    def _advice(self) -> str:
        nearest = find_nearest({name: tensor.shape for name, tensor in self.tensors.items() if not _is_needless(name)})
        if nearest is None or nearest.share < 0.3:
            return "No network of candid is near to it; `candid models` lists them."
        if nearest.model == self.name:
            return f"No other network is nearer ({nearest.share:.0%} agrees), so it is of a changed one."
        if nearest.share == 1:
            return (
                f"They are those of {nearest.model}, under the names of {nearest.library}: use --model {nearest.model}."
            )
        return f"The nearest network is {nearest.model}, of which {nearest.share:.0%} agrees ({nearest.library})."


def _is_needless(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in NOT_NEEDED)


def _convert(value: Tensor, fresh: Tensor, name: str, path: Path) -> Tensor:
    """A copy in the format of ours."""
    is_dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    if not is_dense or (fresh.is_floating_point() and not value.is_floating_point()):
        raise CheckpointError(
            f"{path} has {name} as {_format(value)}; expected floating-point numbers, all of them. "
            "Save the weights as float32."
        )
    converted = value.to(dtype=fresh.dtype, copy=True).reshape(fresh.shape).contiguous()
    if not converted.isfinite().all():
        raise CheckpointError(
            f"{path} has values in {name} that are not finite; expected numbers. "
            "Its training has diverged: use an earlier checkpoint."
        )
    return converted


def _is_same_layer(ours: torch.Size, theirs: torch.Size) -> bool:
    """Whether one is of a linear layer and the other of the convolution over a whole map that computes the same."""
    return {len(ours), len(theirs)} == {2, 4} and ours[0] == theirs[0] and ours.numel() == theirs.numel()


def _format(tensor: Tensor) -> str:
    """Such as "float16" or "sparse_coo float32"."""
    words = [str(tensor.layout), str(tensor.dtype), *(["without values"] if tensor.is_meta else [])]
    return " ".join(word.removeprefix("torch.") for word in words if word != "torch.strided")


def _sides(tensor: Tensor | tuple[int, ...]) -> str:
    return "x".join(map(str, tensor.shape if isinstance(tensor, Tensor) else tensor))
