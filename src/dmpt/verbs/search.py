"""``dmpt search``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dmpt.base.errors import UserError, one_line
from dmpt.base.terminal import plain, print_json, print_table, warn
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.numbers import Positive, ShareBetween
from dmpt.verbs.loaded import Loaded

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder
    from dmpt.gallery.queries import Query
    from dmpt.gallery.search import Hit, Search
    from dmpt.retrieval.search import Mask


@dataclass(frozen=True)
class Asked:
    """Who is looked for.

    Attributes:
        rgb: Visible pictures; several are several shots of one.
        nir: Near-infrared pictures of the same shots.
        tir: Thermal pictures of the same shots.
        query: Folder or manifest of many: a list for each sample.
        modality: Of a picture, or of a folder's, where no name says it.
    """

    rgb: Sequence[Path] = ()
    nir: Sequence[Path] = ()
    tir: Sequence[Path] = ()
    query: Path | None = None
    modality: Literal["rgb", "nir", "tir"] | None = None

    def check(self, picture: Path | None) -> None:
        """Before anything is loaded."""
        ways = (picture is not None, self.query is not None, bool(self.rgb or self.nir or self.tir))
        if sum(ways) != 1:
            raise UserError("give a picture or a folder of shots; or --rgb, --nir, --tir; or --query")

    def queries(self, picture: Path | None, embedder: "Embedder") -> "list[Query]":
        """Embedded."""
        from dmpt.embed.shots import find_shots
        from dmpt.gallery.queries import of_shots, of_source

        by_modality = {name: own for name in MODALITIES if (own := getattr(self, name))}
        if self.query is not None:
            return of_source(embedder, self.query, self.modality)
        if picture is not None:
            by_modality = {**find_shots(picture, self.modality)}
        return [of_shots(embedder, by_modality)]


@dataclass(frozen=True)
class Filters:
    """Which items count.

    Attributes:
        camera: Of these cameras.
        not_camera: Of none of these cameras.
        after: Of this moment or later: 2026-03-01T14:00, or seconds since 1970.
        before: Before this moment.
        time_column: The gallery's column of moments.
        where: That meet a condition in SQL, as in "site = 'north'".
    """

    camera: Sequence[str] = ()
    not_camera: Sequence[str] = ()
    after: str | None = None
    before: str | None = None
    time_column: str = "time"
    where: str | None = None


def run(
    picture: Path | None = None,
    /,
    *,
    model: Path,
    gallery: Path,
    asked: Asked,
    filters: Filters,
    loaded: Loaded,
    k: Positive = 10,
    group: str = "pid",
    shots: Literal["mean", "max"] = "mean",
    known_only: bool = False,
    fpir: ShareBetween = 0.1,
    rerank: bool = False,
    index: bool = False,
    version: Positive | None = None,
    source: Path | None = None,
    page: Path | None = None,
    open: bool = False,
    json: bool = False,
) -> None:
    """Who is this: the most similar items of a gallery, and what their scores mean.

    Args:
        picture: A picture, or a folder of shots of one person or vehicle.
        model: Run folder, adapter folder, package:tiny, or a file of dmpt export, whose vectors the gallery holds.
        gallery: As dmpt embed writes it.
        asked: who is looked for
        filters: which items count
        loaded: the model; its precision is the gallery's
        k: Hits.
        group: The best item stands for all of one pid, or of one label of another column; none: each for itself.
        shots: Several shots are averaged, or an item has the best of their scores.
        known_only: Only hits that a stranger would hardly reach (--fpir); for a calibrated model.
        fpir: With --known-only: how often somebody who is not in the gallery may have a hit.
        rerank: Order the first hundred by k-reciprocal re-ranking: by distances, which depend on each other.
        index: Compare with what the gallery's index proposes alone (dmpt gallery index); scores are as exact.
        version: Of the gallery; default: the newest.
        source: Folder of the gallery's pictures, for the page; default: the one that was embedded.
        page: HTML file of ranked pictures in all spectra.
        open: Open that page.
        json: Print JSON.
    """
    from dmpt.gallery.filters import conditions
    from dmpt.gallery.schema import Model
    from dmpt.gallery.search import Search
    from dmpt.gallery.store import Gallery

    asked.check(picture)
    search = Search(Gallery(gallery, version), index)
    table = search.gallery
    where = conditions(table, **asdict(filters))
    mask = search.counted(where)  # what is wrong with them is said before pictures are embedded
    own: Any = loaded.precision or table.model.precision
    embedder = replace(loaded, precision=own).load(model)
    table.model.refuse(Model.of(embedder), str(gallery))
    calibration = embedder.calibration
    queries = asked.queries(picture, embedder)
    found = search(
        [query.embeddings for query in queries],
        k,
        conditions=where,
        group=None if group == "none" else group,
        shots=shots,
        calibration=calibration,
        fpir=fpir if known_only else None,
        reranked=rerank,
        spectra=True,
    )
    items = _notes(search, mask, queries, k)
    result = {
        "gallery": str(gallery),
        "version": table.version,
        "items": items,
        "adapter": table.model.adapter,
        "precision": table.model.precision,
        "calibrated": calibration is not None,
        "index_recall": search.index.recall if search.index else None,
        "index_outside": int(search.index.new.sum()) if search.index else None,
        "fpir": fpir if known_only else None,
        "reranked": rerank,
        "group": group,
        "queries": [_said(query, hits, shots) for query, hits in zip(queries, found, strict=True)],
    }
    over = "shared parts" if table.model.shared else "mean features"
    facts = _facts(result, over)
    if json:
        print_json(plain(result))
    else:
        _show(result, over, facts)
    if page or open:
        _write(page, open, search, source, queries, found, embedder, facts)


def _notes(search: "Search", mask: "Mask", queries: "Sequence[Query]", k: int) -> int:
    """Say what a list alone does not; how many items count."""
    items = int(mask.sum())
    if not items:
        warn("no item meets the conditions")
    elif k > items:
        warn(f"--k is {k}, and {items} items count: all are ranked")
    present = search.present(mask)
    for query in queries:
        if items and not (query.embeddings.codes & present).any():
            shared = search.gallery.model.shared
            what = "shared parts" if shared else "mean features, which nothing was trained to align,"
            warn(f"{query.name} has no modality in common with any item: {what} are compared")
    return items


def _said(query: "Query", hits: "Sequence[Hit]", shots: str) -> dict[str, Any]:
    return {
        "query": query.name,
        "modalities": [name for m, name in enumerate(MODALITIES) if query.embeddings.present[:, m].any()],
        "shots": len(query.embeddings),
        "aggregated": shots if len(query.embeddings) > 1 else None,
        "hits": [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, start=1)],
    }


def _facts(result: dict[str, Any], over: str) -> list[str]:
    """What was searched, and what its scores mean; ``over`` is what is compared where nothing is in common."""
    facts = [f"{result['items']} items of {result['gallery']}, version {result['version']}."]
    if result["index_recall"] is not None:
        facts.append(f"By the index, which found {100 * result['index_recall']:.1f} % of the nearest when it was made.")
        if outside := result["index_outside"]:
            facts.append(f"{outside} samples are in none of its lists, so all are compared (dmpt gallery index).")
    if result["reranked"]:
        facts.append("In the order of distances after k-reciprocal re-ranking, which depend on the other items.")
    if not result["calibrated"]:
        facts.append("Not calibrated: a score orders items, and no more can be said (dmpt calibrate).")
    else:
        facts.append(
            "FMR: the share of strangers that score as high; false: so many of all items, were they strangers."
        )
    hits = [hit for query in result["queries"] for hit in query["hits"]]
    if over == "mean features" and not all(hit["modalities"] for hit in hits):
        facts.append("Mean features: nothing in common, and nothing was trained to align them; no rate is known.")
    if result["fpir"] is not None:
        facts.append(f"Known only: a stranger has a hit in {100 * result['fpir']:g} % of searches, at most.")
    return facts


def _show(result: dict[str, Any], over: str, facts: Sequence[str]) -> None:
    distances, calibrated = result["reranked"], result["calibrated"]
    header = ["", *(["distance"] if distances else []), "score", *(["FMR", "false"] if calibrated else [])]
    for query in result["queries"]:
        number = f"{query['shots']} shots, {query['aggregated']}" if query["shots"] > 1 else "1 shot"
        title = f"{one_line(query['query'])} ({'+'.join(query['modalities'])}, {number})"
        if not query["hits"]:
            print(f"{title}: no hit")
            continue
        rows = []
        for hit in query["hits"]:
            row = [str(hit["rank"]), *([f"{hit['distance']:.4f}"] if distances else []), f"{hit['score']:.6f}"]
            if calibrated:
                row += ["?", "?"] if hit["fmr"] is None else [f"{100 * hit['fmr']:.3g} %", _many(hit)]
            compared = "+".join(hit["modalities"]) or over
            rows.append([*row, *(hit[name] or "" for name in ("pid", "camera")), compared, hit["key"]])
        print_table(title, [*header, "pid", "camera", "compared", "key"], rows)
    print(*facts, sep="\n")


def _many(hit: dict[str, Any]) -> str:
    return f"{hit['expected_false_matches']:.3g}"


def _write(
    page: Path | None,
    show: bool,
    search: "Search",
    source: Path | None,
    queries: "Sequence[Query]",
    found: "Sequence[Sequence[Hit]]",
    embedder: "Embedder",
    facts: Sequence[str],
) -> None:
    """The page, and in a browser."""
    import tempfile
    import webbrowser

    from dmpt.base.files import expanded
    from dmpt.gallery.pictures import Pictures
    from dmpt.pages.found import Shown, write_found

    place = source or (expanded(search.gallery.source) if search.gallery.source else None)
    pictures = Pictures(place)
    shown = [
        Shown(query.name, query.shots, hits, [pictures.of(hit.key, hit.has) for hit in hits])
        for query, hits in zip(queries, found, strict=True)
    ]
    if not any(each for one in shown for each in one.pictures) and any(found):
        warn(f"no picture of a hit lies in {place or 'a known folder'}; say with --source where they are")
    out = page or Path(tempfile.mkdtemp(prefix="dmpt-search-")) / "search.html"
    write_found(out, "Search", facts, shown, embedder.data)
    warn(f"page: {out}")
    if show:
        webbrowser.open(out.resolve().as_uri())
