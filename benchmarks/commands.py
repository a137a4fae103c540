"""docs/commands.md out of the command line itself: what `--help` says of each command.

Run: python -m benchmarks.commands
"""

from pathlib import Path
from typing import Any

from typer.main import get_command

from candid.cli import app
from candid.durable import write_file

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
HEADING = """# Commands

Generated from the program by `python -m benchmarks.commands`: what `candid COMMAND --help` says of each command. What
stands in brackets may be left out, and `...` stands for a value. `--debug`, before the command, shows where an error
came from.

Exit codes: 0 for what was done, 1 for a disk or a machine that cannot, 2 for what was typed or written into a recipe,
3 for pictures that cannot be used, 4 for a checkpoint that is damaged or foreign, 130 and 143 after Ctrl-C and SIGTERM.
"""


def write_page() -> str:
    """The page as Markdown: a section for each command, sorted by name."""
    commands: dict[str, Any] = vars(get_command(app))["commands"]  # the app is a group
    return HEADING + "".join(write_command(name, commands[name]) for name in sorted(commands))


def write_command(name: str, command: Any) -> str:
    """A command's section: what it does, how it is called, and a row for each argument and option."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join(["candid", name, *map(describe_argument, arguments), "[options]"])
    rows = "".join(f"| `{describe_names(parameter)}` | {describe(parameter)} |\n" for parameter in command.params)
    table = f"\n| argument or option | what it is |\n|---|---|\n{rows}" if rows else ""
    return f"\n## candid {name}\n\n{command.help}\n\n```\n{usage}\n```\n{table}"


def describe_argument(argument: Any) -> str:
    """An argument as the usage has it: its name, in brackets where it may be left out."""
    name = argument.metavar or argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def describe_names(parameter: Any) -> str:
    """An argument's name, or an option's with the value that it takes."""
    if parameter.param_type_name == "argument":
        return describe_argument(parameter)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or '...'}"


def describe(parameter: Any) -> str:
    """What an argument or option is, and its default where it has one."""
    has_default = parameter.default not in (None, False, "") and not parameter.required
    return parameter.help + (f" Default: {parameter.default}." if has_default else "")


def main() -> None:
    """Write the page."""
    write_file(PAGE, write_page())
    print(f"docs/{PAGE.name}")


if __name__ == "__main__":
    main()
