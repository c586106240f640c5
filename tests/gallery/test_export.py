"""A gallery for other programs."""

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dmpt.base.errors import UserError
from dmpt.gallery.changes import add_rows
from dmpt.gallery.export import export
from dmpt.gallery.rows import to_batch, to_embeddings
from dmpt.gallery.store import Gallery, create_gallery
from drawn import drawn, model


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    extra = {
        "time": ["2026-03-01", None, 0],
        "track": [7, None, 9],
        "site": ["a", None, "🚪"],
        "on": [True, None, False],
    }
    keys, labels = ["rgb/1.jpg", "nir/2.jpg", "tir/3.jpg"], ["p", None, "q"]
    batch = to_batch(model(True), drawn(3, shared=True), keys, pid=labels, camera=["1", "2", None], extra=extra)
    own = [field for field in batch.schema if field.name in extra]
    gallery = create_gallery(tmp_path / "g.lance", model(True), own, "pictures")
    add_rows(gallery, model(True), batch)
    return gallery


def test_numpy(gallery: Gallery, tmp_path: Path) -> None:
    assert export(gallery, tmp_path / "x.npz") == 3
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        items = gallery.embeddings()
        np.testing.assert_array_equal(found["features"], items.features)
        np.testing.assert_array_equal(found["shared"], items.shared)
        np.testing.assert_array_equal(found["present"], items.present)
        assert found["pid"].tolist() == ["p", "", "q"]
        assert found["site"].tolist() == ["a", "", "🚪"]
        np.testing.assert_array_equal(found["track"], [7, np.nan, 9])
        np.testing.assert_array_equal(found["on"], [1, np.nan, 0])
        assert found["time"].astype(str).tolist() == ["2026-03-01T00:00:00.000000", "NaT", "1970-01-01T00:00:00.000000"]
        assert json.loads(str(found["metadata"]))["dmpt.source"] == "pictures"


def test_parquet_is_the_table(gallery: Gallery, tmp_path: Path) -> None:
    assert export(gallery, tmp_path / "x.parquet") == 3
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.equals(gallery.read())
    np.testing.assert_array_equal(to_embeddings(table).features, gallery.embeddings().features)
    assert export(gallery, tmp_path / "x.parquet", where="pid = 'q'") == 1  # a file is replaced


def test_fiftyone(gallery: Gallery, tmp_path: Path) -> None:
    assert export(gallery, tmp_path / "fo", source=tmp_path) == 3
    samples = json.loads((tmp_path / "fo" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert [sample["filepath"] for sample in samples] == [
        str(tmp_path.resolve() / key) for key in ("rgb/1.jpg", "nir/2.jpg", "tir/3.jpg")
    ]
    np.testing.assert_allclose([sample["embedding"] for sample in samples], gallery.embeddings().flat)
    assert samples[0]["pid"] == {"_cls": "Classification", "label": "p"}
    assert "pid" not in samples[1]
    plain = {"embedding": 0, "filepath": "", "key": "tir/3.jpg", "tags": [], "metadata": None}
    own = {"track": 9, "site": "🚪", "on": False, "time": str(datetime(1970, 1, 1, tzinfo=timezone.utc))}
    label = {"pid": {"_cls": "Classification", "label": "q"}}
    assert samples[2] | {"embedding": 0, "filepath": ""} == plain | own | label
    assert "version" not in json.loads((tmp_path / "fo" / "metadata.json").read_text(encoding="utf-8"))


def test_what_is_refused(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.csv says no format; name it \.npz or \.parquet"):
        export(gallery, tmp_path / "x.csv")
    with pytest.raises(UserError, match="is there already"):
        export(gallery, gallery.path.parent, "fiftyone")
    for out in ("x.npz", "x.parquet", "x"):
        with pytest.raises(UserError, match=r"the condition was: \(nobody = 1\)"):
            export(gallery, tmp_path / out, where="nobody = 1")
        assert not (tmp_path / out).exists()
