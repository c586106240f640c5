"""Reports: the page stands alone, escapes what users named, and its numbers agree with slow independent ones."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import Markup
from PIL import Image
from sklearn.metrics import silhouette_score

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.loader import SampleDataset
from dmpt.data.records import Record, labels_of
from dmpt.data.transforms import TestTransform
from dmpt.embed.attention import attention as look_of
from dmpt.embed.extract import Seen
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import Evaluation, evaluate
from dmpt.pages import charts as figures
from dmpt.pages.frame import _count
from dmpt.pages.pictures import _EMPTY, _FRAME, _thumbnail
from dmpt.report import attention, breakdown, curves, embedding, ranked
from dmpt.report.changes import _differences
from dmpt.report.pages import report
from dmpt.report.runs import _check_same_data, _names
from dmpt.retrieval.embeddings import join, plain, unit
from dmpt.retrieval.metrics import evaluate as score
from dmpt.retrieval.statistics import bootstrap
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.training.log import read_log
from runs import fit, own_data, settings, toy, with_
from small import error_of

AWKWARD = 'run <i>&"1" ${x} {0}'
VOID = {"img", "meta", "br", "path"}


class Page(HTMLParser):
    """Tags, attributes and texts, with what must hold for every page checked on the way."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            where = self.open[-1] if self.open else ""
            said = data.strip() if where == "code" else re.sub("[ \n]+", " ", data).strip()  # as a browser shows it
            self.texts.append((where, said))

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and (kind is None or kind in (a.get("class") or "").split())]

    def said(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def stands_alone(path: Path) -> Page:
    """Nothing outside of the file is referred to, and nothing in it runs."""
    page = Page(path)
    for tag, attributes in page.found:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form", "image", "use"}
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "srcset", "poster", "xlink:href", "action", "data"):
                assert tag == "img"
                assert re.match(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+$", value or "")
            if name == "href":
                assert (value or "").startswith("#")
    (style,) = page.said("style")
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in re.sub(r"base64,[^\"]*", "", page.text)
    anchors = [a["id"] for _, a in page.found if "id" in a]
    assert len(anchors) == len(set(anchors))
    assert {a["href"] for a in page.all("a")} <= {f"#{anchor}" for anchor in anchors}
    assert all(a.get("alt") and a.get("width") and a.get("height") for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert len(page.said("h1")) >= 1
    assert any("embeds small copies of pictures" in text for text in page.said("p")) == bool(page.all("img"))
    assert len(page.text) < 4_000_000
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, a frozen one and one with semantic prompts alone, evaluated, on a toy set of three cameras."""
    root = tmp_path_factory.mktemp("report")
    full = settings(toy(root / "data", cameras=3, test_ids=6), epochs=2)
    bare = with_(full, semantic={"length": 0}, modality={"length": 0}, bind={"depth": 0}, train={"epochs": 0})
    some = with_(full, modality={"length": 0}, bind={"depth": 0}, train={"epochs": 1})
    for name, config in ((AWKWARD, full), ("frozen", bare), ("semantic", some)):
        fit(config, root / name)
        evaluate(root / name).save()
    return root


@pytest.fixture(scope="module")
def full(folder: Path) -> Evaluation:
    return evaluate(folder / AWKWARD)


@pytest.fixture(scope="module")
def frozen(folder: Path) -> Evaluation:
    return evaluate(folder / "frozen")


@pytest.fixture(scope="module")
def page(full: Evaluation) -> Page:
    return stands_alone(report([full]))


def slow_score(run: Evaluation, query: int, row: int) -> float:
    """The cosine over the modalities that both have, else of the sums of their features."""
    one, other = run.seen.query, run.seen.gallery
    a, b = one.features[query].astype(float), other.features[row].astype(float)
    common = [m for m in range(3) if one.present[query, m] and other.present[row, m]]
    a, b = (a[common].ravel(), b[common].ravel()) if common else (a.sum(axis=0), b.sum(axis=0))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def slow_list(run: Evaluation, query: int) -> list[tuple[float, int]]:
    """Score and gallery row of a query's whole list, by the protocol's words, one item at a time."""
    asked = run.query[query]
    items = []
    for row, record in enumerate(run.gallery):
        if record.pid == asked.pid and record.camera == asked.camera:
            continue
        items.append((slow_score(run, query, row), row))
    return sorted(items, key=lambda item: (-item[0], item[1]))


def slow_precision(hits: list[bool]) -> float:
    """Average precision in percent; NaN without a hit."""
    shares = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return 100 * sum(shares) / len(shares) if shares else float("nan")


def test_page_shows_the_numbers_of_evaluate(folder: Path, page: Page) -> None:
    result = json.loads((folder / AWKWARD / "metrics.json").read_text())
    shown = dict(zip(page.said("dt")[:6], page.said("dd")[:6], strict=True))
    for label, key in (
        ("mAP", "mAP"),
        ("rank-1", "rank1"),
        ("rank-5", "rank5"),
        ("rank-10", "rank10"),
        ("mINP", "mINP"),
    ):
        assert shown[label] == f"{result[key]:.1f}"
    rest = " ".join(page.said("dd"))
    assert result["provenance"]["data_fingerprint"] in rest
    assert f"{result['valid_queries']} of {result['queries']} queries valid" in rest
    assert str(result["provenance"]["step"]) in page.said("dd")


def test_names_of_the_user_are_text(folder: Path, page: Page) -> None:
    assert page.all("i") == []
    assert page.said("h1") == [f"Report of {AWKWARD}"]
    assert f"{AWKWARD}/last" in page.said("dd")
    assert str(folder.parent) not in page.text


def test_page_is_the_same_every_time(folder: Path, page: Page, tmp_path: Path) -> None:
    again = report([evaluate(folder / AWKWARD)], tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == page.text


def test_every_part_is_there(page: Page) -> None:
    parts = [a["id"] for a in page.all("section")]
    assert parts == ["curves", "sure", "cameras", "spectra", "lists", "map", "attention"]
    assert len(page.all("svg", "chart")) == 3  # CMC, losses, t-SNE
    assert {"total", "cross-entropy", "metric loss", "centre"} <= set(page.said("li"))
    assert page.said("h3") == ["Best", "Worst"]


def test_ranked_lists_are_those_of_a_slow_ranking(full: Evaluation, page: Page) -> None:
    lists = {q: slow_list(full, q) for q in range(len(full.query))}
    hits = {q: [full.gallery[row].pid == full.query[q].pid for _, row in found] for q, found in lists.items()}
    precision = {q: slow_precision(h) for q, h in hits.items()}
    assert full.metrics.average_precision == pytest.approx(list(precision.values()), nan_ok=True)
    wanted = []
    for sign in (-1, 1):
        seen: set[int] = set()
        for q in sorted(precision, key=lambda q: (sign * round(precision[q], 9), q)):
            if full.query[q].pid not in seen and len(seen) < 4:
                seen.add(full.query[q].pid)
                wanted.append(q)
    assert ranked._chosen(full, "best", 4) + ranked._chosen(full, "worst", 4) == wanted
    kinds = [a["class"] for a in page.all("li") if a.get("class") in ("query", "hit", "miss")]
    shown = [("hit" if hit else "miss") for q in wanted for hit in [None, *hits[q][: ranked._TOP]] if hit is not None]
    assert [kind for kind in kinds if kind != "query"] == shown
    alts = [a["alt"] or "" for a in page.all("img") if re.match(r"Rank|Query", a["alt"] or "")]
    rows = [(full.query[q], *(full.gallery[row] for _, row in lists[q][: ranked._TOP])) for q in wanted]
    assert [re.findall(r"identity (\d+), camera (\d+)", alt) for alt in alts] == [
        [(str(record.pid), str(record.camera))] for row in rows for record in row
    ]
    marks = page.said("span")
    assert sum("✓" in mark for mark in marks) == shown.count("hit")  # not by colour alone
    assert sum("✗" in mark for mark in marks) == shown.count("miss")


def test_a_query_without_a_match_is_never_shown(full: Evaluation) -> None:
    precision = full.metrics.average_precision.copy()
    precision[:] = np.nan
    precision[3] = 50
    odd = replace(full, metrics=replace(full.metrics, average_precision=precision))
    assert ranked._chosen(odd, "best", 4) == ranked._chosen(odd, "worst", 4) == [3]


def test_camera_pairs_against_slow_lists(full: Evaluation) -> None:
    pairs = breakdown._by_cameras(full)
    assert list(pairs) == list(itertools.product((1, 2, 3), repeat=2))
    for (a, b), numbers in pairs.items():
        found = []
        for q, record in enumerate(full.query):
            if record.camera == a:
                rows = [row for _, row in slow_list(full, q) if full.gallery[row].camera == b]
                found.append(slow_precision([full.gallery[row].pid == record.pid for row in rows]))
        valid = [value for value in found if not np.isnan(value)]
        assert (numbers is None) == (not valid) == (a == b)  # same_camera leaves nothing there
        if numbers is not None:
            assert numbers.valid_queries == len(valid)
            assert numbers.mAP == pytest.approx(np.mean(valid))


def test_a_part_is_the_feature_of_its_modality(full: Evaluation) -> None:
    """Slots cut from the test feature against the network's own output for each modality."""
    records = list(full.gallery)[:5]
    data = full.opened.card.config.data
    assert data.mean is not None
    assert data.std is not None
    images = SampleDataset(records, TestTransform(data.size, data.mean, data.std), data.value_range).batch(0, range(5))
    with torch.inference_mode():
        own = full.opened.network(images.images).features.x
    for m in range(len(MODALITIES)):
        expected = torch.nn.functional.normalize(own[m], dim=-1)
        cut, rows = breakdown._chosen_features(full.seen.gallery[:5], [m])
        assert rows.tolist() == list(range(5))
        assert error_of(torch.from_numpy(unit(cut.features[:, m])), expected) < 1e-4
        assert not np.delete(cut.features, m, axis=1).any()
    values = breakdown._by_spectra(full)
    assert list(values)[:3] == [(0,), (1,), (2,)]
    assert values[0, 1, 2] == full.metrics


@pytest.mark.parametrize(("feature", "whole"), [("cls+bind", (0, 1, 2)), ("cls", (0, 2))])
def test_the_share_of_each_spectrum_there_is(tmp_path: Path, feature: Any, whole: tuple[int, ...]) -> None:
    modalities = tuple(MODALITIES[m] for m in whole)
    config = with_(settings(toy(tmp_path / "toy"), epochs=0), data={"modalities": modalities})
    fit(replace(config, feature=feature), tmp_path / "run")
    run = evaluate(tmp_path / "run")
    values = breakdown._by_spectra(run)
    assert sorted(values) == sorted(c for n in (1, 2, 3) for c in itertools.combinations(whole, n))
    assert values[whole] == run.metrics


def test_a_run_of_two_spectra_shows_these_alone(tmp_path: Path) -> None:
    """RGBN300 has no thermal pictures; here near-infrared is left out, which is not the last."""
    config = with_(settings(toy(tmp_path / "toy"), epochs=1), data={"modalities": ("rgb", "tir")})
    fit(config, tmp_path / "run")
    run = evaluate(tmp_path / "run")
    page = stands_alone(report([run]))
    assert not [text for _, text in page.texts if "NIR" in text or "near-infrared" in text]
    assert any("samples of RGB and thermal pictures" in text for text in page.said("p"))
    assert all((a["alt"] or "").endswith("in RGB and TIR") for a in page.all("img"))
    assert [text for text in page.said("th") if text.endswith(", %")] == ["RGB, %", "TIR, %", "even look, %"]
    seen = attention._gaze(run.opened.network, run.gallery[:3], run.opened.card.config)
    assert {values.shape[:2] for values in seen.maps.values()} == {(2, 3)}
    whole = attention._gaze(
        run.opened.network, run.gallery[:3], with_(run.opened.card.config, data={"modalities": MODALITIES})
    )
    for kind, values in seen.maps.items():
        assert (values == whole.maps[kind][[0, 2]]).all()


def test_what_only_training_needed_may_be_gone(folder: Path, full: Evaluation, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shutil.copytree(folder / AWKWARD / "last", tmp_path / "adapter")
    path = tmp_path / "adapter" / "config.json"
    card = json.loads(path.read_text())
    card["config"]["train"]["precision"] = "fp16"
    card["config"]["text"]["file"] = "/elsewhere/text.safetensors"
    path.write_text(json.dumps(card))
    run = evaluate(tmp_path / "adapter", Conditions(root=str(folder / "data")))
    assert run.metrics == full.metrics
    assert run.trained == full.trained > 0
    assert run.provenance["precision"] == "fp32"


def test_gaze_splits_the_class_token_s_attention(full: Evaluation, frozen: Evaluation) -> None:
    seen = attention._gaze(full.opened.network, full.gallery[:3], full.opened.card.config)
    config = full.opened.card.config
    assert seen.counts == {"class token": 1, "modality prompts": 1, "semantic prompts": 3, "patches": 2}
    assert sum(seen.cls.values()) == pytest.approx(np.ones((3, 3)), abs=1e-5)
    assert {kind: values.shape for kind, values in seen.maps.items()} == dict.fromkeys(
        ("modality prompts", "semantic prompts", "class token"), (3, 3, 2, 1)
    )
    assert seen.maps["class token"].sum(axis=(-2, -1)) == pytest.approx(seen.cls["patches"], abs=1e-5)
    data, network = config.data, full.opened.network
    assert data.mean is not None
    assert data.std is not None
    transform = TestTransform(data.size, data.mean, data.std)
    images = SampleDataset(full.gallery[:3], transform, data.value_range).batch(0, range(3)).images
    with torch.inference_mode():
        looked = look_of(network, images)[1].mean(dim=2)
    by_hand = looked[:, :, 2:5, 5:].mean(dim=2)[..., None].numpy()  # class token, M, then three S, then two patches
    assert seen.maps["semantic prompts"] == pytest.approx(by_hand, abs=1e-6)
    assert seen.cls["modality prompts"] == pytest.approx(looked[:, :, 0, 1].numpy(), abs=1e-6)
    bare = attention._gaze(frozen.opened.network, frozen.gallery[:1], frozen.opened.card.config)
    assert set(bare.maps) == {"class token"}
    assert set(bare.cls) == {"class token", "patches"}


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_in_half_precision_has_a_page(tmp_path: Path, lora: bool) -> None:
    """LoRA's updates and the interaction stay in full precision where the tower does not."""
    config = settings(toy(tmp_path / "toy"), epochs=1, precision="bf16")
    updates = {"where": "all", "rank": 2, "rank_per_modality": 2}
    change: dict[str, Any] = {"backbone": {"tune": "lora"}, "lora": updates} if lora else {"bind": {"layers": (0,)}}
    fit(with_(config, **change), tmp_path / "run")
    page = stands_alone(report([evaluate(tmp_path / "run")]))
    assert any(text.startswith("Where") for text in page.said("h2"))


def test_overlay_is_light_where_the_attention_is(full: Evaluation) -> None:
    image = np.full((40, 20, 3), 100, np.uint8)
    drawn = attention._overlay(image, np.array([[0.0], [0.0], [3.0], [0.0]], np.float32), top=3.0).astype(float)
    assert drawn[25].mean() > 1.5 * drawn[5].mean()
    clipped = attention._overlay(image, np.full((4, 1), 9.0, np.float32), top=3.0)
    assert (clipped == clipped[0, 0]).all()


def test_map_shows_the_same_samples_for_both(full: Evaluation, frozen: Evaluation) -> None:
    rows, pids = embedding._pick(full)
    assert (rows == embedding._pick(frozen)[0]).all()
    assert len(np.unique(pids)) == 6
    points = embedding._tsne(full.seen.gallery[rows])
    assert points.shape == (len(rows), 2)
    assert (points == embedding._tsne(full.seen.gallery[rows])).all()


def test_pick_is_bounded_and_spread(full: Evaluation) -> None:
    record = full.gallery[0]
    many = [replace(record, pid=pid) for pid in range(100) for _ in range(1 if pid % 2 else 30)]
    wide = listed(many, many, *[np.zeros((len(many), 3), np.float32)] * 2)
    names, counts = np.unique(embedding._pick(wide)[1], return_counts=True)
    assert len(names) == embedding._IDENTITIES
    assert (counts == embedding._ITEMS).all()
    assert (names % 2 == 0).all()
    assert names.min() == 0
    assert names.max() == 98


def test_distractors_are_no_identity(full: Evaluation) -> None:
    """A gallery's pid 0 is a crowd, and nobody asks for it."""
    crowd = [replace(full.gallery[0], pid=0) for _ in range(9)]
    features = join(full.seen.gallery[np.zeros(9, np.int64)], full.seen.gallery)
    gallery = [*crowd, *full.gallery]
    wide = replace(full, gallery=gallery, seen=full.seen._replace(gallery=features, gallery_labels=labels_of(gallery)))
    assert 0 not in embedding._pick(wide)[1]
    assert 0 not in [record.pid for record in attention._examples(wide, 4)]
    said = embedding.section([wide]).body
    assert f"over all {len({record.pid for record in full.query})} identities" in said
    assert f"{embedding._silhouette(full.seen.gallery, full.seen.gallery_labels.pids):.2f}" in said


def test_equal_features_have_a_map_too() -> None:
    assert not embedding._tsne(plain(np.ones((20, 8), np.float32))).any()


def test_silhouette_against_its_definition(full: Evaluation) -> None:
    features, pids = full.seen.gallery.flat.astype(float), np.array([r.pid for r in full.gallery])
    distance = 1 - features @ features.T / np.outer(*[np.linalg.norm(features, axis=1)] * 2)
    values = []
    for i, pid in enumerate(pids):
        own = np.mean([distance[i, j] for j in np.flatnonzero(pids == pid) if j != i])
        other = min(distance[i, pids == other].mean() for other in set(pids) - {pid})
        values.append((other - own) / max(other, own))
    assert embedding._silhouette(full.seen.gallery, pids) == pytest.approx(
        np.mean(values), abs=1e-4
    )  # of float32 scores
    assert np.isnan(embedding._silhouette(full.seen.gallery, np.zeros(len(pids))))


def test_comparison_is_by_query(folder: Path, full: Evaluation, frozen: Evaluation, tmp_path: Path) -> None:
    change = _differences(frozen, full)
    assert np.nanmean(change) == pytest.approx(full.metrics.mAP - frozen.metrics.mAP)
    page = stands_alone(report([frozen, full], tmp_path / "both.html"))
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    (lead,) = [text for text in page.said("p") if text.startswith("Of ")]
    assert f"Of {len(change)} queries {better} got better, {worse} got worse and" in lead
    found = bootstrap(
        frozen.metrics.average_precision[None], full.metrics.average_precision[None], full.seen.query_labels.pids
    )
    (certainty,) = [text for text in page.said("p") if text.startswith("Difference in mAP")]
    bounds = f"95 % interval {found.low:+.1f} to {found.high:+.1f}, p".replace("-", "\N{MINUS SIGN}")
    assert bounds in certainty
    cells = page.said("td")
    assert cells[:2] == [f"{frozen.metrics.mAP:.1f}", f"{full.metrics.mAP:.1f}"]
    first = int(np.lexsort((np.arange(len(change)), -change))[0])
    assert page.said("h4")[0].startswith(f"frozen: identity {full.query[first].pid}, average precision")
    names = [text for text in page.said("th") if text.endswith(".jpg")]
    assert sorted(names) == sorted(record.name for record in full.query)
    most = full.query[int(np.nanargmax(np.abs(change)))]
    assert names[0] == most.name
    assert {most.name} < {item["title"] for item in page.all("li") if "title" in item}
    points = [a["d"] or "" for a in page.all("path", "mark")]
    assert sum(path.count("a4 4 0 1 0 8 0") for path in points) == better + 1  # and one in the key


def test_several_runs_stand_side_by_side(folder: Path, full: Evaluation, frozen: Evaluation) -> None:
    main(["report", *(str(folder / name) for name in ("frozen", "semantic", AWKWARD))])
    page = stands_alone(folder / AWKWARD / "several.html")
    cells = page.said("td")
    assert cells[0] == f"{frozen.metrics.mAP:.1f}"
    assert f"{full.metrics.mAP:.1f}" in cells
    rows = ["frozen", "semantic", AWKWARD]
    assert [text for text in page.said("th") if text in rows] == rows
    every = np.array([record.pid for record in full.gallery])
    silhouettes = [f"{embedding._silhouette(run.seen.gallery, every):.2f}" for run in (frozen, full)]
    captions = [text for text in page.said("figcaption") if "silhouette by identity" in text]
    assert len(captions) == 3
    assert captions[0].endswith(f"identities {silhouettes[0]}")
    assert captions[2].endswith(f"identities {silhouettes[1]}")


def test_runs_on_different_data_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = toy(tmp_path / "other", cameras=3, test_ids=5)
    fit(with_(settings(other, epochs=0), data={"root": str(other)}), tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder / "frozen"), str(tmp_path / "run")])
    assert stop.value.code == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "error" in line]
    assert "different data (fingerprints" in line
    assert "--data.root" in line
    assert said.out == ""
    assert not (tmp_path / "run" / "compare.html").exists()


