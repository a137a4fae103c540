"""docs/lessons out of lessons/NN_name.py: runs the code of each, and writes a page and a notebook in each language.

A lesson is in jupytext's percent format and has each of its texts twice, in a cell `lang="en"` and, right behind it, in
one `lang="zh"`. Pages show what the code printed and drew; notebooks have no outputs, because readers run them.

Run: python -m lessons.pages [NAME...]
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from benchmarks.measuring import describe_machine
from candid.durable import write_file
from candid.words import duration

SOURCES = Path(__file__).parent
PAGES = SOURCES.parent / "docs" / "lessons"
CHINESE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"


@dataclass(frozen=True)
class Language:
    """What pages say beside the lessons' own texts."""

    own_name: str
    other: str
    """The other language's folder."""
    title: str
    about: str
    notebook: str
    figure: str
    solution: str
    measured: str


LANGUAGES = {
    "en": Language(
        own_name="English",
        other="zh",
        title="Lessons",
        about="From tensors to the networks of the papers, in programs that run in minutes on two cores. Each page "
        "shows what its code printed and drew; the notebook beside it is for running. `make lessons` makes both anew.",
        notebook="notebook",
        figure="Figure",
        solution="Solution",
        measured="The code took {took} on {machine}.",
    ),
    "zh": Language(
        own_name="中文",
        other="en",
        title="课程",
        about="从张量讲到论文中的网络，每个程序在两个核心上几分钟就能运行完。每一页都给出代码的输出和图；旁边的笔记本供读者自己运行。"
        "用 `make lessons` 可以重新生成两者。",
        notebook="笔记本",
        figure="图",
        solution="参考答案",
        measured="代码运行用时 {took}；机器与版本：{machine}。",
    ),
}


def find_lessons(folder: Path = SOURCES) -> list[Path]:
    """The lessons' files, in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_lesson(path: Path) -> NotebookNode:
    """A lesson as a notebook in both languages; the same file always gives the same one."""
    lesson = jupytext.read(path, fmt="py:percent")
    for number, cell in enumerate(lesson.cells):
        cell.id = f"cell-{number}"  # jupytext draws them at random
    return lesson


def in_language(lesson: NotebookNode, name: str) -> NotebookNode:
    """The lesson's code and its texts in one language."""
    cells = [deepcopy(cell) for cell in lesson.cells if cell.metadata.get("lang", name) == name]
    for cell in cells:
        cell.metadata.pop("lang", None)
        if cell.cell_type == "markdown":  # a browser shows the end of a line as a space, which Chinese has not
            cell.source = re.sub(rf"(?<={CHINESE})\n *(?={CHINESE})", "", cell.source)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run_lesson(name: str, lesson: NotebookNode) -> float:
    """Seconds that the lesson took, with the start of Python; its cells have their outputs then.

    Raises:
        RuntimeError: at the first cell that fails or complains on standard error, with its text.
    """
    started_at_s = time.monotonic()
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            lesson,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
            config=Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"}),  # else it listens on ports
        )
        with client.setup_kernel():
            for number, cell in enumerate(lesson.cells):
                begin = cell.source.partition("\n")[0]
                where = f"Lesson {name} stops at cell {number}, which begins with {begin!r}"
                try:
                    client.execute_cell(cell, number)
                except CellExecutionError as error:
                    raise RuntimeError(f"{where}:\n{error}") from None
                complaints = [output.text for output in cell.get("outputs", []) if output.get("name") == "stderr"]
                if complaints:
                    raise RuntimeError(f"{where} and writes to standard error:\n{''.join(complaints)}")
    return time.monotonic() - started_at_s


def write_page(name: str, lesson: NotebookNode, language: str, took_s: float = 0) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and its pictures by their places as the page names them."""
    words, notebook = LANGUAGES[language], in_language(lesson, language)
    other = LANGUAGES[words.other].own_name
    elsewhere = f"[{words.notebook.capitalize()}]({name}.ipynb) · [{other}](../{words.other}/{name}.md)"
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        is_solution = "solution" in cell.metadata.get("tags", [])
        opening = new_markdown_cell(f'<details markdown="1"><summary>{words.solution}</summary>')
        cells += [opening, cell, new_markdown_cell("</details>")] if is_solution else [cell]
    measured = words.measured.format(took=duration(took_s), machine=describe_machine())
    cells.insert(1, new_markdown_cell(f"> {measured}\n\n{elsewhere}"))
    notebook.cells = cells
    resources = {"unique_key": name, "output_files_dir": "../pictures"}
    page, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    page = re.sub(r"^ +$", "", page.replace("![png]", f"![{words.figure}]"), flags=re.MULTILINE)
    return page, resources["outputs"]


def write_notebook(lesson: NotebookNode, language: str) -> str:
    """The notebook as a file, without outputs and with its solutions folded."""
    notebook = in_language(lesson, language)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata.jupyter = {"source_hidden": True}
    return nbformat.writes(notebook) + "\n"


def write_index(paths: Sequence[Path], language: str) -> str:
    """The page that lists all lessons."""
    words = LANGUAGES[language]
    other = LANGUAGES[words.other].own_name
    lines = [f"# {words.title}", "", words.about, "", f"[{other}](../{words.other}/README.md)", ""]
    for path in paths:
        title = in_language(read_lesson(path), language).cells[0].source.partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.stem}.md) · [{words.notebook}]({path.stem}.ipynb)")
    return "\n".join([*lines, ""])


def build(path: Path, pages: Path) -> None:
    """Run a lesson and write its pages, pictures and notebooks."""
    name, lesson = path.stem, read_lesson(path)
    took_s = run_lesson(name, lesson)
    for picture in (pages / "pictures").glob(f"{name}_*.png"):  # it may draw fewer by now
        picture.unlink()
    for folder in (pages / "pictures", *(pages / language for language in LANGUAGES)):
        folder.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        page, pictures = write_page(name, lesson, language, took_s)
        write_file(pages / language / f"{name}.md", page)
        write_file(pages / language / f"{name}.ipynb", write_notebook(lesson, language))
        for place, data in pictures.items():  # the same in both languages
            write_file(pages / "pictures" / Path(place).name, data)
    print(f"{name}: {duration(took_s)}", flush=True)


def main() -> None:
    """Build what the command line names, or all; 1 is the exit code where a lesson failed."""
    paths = {path.stem: path for path in find_lessons()}
    parser = argparse.ArgumentParser(description="Runs lessons and writes docs/lessons.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(paths)}; none takes all")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in paths:
            parser.error(f"no lesson is called {name!r}; there are {', '.join(paths)}")
    os.environ.pop("LESSONS", None)  # pages are of the full form
    try:
        for name in asked.names or paths:
            build(paths[name], PAGES)
    except RuntimeError as error:
        sys.exit(str(error))
    for language in LANGUAGES:
        write_file(PAGES / language / "README.md", write_index(list(paths.values()), language))


if __name__ == "__main__":
    main()
