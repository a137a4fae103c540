"""Each lesson in its short form, its two languages side by side, and what was built of it against its source."""

import json
import re
import runpy
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from lessons.pages import (
    CHINESE,
    LANGUAGES,
    PAGES,
    build,
    find_lessons,
    in_language,
    read_lesson,
    write_index,
    write_notebook,
    write_page,
)

LESSONS = find_lessons()
SIGN = r"[\u3001-\u303f\uff00-\uffef]"
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
each_language = pytest.mark.parametrize("language", LANGUAGES)


@each_lesson
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_it_runs(path: Path, here: Path, monkeypatch: pytest.MonkeyPatch):
    """As the program that its file is, and in this process: a kernel takes seconds to start and to import torch."""
    monkeypatch.setenv("LESSONS", "quick")
    matplotlib.use("agg")
    with torch.random.fork_rng():
        runpy.run_path(str(path))
    plt.close("all")


def structure(text: str) -> dict[str, object]:
    """What a text and its translation have in common; words may stand in another order."""
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)],
        "items": len(re.findall(r"^ *(?:[-*]|\d+\.) ", text, re.MULTILINE)),
        "table rows": len(re.findall(r"^\|", text, re.MULTILINE)),
        "paragraphs": len(re.findall(r"\n\n", text)),
        "links": sorted(re.findall(r"\]\(([^)]+)\)", text)),
        "formulas": sorted(re.findall(r"\$\$[^$]+\$\$|\$[^$]+\$", text)),
        "code": sorted(re.findall(r"`([^`]+)`", text)),
        "papers": sorted(re.findall(r"arXiv:[\d.]*\d", text)),
    }


@each_lesson
def test_its_texts_are_the_same_in_both_languages(path: Path):
    cells = read_lesson(path).cells
    texts = [cell for cell in cells if cell.cell_type == "markdown"]
    assert all(cell.metadata.get("lang") in LANGUAGES for cell in texts)
    followers = [(cell, follower) for cell, follower in pairwise(cells) if cell.metadata.get("lang") == "en"]
    assert 2 * len(followers) == len(texts), "each English text stands right before its translation"
    for english, chinese in followers:
        assert chinese.metadata.get("lang") == "zh", english.source
        assert structure(english.source) == structure(chinese.source), english.source
        assert not re.search(CHINESE, english.source)
        assert re.search(CHINESE, chinese.source)
        assert not re.search(rf"{CHINESE}[,;:?!(]", chinese.source), "Chinese has signs of its own"
        assert not re.search(r"^#.*\n[^\n]", chinese.source, re.MULTILINE), "a heading would join the next line"


@each_lesson
def test_no_line_of_its_chinese_ends_where_a_space_would_show(path: Path):
    """A browser shows the end of a line as a space: beside a Chinese sign a line ends between Chinese signs only."""
    for cell in in_language(read_lesson(path), "zh").cells:
        if cell.cell_type == "markdown":
            assert not re.search(rf"{SIGN}\n(?!\n|[-*|]|\d+\. |\$\$)|(?<!\n)\n *{SIGN}", cell.source), cell.source


@each_lesson
def test_it_is_made_as_lessons_are(path: Path):
    cells = read_lesson(path).cells
    assert re.match(rf"# {path.stem[:2]} \w", cells[0].source)
    programs = [cell for cell in cells if cell.cell_type == "code"]
    assert max(len(cell.source.splitlines()) for cell in programs) <= 15
    solutions = [cell for cell in programs if "solution" in cell.metadata.get("tags", [])]
    assert 2 <= len(solutions) <= 3
    assert all("assert" in cell.source for cell in solutions)
    assert not re.search(r"\w://|\bwww\.", path.read_text())


def without_outputs(page: str) -> str:
    """A page without the time that its code took and without what the code printed and drew."""
    page = re.sub(r"^> .*\n", "", page, count=1, flags=re.MULTILINE)
    return re.sub(r"(?<=\n```\n)(?:\n| {4}.*\n|!\[\w+\]\(\.\./pictures/.*\n)*", "\n", page)


