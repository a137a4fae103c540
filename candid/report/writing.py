"""The report of a run, written into its folder."""

from functools import partial
from pathlib import Path

from candid.durable import write_file
from candid.report.figures import draw_confusion, draw_curves, draw_per_class, draw_pictures, draw_reliability
from candid.report.page import render_page
from candid.report.pictures import Pictures, gather_pictures
from candid.report.reading import RunRecord, read_run
from candid.report.theme import Draw, render_png


def write_report(run: Path) -> Path:
    """The page `run/report.html`, just written; its figures lie in `run/figures/` as PNG too."""
    record = read_run(run)
    pictures = gather_pictures(record)
    (run / "figures").mkdir(exist_ok=True)
    for name, draw in _figures(record, pictures).items():
        write_file(run / "figures" / f"{name}.png", render_png(draw))
    page = run / "report.html"
    write_file(page, render_page(record, pictures))
    return page


def _figures(record: RunRecord, pictures: Pictures) -> dict[str, Draw]:
    """How to draw each figure for which the run has the data."""
    figures: dict[str, Draw] = {}
    if record.epochs:
        figures["curves"] = partial(draw_curves, epochs=record.epochs, best_epoch=record.best_epoch)
    if record.evaluation:
        e = record.evaluation
        figures["per_class"] = partial(draw_per_class, scores=e.per_class())
        figures["calibration"] = partial(draw_reliability, bins=e.reliability())
        figures["confusion"] = partial(draw_confusion, confusion=e.confusion, class_names=e.class_names)
    if pictures.grid:
        figures["examples"] = partial(draw_pictures, pictures=pictures.grid, columns=8, with_probability=False)
    if pictures.mistakes:
        figures["mistakes"] = partial(draw_pictures, pictures=pictures.mistakes, columns=6, with_probability=True)
    return figures
