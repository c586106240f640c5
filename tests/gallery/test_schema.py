"""Rows of a gallery and the ``Embeddings`` they stand for; times."""

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.gallery.rows import to_batch, to_embeddings
from dmpt.gallery.schema import Model, schema_of
from dmpt.gallery.times import moment, moments
from dmpt.retrieval.scores import blocks
from drawn import drawn, model


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 9), shared=st.booleans(), cut=st.integers(0, 5))
def test_rows_give_back_what_was_embedded(seed: int, count: int, shared: bool, cut: int) -> None:
    items = drawn(count, seed=seed, shared=shared)
    keys = [f"{row}.jpg" for row in range(count)]
    batch = to_batch(model(shared), items, keys)
    first = min(cut, count - 1)
    again = to_embeddings(pa.Table.from_batches([batch]).slice(first), "g")  # slices have offsets
    wanted = items[slice(first, None)]
    assert np.array_equal(again.present, wanted.present)
    assert (np.abs(again.features - wanted.features) <= 2.0**-22 * np.abs(wanted.features)).all()
    assert (again.shared is None) == (not shared)
    if shared:
        assert np.array_equal(again.shared, wanted.shared)
    one, two = (
        np.concatenate([s.copy() for _, s in blocks(x, x, match_copies=False, mixed=True)]) for x in (wanted, again)
    )
    assert np.abs(one - two).max() < 2e-6


def test_absent_modalities_are_null_and_the_rest_of_length_1() -> None:
    items = drawn(50)
    table = pa.Table.from_batches([to_batch(model(), items, [str(row) for row in range(50)])])
    for m, name in enumerate(("rgb", "nir", "tir")):
        column = table.column(name)
        assert np.array_equal(column.is_valid().to_numpy(), items.present[:, m])
        lengths = [np.linalg.norm(vector) for vector in column.to_pylist() if vector is not None]
        assert np.allclose(lengths, 1, atol=1e-6)
    assert table.column("present").to_pylist() == items.codes.tolist()


def test_columns_of_the_users_own_keep_their_types() -> None:
    given_times = ["2026-03-01T14:00:00+02:00", 1772373600, datetime(2026, 3, 1, 14), None]
    extra: dict[str, Any] = {"time": given_times, "track": [1, None, 3, 4], "Ort": ["🚪", "a", None, "b"]}
    pids = ["Ærø", "🙂", None, "x" * 1000]
    batch = to_batch(model(), drawn(4), list("abcd"), pid=pids, camera=["1"] * 4, content=None, extra=extra)
    assert batch.column("pid").to_pylist() == pids
    assert batch.column("track").to_pylist() == [1, None, 3, 4]
    assert batch.schema.field("Ort").type == pa.string()
    assert [None if t is None else t.hour for t in batch.column("time").to_pylist()] == [12, 14, 14, None]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("2026-03-01", datetime(2026, 3, 1)),
        ("2026-03-01 14:00:01.5", datetime(2026, 3, 1, 14, 0, 1, 500000)),
        ("2026-03-01T14:00:00Z", datetime(2026, 3, 1, 14)),
        ("2026-03-01T14:00:00-05:00", datetime(2026, 3, 1, 19)),
        (1772373600, datetime(2026, 3, 1, 14)),
        ("1772373600.25", datetime(2026, 3, 1, 14, 0, 0, 250000)),
        (1772373600123, datetime(2026, 3, 1, 14, 0, 0, 123000)),
        (date(2026, 3, 1), datetime(2026, 3, 1)),
        (datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 3, 1, 12)),
    ],
)
def test_times(value: Any, wanted: datetime) -> None:
    assert moment(value, "time") == wanted.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "value",
    ["yesterday", "0001-01-01T00:00:00+14:00", "01/03/2026", "20260301", float("nan"), 1e30, True, [], "2026-13-01"],
)
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(UserError, match=r"^time, row 1: .* is no time; give ISO 8601"):
        moments([None, value])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keys": ["a", "b"]}, "keys has 2 values for 3 samples"),
        ({"keys": ["a", "b", "a"]}, "the key a is given twice"),
        ({"keys": ["a", "", "c"]}, "key, row 1: '' is no text"),
        ({"keys": ["a", "b", "\udcff"]}, "key, row 2: .* is not Unicode"),
        ({"keys": ["a", "b", "c" * 5000]}, "key, row 2: 5000 characters; give at most 4096"),
        ({"pid": ["a", 7, None]}, "pid, row 1: '7' is no text"),
        ({"pid": ["🙂" * 10000, None, None]}, "pid, row 0: 10000 characters; give at most 1000"),
        ({"extra": {"pid": [1, 2, 3]}}, "column 'pid' cannot be kept under this name"),
        ({"extra": {"a.b": [1, 2, 3]}}, "column 'a.b' cannot be kept"),
        ({"extra": {"site": [1, "x", []]}}, "column site: .*; give values of one type"),
        ({"embeddings": drawn(3, width=6)}, "these vectors have width 6 and the model's 8"),
    ],
)
def test_what_is_refused(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"embeddings": drawn(3), "keys": ["a", "b", "c"]} | change
    with pytest.raises(UserError, match=said):
        to_batch(model(), given.pop("embeddings"), given.pop("keys"), **given)


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_vectors_that_are_none_are_refused(value: float) -> None:
    items = drawn(3)
    items.features[1, np.argmax(items.present[1]), 2] = value
    with pytest.raises(UserError, match="the vector of b holds NaN, or has no length; look at its pictures"):
        to_batch(model(), items, ["a", "b", "c"])


