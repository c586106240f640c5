"""A file of dmpt export: it says what it was told, a changed one is refused, and it runs as torch's models do."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

import dmpt
from dmpt.adapter.calibration import Calibration
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.retrieval.calibration import Pairs
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.rates import rates_of
from dmpt.runtime import exported
from dmpt.runtime.exported import Input, read, write
from graphs import SIZE, facts, graph_of, mean_colour, toy_file

RUNTIMES: Any = ("onnx", "openvino")
INPUTS: tuple[Input, ...] = get_args(Input)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:  # type: ignore[type-arg]
    return list(np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8))


def unit(*parts: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    whole = np.concatenate(parts)
    found: np.ndarray = whole / np.linalg.norm(whole)  # type: ignore[type-arg]
    return found


def calibration(precision: Any = "fp32", with_cohort: bool = False) -> Calibration:
    """Of made-up scores; the cohort's vectors too."""
    draw = np.random.default_rng(0)
    first, second = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)
    scores = np.float64(np.float32(np.round(draw.normal(first == second, 0.3), 6)))
    tables = tuple(
        rates_of(common, Pairs(scores, first, second), draws=5) for common in (("rgb", "nir", "tir"), ("rgb",))
    )
    cohort = None
    if with_cohort:
        vectors = draw.normal(size=(20, 3, 3)).astype(np.float32)
        cohort = Embeddings(vectors, np.ones((20, 3), np.bool_))
    return Calibration("a" * 64, precision, "x", "2:a:b", "val", "camera", 40, 160, tables, tables[:0], cohort)


def test_it_says_what_it_was_told_and_any_program_can_read_it(tmp_path: Path) -> None:
    table = np.arange(16, dtype=np.float32).reshape(8, 2)
    found = facts(standardisation=table, calibration=calibration(with_cohort=True), cost={"mAP": 50.5})
    write(graph_of(found), found, tmp_path / "x.onnx")
    again = read(tmp_path / "x.onnx")
    names = ("adapter", "backbone", "inputs", "input", "precision", "object", "licence", "parity", "cost")
    assert [getattr(again, name) for name in names] == [getattr(found, name) for name in names]
    assert (again.data.size, again.data.mean, again.data.value_range) == (SIZE, (0.5, 0.4, 0.3), (0.0, 4000.0))
    assert again.calibration == found.calibration
    assert again.standardisation is not None
    assert (again.standardisation == table).all()
    assert again.calibration is not None
    assert again.calibration.cohort is not None
    assert found.calibration is not None
    assert found.calibration.cohort is not None
    assert (again.calibration.cohort.features == found.calibration.cohort.features).all()

    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert json.loads(said["dmpt.modalities"]) == ["rgb", "nir", "tir"]
    assert (said["dmpt.licence"], said["dmpt.resize"]) == ("ours", "bicubic, antialias")
    assert len(said["dmpt.sha256"]) == 64
    ort: Any = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == said


def test_a_changed_byte_anywhere_is_seen(tmp_path: Path) -> None:
    path = toy_file(tmp_path / "x.onnx")
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for place in [0, 1, len(whole) - 1, len(whole) - 70, *draw.integers(0, len(whole), 300).tolist()]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(changed)
        with pytest.raises(UserError):
            read(path)
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError):
        read(path)
    path.write_bytes(whole)
    assert read(path).licence == "ours"


