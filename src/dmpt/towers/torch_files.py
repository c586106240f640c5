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
from functools import cache
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


class _Held(dict[Any, Any]):
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

    def append(self, _: Any) -> None: ...  # what a list of another class would do

    add = append


@dataclass(frozen=True)
class _Storage:
    """Bytes of a file: their key, what they are, and where in them a view begins, in numbers."""

    key: str
    dtype: torch.dtype
    start: int


class _Described:
    """A tensor as a pickle describes it."""

    def __init__(self, storage: _Storage, offset: int, size: Any, stride: Any, *rest: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, tuple(size), tuple(stride)
        self.dtype = next((part for part in rest if isinstance(part, torch.dtype)), storage.dtype)

    def __setstate__(self, _: Any) -> None: ...  # attributes that somebody hung on a tensor are not wanted

    def claim(self) -> int:
        """The bytes that it claims to have."""
        return int(math.prod(map(abs, self.size))) * self.dtype.itemsize


class _Itself:
    """Called for a parameter or a tensor's subclass: the tensor in it. A class, so that a pickle cannot alter it."""

    def __new__(cls, data: Any, *rest: Any) -> Any:
        if isinstance(data, type):  # _rebuild_from_type_v2(function, class, arguments, state)
            return data(*rest[1]) if data in (_Described, _Itself) else _Held()
        return data

    def __setstate__(self, _: Any) -> None: ...


_REBUILD = {
    **dict.fromkeys(("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"), _Described),
    **dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_from_type_v2"), _Itself),
    "Parameter": _Itself,
}


class _Unpickler(pickle._Unpickler):  # the one in C reserves what a damaged or crafted memo asks for, up to 32 GB
    """Dictionaries, lists, numbers and strings as they are; all else as described above."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path
        self.storages: dict[str, _Storage] = {}
        self.classes: set[str] = set()  # foreign ones, by their full names

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function; one that would do something to the machine is refused."""
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
        return _Held

    def persistent_load(self, pid: Any) -> Any:
        """The description of a storage: ``("storage", type, key, device, count)``, of old with a view behind."""
        kind, *said = pid
        if kind not in ("storage", b"storage"):  # "module": the source of a class
            return said[0]
        dtype, key, _device, _count, *view = said
        start = view[0][1] if view and view[0] else 0
        found = _Storage(str(key), dtype, start)
        self.storages.setdefault(found.key, found)
        return found


def read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of an archive or a pickle by its dotted path through dictionaries and modules, on the CPU.

    The second value is what the file says beside them; ``container`` in it is ``torch`` or ``torchscript``, ``classes``
    the foreign classes of objects that were passed over.

    Raises:
        UserError: it is damaged, claims more than it has, or would run code when loaded.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            opened = _open_archive if file.read(2) == b"PK" else _open_pickle
            file.seek(0)
            content, fetch, said = opened(file, path, size)
            if not isinstance(content, dict):
                raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; save the state dict")
            found = dict(_walk(content, "", set()))
            if sum(one.claim() for one in found.values()) > _VIEWS * size:
                raise UserError(f"{path}: is damaged: its tensors claim far more than its {size} bytes; get it again")
            tensors = {  # as_strided checks that each lies within its storage
                name: fetch(one.storage.key)
                .view(one.dtype)
                .as_strided(one.size, one.stride, one.offset + one.storage.start)
                for name, one in found.items()
            }
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{path}: is cut short or damaged; download or copy it again") from error
    plain = {str(name): str(value) for name, value in content.items() if isinstance(value, str | int | float)}
    return tensors, plain | said


_Fetch = Callable[[str], Tensor]
"""From a storage's key to its bytes, ``(n,)`` of uint8."""


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

    @cache
    def fetch(key: str) -> Tensor:
        data = _bytes(record(f"data/{key}"))
        if swap:
            data.untyped_storage().byteswap(reader.storages[key].dtype)  # type: ignore[no-untyped-call]
        return data

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

    @cache
    def fetch(key: str) -> Tensor:
        start, length = places[key]
        file.seek(start)
        data = bytearray(file.read(min(length, size)))
        if len(data) != length:
            raise EOFError
        return _bytes(data)

    return content, fetch, _about(reader, "torch")


def _about(reader: _Unpickler, container: str) -> dict[str, str]:
    """What the file says beside its tensors, for the user."""
    first, *rest = [*sorted(reader.classes), ""]
    more = f" and {len(rest) - 1} more classes" * (len(rest) > 1)
    return {"container": container, "classes": first + more}


def _bytes(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _walk(node: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _Described]]:
    """Tensors below a node; a module's own dictionaries add nothing to a name, and what is there twice comes once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, _Described) and isinstance(value.dtype, torch.dtype):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict | list | tuple):
            module = name in ("_parameters", "_buffers", "_modules")
            yield from _walk(value, prefix if module else f"{prefix}{name}.", seen)
