"""What comes from users stays text, in pages and in pictures that are files of their own."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

import dmpt
from dmpt.pages.frame import Section, render, write_page
from dmpt.study.plot import Line, strips, time_map

PACKAGE = Path(dmpt.__file__).parent
AWKWARD = "<script>&\"'{{ 7 * 7 }}{% raw %}"


def test_a_page_shows_titles_as_they_are(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", AWKWARD, Markup("<p>lead</p>"), [Section("part", AWKWARD, Markup("<hr>"))])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert text.count("&lt;script&gt;&amp;&#34;&#39;{{ 7 * 7 }}{% raw %}") == 4  # title, heading, link, part
    assert "<p>lead</p>" in text
    assert "<hr>" in text


def test_a_picture_of_a_study_shows_names_as_they_are() -> None:
    lines = [Line(AWKWARD, [1.0, 2.0], [0.1, 0.2]), Line("other", [3.0], [])]
    for draw in (strips, time_map):
        drawn = draw(AWKWARD, lines)
        texts = [text for text in ElementTree.fromstring(drawn).itertext() if text.strip()]  # it is XML
        assert texts[1] == AWKWARD
        assert "<script>" not in drawn


def test_no_template_trusts_what_it_is_given() -> None:
    """What is markup already says so by its type, and only ``render`` makes it."""
    templates = [*PACKAGE.rglob("*.html"), *PACKAGE.rglob("*.svg")]
    assert len(templates) > 10
    for template in templates:
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b", text)
        assert "autoescape" not in text
    makes = [path.name for path in PACKAGE.rglob("*.py") if "Markup(" in path.read_text(encoding="utf-8")]
    assert makes == ["frame.py"]


def test_a_template_that_lacks_a_value_fails() -> None:
    with pytest.raises(UndefinedError):
        render("pages/key.html")
