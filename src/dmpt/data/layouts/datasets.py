"""The data sets that are read. A new benchmark is an entry here, a choice in the settings, and a test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dmpt.data.layouts.benchmark import Benchmark
from dmpt.data.layouts.folders import Grammar, Notes
from dmpt.data.layouts.own_folder import read_folder
from dmpt.data.layouts.table import read_manifest
from dmpt.data.records import Splits


@dataclass(frozen=True)
class Count:
    """How much a published split holds; None = not known."""

    ids: int | None = None  # different ones, as of cameras and scenes; distractors (identity 0) count as one
    samples: int | None = None
    cameras: int | None = None
    scenes: int | None = None


@dataclass(frozen=True)
class Layout:
    """Facts about a benchmark, and its reader."""

    object: Literal["person", "vehicle"]  # what is re-identified
    protocol: str  # which gallery items a query ignores
    licence: str
    # From the folder to the splits. What can be left out (a sample with a missing image, a misnamed file) it adds to
    # the notes' problems, one line each, and goes on. Records of identity -1 are junk and left out later.
    read: Callable[[Path, Notes], Splits]
    # Published counts of train, query, gallery and total (train and gallery together).
    known: Mapping[str, Count] = field(default_factory=dict)
    whole: bool = True  # images in the folder that no record uses are a mistake; a table leaves out on purpose


# Where they are published is in docs/data.md. The counts of RGBNT201, RGBNT100 and MSVR310 are from the file names in
# IDEA's captions (github.com/924973292/IDEA, commit 4e65520), queries of RGBNT100 as papers print them, of MSVR310 by
# CCNet's list; Market1501-MM is Market-1501's standard split as a loader prints it (github.com/Syliz517/CLIP-ReID,
# issue 52); RGBN300 from the README of HAMNet (github.com/ttaalle/multi-modal-vehicle-Re-ID).
_UNKNOWN = "none known to us; ask its authors before you use or share it: "

#: Where the spectra of persons and of vehicles lie; ``dmpt synth`` writes there too.
PERSON = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
VEHICLE = {"rgb": "vis", "nir": "ni", "tir": "th"}
# Pixel columns in a picture of 768 x 128 (RGBNT100) or, without the last, 512 x 128 (RGBN300).
_COLUMNS = {"rgb": (0, 256), "nir": (256, 512), "tir": (512, 768)}
_RGBNT100 = Benchmark(
    names=("RGBNT100",),
    splits=("bounding_box_train", "query", "bounding_box_test"),
    places=dict.fromkeys(_COLUMNS, "."),
    naming=Grammar(
        r"(?P<pid>-1|\d{1,18})_c(?P<camera>\d{1,18})(_.*)?",
        "PPPP_cCCCC_NNN (identity, camera, number; for example 0502_c0001_000.jpg)",
    ),
    columns=_COLUMNS,
)

DATASETS = {
    "rgbnt201": Layout(
        object="person",
        protocol="same_camera",
        licence="none stated with the download; it shows recognisable people: ask Zheng et al. (AAAI 2021)",
        read=Benchmark(
            names=("RGBNT201",),
            splits=("train_*", "test", "test"),  # RGBNT201: train_171
            places=PERSON,
            naming=Grammar(
                r"(?P<pid>\d{6})_cam(?P<camera>\d{1,18})_\d+_\d+",
                "PPPPPP_camC_T_NN (identity, camera, session, number; for example 000287_cam1_0_05.jpg)",
            ),
        ),
        known={
            "train": Count(ids=171, samples=3951, cameras=4),
            "query": Count(ids=30, samples=836, cameras=2),
            "gallery": Count(ids=30, samples=836, cameras=2),
            "total": Count(ids=201, samples=4787),
        },
    ),
    "market1501_mm": Layout(
        object="person",
        protocol="same_camera",
        licence="none stated with the download; derived from Market-1501, whose terms hold (Zheng et al., ICCV 2015)",
        read=Benchmark(
            # Nobody agrees on its name. Distractors (identity 0) stay in the gallery.
            names=("Market1501-MM", "Market-1501-RGBNT", "market1501_to_RGBNT201_dark", "Market-MM"),
            splits=("train", "query", "gallery"),
            places=PERSON,
            naming=Grammar(
                r"(?P<pid>-1|\d{1,18})_c(?P<camera>\d).*",
                "PPPP_cCsS_FFFFFF_NN (identity, camera, sequence, frame, number; for example 0002_c1s1_000451_03.jpg)",
            ),
        ),
        known={
            "train": Count(ids=751, samples=12936, cameras=6),
            "query": Count(ids=750, samples=3368, cameras=6),
            "gallery": Count(ids=751, samples=15913, cameras=6),  # 750, and the distractors under 0
        },
    ),
    "rgbnt100": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "Li et al. (AAAI 2020)",
        read=_RGBNT100,
        known={
            "train": Count(ids=50, samples=8675, cameras=8),
            "query": Count(ids=50, samples=1715),
            "gallery": Count(ids=50, samples=8575, cameras=8),
            "total": Count(ids=100, samples=17250),
        },
    ),
    "msvr310": Layout(
        object="vehicle",
        protocol="same_scene",
        licence=_UNKNOWN + "Zheng et al. (CCNet, Information Fusion 2023)",
        read=Benchmark(
            names=("MSVR310",),
            splits=("bounding_box_train", "query3", "bounding_box_test"),
            places=VEHICLE,
            naming=Grammar(
                r"(?P<pid>\d{4})_s(?P<scene>\d{3})_v(?P<camera>\d)_\d+",
                "PPPP_sSSS_vV_NNN (identity, scene, view, number; for example 0019_s012_v0_000.jpg)",
            ),
            by_identity=True,
        ),
        known={
            "train": Count(ids=155, samples=1032, cameras=8, scenes=30),
            "query": Count(ids=52, samples=591),
            "gallery": Count(ids=155, samples=1055, scenes=30),
            "total": Count(ids=310, samples=2087),
        },
    ),
    "wmveid863": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "the authors of FACENet",
        read=Benchmark(
            names=("WMVEID863", "MSVWild863"),
            splits=("train", "query", "test"),
            places=VEHICLE,
            naming=Grammar(r".*?v+(?P<camera>\d).*", "with the camera behind a v (for example v2)"),
            by_identity=True,
        ),
    ),
    "rgbn300": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "Li et al. (AAAI 2020)",
        read=replace(
            _RGBNT100,
            names=("RGBN300", "RGBNT300"),
            places={"rgb": ".", "nir": "."},
            columns={modality: _COLUMNS[modality] for modality in ("rgb", "nir")},
        ),
        known={"total": Count(ids=300, samples=50125, cameras=8)},
    ),
    "manifest": Layout(
        object="person",
        protocol="same_camera",
        licence="whatever you have agreed with those it shows",
        read=read_manifest,
        whole=False,
    ),
    "folder": Layout(
        object="person",
        protocol="same_camera",
        licence="whatever you have agreed with those it shows",
        read=read_folder,
    ),
}
