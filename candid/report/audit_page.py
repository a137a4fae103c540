"""The page of an audit: the most suspect labels with their pictures, put into `audit.html.jinja`."""

from collections.abc import Sequence
from pathlib import Path, PurePath

from candid.audit import Suspect
from candid.durable import write_file
from candid.recipe import Recipe
from candid.report.pictures import Picture
from candid.report.templates import render


def write_audit_page(suspects: Sequence[Suspect], folder: Path, recipe: Recipe) -> Path:
    """The page `audit.html` in the folder of an audit."""
    shown = [
        Picture(
            png=path.read_bytes(),
            file=suspect.file,
            truth=suspect.label,
            prediction=suspect.suggestion,
            probability=suspect.suggestion_probability,
        )
        for suspect in suspects
        if (path := folder / "suspects" / f"{suspect.position}.png").exists()
    ]
    title = f"Labels of {PurePath(recipe.data.name).name} that are probably wrong"
    page = folder / "audit.html"
    write_file(page, render("audit.html.jinja", title=title, pictures=shown, suspects=suspects, recipe=recipe))
    return page
