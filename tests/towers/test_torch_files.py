"""PyTorch's files, read without torch.load: the same tensors, nothing run, and memory in proportion to the file."""

import argparse
import collections
import io
import pathlib
import pickle
import random
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dmpt.base.errors import UserError
from dmpt.towers.torch_files import read_torch


class Meter:
    """A class of somebody's own."""

    def __init__(self) -> None:
        self.mean, self.kept = 1.5, torch.full((2,), 5.0)


class Words(dict[str, int]):
    """A dictionary of somebody's own."""


def kinds() -> dict[str, Any]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": base,
        "slice": base[1:3, 2:],
        "transposed": base.T,
        "expanded": torch.ones(1).expand(3),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "long": torch.arange(3),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(base * 2),
        "buffer": nn.Linear(2, 2).weight,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_those_of_torch_load(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(kinds(), path, _use_new_zipfile_serialization=not legacy)
    tensors, said = read_torch(path)
    expected = torch.load(path, weights_only=True)
    assert list(tensors) == list(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    assert said == {"container": "torch", "classes": ""}


def test_dtypes_without_a_storage_of_their_own(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn), "b": torch.tensor([60000], dtype=torch.uint16)}
    torch.save(tensors, tmp_path / "x.pt")
    found, _ = read_torch(tmp_path / "x.pt")
    assert {name: (t.dtype, t.float().tolist()) for name, t in found.items()} == {
        "a": (torch.float8_e4m3fn, [1.5, -2.0]),
        "b": (torch.uint16, [60000.0]),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_tensors_are_passed_over(legacy: bool, protocol: int, tmp_path: Path) -> None:
    content = {
        "model": collections.OrderedDict(a=torch.ones(2)),
        "args": argparse.Namespace(lr=0.1, names=["x"], where=pathlib.PurePosixPath("/a/b")),
        "best": np.float64(0.5),
        "state": np.random.RandomState(0).get_state(),
        "counts": collections.Counter("aab"),
        "many": collections.defaultdict(list, {1: [2]}),
        "sizes": {torch.Size([2]): torch.device("cpu"), torch.float16: complex(1, 2)},
        "meter": Meter(),
        "words": Words(a=1),
        "epoch": 3,
    }
    path = tmp_path / "x.pt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    tensors, said = read_torch(path)
    assert {name: t.tolist() for name, t in tensors.items()} == {"model.a": [1, 1], "meter.kept": [5, 5]}
    assert said["epoch"] == "3"
    assert "argparse.Namespace" in said["classes"]
    assert said["classes"].endswith("more classes")


def test_a_whole_pickled_model_is_its_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ModuleDict({"norm": nn.BatchNorm1d(3)}))
    torch.save(model, tmp_path / "model.pt")
    tensors, _ = read_torch(tmp_path / "model.pt")
    expected = model.state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_other_byte_order(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.5, 2.5]), "b": torch.tensor([[3, 4]])}
    torch.save(tensors, tmp_path / "little.pt")
    swapped = {"data/0": tensors["a"].numpy().byteswap().tobytes(), "data/1": tensors["b"].numpy().byteswap().tobytes()}
    rewrite(tmp_path / "little.pt", tmp_path / "big.pt", {**swapped, "byteorder": b"big"})
    found, _ = read_torch(tmp_path / "big.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# --- crafted files


def rewrite(source: Path, target: Path, changes: dict[str, bytes], compress: bool = False) -> Path:
    """An archive with some records changed."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.partition("/")[2], old.read(name)))
    return target


def global_(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(size: bytes, stride: bytes, offset: int = 0, count: int = 4, key: str = "0") -> bytes:
    """The pickle of a float32 tensor in storage ``key``."""
    text = b"".join(b"X" + struct.pack("<I", len(word)) + word for word in (key.encode(), b"cpu"))
    storage = b"(X\x07\0\0\0storage" + global_("torch.FloatStorage") + text + number(count) + b"tQ"
    return global_("torch._utils._rebuild_tensor_v2") + b"(" + storage + number(offset) + size + stride + b"\x89NtR"


def one(value: int) -> bytes:
    return number(value) + b"\x85"


def archive(path: Path, body: bytes, script: bool = False, records: int = 1) -> Path:
    """An archive whose pickle is a dictionary with ``body`` under ``x``, and 4 numbers in each storage."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}X\x01\0\0\0x" + body + b"s.")
        for index in range(records):
            file.writestr(f"a/data/{index}", struct.pack("<4f", 1, 2, 3, 4))
        if script:
            file.writestr("a/constants.pkl", b"\x80\x02).")
    return path


def legacy(path: Path, body: bytes, count: int = 4) -> Path:
    """torch.save's older format: a number, a version, a machine, the content, the keys of storages, the storages."""
    start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    content = b"\x80\x02}X\x01\0\0\0x" + body + b"s."
    path.write_bytes(start + content + pickle.dumps(["0"], 2) + struct.pack("<q4f", count, 1, 2, 3, 4))
    return path


