"""What is in PyTorch's files: ``torch.save``'s archives and older pickles, and TorchScript archives.

Nothing that a file names is imported or called. A tensor becomes a description that is checked before its bytes are
read, and an object of any class (an ``argparse.Namespace``, a NumPy scalar, a whole model) a dictionary of what it
held. Reading a file takes memory in proportion to its size, whatever it claims.
"""

import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dmpt.base.errors import UserError

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_HOSTILE = ("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "ctypes", "importlib", "runpy")
_RUNS = ("eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint")
"""Of ``builtins``. A file that names one of these is not what it seems and is refused; the others do nothing here."""
_MAGIC = 0x1950A86A20F9469CFC6C
"""With this number begins a pickle of torch.save."""
_VIEWS = 4
"""Tensors may share their bytes, as tied weights do: together they claim at most so many times the file."""


class Held(dict[Any, Any]):
    """Stands for an object of any class: its items and attributes, no behaviour."""

    def __init__(self, *said: Any, **_: Any) -> None:
        try:
            super().__init__(*said)  # pairs, as an OrderedDict of Python 2 has them
        except (TypeError, ValueError):
            super().__init__()

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key
        return id(self)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.update(part)

    def append(self, _: Any) -> None:
        """What a list of another class would do."""

    add = append


@dataclass(frozen=True)
class Storage:
    """Bytes of a file: its key, what they are, and where in it a view begins, in numbers."""

    key: str
    dtype: torch.dtype
    start: int


class Described:
    """A tensor as a pickle describes it."""

    def __init__(self, storage: Storage, offset: int, size: Any, stride: Any, *rest: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)
        self.dtype = next((part for part in rest if isinstance(part, torch.dtype)), storage.dtype)

    def __setstate__(self, _: Any) -> None:
        """Attributes that somebody hung on a tensor are not wanted."""

    @property
    def numbers(self) -> int:
        """How many it claims to have."""
        return math.prod(map(abs, self.size))


class _Itself:
    """Called for a parameter or a tensor's subclass: the tensor in it. A class, so that a pickle cannot alter it."""

    def __new__(cls, data: Any, *rest: Any) -> Any:
        if isinstance(data, type):  # _rebuild_from_type_v2(function, class, arguments, state)
            return data(*rest[1]) if data in (Described, _Itself) else Held()
        return data

    def __setstate__(self, _: Any) -> None: ...


_REBUILD = {
    "_rebuild_tensor": Described,
    "_rebuild_tensor_v2": Described,
    "_rebuild_tensor_v3": Described,
    "_rebuild_parameter": _Itself,
    "_rebuild_parameter_with_state": _Itself,
    "_rebuild_from_type_v2": _Itself,
    "Parameter": _Itself,
}


class _Unpickler(pickle._Unpickler):  # the one in C reserves what a damaged or crafted memo asks for, up to 32 GB
    """Dictionaries, lists, numbers and strings as they are; all else as described above."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path
        self.storages: dict[str, Storage] = {}
        self.classes: set[str] = set()
        """Foreign ones, by their full names."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function.

        Raises:
            UserError: it would do something to the machine.
        """
        home = module.split(".")[0]
        if home in _HOSTILE or (home in ("builtins", "__builtin__") and name in _RUNS):
            raise UserError(
                f"{self.path}: refused, loading it would run code ({module}.{name}); nothing in it was run; "
                "find another copy"
            )
        if home == "torch":
            kind = _STORAGES.get(name, _REBUILD.get(name, vars(torch).get(name)))
            if isinstance(kind, torch.dtype) or name in _REBUILD:
                return kind
        elif home not in ("builtins", "__builtin__", "collections", "__torch__", "_codecs"):
            self.classes.add(f"{module}.{name}")
        return Held

    def persistent_load(self, pid: Any) -> Any:
        """The description of a storage: ``("storage", type, key, device, count)``, of old with a view behind."""
        kind, *said = pid
        if kind not in ("storage", b"storage"):  # "module": the source of a class
            return said[0]
        dtype, key, _device, _count, *view = said
        start = view[0][1] if view and view[0] else 0
        found = Storage(str(key), dtype, start)
        self.storages.setdefault(found.key, found)
        return found


def read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a file by its dotted path through dictionaries and modules.

    Args:
        path: an archive or a pickle, told apart by content.

    Returns:
        Tensors on the CPU, and what the file says beside them; ``container`` in it is ``torch`` or ``torchscript``,
        ``classes`` the foreign classes of objects that were passed over.

    Raises:
        UserError: it is damaged, claims more than it has, or would run code when loaded.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            open_ = _open_archive if file.read(2) == b"PK" else _open_pickle
            file.seek(0)
            content, fetch, said = open_(file, path, size)
            if not isinstance(content, dict):
                raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; save the state dict")
            found = dict(_walk(content, "", set()))
            if sum(one.numbers * one.dtype.itemsize for one in found.values()) > _VIEWS * size:
                raise UserError(f"{path}: is damaged: its tensors claim far more than its {size} bytes; get it again")
            tensors = {name: _view(one, fetch) for name, one in found.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: is cut short or damaged; download or copy it again") from error
    plain = {str(name): str(value) for name, value in content.items() if isinstance(value, str | int | float)}
    return tensors, plain | said


_Fetch = Callable[[Storage], Tensor]
"""From a storage to its bytes, ``(n,)`` of uint8."""


def _open_archive(file: IO[bytes], path: Path, size: int) -> tuple[Any, _Fetch, dict[str, str]]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    pickles = sorted((name for name in names if f"/{name}".endswith("/data.pkl")), key=len)
    if not pickles:
        raise UserError(f"{path}: is a zip archive without PyTorch's data.pkl in it; give the weights file itself")
    root = pickles[0].removesuffix("data.pkl")
    left = size

    def record(name: str) -> bytearray:
        nonlocal left
        left -= archive.getinfo(root + name).file_size
        if left < 0:
            raise UserError(f"{path}: unpacks to more than its {size} bytes, which torch never writes; find another")
        return bytearray(archive.read(root + name))

    swap = root + "byteorder" in names and record("byteorder").decode() != sys.byteorder
    reader = _Unpickler(BytesIO(record("data.pkl")), path)
    content = reader.load()
    kept: dict[str, Tensor] = {}

    def fetch(storage: Storage) -> Tensor:
        if storage.key not in kept:
            kept[storage.key] = _bytes(record(f"data/{storage.key}"))
            if swap:
                kept[storage.key].untyped_storage().byteswap(storage.dtype)  # type: ignore[no-untyped-call]
        return kept[storage.key]

    script = root + "constants.pkl" in names
    return content, fetch, _about(reader, "torchscript" if script else "torch")


def _open_pickle(file: IO[bytes], path: Path, size: int) -> tuple[Any, _Fetch, dict[str, str]]:
    if _Unpickler(file, path).load() != _MAGIC:
        raise UserError(
            f"{path}: is a pickle, but not one of torch.save; nothing in it was run; save the state dict with "
            "torch.save or as safetensors"
        )
    for _ in ("version", "machine"):
        _Unpickler(file, path).load()
    reader = _Unpickler(file, path)
    content = reader.load()
    places: dict[str, tuple[int, int]] = {}
    for key in _Unpickler(file, path).load():
        (count,) = struct.unpack("<Q", file.read(8))
        places[str(key)] = (file.tell(), count * reader.storages[str(key)].dtype.itemsize)
        file.seek(places[str(key)][1], 1)
    kept: dict[str, Tensor] = {}

    def fetch(storage: Storage) -> Tensor:
        if storage.key not in kept:
            start, length = places[storage.key]
            file.seek(start)
            data = bytearray(file.read(min(length, size)))
            if len(data) != length:
                raise EOFError
            kept[storage.key] = _bytes(data)
        return kept[storage.key]

    return content, fetch, _about(reader, "torch")


def _about(reader: _Unpickler, container: str) -> dict[str, str]:
    first, *rest = [*sorted(reader.classes), ""]
    more = f" and {len(rest) - 1} more classes" * (len(rest) > 1)
    return {"container": container, "classes": first + more}


def _bytes(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _view(one: Described, fetch: _Fetch) -> Tensor:
    """The tensor; torch checks that it lies within its storage."""
    numbers = fetch(one.storage).view(one.dtype)
    return numbers.as_strided(one.size, one.stride, one.offset + one.storage.start)


def _walk(node: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Described]]:
    """Tensors below a node; a module's own dictionaries add nothing to a name, and what is there twice comes once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, Described) and isinstance(value.dtype, torch.dtype):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict | list | tuple):
            module = name in ("_parameters", "_buffers", "_modules")
            yield from _walk(value, prefix if module else f"{prefix}{name}.", seen)
