"""docs/benchmarks.md out of what the benchmarks print: each runs in a process of its own, one after the other.

Run: python -m benchmarks.page [--long | NAME...]
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.measuring import describe_machine
from candid.durable import write_file
from candid.words import duration

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEADING = """# Benchmarks

What each benchmark prints, put in here by `make bench` and, for whole runs, by `make bench-long`; both are
`python -m benchmarks.page`, which redoes single sections too (`python -m benchmarks.page zoo`). Contenders run in turn,
and the fastest of several rounds counts; ratios are what to look at, because seconds depend on the machine. Where
candid trains with measured settings, it does so in a process of its own: it treats memory and threads in its own way.
Peaks of memory are those of processes of their own. Another page has [what a processor with AMX
gives](benchmarks-amx.md), where bf16 is worth two to three times as much.
"""


@dataclass(frozen=True)
class Section:
    """A benchmark and what a reader has to know of it."""

    module: str
    """What `python -m` runs."""
    title: str
    text: str
    is_long: bool = False
    """Whether it takes whole runs, which `make bench-long` does."""

    @property
    def name(self) -> str:
        """The module's last part."""
        return self.module.rpartition(".")[2]


SECTIONS = (
    Section(
        "benchmarks.loading",
        "Loading",
        """
In-memory pictures with pad-and-crop, mirror and normalisation, and nothing that trains on them, against a torchvision
data set with transforms of PIL pictures in a DataLoader, whose workers are started before anything is timed.
""",
    ),
    Section(
        "benchmarks.folder",
        "A folder of JPEGs",
        """
Pictures of coarse noise, with nothing that trains on them, against torchvision's ImageFolder, whose workers are started
before anything is timed. The first opening decodes all and keeps what it decoded in the cache, the second finds it
there. "waits" is the share of candid's own loop, on pictures in memory, in which it waits for a batch.
""",
    ),
    Section(
        "benchmarks.training",
        "Training against the usual script",
        """
candid with automatic settings against the usual script: fp32, NCHW, PIL transforms, a DataLoader with two workers that
are kept from epoch to epoch. Its networks are torchvision's and timm's (WRN-16-4 is written out, since neither has it)
with stems for 32x32 pictures, in plain operations; its DenseNet concatenates. ShuffleNetV2 is the form with a stem of
stride 1, as CIFAR repositories have it; GhostNet is the network for 224 px at 32 px, as timm gives it. Both have
candid's number of parameters, which a test compares. "waits" is the share of candid's epoch in which its loop waits for
a batch.
""",
    ),
    Section(
        "benchmarks.zoo",
        "Automatic settings, every network",
        """
Every network with a form for 32x32 pictures: candid's own loop with automatic settings and loading, against the best
of fp32 and bf16 in NCHW and channels last, each timed by hand: the same network, a plain loop of forward, backward and
SGD on one batch that is ready. What took 1.15 times the best in the first of two rounds is not called again, nor what
took 1.7 times the best to warm up; below the bar, all have two more rounds. Batches are smaller for large networks,
down to four pictures, so that a step takes a second or so. candid runs in a process of its own, and measures
settings for at most 10 s in place of 20 s.
""",
    ),
    Section(
        "benchmarks.timm_epoch",
        "An epoch over a folder, against timm",
        """
The same JPEG files, both sides after an epoch that warmed them up, which is when candid has decoded its pictures. timm
has its own networks, `create_loader` with two workers and its lightest variations (a random crop and a mirror),
its own SGD, and the precision and compilation that were fastest for it here, in channels last. `resnet18-cifar` and
`densenet-cifar` are timm's classes with a stem for 32x32 pictures, the other two are its networks for 224 px at 32 px.
timm has no counterpart of the CIFAR papers' networks: ResNet-20 to 1202, the pre-activation and wide ones, ResNeXt-29,
FractalNet, Highway, DSN, All-CNN, NiN; nor of ShuffleNetV2.
""",
    ),
    Section(
        "benchmarks.scaling",
        "Scaling",
        """
Images/s of training against width, depth, image side and batch, with automatic settings and as a plain loop in fp32 and
NCHW over the same network.

![Images/s against width, depth, image side and batch](scaling.png)
""",
    ),
    Section(
        "benchmarks.checkpointing",
        "Exactness and saving",
        """
What it costs that a run can be repeated and resumed bit by bit, and what a checkpoint costs while training goes on.
""",
    ),
    Section(
        "benchmarks.models",
        "Building and running networks",
        """
candid's networks against torchvision's, in fp32.
""",
    ),
    Section(
        "benchmarks.prediction",
        "Prediction",
        """
A folder of JPEGs of photograph size against the usual loop, which opens, resizes, normalises and passes one picture at
a time through the same network; then one picture, whole processes, against a program that imports torch and torchvision
and passes the picture through torchvision's network.
""",
    ),
    Section(
        "benchmarks.dense_block",
        "The dense block",
        """
"saved" is what autograd keeps for the way back, "peak" resident memory above what was held before the first step. The
peak of recompute depends on what the C library keeps of freed memory: 0.15, 0.22 and 0.28 of plain in three runs, so
its bar of 0.25 does not always hold.
""",
    ),
    Section(
        "benchmarks.audit",
        "Wrong labels",
        """
Labels of Fashion-MNIST's training pictures that were changed at random to another class, and how many of them `candid
audit` finds. The suspects are taken from the top of its list for as long as the share of changed ones among them stays
above the wanted precision; true mistakes of the data set count as false alarms here.
""",
        is_long=True,
    ),
    Section(
        "benchmarks.memory",
        "The memory plan",
        """
Whole runs of `candid train` on pictures of noise, each in a process of its own, predicted before anything large was
made. The allowance for what no simulation sees was found with these same cases, so the first ten show how well the plan
fits them, not how well it does on others. Networks that leave out layers by chance are predicted with all of them,
which is too much (fractalnet-small 104 MiB above the floor where 36 were measured). A budget costs time: freed memory
goes back to the system at once, and single short runs took about 1.4 times as long.
""",
        is_long=True,
    ),
    Section(
        "benchmarks.speed",
        "Time to an accuracy",
        """
Whole runs of the recipes for speed, loading included; time is that of training. Nothing is held out and nothing chosen:
the last network looks at the test pictures once. Of the notes' recipe a few steps are timed, on pictures of noise.
""",
        is_long=True,
    ),
)


