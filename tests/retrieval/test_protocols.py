"""The rules that decide which gallery items a query ignores."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.retrieval.protocols import PROTOCOLS, Labels

Item = tuple[int, int, int]
items = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=5)


def labels(rows: list[Item], scenes: bool = True) -> Labels:
    pids, cameras, places = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Labels(pids, cameras, places if scenes else None)


@given(items, items)
def test_rules_say_what_their_names_say(query: list[Item], gallery: list[Item]) -> None:
    masks = {name: rule(labels(query), labels(gallery)) for name, rule in PROTOCOLS.items()}
    for row, (pid, camera, scene) in enumerate(query):
        for column, (other, other_camera, other_scene) in enumerate(gallery):
            assert masks["same_camera"][row, column] == (pid == other and camera == other_camera)
            assert masks["same_scene"][row, column] == (pid == other and scene == other_scene)
            assert not masks["none"][row, column]
    assert all(mask.shape == (len(query), len(gallery)) and mask.dtype == np.bool_ for mask in masks.values())


@given(items, items, st.sampled_from(sorted(PROTOCOLS)), st.integers(1, 4))
def test_chunks_of_queries_make_up_the_whole(query: list[Item], gallery: list[Item], protocol: str, chunk: int) -> None:
    rule, everyone, others = PROTOCOLS[protocol], labels(query), labels(gallery)
    parts = [rule(everyone[start : start + chunk], others) for start in range(0, len(query), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), rule(everyone, others))


def test_labels_are_sliced_together() -> None:
    part = labels([(1, 2, 3), (4, 5, 6), (7, 8, 9)])[1:]
    assert len(part) == 2
    assert part.scenes is not None
    assert [part.pids.tolist(), part.cameras.tolist(), part.scenes.tolist()] == [[4, 7], [5, 8], [6, 9]]
    assert labels([(1, 2, 3)], scenes=False)[:1].scenes is None


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_scene_rule_needs_scenes(side: str) -> None:
    sets = {name: labels([(0, 0, 0)], scenes=name != side) for name in ("query", "gallery")}
    with pytest.raises(UserError, match=f"'same_scene': the {side} labels have no scenes; .*'same_camera'"):
        PROTOCOLS["same_scene"](sets["query"], sets["gallery"])


def test_labels_of_unequal_length() -> None:
    with pytest.raises(UserError, match=r"pids \(2,\), cameras \(3,\); give one label per item"):
        Labels(np.zeros(2, dtype=np.int64), np.zeros(3, dtype=np.int64))


def test_labels_of_two_dimensions() -> None:
    with pytest.raises(UserError, match=r"one-dimensional.*pids \(2, 2\)"):
        Labels(np.zeros((2, 2), dtype=np.int64), np.zeros((2, 2), dtype=np.int64))


def test_import_changes_no_global_state() -> None:
    code = """
import os, warnings, numpy as np, torch
def state():
    return (dict(os.environ), np.geterr(), np.get_printoptions(), list(warnings.filters), torch.get_num_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.initial_seed(), np.random.get_state()[1].tolist())
before = state()
import dmpt.retrieval.metrics, dmpt.retrieval.protocols
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
