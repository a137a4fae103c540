"""Pages from templates: whatever is put into them is text, never markup, and a name that is missing is an error."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from candid import words

MOST_FILES = 50
"""Named in a list of pictures."""


def render(template: str, **values: object) -> str:
    """A page with the values, and with the functions of `candid.words`."""
    templates = Environment(
        loader=PackageLoader("candid", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(words=words, most_files=MOST_FILES, **values)