def test_runs_judged_by_two_protocols_are_refused(full: Evaluation) -> None:
    other = replace(full, metrics=replace(full.metrics, protocol="none"))
    with pytest.raises(UserError, match=r"is judged by protocol same_camera, .* by none; train them with one"):
        _check_same_data([full, other])


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(folder / "semantic"), "--out", str(tmp_path / "x.html"), "--data.root", str(folder / "data")])
    assert str(tmp_path / "x.html") in capsys.readouterr().out
    stands_alone(tmp_path / "x.html")
    with pytest.raises(SystemExit) as stop:
        main(["report", str(tmp_path / "nothing")])
    assert stop.value.code == 2
    assert "holds no trained adapter" in capsys.readouterr().err


def test_an_adapter_alone_has_no_loss_curve(folder: Path, tmp_path: Path) -> None:
    page = stands_alone(report([evaluate(folder / "semantic" / "last")], tmp_path / "adapter.html"))
    assert any("No training steps were logged" in text for text in page.said("p"))


def test_demo_page(folder: Path, tmp_path: Path) -> None:
    runs = {"frozen": folder / "frozen", "semantic <prompts>": folder / "semantic", "DMPT": folder / AWKWARD}
    measured = [replace(evaluate(run), name=name) for name, run in runs.items()]
    commands = ["# first", "dmpt train --data.root DIR --out 'runs/<mine>'"]
    report(measured, tmp_path / "demo.html", intro="What <this> is.", commands=commands)
    page = stands_alone(tmp_path / "demo.html")
    assert "What <this> is." in page.said("p")
    assert page.said("code") == ["\n".join(commands)]
    rows = [[f"{x.metrics.mAP:.1f}", f"{x.metrics.rank1:.1f}", _count(x.trained)] for x in measured]
    assert page.said("td")[:9] == list(itertools.chain(*rows))
    assert rows[0][2] == "0"
    charts = [a["aria-label"] or "" for a in page.all("svg", "chart")]
    assert len(charts) == 4  # CMC of all, losses, two maps
    assert all(name in charts[0] for name in runs)
    assert "frozen" not in charts[1]  # never trained
    assert [chart.split(":")[0] for chart in charts[2:]] == ["t-SNE of frozen", "t-SNE of DMPT"]


def test_log_without_its_cut_line(tmp_path: Path) -> None:
    lines = [{"step": s, "loss": 4.0 - s, "losses": {"ce": 3.0 - s}} for s in (1, 2, 3)]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_log(tmp_path) == lines
    run: Any = SimpleNamespace(name="run", run=tmp_path)
    drawn = curves._losses([run])
    assert drawn is not None
    assert "total: from 3 to 1; cross-entropy: from 2 to 0" in drawn
    assert curves._selection(run) is None


def test_line_goes_from_corner_to_corner() -> None:
    x, y = figures.axis("x", 0, 10), figures.axis("y", 0, 1)
    drawn = figures.lines([figures.Series("s", [0, 10], [0, 1])], x, y, "alt")
    left, right = figures._LEFT, figures._WIDTH - figures._RIGHT
    assert f'd="M{left:.1f} {figures._HEIGHT - figures._BOTTOM:.1f}L{right:.1f} {figures._TOP:.1f}"' in drawn


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 78.9), (1e-6, 2e-6), (5, 5), (99.5, 100), (0, 123456), (1e2 - 1e-14, 1e2)]
)
def test_axis_covers_its_values_with_few_round_ticks(low: float, high: float) -> None:
    axis = figures.axis("", low, high)
    assert axis.low <= low <= high <= axis.high
    assert 3 <= len(axis.ticks) <= 8
    steps = np.diff(axis.ticks)
    assert steps == pytest.approx(np.full(len(steps), steps[0]))


def test_more_lines_than_colours_stay_apart() -> None:
    series = [figures.Series(str(i), [0, 1], [0, i]) for i in range(12)]
    drawn = figures.lines(series, figures.axis("x", 0, 1), figures.axis("y", 0, 12), "alt")
    kinds = re.findall(r'<path class="(line[^"]*)" d="M1 5', drawn)
    assert len(set(kinds)) == len(kinds) == 12


def test_bars_rise_for_gains_and_hang_for_losses() -> None:
    drawn = figures.bars([10.0, 0.0, -5.0], figures.Axis("", 0, 3), figures.axis("", -5, 10), "alt")
    gain, loss = (re.search(rf'class="area {kind}" d="([^"]*)"', drawn) for kind in ("gain", "loss"))
    assert gain is not None
    assert loss is not None
    zero, top = (float(v) for v in re.findall(r"M\S+ ([\d.]+)V([\d.]+)", gain[1])[0])
    again, bottom = (float(v) for v in re.findall(r"M\S+ ([\d.]+)V([\d.]+)", loss[1])[0])
    assert zero == again
    assert top < zero < bottom
    assert (zero - top) / (bottom - zero) == pytest.approx(2, rel=0.01)
    assert gain[1].count("M") == loss[1].count("M") == 1


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert _names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert _names([tmp_path / "a" / "last", tmp_path / "b" / "last"]) == ["a", "b"]
    assert _names([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]) == ["a/x", "b/x", "b/y"]
    assert _names([tmp_path / "a", tmp_path / "a" / "last"]) == ["a", "last"]
    assert len(set(_names([tmp_path, tmp_path]))) == 2


def test_an_absent_modality_is_an_empty_frame(full: Evaluation) -> None:
    record = full.gallery[0]
    partial = replace(record, paths={"rgb": record.paths["rgb"]})
    frame = _thumbnail(partial, "tir", full.opened.card.config.data)
    assert frame.shape == _thumbnail(record, "tir", full.opened.card.config.data).shape
    assert np.unique(frame[2:-2, 2:-2]).tolist() == [_EMPTY]
    assert np.unique(frame[[0, 1, -2, -1]]).tolist() == np.unique(frame[:, [0, 1, -2, -1]]).tolist() == [_FRAME]
    assert _thumbnail(partial, "rgb", full.opened.card.config.data).std() > 1


@pytest.fixture(scope="module")
def lacking(folder: Path) -> Evaluation:
    """A run on test samples of all subsets: each lacks what its camera and identity say."""
    subsets = [c for n in (3, 2, 1) for c in itertools.combinations(MODALITIES, n)]

    def has(record: Record, name: str) -> bool:
        return name in subsets[(record.pid + 3 * record.camera) % 7]

    root = own_data(folder / "own", folder / "data", has)
    config = with_(settings(folder / "data", epochs=1), data={"root": str(root), "layout": "manifest"})
    fit(with_(config, missing={"dropout": 0.4, "shared": False}), folder / "lacking")
    return evaluate(folder / "lacking")


