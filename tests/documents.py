"""Documents that are followed to the letter: the blocks of code in them, and what is done with these."""

import re
from typing import NamedTuple

import pytest

from candid.cli import main


class Block(NamedTuple):
    """A block of code in a document."""

    before: str
    """The text between it and the block before it."""
    language: str
    content: str


def find_blocks(text: str) -> list[Block]:
    """The blocks of a document, in their order."""
    return [Block(*found) for found in re.findall(r"(.*?)```(\w*)\n(.*?)```\n", text, flags=re.DOTALL)]


def run_command(command: str) -> None:
    """Run `candid ...` in this process; it must end well."""
    program, *arguments = command.split()
    assert program == "candid"
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code, command


def patched(source: str, diff: str) -> str:
    """The source with each hunk of a diff put where its other lines are, once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        assert source.count(before) == 1, f"the lines are not there, or not once:\n{before}"
        source = source.replace(before, "".join(line[1:] for line in lines if line[0] in " +"))
    return source
