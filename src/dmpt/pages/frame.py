"""The page around the parts: one HTML file that needs nothing else.

Everything is ``Markup``: what is put into it with ``format`` is escaped, whatever the user's files and folders are
called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from dmpt import __version__
from dmpt.base.files import write_text

PAGE = Markup(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
</header>
<nav aria-label="Parts of this page">{links}</nav>
<main>
{sections}
</main>
<footer>
<p>{embedded}It loads nothing from the network.</p>
<p>Written by dmpt {version}.</p>
</footer>
</body>
</html>
"""
)
EMBEDDED = (
    "This page embeds small copies of pictures of the data set, so the data's licence and the privacy of the people in "
    "them hold for this file too: look before you pass it on. "
)
SECTION = Markup('<section id="{}">\n<h2>{}</h2>\n<p class="what">{}</p>\n{}\n</section>\n')


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        anchor: its address in the page.
        title: its heading.
        what: for a newcomer, what to look at.
        body: its content.
    """

    anchor: str
    title: str
    what: str
    body: Markup


def write_page(out: Path, title: str, lead: Markup, sections: Sequence[Section]) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    style = (files("dmpt.pages") / "style.css").read_text(encoding="utf-8")
    links = Markup(" ").join(Markup('<a href="#{}">{}</a>').format(s.anchor, s.title) for s in sections)
    body = Markup("").join(SECTION.format(s.anchor, s.title, s.what, s.body) for s in sections)
    said = {"title": title, "lead": lead, "embedded": EMBEDDED if "<img " in body else "", "version": __version__}
    text = PAGE.format(style=Markup(style), links=links, sections=body, **said)
    write_text(out, str(text))


def paragraph(text: str) -> Markup:
    """A paragraph under the title."""
    return Markup('<p class="intro">{}</p>').format(text)


def note(text: str) -> Markup:
    """A remark that a reader must not miss."""
    return Markup('<p class="note">{}</p>').format(text)


def figure(chart: Markup, caption: str) -> Markup:
    """A chart and its caption."""
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(chart, caption)


def pair(*parts: Markup) -> Markup:
    """Side by side where the screen is wide enough."""
    return Markup('<div class="pair">{}</div>').format(Markup("").join(parts))


def subheading(text: str) -> Markup:
    """A heading inside a section."""
    return Markup("<h3>{}</h3>").format(text)


def folded(summary: str, body: Markup) -> Markup:
    """What opens when its line is clicked."""
    return Markup('<details class="from"><summary>{}</summary>{}</details>').format(summary, body)


def tiles(values: Mapping[str, str]) -> Markup:
    """The numbers that matter, large."""
    cells = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in values.items()
    )
    return Markup('<dl class="tiles">{}</dl>').format(cells)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Markup]],
    kind: Literal["plain", "bars"] = "plain",
    strong: int | None = None,
) -> Markup:
    """A table whose first column names the row.

    Args:
        header: of each column.
        rows: their cells.
        kind: a class of the style sheet.
        strong: the row to set in bold.
    """
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in header)
    body = []
    for number, (name, *cells) in enumerate(rows):
        data = Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
        row = Markup('<tr class="strong">' if number == strong else "<tr>")
        body.append(row + Markup('<th scope="row">{}</th>{}</tr>').format(name, data))
    return Markup(
        '<div class="scroll"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(kind, head, Markup("").join(body))


def count(number: int) -> str:
    """``17.6 M``, ``233 k``, ``12``."""
    if number >= 999_950:
        return f"{number / 1e6:.1f}\N{NO-BREAK SPACE}M"
    return f"{number / 1e3:.0f}\N{NO-BREAK SPACE}k" if number >= 10_000 else f"{number:,}"