def test_incomplete_samples_are_ranked_as_evaluate_does_and_shown_with_empty_frames(lacking: Evaluation) -> None:
    assert len({tuple(record.paths) for record in lacking.gallery}) == 7
    own = evaluate(lacking.run)
    assert own.metrics == lacking.metrics
    for query in range(len(lacking.query)):
        slow = slow_list(lacking, query)
        shown = ranked._ranked(lacking, query, len(slow))
        by_row = {row: value for value, row in slow}
        assert sorted(by_row) == sorted(shown.items)
        assert shown.scores == pytest.approx([by_row[row] for row in shown.items], abs=1e-5)
        assert shown.scores == pytest.approx([value for value, _ in slow], abs=1e-5)
        assert shown.hits.tolist() == [lacking.gallery[row].pid == lacking.query[query].pid for row in shown.items]
        precision = own.metrics.average_precision[query]
        assert slow_precision(shown.hits.tolist()) == pytest.approx(precision, nan_ok=True)
    page = stands_alone(report([lacking]))
    few = sum(len(record.paths) < 3 for record in lacking.gallery)
    assert 0 < few < len(lacking.gallery)
    (said,) = [text for text in page.said("p") if "lack a spectrum" in text]
    assert said.startswith(f"{few} of {len(lacking.gallery)} test samples")
    alts = [a["alt"] or "" for a in page.all("img")]
    assert any(alt.endswith("in RGB and TIR, without NIR") for alt in alts)
    assert any(alt.endswith("in NIR, without RGB and TIR") for alt in alts)


