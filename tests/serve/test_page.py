"""The page of the service, in a browser."""

import json
import os
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, chromium, quiet
from inside import gallery_of, serving
from playwright.sync_api import Browser, Page, Route, expect

from dmpt.embed.embedder import Embedder
from dmpt.synthetic.write import write_world

pytestmark = pytest.mark.long
SCRIPT = "<img src=x onerror=document.title='broken'>"
IDS, SHOTS = 8, 5
expect.set_options(timeout=20_000)  # also where other tests run beside these


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, model: Embedder) -> Path:
    """Drawn persons with labels, cameras and times; one label is a script, one sample has none, one lacks TIR."""
    root: Path = tmp_path_factory.mktemp("page")
    write_world(root / "drawn", object="person", train_ids=1, test_ids=IDS, images=SHOTS, cameras=3, seed=3, workers=1)
    pictures = root / "drawn" / "test"
    names = sorted(path.name for path in (pictures / "RGB").iterdir())
    (pictures / "TI" / names[2]).unlink()
    first = (None, SCRIPT)
    gallery_of(
        model, pictures, root / "g.lance", lambda row, name: first[row] if row < len(first) else str(int(name[:6]))
    )
    return root


@pytest.fixture(scope="module")
def service(model: Embedder, world: Path) -> Iterator[str]:
    with serving(model, world / "g.lance") as base:
        yield base


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, service: str) -> Iterator[Opened]:
    """Opens the page; in the end nothing was said on its console, and nobody else was asked."""
    contexts, wrong = [], []

    def opened(
        path: str = "/", size: dict[str, int] = DESKTOP, routes: dict[str, Callable[[Route], None]] | None = None,
        allowed: tuple[str, ...] = (), base: str = service, wait_until: Any = "load", **options: Any,
    ) -> Page:  # fmt: skip
        context = browser.new_context(viewport=size, reduced_motion="reduce", **options)  # type: ignore[arg-type]
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        wrong.append(quiet(page, base, allowed))
        for pattern, route in (routes or {}).items():
            page.route(pattern, route)
        page.goto(base + path, wait_until=wait_until)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong
    assert [said for each in wrong for said in each] == []


def tiles(page: Page) -> Any:
    return page.locator("#found .hit")


def start(page: Page, number: int = 3) -> None:
    """Searches for one of the examples, and waits for the answer."""
    tiles(page).nth(number).click()
    expect(page.locator("#found .score").first).to_be_visible()


def found(page: Page) -> list[str]:
    """Keys, best first, with their scores."""
    every = tiles(page)
    texts = every.evaluate_all(
        "hits => hits.map(hit => hit.dataset.key + ' ' + hit.querySelector('.score').textContent)"
    )
    assert texts
    return list(texts)


def files(world: Path, name: str) -> list[str]:
    return [str(world / "drawn" / "test" / folder / name) for folder in ("RGB", "NI", "TI")]


def changed(page: Page, act: Callable[[], object]) -> None:
    """Does something that searches anew, and waits for the answer."""
    with page.expect_response(re.compile("/search")):
        act()
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_search_by_example(opened: Opened, size: dict[str, int]) -> None:
    page = opened(size=size)
    expect(page.get_by_role("heading", level=1)).to_have_text("Who is this?")
    expect(tiles(page)).to_have_count(IDS + 1)  # each label, and the sample without one
    start(page)
    heading = page.get_by_role("heading", level=1).inner_text()
    assert re.match(r"Matches .|No match", heading)
    assert "would score as high" in page.locator("#meaning").inner_text()
    scores = [float(text.split()[-1]) for text in found(page)]
    assert scores == sorted(scores, reverse=True)
    assert "#key=" in page.url
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Who is this?")
    page.go_forward()
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    asked = page.locator("#who").inner_text()
    assert re.match(r"Query: \d+, camera \d, \d+ Mar, 12:00", asked)
    page.reload()  # now nothing but the address says who
    expect(page.get_by_role("heading", level=1)).to_have_text(heading)
    expect(page.locator("#who")).to_have_text(asked)


