"""How the figures look, and how a drawing becomes a PNG or SVG file, for light and for dark pages."""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Colours; every text colour has a contrast of at least 4.5 to the paper."""

    paper: str
    ink: str
    faint: str
    """Of lines that must not compete with the data."""
    accent: str
    second: str
    right: str
    wrong: str
    on_accent: str
    """Of text on the accent."""
    series: tuple[str, ...]
    """Of runs side by side, told apart by those who see few colours too (after Okabe and Ito)."""


LIGHT = Theme("#ffffff", "#1f2328", "#d5d8dc", "#1f6fb5", "#6b727a", "#19703a", "#b3261e", "#ffffff",
              ("#0072b2", "#d55e00", "#007a5a", "#b0568c", "#8a6500", "#3d3d9e", "#882255", "#5c646d"))  # fmt: skip
DARK = Theme("#15181c", "#e4e6e8", "#3d444c", "#6cb2f2", "#9aa3ad", "#66c98a", "#ff8f87", "#10141a",
             ("#6cb2f2", "#f08a4b", "#3ecf9f", "#e39ac4", "#e6c04d", "#a3a3f5", "#e27ba0", "#a0a8b1"))  # fmt: skip

Draw = Callable[[Theme], Figure]


def render_png(draw: Draw) -> bytes:
    """The drawing on white paper as a PNG file, which says that candid drew it."""
    return _render(draw, LIGHT, format="png", metadata={"Software": "candid"})


def is_own_png(path: Path) -> bool:
    """Whether a file was made by `render_png`."""
    start = path.read_bytes()[:200] if path.is_file() else b""
    return start.startswith(b"\x89PNG") and b"Software\0candid" in start


def render_svg(draw: Draw, theme: Theme) -> bytes:
    """The drawing without paper as an SVG file; its text is text, in fonts of the reader's machine."""
    unstamped = {"Date": None, "Creator": None, "Format": None, "Type": None}
    return _render(draw, theme, format="svg", transparent=True, metadata=unstamped)


def _render(draw: Draw, theme: Theme, **options: Any) -> bytes:
    with _style(theme):
        file = BytesIO()
        draw(theme).savefig(file, **options)
    return file.getvalue()


def installed_cjk_fonts() -> dict[str, str]:
    """Names and files of the fonts here that have Chinese signs, the best first."""
    files = {font.name: font.fname for font in fontManager.ttflist}
    return {name: files[name] for name in CJK_FONTS if name in files}


@contextmanager
def _style(theme: Theme) -> Generator[None, None, None]:
    """Matplotlib's settings for a theme, put back at the end."""
    settings: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", *installed_cjk_fonts()],
        "font.size": 9,
        "text.parse_math": False,  # a class may be called "$x"
        "svg.fonttype": "none",
        "svg.hashsalt": "candid",  # the same run gives the same bytes
        "figure.dpi": 200,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.edgecolor": theme.faint,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "legend.facecolor": theme.paper,
        "legend.edgecolor": theme.paper,
    } | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), theme.ink)
    settings |= dict.fromkeys(("xtick.color", "ytick.color"), theme.faint)
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A machine without, say, Chinese fonts draws boxes in the PNG; the page has the names as text.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield
