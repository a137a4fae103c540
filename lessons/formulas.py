"""Formulas of the lessons as MathML, which browsers draw without a script: an extension for Python-Markdown.

`$...$` stands in a line of text, `$$...$$` in a line of its own. Code stays as it is.
"""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

PATTERN = r"(?P<signs>\$\$?)(?![\s$])(?P<formula>[^$]+)(?<!\s)(?P=signs)"
AFTER_CODE = 185
"""Python-Markdown's priority: below that of code, 190, and above that of escapes, 180, which would take `\\,`."""


class Formulas(Extension):
    """Turns formulas into MathML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register the pattern."""
        md.inlinePatterns.register(_Formula(PATTERN, md), "formulas", AFTER_CODE)


class _Formula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        display = "inline" if m["signs"] == "$" else "block"
        return self.md.htmlStash.store(convert(m["formula"], display=display)), m.start(), m.end()


def makeExtension(**options: Any) -> Formulas:  # noqa: N802
    """What Python-Markdown calls to have the extension."""
    return Formulas(**options)