def run_sections(sections: Sequence[Section], chosen: Sequence[Section], page: Path) -> list[str]:
    """Run the chosen ones and put what they print into the page; the names of those that failed.

    The page is written after each. Of the other sections it keeps what it has.
    """
    measured = read_page(page, sections)
    failed: list[str] = []
    for section in chosen:
        print(f"== {section.title}: {section.module}", flush=True)
        measured[section.module], exit_code = run(section.module)
        if exit_code:
            failed.append(section.name)
        write_file(page, write_page(sections, measured))
    return failed


def run(module: str) -> tuple[str, int]:
    """What the page says under a section's text: command, day, time, machine and output; and the exit code.

    What it writes to standard error, its progress and why it fails, is for who waits, and not for the page.
    """
    started_at_s = time.monotonic()
    lines: list[str] = []
    command = [sys.executable, "-u", "-m", module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    outcome = f"**failed with exit code {process.returncode}** after" if process.returncode else "took"
    took = duration(time.monotonic() - started_at_s)
    text = (
        f"`python -m {module}`, {date.today()}, {outcome} {took}; {describe_machine()}.\n\n"
        f"```\n{''.join(lines).rstrip()}\n```\n"
    )
    return text, process.returncode


def read_page(page: Path, sections: Sequence[Section]) -> dict[str, str]:
    """What a page says under the text of each section that it has, by the section's module."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = {
        section.module: re.search(rf"^`python -m {section.module}`,.*?^```$.*?^```\n", text, re.MULTILINE | re.DOTALL)
        for section in sections
    }
    return {module: match[0] for module, match in found.items() if match}


def write_page(sections: Sequence[Section], measured: dict[str, str]) -> str:
    """The page as Markdown, with the sections that were measured, in the table's order."""
    return HEADING + "".join(
        f"\n## {section.title}\n\n{section.text.strip()}\n\n{measured[section.module]}"
        for section in sections
        if section.module in measured
    )


def main() -> None:
    """Run what the command line asks for; 1 is the exit code where a benchmark failed."""
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(description="Runs benchmarks and writes docs/benchmarks.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(names)}; none takes all that are short")
    parser.add_argument("--long", action="store_true", help="those that train to an accuracy")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in names:
            parser.error(f"no benchmark is called {name!r}; there are {', '.join(names)}")
    wanted = asked.names or [section.name for section in SECTIONS if section.is_long == asked.long]
    started_at_s = time.monotonic()
    failed = run_sections(SECTIONS, [section for section in SECTIONS if section.name in wanted], PAGE)
    print(f"{describe_machine()}\nAll in {duration(time.monotonic() - started_at_s)}; see {PAGE}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
