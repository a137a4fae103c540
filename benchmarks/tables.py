"""What is told of the networks, out of the registry: candid/models/table.csv and docs/models.md.

Run: python -m benchmarks.tables
"""

import ast
import csv
import io
import re
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from candid.durable import write_file
from candid.models import REGISTRY
from candid.models.summary import summarize
from candid.zoo import Entry, describe_family

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "candid" / "models" / "table.csv"
PAGE = ROOT / "docs" / "models.md"
HEADING = """# Networks

Generated from the registry by `python -m benchmarks.tables`; what stands above each table is the header of the family's
file. Counts are those of the data that a network was designed for: parameters are all trained values, multiply-adds
those of convolutions and linear layers for one image, without biases; depth is the number of these layers on the
longest way from the image to the logits. `candid models NAME` shows a network layer by layer.
"""


def list_entries() -> list[Entry]:
    """A row for each network of the registry."""
    return [describe_network(name) for name in REGISTRY]


def describe_network(name: str) -> Entry:
    """The row of one network."""
    summary = summarize(name)
    return Entry(
        family=summary.family,
        name=name,
        channels=summary.image[0],
        image_size=summary.image[1],
        num_classes=summary.num_classes,
        parameters=summary.parameters,
        multiply_adds=summary.multiply_adds,
        depth=summary.depth,
    )


def write_table(entries: list[Entry]) -> str:
    """The list as CSV."""
    buffer = io.StringIO()
    columns = [field.name for field in fields(Entry)]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([getattr(entry, column) for column in columns] for entry in entries)
    return buffer.getvalue()


def write_page(entries: list[Entry]) -> str:
    """The page as Markdown: each family's header and a table of its networks."""
    return HEADING + "".join(
        write_family(family, list(members)) for family, members in groupby(entries, key=lambda entry: entry.family)
    )


def write_family(family: str, entries: list[Entry]) -> str:
    """A family's section."""
    title = describe_family(family)
    rows = "".join(
        f"| `{entry.name}` | {entry.image} | {entry.num_classes:,} | {entry.parameters:,} | "
        f"{entry.multiply_adds:,} | {entry.depth:,} |\n"
        for entry in entries
    )
    return (
        f"\n## {family}\n\n{link(title)}.\n\n{link(describe_header(family))}\n\n"
        f"| network | input | classes | parameters | multiply-adds | depth |\n|---|---|--:|--:|--:|--:|\n{rows}"
    )


def describe_header(family: str) -> str:
    """What a family's file says of itself under its first line, without the legend for its comments."""
    source = (TABLE.parent / f"{family}.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[2]
    text = re.sub(r"^Shapes.*", "", text, flags=re.MULTILINE | re.DOTALL).strip()
    return re.sub(r"\b(Departures?)\b(?=[^.]*:)", r"**\1**", text)


def link(text: str) -> str:
    """The text with its arXiv numbers and GitHub repositories as links."""
    text = re.sub(r"(?:arXiv:)?\b(\d{4}\.\d{4,5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"\bgithub\.com/([\w/-]+)", r"[\1](https://github.com/\1)", text)


def main() -> None:
    """Write both files."""
    entries = list_entries()
    write_file(TABLE, write_table(entries))
    write_file(PAGE, write_page(entries))
    print(f"{len(entries)} networks: {TABLE.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
