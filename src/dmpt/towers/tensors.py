"""Tensors out of a weights file, without running anything that the file says, and into one.

Formats are told apart by content, never by suffix: safetensors; PyTorch's own zip or pickle; and TorchScript archives
such as OpenAI's ``ViT-B-16.pt``, which ``torch.jit.load`` would execute.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically
from dmpt.towers.torch_files import read_torch


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a weights file by its dotted name, wrappers included, on the CPU in the file's precision.

    The second value is what else the file says about itself; ``container`` in it is ``safetensors``, ``torch`` or
    ``torchscript``.

    Raises:
        UserError: not a weights file, cut short, or one that would run code when loaded.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path, or its rights") from error
    if head[5:9] == b"\0\0\0{":  # before the others: the length in front may begin with any byte
        try:
            tensors, info = read_safetensors(path)
        except SafetensorError as error:
            raise UserError(f"{path}: is cut short or damaged; download or copy it again") from error
        info["container"] = "safetensors"
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        tensors, info = read_torch(path)
    elif head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer, not the weights; fetch the real file (`git lfs pull`)")
    elif head.lstrip().startswith(b"<"):
        raise UserError(f"{path}: is a web page, not weights; download the file itself")
    else:
        raise UserError(f"{path}: is no weights file (safetensors, PyTorch or TorchScript); give the path of one")
    if not tensors:
        raise UserError(f"{path}: holds no tensors; save the model's state dict")
    return tensors, info


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and what it says beside them; errors are the library's own."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, dict(file.metadata() or {})


def refuse_nan(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Weights that are no numbers would look like a learning rate that is too high.

    Raises:
        UserError: names the first tensor that holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity; take another copy, or an earlier save of it")


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
        UserError: names, shapes or kinds of numbers differ; the first few of each kind and how many more.
    """
    pairs = [(name, found[name], due) for name, due in expected.items() if name in found]
    wrong = {
        "lacks": [name for name in expected if name not in found],
        "has unknown": [*(name for name in found if name not in expected), *strange],
        "has another shape of": [
            f"{name} {tuple(has.shape)} for {tuple(due.shape)}" for name, has, due in pairs if has.shape != due.shape
        ],
        "has whole numbers (is it quantised?) for": [
            name for name, has, due in pairs if due.is_floating_point() and not has.is_floating_point()
        ],
    }
    said = [
        f"{what} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for what, names in wrong.items()
        if names
    ]
    if said:
        raise UserError(f"{path}: weights of another architecture than {whose}: {'; '.join(said)}")