def test_a_search_by_upload(opened: Opened, world: Path) -> None:
    name = sorted(path.name for path in (world / "drawn/test/RGB").iterdir())[7]
    page = opened()
    expect(tiles(page).first).to_be_visible()
    page.set_input_files("#picker", files(world, name))  # of one name: colours and order tell the spectra
    expect(page.locator("#slots img")).to_have_count(3)
    expect(page.locator("#found .score").first).to_have_text("1.0000")
    assert name in found(page)[0]
    assert page.locator("#files select").evaluate_all("all => all.map(one => one.value)") == ["rgb", "nir", "tir"]
    changed(page, lambda: page.locator("#files select").nth(1).select_option("tir"))
    expect(page.locator("#found .score").first).not_to_have_text("1.0000")  # NIR and TIR were swapped
    changed(page, lambda: page.get_by_role("button", name=re.compile("Take .* away")).last.click())
    expect(page.locator("#slots img")).to_have_count(2)


def drop(page: Page, where: str, paths: list[str]) -> None:
    """As a hand would."""
    held = page.evaluate_handle(
        """async (pictures) => {
          const data = new DataTransfer();
          for (const [name, bytes] of pictures) {
            const held = Uint8Array.from(atob(bytes), (sign) => sign.charCodeAt(0));
            data.items.add(new File([held], name, {type: "image/jpeg"}));
          }
          return data;
        }""",
        [[Path(path).name, b64encode(Path(path).read_bytes()).decode()] for path in paths],
    )
    page.dispatch_event(where, "drop", {"dataTransfer": held})


def test_pictures_are_dropped_where_they_belong(opened: Opened, world: Path) -> None:
    name = sorted(path.name for path in (world / "drawn/test/RGB").iterdir())[9]
    page = opened()
    expect(tiles(page).first).to_be_visible()  # only then does it take pictures
    rgb, nir, tir = files(world, name)
    changed(page, lambda: drop(page, "body", [rgb]))
    assert page.locator("#files select").input_value() == "rgb"  # it is coloured
    changed(page, lambda: drop(page, ".slot[data-modality=tir] .frame", [tir]))
    assert page.locator("#files select").evaluate_all("all => all.map(one => one.value)") == ["rgb", "tir"]
    drop(page, "body", [rgb, nir, tir, tir])
    expect(page.locator("#meaning")).to_have_text("4 pictures are too many: one for each spectrum.")


def test_a_picture_that_is_dropped_too_early_waits(opened: Opened, world: Path) -> None:
    """A real drop, which a browser answers by showing the file in the page's place."""
    held: list[Route] = []
    page = opened(routes={"**/static/page.js": lambda route: held.append(route)}, wait_until="commit")
    expect(page.get_by_role("heading", level=1)).to_have_text("Who is this?")
    name = sorted(path.name for path in (world / "drawn/test/RGB").iterdir())[9]
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": files(world, name), "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 400, "data": data})
    assert page.evaluate("window.dropped.length") == 3
    assert page.url.startswith("http")
    assert held
    for route in held:
        route.continue_()
    expect(page.locator("#slots img")).to_have_count(3)
    expect(page.locator("#found .score").first).to_have_text("1.0000")