@each_language
@each_lesson
def test_make_lessons_was_run(path: Path, language: str):
    lesson, built = read_lesson(path), PAGES / language / path.stem
    page, _ = write_page(path.stem, lesson, language)
    assert without_outputs(built.with_suffix(".md").read_text()) == without_outputs(page)
    assert built.with_suffix(".ipynb").read_text() == write_notebook(lesson, language)


@each_language
def test_all_lessons_are_listed_and_nothing_else_is_there(language: str):
    folder = PAGES / language
    assert (folder / "README.md").read_text() == write_index(LESSONS, language)
    names = {f"{path.stem}{suffix}" for path in LESSONS for suffix in (".md", ".ipynb")}
    assert {path.name for path in folder.iterdir()} == {"README.md", *names}


@each_language
def test_links_and_pictures_lead_somewhere_and_all_pictures_are_shown(language: str):
    shown: set[str] = set()
    for page in (PAGES / language).glob("*.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            shown |= {Path(target).name} if target.endswith(".png") else set()
    assert shown == {path.name for path in (PAGES / "pictures").iterdir()}


TINY = """\
# %% [markdown] lang="en"
# # 99 Tiny
#
# What `x` is.

# %% [markdown] lang="zh"
# # 99 小课
#
# 看看
# `x` 是
# 什么。

# %%
import matplotlib.pyplot as plt

x = 3
print(x)

# %%
plt.plot([x, 2])
plt.show()

# %% tags=["solution"]
assert x == 3
"""
CODE = "```python\nimport matplotlib.pyplot as plt\n\nx = 3\nprint(x)\n```\n\n    3\n"


def make_tiny(folder: Path, text: str = TINY) -> Path:
    path = folder / "99_tiny.py"
    path.write_text(text)
    return path


def read_folder(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_lesson_becomes_pages_notebooks_and_pictures(tmp_path: Path):
    pages = tmp_path / "pages"
    build(make_tiny(tmp_path), pages)
    [picture] = (pages / "pictures").iterdir()
    assert picture.read_bytes().startswith(b"\x89PNG")
    for language, words in LANGUAGES.items():
        page = (pages / language / "99_tiny.md").read_text()
        assert re.search(re.escape(words.measured).replace(r"\{took\}", r"\d+ s").replace(r"\{machine\}", ".*"), page)
        assert CODE in re.sub(r"\n\n+", "\n\n", page)
        assert f"![{words.figure}](../pictures/{picture.name})" in page
        assert page.index(words.solution) < page.index("assert x == 3") < page.index("</details>")
        notebook = json.loads((pages / language / "99_tiny.ipynb").read_text())
        assert [cell["cell_type"] for cell in notebook["cells"]] == ["markdown", "code", "code", "code"]
        assert not any(cell.get("outputs") for cell in notebook["cells"])
        assert notebook["cells"][3]["metadata"]["jupyter"] == {"source_hidden": True}
    assert "# 99 小课\n\n看看\n`x` 是什么。" in (pages / "zh" / "99_tiny.md").read_text()
    before = read_folder(pages)
    build(tmp_path / "99_tiny.py", pages)
    after = read_folder(pages)
    assert before.keys() == after.keys()
    for name, content in before.items():
        is_page = name.endswith(".md")
        assert content == after[name] or (is_page and without_time(content) == without_time(after[name])), name


def without_time(page: bytes) -> str:
    return re.sub(r"^> .*", "", page.decode(), count=1, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("x = 1 / 0", r":\n(?s:.*)ZeroDivisionError.*: division by zero"),
        ("import warnings; warnings.warn('odd')", r" and writes to standard error:\n.*UserWarning: odd\n"),
    ],
)
def test_a_lesson_that_fails_or_warns_stops_with_its_name_and_cell(tmp_path: Path, code: str, end: str):
    path = make_tiny(tmp_path, TINY.replace("import matplotlib.pyplot as plt\n", f"{code}\n"))
    begin = re.escape(repr(code))
    with pytest.raises(RuntimeError, match=rf"^Lesson 99_tiny stops at cell 2, which begins with {begin}{end}"):
        build(path, tmp_path / "pages")
    assert not (tmp_path / "pages").exists()
