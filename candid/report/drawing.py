"""A figure as a page holds it: once for light and once for dark paper."""

from base64 import b64encode
from dataclasses import dataclass

from candid.report.theme import DARK, LIGHT, Draw, render_svg


@dataclass(frozen=True)
class Drawing:
    """A figure as data URIs of SVG, and what it shows in words."""

    light: str
    dark: str
    alt: str


def draw_twice(draw: Draw, alt: str) -> Drawing:
    """The figure in both themes."""
    light, dark = (
        f"data:image/svg+xml;base64,{b64encode(render_svg(draw, theme)).decode()}" for theme in (LIGHT, DARK)
    )
    return Drawing(light, dark, alt)