def test_spectra_are_counted_where_they_are(lacking: Evaluation) -> None:
    found = breakdown._by_spectra(lacking)
    assert found[0, 1, 2] == lacking.metrics
    alone = found[1,]
    assert alone is not None
    has = [row for row, record in enumerate(lacking.gallery) if "nir" in record.paths]
    assert alone.gallery == alone.queries == len(has) < len(lacking.gallery)
    part = unit(lacking.seen.gallery.features[has, 1])
    labels = lacking.seen.gallery_labels[np.array(has)]
    assert alone.mAP == pytest.approx(score(part, part, labels, labels, lacking.metrics.protocol).mAP)
    assert "queries valid" in breakdown._spectra_table(found, bound=True)
    assert "–" in breakdown._spectra_table({(0,): None, (1,): alone}, bound=True)


def test_distances_of_incomplete_samples_are_those_of_their_ranking(lacking: Evaluation) -> None:
    items, pids = lacking.seen.gallery, lacking.seen.gallery_labels.pids
    count = len(items)
    expected = [[1 - slow_score(lacking, i, j) if i != j else 0 for j in range(count)] for i in range(count)]
    found = np.concatenate([block for _, block in embedding._distances(items)])
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    whole = silhouette_score(np.array(expected), pids, metric="precomputed")
    assert embedding._silhouette(items, pids) == pytest.approx(whole, abs=1e-4)
    points = embedding._tsne(items)
    assert points.shape == (count, 2)
    assert (points == embedding._tsne(items)).all()