def test_the_crafted_files_would_be_read_if_they_were_honest(tmp_path: Path) -> None:
    for path in (
        archive(tmp_path / "zip", tensor(one(4), one(1))),
        archive(tmp_path / "script", tensor(one(4), one(1)), script=True),
    ):
        assert read_torch(path)[0]["x"].tolist() == [1, 2, 3, 4]
    honest = tensor(one(4), one(1)).replace(b"tQ", b"NtQ")
    assert read_torch(legacy(tmp_path / "old", honest))[0]["x"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("size", "stride", "offset", "said"),
    [
        (one(10**8), one(0), 0, "claim far more"),  # the 449 bytes that took 762 MB
        (one(2**62), one(0), 0, "claim far more"),
        (one(2**62) + one(2**62) + b"\x86", number(0) + number(0) + b"\x86", 0, "damaged"),
        (one(5), one(1), 0, "damaged"),
        (one(4), one(2), 0, "damaged"),
        (one(2), one(1), 3, "damaged"),
        (one(2), one(1), -1, "damaged"),
        (one(-2), one(1), 0, "damaged"),
        (one(2), one(-1), 3, "damaged"),
    ],
)
def test_tensors_beyond_their_bytes(size: bytes, stride: bytes, offset: int, said: str, tmp_path: Path) -> None:
    body = tensor(size, stride, offset)
    old = body.replace(b"tQ", b"NtQ")
    for path in (
        archive(tmp_path / "zip", body),
        archive(tmp_path / "script", body, script=True),
        legacy(tmp_path / "old", old),
    ):
        with pytest.raises(UserError, match=said):
            read_torch(path)


def test_many_views_of_the_same_bytes(tmp_path: Path) -> None:
    big = torch.zeros(100_000)
    torch.save({str(i): big[i:] for i in range(3)}, tmp_path / "tied.pt")
    assert len(read_torch(tmp_path / "tied.pt")[0]) == 3
    torch.save({str(i): big[i:] for i in range(50)}, tmp_path / "many.pt")
    with pytest.raises(UserError, match="claim far more than its"):
        read_torch(tmp_path / "many.pt")


def test_bytes_that_unpack_to_more(tmp_path: Path) -> None:
    for name, part in (("whole", slice(None)), ("view", slice(4))):
        torch.save({"a": torch.zeros(1_000_000)[part]}, tmp_path / "a.pt")
        path = rewrite(tmp_path / "a.pt", tmp_path / "small.pt", {}, compress=True)
        assert path.stat().st_size < 10_000
        with pytest.raises(UserError, match="claim far more" if name == "whole" else "unpacks to more than its"):
            read_torch(path)


@pytest.mark.parametrize(
    "body",
    [
        global_("torch.Tensor") + one(10**12) + b"R",
        global_("torch.zeros") + one(10**12) + b"R",
        global_("builtins.bytearray") + one(10**12) + b"R",
        global_("numpy.zeros") + one(10**12) + b"R",
        b"Nr\xff\xff\xff\x7f",  # a place in the memo, for which the unpickler in C takes 32 GB
    ],
)
def test_what_would_be_made_is_not(body: bytes, tmp_path: Path) -> None:
    content = body + b"s" + b"X\x01\0\0\0y" + tensor(one(4), one(1))
    assert set(read_torch(archive(tmp_path / "x", content))[0]) == {"y"}


def test_nothing_outlives_a_file(tmp_path: Path) -> None:
    """A pickle's state, given to what stands for its classes and functions, changes none of them."""
    state = b"}X\x08\0\0\0__call__K\x01sb"  # {"__call__": 1}, BUILD
    names = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "argparse.Namespace")
    before = [vars(found).copy() for found in held_classes()]
    for name in names:
        for built in (state, b"N" + state[:-1] + b"\x86b"):
            with suppress(UserError):
                read_torch(archive(tmp_path / "x", global_(name) + built))
    assert [vars(found) for found in held_classes()] == before


def held_classes() -> list[type]:
    from dmpt.towers import torch_files

    return [torch_files._Held, torch_files._Described, torch_files._Itself]


def test_deep_and_circular_contents_end(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"a": torch.ones(1)}
    circle["self"] = circle
    torch.save(circle, tmp_path / "circle.pt")
    assert list(read_torch(tmp_path / "circle.pt")[0]) == ["a"]
    node: dict[str, Any] = {}
    for _ in range(60):  # 2 ** 60 ways through it
        node = {"l": node, "r": node}
    torch.save({"deep": node, "a": torch.ones(1)}, tmp_path / "deep.pt")
    assert list(read_torch(tmp_path / "deep.pt")[0]) == ["a"]
    body = b"}X\x01\0\0\0x" * 5000 + b"}" + b"s" * 5000
    with pytest.raises(UserError, match="damaged"):
        read_torch(archive(tmp_path / "deeper.pt", body))


def test_a_zip_without_a_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(UserError, match=r"a zip archive without PyTorch's data\.pkl"):
        read_torch(tmp_path / "x.npz")


@pytest.mark.parametrize("old", [False, True])
def test_random_damage_never_escapes_as_another_error(old: bool, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"args": argparse.Namespace(a=1), **kinds()}, buffer, _use_new_zipfile_serialization=not old)
    good, dice = buffer.getvalue(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        (tmp_path / "x").write_bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])])
        with suppress(UserError):
            read_torch(tmp_path / "x")