def test_filters(opened: Opened) -> None:
    page = opened()
    start(page)
    before = found(page)
    own = page.locator("#camera option").nth(1)
    expect(own).to_have_text(re.compile(r"not \d, its own"))
    camera = own.inner_text().split()[1].strip(",")
    changed(page, lambda: page.get_by_role("combobox", name="Camera").select_option(f"-{camera}"))
    assert found(page) != before
    assert f"camera {camera}" not in " ".join(page.locator("#found .where").all_inner_texts())
    changed(page, lambda: page.get_by_role("combobox", name="Camera").select_option(f"+{camera}"))
    assert {text.split(",")[0] for text in page.locator("#found .where").all_inner_texts()} == {f"camera {camera}"}
    changed(page, lambda: page.get_by_role("combobox", name="Camera").select_option(""))
    assert found(page) == before
    changed(page, lambda: page.get_by_label("Every sample of a label").check())
    assert len(found(page)) > len(before)
    changed(page, lambda: page.get_by_label("From, UTC").fill("2027-01-01T00:00"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Nobody to compare with")
    changed(page, lambda: page.get_by_role("button", name="Clear the filters").click())
    assert found(page) == before


def test_a_spectrum_is_switched_off(opened: Opened) -> None:
    page = opened()
    start(page)
    before = found(page)
    expect(page.locator("#slots .bar")).to_have_count(3)
    changed(page, lambda: page.get_by_label("Use TIR").uncheck())
    assert found(page) != before
    expect(page.locator("#slots .bar")).to_have_count(2)
    assert page.locator("#found .hit").first.locator(".pane.off").count() == 1
    changed(page, lambda: page.get_by_label("Use NIR").uncheck())
    expect(page.get_by_label("Use RGB")).to_be_disabled()  # somebody has to speak
    changed(page, lambda: page.get_by_label("Use NIR").check())
    changed(page, lambda: page.get_by_label("Use TIR").check())
    assert found(page) == before


def test_the_slider_moves_the_verdicts(opened: Opened) -> None:
    page = opened()
    start(page)
    slider = page.get_by_role("slider")
    slider.focus()
    same, missed = [], []
    for key in ("Home", *["PageUp"] * 3, "End"):
        page.keyboard.press(key)
        same.append(page.locator("#found .same .hit").count())
        missed.append(float(page.locator("#missing b").inner_text().split()[0]))
        assert page.locator("#found .hit").count() == len(found(page))
        passing = page.locator("#passing b").inner_text()
        expect(slider).to_have_attribute("aria-valuetext", re.compile(f"^{passing} strangers pass, {missed[-1]:g}.% "))
    assert same == sorted(same)
    assert same[0] < same[-1]
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > missed[-1]


def test_a_label_and_undo(opened: Opened) -> None:
    page = opened()
    start(page)
    changed(page, lambda: page.get_by_label("Every sample of a label").check())
    key = tiles(page).nth(2).get_attribute("data-key")
    before = tiles(page).nth(2).locator(".pid").inner_text()
    tiles(page).nth(2).click()
    page.get_by_label("Label", exact=True).fill(SCRIPT)
    changed(page, lambda: page.get_by_role("button", name="Save").click())
    expect(page.locator("#done p")).to_have_text(f"{key} is {SCRIPT} now.")
    expect(tiles(page).nth(2).locator(".pid")).to_have_text(SCRIPT)
    changed(page, lambda: page.get_by_role("button", name="Undo").click())
    expect(tiles(page).nth(2).locator(".pid")).to_have_text(before)
    assert page.title() != "broken"
    tiles(page).nth(2).click()
    page.get_by_label("Label", exact=True).fill("")
    changed(page, lambda: page.get_by_role("button", name="Save").click())
    expect(tiles(page).nth(2).locator(".pid")).to_have_text("no label")
    changed(page, lambda: page.get_by_role("button", name="Undo").click())
    expect(tiles(page).nth(2).locator(".pid")).to_have_text(before)


def test_where_it_looks(opened: Opened) -> None:
    page = opened()
    start(page)
    toggle = page.get_by_role("button", name="Where it looks")
    toggle.click()
    expect(page.locator("#slots canvas")).to_have_count(3)
    expect(toggle).to_have_attribute("aria-pressed", "true")
    colours = page.locator("#slots canvas").first.evaluate(
        "one => new Set(one.getContext('2d').getImageData(0, 0, one.width, one.height).data).size"
    )
    assert colours > 20
    toggle.click()
    expect(page.locator("#slots canvas")).to_have_count(0)


def test_with_the_keyboard_alone(opened: Opened) -> None:
    page = opened()
    expect(tiles(page).first).to_be_visible()
    focused = lambda: page.evaluate("document.activeElement.dataset.key ?? document.activeElement.id")  # noqa: E731
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the answer
    page.keyboard.press("Tab")
    assert focused() == tiles(page).first.get_attribute("data-key")
    page.keyboard.press("ArrowRight")
    assert focused() == tiles(page).nth(1).get_attribute("data-key")
    page.keyboard.press("ArrowDown")
    below = focused()
    page.keyboard.press("ArrowUp")
    assert below != focused() == tiles(page).nth(1).get_attribute("data-key")
    page.keyboard.press("End")
    changed(page, lambda: page.keyboard.press("Enter"))
    assert focused() == "answer"  # what had the focus is gone
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "strict"
    page.keyboard.press("Tab")
    first = focused()
    assert first == tiles(page).first.get_attribute("data-key")
    page.keyboard.press("Enter")
    expect(page.locator("#compare")).to_be_visible()
    said = page.locator("#compare dd").last.inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#compare dd").last.inner_text() != said
    page.keyboard.press("Escape")
    expect(page.locator("#compare")).to_be_hidden()
    assert focused() == tiles(page).nth(1).get_attribute("data-key")


def test_the_token(opened: Opened, model: Embedder, world: Path) -> None:
    with serving(model, world / "g.lance", "a-long-enough-secret") as base:
        refused = ("401",)  # what the browser itself says of such an answer
        page = opened(base=base, allowed=refused)
        page.get_by_role("textbox", name="Token").fill("guess")
        page.keyboard.press("Enter")
        expect(page.locator("#token-said")).to_have_text("That was not the one.")
        page.get_by_role("textbox", name="Token").fill("a-long-enough-secret")
        page.get_by_role("button", name="Go on").click()
        start(page)
        expect(page.locator("#found .pane.there").first).to_be_visible()
        expect(page.locator("#found .pane.there img").first).to_have_attribute("src", re.compile("^blob:"))
        page.reload()
        expect(page.locator("#found .score").first).to_be_visible()
        other = opened("/#token=a-long-enough-secret", base=base)
        expect(tiles(other).first).to_be_visible()
        assert "secret" not in other.url
        page.context.close()  # before the service is gone
        other.context.close()


def test_errors_are_one_sentence(opened: Opened, tmp_path: Path) -> None:
    page = opened(allowed=("422", "ERR_FAILED"))
    expect(tiles(page).first).to_be_visible()
    (tmp_path / "a_rgb.png").write_text("no picture")
    page.set_input_files("#picker", tmp_path / "a_rgb.png")
    expect(page.get_by_role("heading", level=1)).to_have_text("That did not work")
    expect(page.locator("#meaning")).to_contain_text("rgb[0] is damaged or no image")
    page.get_by_role("link", name="dmpt").click()
    page.route("**/search*", lambda route: route.abort())
    tiles(page).first.click()
    expect(page.locator("#meaning")).to_contain_text("The service does not answer.")
    page.unroute("**/search*")
    changed(page, lambda: page.get_by_role("button", name="Try again").click())
    assert found(page)


def answering(change: Callable[[Any], None]) -> Callable[[Route], None]:
    """The service's own answer, changed."""

    def fulfil(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        change(content)
        route.fulfill(response=answer, body=json.dumps(content))

    return fulfil


def test_without_a_calibration(opened: Opened) -> None:
    def bare(content: Any) -> None:
        content["models"][0]["calibration"] = None

    def rateless(content: Any) -> None:
        for hit in content["hits"]:
            hit |= {"fmr": None, "expected_false_matches": None}
            for own in hit["spectra"].values():
                own["fmr"] = None

    page = opened(routes={"**/service": answering(bare), "**/search*": answering(rateless)})
    start(page)
    assert page.get_by_role("heading", level=1).inner_text().startswith("Most like ")
    expect(page.get_by_role("slider")).to_be_hidden()
    expect(page.locator("#found .same")).to_have_count(0)
    assert "not calibrated" in page.locator("#meaning").inner_text()


def test_what_cannot_be_said(opened: Opened) -> None:
    def apart(content: Any) -> None:
        content["hits"][2] |= {"modalities": [], "spectra": {}, "fmr": None, "expected_false_matches": None}

    page = opened(routes={"**/search*": answering(apart)})
    start(page)
    unsaid = page.get_by_role("region", name="Cannot be said").locator(".hit")
    expect(unsaid).to_have_count(1)
    expect(unsaid).to_have_accessible_name(re.compile(r"3: .*, cannot be said, .*, nothing in common$"))
    unsaid.click()
    expect(page.locator("#compare")).to_contain_text("Nothing is calibrated for what these two have in common")
    expect(page.locator("#compare .pair.off")).to_have_count(3)


def test_without_a_gallery(opened: Opened) -> None:
    page = opened(routes={"**/service": answering(lambda content: content.update(gallery=None))})
    expect(page.get_by_role("heading", level=1)).to_have_text("No gallery")
    expect(page.locator("#slots")).to_be_hidden()


def test_pictures_that_are_too_large_are_not_sent(opened: Opened, world: Path) -> None:
    small = answering(lambda content: content["limits"].update(body_bytes=1000))
    page = opened(routes={"**/service": small, "**/search*": lambda route: pytest.fail("it was sent")})
    expect(tiles(page).first).to_be_visible()
    page.set_input_files("#picker", next((world / "drawn/test/RGB").iterdir()))
    expect(page.locator("#meaning")).to_contain_text("the service takes")


NAMED = {"button", "link", "textbox", "combobox", "checkbox", "switch", "slider", "image", "dialog", "region", "Date"}


def nameless(page: Page) -> tuple[list[str], int]:
    """Controls and pictures that a screen reader could not name, and how many there are in all."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    own = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED]
    return [str(node["role"]) for node in own if not node.get("name", {}).get("value")], len(own)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_control_has_a_name(opened: Opened, world: Path, size: dict[str, int]) -> None:
    page = opened(size=size)
    expect(tiles(page).first).to_be_visible()
    wide = "document.documentElement.scrollWidth - innerWidth"
    name = sorted(path.name for path in (world / "drawn/test/RGB").iterdir())[7]
    states: list[Callable[[], object]] = [
        lambda: None,
        lambda: changed(page, lambda: page.set_input_files("#picker", files(world, name))),
        lambda: page.get_by_role("button", name="Where it looks").click(),
        lambda: tiles(page).first.click(),
    ]
    for state in states:
        state()
        without, controls = nameless(page)
        assert controls > 3
        assert without == []
        assert page.evaluate(wide) == 0
    languages = page.evaluate("[document.documentElement.lang, document.querySelectorAll('h1').length]")
    assert languages == ["en", 1]


SEEN = (Path(__file__).parent / "contrast.js").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_text_can_be_read(opened: Opened, world: Path, size: dict[str, int], scheme: str) -> None:
    """In all states of the page; ``DMPT_SHOTS`` is a folder for pictures of them."""
    page = opened(size=size, color_scheme=scheme)
    expect(tiles(page).first).to_be_visible()
    name = sorted(path.name for path in (world / "drawn/test/RGB").iterdir())[7]
    states: dict[str, Callable[[], object]] = {
        "welcome": lambda: None,
        "answer": lambda: changed(page, lambda: page.set_input_files("#picker", files(world, name))),
        "filters": lambda: page.locator("summary").click(),
        "hit": lambda: tiles(page).first.click(),
        "done": lambda: (
            page.get_by_label("Label", exact=True).fill("somebody"),
            changed(page, lambda: page.get_by_role("button", name="Save").click()),
        ),
    }
    for state, act in states.items():
        act()
        if folder := os.environ.get("DMPT_SHOTS"):
            page.wait_for_load_state("networkidle")
            page.screenshot(path=Path(folder, f"{scheme}-{size['width']}-{state}.png"))
        seen = page.evaluate(SEEN)
        assert (seen["paper"] < 0.02) == (scheme == "dark"), seen["paper"]
        assert (seen["paper"] > 0.9) == (scheme == "light"), seen["paper"]
        assert len(seen["found"]) > 5
        assert [text for text in seen["found"] if not text["enough"]] == [], state
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#done p")).to_have_text("Undone.")
