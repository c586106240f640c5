"""The page around the parts: one HTML file that needs nothing else.

All markup stands in templates, beside the code that fills them. They escape what is put into them, whatever the user's
files and folders are called; what ``render`` returns is markup and stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dmpt import __version__
from dmpt.base.files import write_text


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    anchor: str  # its address in the page
    title: str  # its heading
    body: Markup  # for a newcomer what to look at, then its content


def write_page(out: Path, title: str, lead: Markup, sections: Sequence[Section]) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    embeds = any("<img " in section.body for section in sections)
    shown = {"title": title, "lead": lead, "sections": sections, "embeds": embeds, "version": __version__}
    write_text(out, render("pages/frame.html", **shown))


def render(template: str, **shown: Any) -> Markup:
    """A template filled in.

    Args:
        template: a file of the package, by its path in it.
        shown: by the names that the template uses; a name that it lacks is an error.
    """
    return Markup(_TEMPLATES.get_template(template).render(shown))


def _count(number: int) -> str:
    """``17.6 M``, ``233 k``, ``12``."""
    if number >= 999_950:
        return f"{number / 1e6:.1f}\N{NO-BREAK SPACE}M"
    return f"{number / 1e3:.0f}\N{NO-BREAK SPACE}k" if number >= 10_000 else f"{number:,}"


def _fixed(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference: ``+1.5``, ``−0.3``, ``0.0``."""
    rounded = round(float(value), 1) + 0.0  # no "-0.0"
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def _tick(value: float) -> str:
    return f"{value:,.10g}".replace("-", "\N{MINUS SIGN}")


_TEMPLATES = Environment(
    loader=PackageLoader("dmpt", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"count": _count, "fixed": _fixed, "signed": signed, "tick": _tick}
