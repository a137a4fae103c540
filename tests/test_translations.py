"""Pages beside their Chinese translations: the same headings, code, links, pictures and numbers, in the same order."""

import re
from pathlib import Path

import pytest
from test_glossary import find_rejected

from lessons.pages import CHINESE

ROOT = Path(__file__).parent.parent
PAGES = ["README", "docs/index"]
each_page = pytest.mark.parametrize("page", PAGES)


def read_page(name: str) -> str:
    return (ROOT / name).read_text()


def parts(page: str) -> list[str]:
    """Headings, paragraphs, lists and blocks of code, each as one part."""
    pieces = re.split(r"^(```.*?^```)$", page, flags=re.DOTALL | re.MULTILINE)
    texts = [[piece] if piece.startswith("```") else piece.split("\n\n") for piece in pieces]
    return [part.strip() for text in texts for part in text if part.strip()]


def facts(part: str) -> dict[str, object]:
    """What a part and its translation have in common; words may stand in another order."""
    if part.startswith("```\n"):  # a tree: names, and what they are behind two spaces
        return {"names": [re.match(r"\s*\S(?: ?\S)*", line)[0] for line in part.splitlines()]}
    if part.startswith("```"):
        return {"code": part}
    prose = re.sub(r"`[^`]+`|\]\([^)]+\)", "", part)
    return {
        "heading": re.match("#*", part)[0],
        "items": [len(mark) for mark in re.findall(r"^ *(?:[-*]|\d+\.) ", part, re.MULTILINE)],
        "columns": [line.count("|") for line in part.splitlines() if line.startswith("|")],
        "code": sorted(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", part)),
        "links": sorted(re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", part)),
        "pictures": re.findall(r"!\[[^]]*\]\(([^)]+)\)", part),
        "numbers": sorted(re.findall(r"\d+(?:[.,]\d+)*", prose)),
    }


def compare(english: str, chinese: str) -> None:
    ours, theirs = parts(english), parts(chinese)
    for part, translation in zip(ours, theirs, strict=False):
        assert facts(part) == facts(translation), part
    assert len(ours) == len(theirs)


def without_switch(page: str, language: str, target: str) -> str:
    """The page without the line below its title that leads to the other language."""
    title, switch, rest = page.split("\n\n", 2)
    assert switch == f"[{language}]({target})"
    return f"{title}\n\n{rest}"


@each_page
def test_a_translation_says_the_same(page: str):
    english, chinese = read_page(f"{page}.md"), read_page(f"{page}.zh.md")
    name = Path(page).name
    compare(without_switch(english, "中文", f"{name}.zh.md"), without_switch(chinese, "English", f"{name}.md"))


@each_page
def test_its_chinese_is_written_as_chinese_is(page: str):
    chinese = read_page(f"{page}.zh.md")
    prose = re.sub(r"^```.*?^```$", "", chinese, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(rf"{CHINESE}[,;:?!(]", prose), "Chinese has signs of its own"
    for part in parts(prose):
        if not re.match(r" *(?:[-*|]|\d+\.) ", part):
            assert "\n" not in part, "a browser shows the end of a line as a space, which Chinese has not"
    assert find_rejected(chinese) == set()


ENGLISH = """\
# Two commands

- `make train` takes 20 s ([results](docs/results.md)).

```sh
make train  # now
```

```
candid/
  errors.py words.py   what it says
```
"""
CHINESE_PAGE = """\
# 两条命令

- `make train` 用时 20 s（[结果](docs/results.md)）。

```sh
make train  # now
```

```
candid/
  errors.py words.py   它说什么
```
"""


def test_a_faithful_translation_is_taken():
    compare(ENGLISH, CHINESE_PAGE)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("# 两条", "## 两条"), ("- `", "`"), ("20 s", "21 s"), ("results.md", "result.md"), ("`make train`", "它")]
    + [("make train  # now", "make train"), ("words.py ", "word.py "), ("errors.py", "errors.py data/")],
)
def test_an_unfaithful_translation_is_found(right: str, wrong: str):
    assert right in CHINESE_PAGE
    with pytest.raises(AssertionError):
        compare(ENGLISH, CHINESE_PAGE.replace(right, wrong))
