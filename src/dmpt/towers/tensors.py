"""Tensors out of a weights file, without running anything that the file says, and into one.

Formats are told apart by content, never by suffix: safetensors; PyTorch's own zip or pickle; and TorchScript archives
such as OpenAI's ``ViT-B-16.pt``, which ``torch.load(weights_only=True)`` refuses and ``torch.jit.load`` would execute.
"""

import collections
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically

_DTYPES = {
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
}

NO_WEIGHTS = ("logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size")
"""What CLIP files may hold besides the two towers' weights; nobody here needs it."""


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a weights file by its dotted name.

    Args:
        path: safetensors, a PyTorch state dict (also inside ``state_dict`` or ``model``), or a TorchScript archive.

    Returns:
        Tensors on the CPU in the file's precision, and what else the file says about itself; ``container`` in it is
        ``safetensors``, ``torch`` or ``torchscript``.

    Raises:
        UserError: not a weights file, cut short, or one that would run code when loaded.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path, or its rights") from error
    if head.startswith(b"PK\x03\x04"):
        tensors, info = _read_zip(path)
    elif head[5:9] == b"\0\0\0{":  # before the others: the length in front may begin with any byte
        tensors, info = _read_safetensors(path)
    elif head.startswith(b"\x80"):
        tensors, info = _read_torch(path)
    elif head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; fetch the real file (`git lfs pull`)")
    elif head.lstrip().startswith(b"<"):
        raise UserError(f"{path}: is a web page, not weights; download the file itself")
    else:
        raise UserError(f"{path}: is no weights file (safetensors, PyTorch or TorchScript); give the path of one")
    if not tensors:
        raise UserError(f"{path}: holds no tensors under {', '.join(info)}; save the model's state dict")
    if all(name.startswith("module.") for name in tensors):  # saved from DistributedDataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, info


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(copies, temporary, metadata)
        except SafetensorError as error:  # wraps the operating system's error
            raise OSError(str(error)) from error

    write_atomically(path, write)


def check_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, whose: str, strange: Sequence[str] = ()
) -> None:
    """Strict loading, said in one line.

    Args:
        found: the file's tensors.
        expected: the model's.
        path: the file.
        whose: the setting that named the model.
        strange: further names in the file that belong nowhere.

    Raises:
        UserError: names or shapes differ; gives the first few of each kind and how many more.
    """
    common = [name for name in expected if name in found]
    shapes = {name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in common}
    wrong = {
        "lacks": [name for name in expected if name not in found],
        "has unknown": [name for name in found if name not in expected] + list(strange),
        "has another shape of": [f"{name} {has} for {due}" for name, (has, due) in shapes.items() if has != due],
    }
    said = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise UserError(f"{path}: weights of another architecture than {whose}: {'; '.join(said)}")


def _cut_short(path: Path) -> UserError:
    return UserError(f"{path}: is cut short or damaged; download or copy it again")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, {**(file.metadata() or {}), "container": "safetensors"}
    except SafetensorError as error:
        raise _cut_short(path) from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that it is about to refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error type of its own
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path}: refused, loading it would run code ({code[1]}); save the state dict's tensors alone"
            ) from error
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"{path}: is a pickle that holds more than tensors, or is damaged; nothing in it was run"
            ) from error
        raise _cut_short(path) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict; save the model's state dict")
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    others = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    said = {name: str(v) if isinstance(v, str | int | float) else type(v).__name__ for name, v in others.items()}
    return tensors, {**said, "container": "torch"}


def _read_zip(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            script = [name for name in names if name.endswith("/constants.pkl")]
            if not script:
                return _read_torch(path)
            root = script[0].removesuffix("/constants.pkl")
            with archive.open(f"{root}/data.pkl") as file:
                module = _ScriptUnpickler(file, archive, f"{root}/data", path).load()
            found = dict(_walk(module, ""))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise _cut_short(path) from error
    # Tracing keeps a causal mask like a weight, which it is not.
    tensors = {name: tensor for name, tensor in found.items() if name.split(".")[-1] != "attn_mask"}
    return tensors, {"container": "torchscript"}


class _Node:
    """Stands for any TorchScript class: attributes, no behaviour."""


class _ScriptUnpickler(pickle.Unpickler):
    """Reads a TorchScript ``data.pkl``: tensors, numbers, strings and attribute holders; refuses all else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str, path: Path) -> None:
        super().__init__(file)
        self._archive, self._folder, self._path = archive, folder, path
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Node", (_Node,), {})  # a fresh class: the pickle may not alter one that outlives it
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch.jit._pickle" and name.startswith(("build_intlist", "build_doublelist", "build_boollist")):
            return list
        raise UserError(f"{self._path}: refused, loading it would run code ({module}.{name}); find another copy")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("unknown storage")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *_rest: Any) -> Tensor:
        return storage.as_strided(tuple(size), tuple(stride), offset).clone()  # torch checks the bounds


def _walk(node: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Node):
            yield from _walk(value, f"{prefix}{name}.")