def test_nobody_looks_at_what_is_absent(lacking: Evaluation) -> None:
    seen = attention._gaze(lacking.opened.network, lacking.gallery[:9], lacking.opened.card.config)
    there = np.array([[m in record.paths for record in lacking.gallery[:9]] for m in MODALITIES])
    assert not there.all()
    assert (np.isnan(seen.cls["patches"]) == ~there).all()
    for maps in seen.maps.values():
        assert (np.isnan(maps).all(axis=(2, 3)) == ~there).all()
    shown = attention._examples(lacking, 4)
    fullest = {record.pid: max(len(r.paths) for r in lacking.gallery if r.pid == record.pid) for record in shown}
    assert [len(record.paths) for record in shown] == [fullest[record.pid] for record in shown]


def test_pictures_of_files_side_by_side_are_their_own_columns(tmp_path: Path) -> None:
    strip = np.zeros((128, 768, 3), np.uint8)
    for number in range(3):
        strip[:, 256 * number : 256 * (number + 1), number] = 250
    Image.fromarray(strip).save(tmp_path / "0001_c0001_000.png")
    paths = dict.fromkeys(MODALITIES, tmp_path / "0001_c0001_000.png")
    record = Record(paths, pid=1, camera=1, columns={"rgb": (0, 256), "nir": (256, 512), "tir": (512, 768)})
    for number, modality in enumerate(MODALITIES):
        found = _thumbnail(record, modality, DataConfig(size=(128, 256))).reshape(-1, 3).mean(axis=0)
        assert found.round().tolist() == [250 if channel == number else 0 for channel in range(3)]


def listed(query: list[Record], gallery: list[Record], *features: Any) -> Evaluation:
    """A run of which nothing is known but its records and their vectors."""
    unknown: Any = None
    seen = Seen(*map(plain, features), labels_of(query), labels_of(gallery))
    return Evaluation("", Path(), unknown, query, gallery, seen, unknown)


def test_a_query_that_is_in_the_gallery_too_is_shown_once(tmp_path: Path) -> None:
    def records(folder: str, numbers: range) -> list[Record]:
        return [Record({"rgb": tmp_path / folder / f"{n}.jpg"}, pid=n, camera=1, scene=2) for n in numbers]

    gallery, query = records("test", range(4)), records("query3", range(2, 6))
    features = np.arange(8.0).reshape(8, 1)
    found = embedding.samples(listed(query, gallery, features[:4], features[4:]))
    assert [record.pid for record in found[0]] == [4, 5, 0, 1, 2, 3]
    assert found[1].flat.ravel().tolist() == [2, 3, 4, 5, 6, 7]


def test_markup_escapes_what_it_is_given() -> None:
    value: Any = "<script>"
    assert "<script>" not in figures.lines(
        [figures.Series(value, [0, 1], [0, 1])] * 2, figures.axis(value, 0, 1), figures.axis("", 0, 1), value
    )
    assert isinstance(figures.marks_key([value]), Markup)


def test_nothing_is_trained_before_the_first_step(full: Evaluation, frozen: Evaluation) -> None:
    assert full.trained == sum(p.numel() for p in full.opened.network.trained().values())
    assert frozen.trained == 0


@pytest.mark.parametrize("other", [{"camera": 2}, {"scene": 3}])
def test_a_name_in_another_camera_or_scene_is_another_sample(tmp_path: Path, other: dict[str, int]) -> None:
    gallery = [Record({"rgb": tmp_path / "test" / "1.jpg"}, pid=1, camera=1, scene=2)]
    run = listed([replace(gallery[0], **other)], gallery, np.zeros((1, 1)), np.ones((1, 1)))
    assert len(embedding.samples(run)[0]) == 2
