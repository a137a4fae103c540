"""What `candid models` prints: the list of networks, one network layer by layer, a paper's tables beside ours."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING

from candid.words import aligned, count, percent
from candid.zoo import Entry, describe_family

if TYPE_CHECKING:
    from candid.models.summary import Summary
    from candid.paper_tables import Paper
    from candid.report.paper_runs import MeasuredRun


def show_networks(entries: Iterable[Entry], width: int | None) -> str:
    """All networks, family by family."""
    rows: list[tuple[str, ...]] = [("network", "input", "classes", "parameters", "multiply-adds")]
    families: dict[int, str] = {}
    for family, members in groupby(entries, key=lambda entry: entry.family):
        families[len(rows)] = f"{family}: {describe_family(family)}"
        for entry in members:
            numbers = _grouped(entry.num_classes, entry.parameters, entry.multiply_adds)
            rows.append((f"  {entry.name}", entry.image, *numbers))
    return "\n".join(_with_headings(rows, families, numbers={1, 2, 3, 4}, width=width))


def show_network(summary: "Summary", width: int | None) -> str:
    """A network layer by layer, its totals behind."""
    in_layers = sum(layer.parameters for layer in summary.layers)
    only_trained = summary.parameters - in_layers
    rows: list[tuple[str, ...]] = [("layer", "kind", "output", "parameters", "multiply-adds", "KiB")]
    headings: dict[int, str] = {}
    current = ""
    for layer in summary.layers:
        block, _, own = layer.name.rpartition(".") if layer.is_module else (layer.name, "", "–")
        if layer.is_module and block not in ("", current):
            headings[len(rows)] = block
        named = not block or (block != current and not layer.is_module)
        name = (layer.name or "(network)") if named else f"  {own}"
        current = block
        kib = _three_digits(layer.activation_bytes / 1024)
        rows.append((name, layer.kind, _sides(layer.output), *_grouped(layer.parameters, layer.multiply_adds), kib))
    kib = _three_digits(summary.activation_bytes / 1024)
    rows.append(("all", "", "", *_grouped(in_layers, summary.multiply_adds), kib))
    table = _with_headings(rows, headings, numbers={2, 3, 4, 5}, width=width)
    facts = [
        f"Parameters: {summary.parameters:,} ({_mib(summary.parameter_bytes)} in fp32"
        + (f"; {only_trained:,} of them in auxiliary classifiers, which only training uses" if only_trained else "")
        + ").",
        f"Multiply-adds: {summary.multiply_adds:,} for one image, without biases.",
        f"Activations: {_mib(summary.activation_bytes)} for one image in fp32, every output once; "
        f"{_mib(summary.usual_activation_bytes)} as the usual summary counts for forward and backward: "
        "twice the outputs of all layers and, once more, of all blocks as the next block receives them.",
    ]
    return "\n".join(
        [
            _wrapped(f"{summary.name}: {describe_family(summary.family)}", width),
            f"{_sides(summary.image)} to {summary.num_classes:,} classes, {summary.depth:,} layers with weights deep",
            "",
            *table[:-1],
            table[1],
            table[-1],
            "",
            *(_wrapped(fact, width) for fact in facts),
        ]
    )


def network_as_dict(summary: "Summary") -> Mapping[str, object]:
    """What `show_network` shows, for programs."""
    layers = [asdict(layer) | {"activation_bytes": layer.activation_bytes} for layer in summary.layers]
    totals = {"multiply_adds": summary.multiply_adds, "activation_bytes": summary.activation_bytes}
    return asdict(summary) | totals | {"layers": layers}


def show_paper(paper: "Paper", entries: Iterable[Entry], runs: Sequence["MeasuredRun"], width: int | None) -> str:
    """A paper's tables; below each row ours: the exact count, its difference to the printed one, measured errors."""
    by_name = {entry.name: entry for entry in entries}
    measured = [
        f"  {run.folder}: {run.model}, {run.column}, {percent(run.error)}, {count(run.epochs, 'epoch')}" for run in runs
    ]
    nothing = (
        "Nothing measured here: no finished run in runs/ has the data of a column, which are cifar10, cifar100 and "
        "svhn-extra, with crop_padding and mirror for a plus, else without augmentation."
    )
    sources = ["Measured here, on test, with the checkpoint that validation chose:", *measured] if runs else [nothing]
    return "\n".join(
        [
            _wrapped(f"{paper.title}, Table 2: test error in %; below each row, candid", width),
            "",
            *_error_table(paper, by_name, runs, width),
            "",
            *(_wrapped(source, width) for source in sources),
            "",
            _wrapped("Table 3: validation error in % on ImageNet, from one crop and from ten", width),
            "",
            *_imagenet_table(paper, by_name, width),
        ]
    )


def _error_table(
    paper: "Paper", entries: Mapping[str, Entry], runs: Sequence["MeasuredRun"], width: int | None
) -> list[str]:
    from candid.paper_tables import COLUMNS
    from candid.report.paper_runs import mean_errors

    measured = mean_errors(runs)
    rows: list[tuple[str, ...]] = [("network", "depth", "parameters", "diff.", *COLUMNS)]
    for row in paper.small_images:
        depth = "" if row.depth is None else str(row.depth)
        printed = "" if row.millions is None else f"{row.millions:.1f} M"
        rows.append((row.method, depth, printed, "", *("–" if e is None else f"{e:.2f}" for e in row.errors)))
        parameters = entries[row.model].parameters
        difference = "" if row.millions is None else _difference(parameters, row.millions)
        errors = (measured.get((row.model, column)) for column in COLUMNS)
        ours = ("" if error is None else f"{100 * error:.2f}" for error in errors)
        rows.append((f"  {row.model}", "", f"{parameters:,}", difference, *ours))
    return aligned(rows, numbers=range(1, 4 + len(COLUMNS)), width=width)


def _imagenet_table(paper: "Paper", entries: Mapping[str, Entry], width: int | None) -> list[str]:
    rows: list[tuple[str, ...]] = [("network", "parameters", "top-1", "ten crops", "top-5", "ten crops")]
    for row in paper.imagenet:
        errors = (f"{error:.2f}" for error in (*row.top1, *row.top5))
        rows.append((row.model, f"{entries[row.model].parameters:,}", *errors))
    return aligned(rows, numbers=range(1, 6), width=width)


def _with_headings(
    rows: Sequence[Sequence[str]], headings: Mapping[int, str], numbers: Collection[int], width: int | None
) -> list[str]:
    """The aligned rows, and before the row at each key of `headings` a line of its own."""
    first, rule, *lines = aligned(rows, numbers, width)
    text = [first, rule]
    for position, line in enumerate(lines, start=1):
        if position in headings:
            text.append(_wrapped(headings[position], width))
        text.append(line)
    return text


def _grouped(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number:,}" if number else "–" for number in numbers)


def _sides(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.2f} MiB"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _difference(parameters: int, millions: float) -> str:
    """In millions, at the precision of the printed number; "0" where ours rounds to it."""
    difference = round(parameters / 1e6, 1) - millions
    return f"{difference:+.1f}" if abs(difference) > 0.05 else "0"


def _wrapped(text: str, width: int | None) -> str:
    return text if width is None else fill(text, width, subsequent_indent="    ")