def edited(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    """What another program makes of a file."""

    def edit(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        path.write_bytes(model.SerializeToString())

    return edit


def stripped(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def older(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"dmpt-onnx/1", b"dmpt-onnx/0"))


def lying(**said: str | None) -> Callable[[Path], object]:
    """Sealed, as nobody but a liar would: texts by their keys, None = left out."""

    def lie(path: Path) -> None:
        found = facts()
        texts = found.to_metadata() | {f"dmpt.{name}": text for name, text in said.items()}
        object.__setattr__(found, "to_metadata", lambda: {key: text for key, text in texts.items() if text is not None})
        write(graph_of(found), found, path)

    return lie


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "x.onnx cannot be read (No such file or directory); give a file that dmpt"),
        (lambda path: path.write_bytes(b""), "x.onnx does not say how it takes pictures: dmpt export did not write it"),
        (lambda path: path.write_text("no graph"), "x.onnx is cut short, or no ONNX file"),
        (edited(stripped), "x.onnx does not say how it takes pictures: dmpt export did not write it"),
        (edited(lambda model: model.graph.node.pop()), "x.onnx is not as dmpt export wrote it: it was changed since"),
        (older, "x.onnx has format 'dmpt-onnx/0'; this version of dmpt"),
        (lying(size=None), "x.onnx says what dmpt export does not write (it lacks dmpt.size); export it again"),
    ],
)
def test_a_foreign_or_tampered_file_is_one_line_and_exit_code_2(
    spoil: Callable[[Path], object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(toy_file(Path("x.onnx")))
    (tmp_path / "rgb.png").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        main(["compare", "rgb.png", "rgb.png", "--modality", "rgb", "--model", "x.onnx"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dmpt compare: error: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("size", "[" * 100_000, "maximum recursion depth exceeded"),
        ("size", "[1000000, 16]", "a size of 1000000x16"),
        ("size", "[0, 16]", "metadata.data.size is [0, 16]; it must be"),
        ("inputs", "[]", "inputs are [], of ['rgb', 'nir', 'tir']"),
        ("inputs", '["rgb", "rgb", "nir"]', "inputs are ['rgb', 'rgb', 'nir'], of"),
        ("inputs", '["nir", "rgb"]', "inputs are ['nir', 'rgb'], of"),
        ("modalities", '["rgb", "tir"]', "inputs are ['rgb', 'nir', 'tir'], of ['rgb', 'tir']"),
        ("modalities", '["tir", "nir", "rgb"]', "data.modalities is ['tir', 'nir', 'rgb']; name at least one of"),
        ("value_range", "[5, 5]", "data.value_range is [5.0, 5.0]; give two numbers"),
        ("value_range", "[0, NaN]", "metadata.data.value_range is [0, NaN]; it must be"),
        ("value_range", '"auto"', "its preprocessing is not whole"),
        ("std", "[0, 1, 1]", "metadata.data.std is [0, 1, 1]; it must be"),
        ("mean", "null", "its preprocessing is not whole"),
        ("parity", "NaN", "metadata.parity is NaN; it must be a number from 0 to 1"),
        ("parity", "-1", "metadata.parity is -1; it must be a number from 0 to 1"),
        ("standardisation", "[1, 2]", "cannot reshape array of size 2"),
        ("standardisation", f"[1{'0' * 400}]", "int too large to convert to float"),
        ("standardisation", f"[{'NaN, ' * 15}NaN]", "a standardisation that is no number"),
        ("cost", "[1]", "metadata.cost is [1]; it must be"),
        ("precision", "int4", 'metadata.precision is "int4"; it must be fp32 or int8'),
    ],
)
def test_sealed_nonsense_is_one_line(key: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    lying(**{key: text})(path)
    with pytest.raises(UserError) as error:
        dmpt.load(path)
    assert str(error.value).startswith(f"{path} says what dmpt export does not write ({said}")
    assert str(error.value).endswith("); export it again")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("size", "[16, 32]", "(3, 16, 32), (3, 16, 32), (3, 16, 32), (3,)"),
        ("inputs", '["rgb"]', "(3, 32, 16)"),
        ("input", "uint8", "(32, 16, 3), (32, 16, 3), (32, 16, 3), (3,)"),
    ],
)
def test_a_graph_that_takes_something_else_is_refused(
    runtime: Any, key: str, text: str, said: str, tmp_path: Path
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    path = tmp_path / "x.onnx"
    lying(**{key: text})(path)
    takes = "(3, 32, 16), (3, 32, 16), (3, 32, 16), (3,)"
    with pytest.raises(UserError) as error:
        dmpt.load(path, runtime=runtime)
    assert str(error.value) == f"{path} says that it takes [{said}], but its graph takes [{takes}]; export it again"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("fed", INPUTS)
def test_it_embeds_whatever_it_is_fed(runtime: Any, fed: Input, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    model = dmpt.load(toy_file(tmp_path / "x.onnx", input=fed), runtime=runtime)
    assert (model.precision, model.adapter, model.modalities) == ("fp32", "a" * 64, ("rgb", "nir", "tir"))
    rgb, tir = pictures(3), pictures(3, 1)
    found = model.embed(rgb=[*rgb[:2], None], tir=[tir[0], None, tir[2]], batch_size=2)
    assert found.present.tolist() == [[True, False, True], [True, False, False], [False, False, True]]
    nothing = np.zeros(3)
    expected = [
        unit(mean_colour(rgb[0]), nothing, mean_colour(tir[0])),
        unit(mean_colour(rgb[1]), nothing, nothing),
        unit(nothing, nothing, mean_colour(tir[2])),
    ]
    np.testing.assert_allclose(found.flat, expected, atol=1e-5)
    assert model.similarity(found, found)[1, 1] == pytest.approx(1, abs=1e-5)
    with ThreadPoolExecutor(4) as threads:
        several = list(threads.map(lambda _: model.embed(rgb=rgb).flat, range(16)))
    assert all((one == several[0]).all() for one in several)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("precision", "sizes"), [("fp32", [3]), ("int8", [1, 1, 1])])
def test_int8_is_run_one_by_one_so_that_no_vector_depends_on_the_others(
    runtime: Any, precision: str, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    path, expected = toy_file(tmp_path / "x.onnx", precision=precision), toy_file(tmp_path / "y.onnx")
    module = {"onnx": exported.onnx, "openvino": exported.openvino}[runtime]
    made, seen = module.session, []

    def session(*arguments: Any) -> Any:
        run = made(*arguments)
        return lambda given: (seen.append(len(given[0])), run(given))[1]

    monkeypatch.setattr(module, "session", session)
    given: Any = {"rgb": pictures(3), "tir": [None, *pictures(2, 1)]}
    found = dmpt.load(path, runtime=runtime).embed(**given)
    assert seen == sizes
    np.testing.assert_allclose(found.flat, dmpt.load(expected).embed(**given).flat, atol=1e-6)


@pytest.mark.parametrize("fed", INPUTS)
def test_one_modality_is_one_input(fed: Input, tmp_path: Path) -> None:
    path = toy_file(tmp_path / "x.onnx", input=fed, inputs=("nir",))
    model, rgb = dmpt.load(path), pictures(2)
    assert (model.modalities, model.data.modalities) == (("nir",), ("rgb", "nir", "tir"))
    found = model.embed(nir=rgb)
    assert found.present.tolist() == [[False, True, False]] * 2
    np.testing.assert_allclose(found.features[:, 1], [unit(mean_colour(one)) for one in rgb], atol=1e-5)
    with pytest.raises(UserError, match="rgb is given, but the model reads nir"):
        model.embed(rgb=rgb)


def test_its_calibration_is_that_of_its_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = dmpt.load(toy_file(tmp_path / "same.onnx", calibration=calibration()))
    assert same.calibration is not None
    one = same.embed(rgb=pictures(1))
    assert same.compare(one, one).fmr is not None
    assert capsys.readouterr().err == ""
    other = dmpt.load(toy_file(tmp_path / "other.onnx", calibration=calibration("bf16")))
    assert (other.precision, other.calibration) == ("fp32", None)
    assert "other.onnx is calibrated at precision bf16; at fp32 its scores are not" in capsys.readouterr().err
    pytest.importorskip("openvino")
    native = dmpt.load(tmp_path / "other.onnx", runtime="openvino")
    assert native.precision == "bf16"
    assert native.calibration is not None


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_signal_is_heard_after_models_in_openvino_have_gone(tmp_path: Path) -> None:
    """Where the processor has AMX, it gives a thread another stack for signals."""
    pytest.importorskip("openvino")
    source = """
import gc, signal, sys
import dmpt
models = [dmpt.load(sys.argv[1], runtime="openvino") for _ in range(2)]
while models:
    del models[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    path = toy_file(tmp_path / "x.onnx")
    signals = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    ended = subprocess.run([sys.executable, "-c", signals + source, str(path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("x.onnx", {"precision": "bf16"}, "x.onnx computes in fp32 with onnx, not in bf16; leave that out"),
        ("x.onnx", {"runtime": "torch"}, "x.onnx is a file for ONNX Runtime or OpenVINO; give the run"),
        ("x.onnx", {"which": "best"}, "x.onnx is a file that holds all it needs; leave out which best"),
        ("x.onnx", {"weights": "w.pt"}, "x.onnx is a file that holds all it needs; leave out weights w.pt"),
        ("package:tiny", {"runtime": "onnx"}, "runtime onnx runs a file, and package:tiny is none; dmpt export makes"),
        ("package:tiny", {"precision": "int8"}, "package:tiny computes in fp32, bf16, fp16, not in int8; dmpt export"),
    ],
)
def test_what_does_not_fit(name: str, options: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy_file(Path("x.onnx"))
    with pytest.raises(UserError, match=said):
        dmpt.load(name, **options)


@pytest.mark.parametrize(("runtime", "extra"), [("onnx", "onnx"), ("openvino", "openvino")])
def test_a_runtime_that_is_not_installed(
    runtime: Any, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy_file(tmp_path / "x.onnx")
    monkeypatch.setitem(__import__("sys").modules, {"onnx": "onnxruntime"}.get(runtime, runtime), None)
    with pytest.raises(UserError, match=rf"which is not installed: pip install 'dmpt\[{extra}\]'"):
        dmpt.load(path, runtime=runtime)