def changed(batch: pa.RecordBatch, name: str, values: Any) -> pa.Table:
    at = batch.schema.get_field_index(name)
    return pa.Table.from_batches([batch]).set_column(
        at, batch.schema.field(at), pa.array(values, batch.schema.types[at])
    )


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("rgb", lambda v: [float("nan"), *v[1:]], "rgb is not of length 1"),
        ("rgb", lambda v: [x * 2 for x in v], "rgb is not of length 1"),
        ("rgb", lambda _: None, "present contradicts rgb"),
        ("present", lambda _: 2, "present contradicts rgb"),
        ("present", lambda _: 0, "present is 0 or no set"),
        ("present", lambda _: 15, "present is 0 or no set"),
        ("lengths", lambda _: [0.5, 0.5, 0.5], "lengths are not those of an item"),
        ("shared", lambda _: None, "shared is missing, or not of length 1"),
    ],
)
def test_a_row_that_another_program_changed(name: str, change: Any, said: str) -> None:
    items = drawn(3, shared=True, present=np.ones((3, 3), np.bool_))
    batch = to_batch(model(True), items, ["a", "b", "c"])
    values = batch.column(name).to_pylist()
    values[1] = change(values[1])
    with pytest.raises(UserError, match=f"^g: b was changed by another program: {said}"):
        to_embeddings(changed(batch, name, values), "g")


def test_a_table_of_another_format_or_program() -> None:
    schema = schema_of(model())
    assert Model.read(schema, "g").metadata() == model().metadata()

    def said(schema: pa.Schema) -> str:
        with pytest.raises(UserError) as error:
            Model.read(schema, "g")
        return str(error.value)

    def with_metadata(**change: str) -> pa.Schema:
        return schema.with_metadata({**model().metadata(), **{f"dmpt.{name}": value for name, value in change.items()}})

    assert said(schema.remove_metadata()).startswith("g is a table, but no gallery")
    assert said(with_metadata(format="2")) == "g has format 2; this version of dmpt reads 1; update dmpt"
    assert "was changed by another program" in said(with_metadata(preprocessing="{"))
    assert "was changed by another program" in said(with_metadata(standardisation="[1]"))
    assert "column lengths is missing" in said(schema.remove(schema.get_field_index("lengths")))
    at = schema.get_field_index("pid")
    assert "column pid is int64, not string" in said(schema.set(at, pa.field("pid", pa.int64())))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapter": "b" * 64}, "adapter aaaaaaaaaaaa, these are of bbbbbbbbbbbb;"),
        ({"precision": "bf16"}, "precision fp32, these are of bf16;"),
        ({"preprocessing": {"size": [64, 32]}}, "preprocessing "),
        ({"standardisation": np.ones((8, 2), np.float32)}, "standardisation none, these"),
        ({"width": 16}, "vectors of width 8"),
    ],
)
def test_vectors_of_another_model_are_refused(change: dict[str, Any], said: str) -> None:
    model().refuse(model(), "g")
    with pytest.raises(UserError, match=f"^g holds vectors of {said}|^g holds {said}"):
        model().refuse(replace(model(), **change), "g")
