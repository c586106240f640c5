"""Which gallery items a query ignores: the protocol, as data.

Every number of the field is "mAP under a protocol". The multi-modal person sets and most vehicle sets ignore what the
query's own camera saw of the same identity; MSVR310 ignores what was seen in the same scene, which is another number
on the same features. There is no default: the caller names one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmpt.base.errors import UserError


@dataclass(frozen=True, eq=False)
class Labels:
    """Who and where, for every item of a query or gallery set.

    Attributes:
        pids: identity (person or vehicle) of each item, int64 (N,).
        cameras: camera of each item, int64 (N,).
        scenes: scene of each item, int64 (N,); None where the data set names none.

    Raises:
        UserError: the arrays are not one-dimensional and of one length.
    """

    pids: npt.NDArray[np.int64]
    cameras: npt.NDArray[np.int64]
    scenes: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        shapes = {"pids": self.pids.shape, "cameras": self.cameras.shape}
        if self.scenes is not None:
            shapes["scenes"] = self.scenes.shape
        if len(set(shapes.values())) > 1 or self.pids.ndim != 1:
            found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise UserError(
                f"labels: need one-dimensional arrays of one length, found {found}; give one label per item"
            )

    def __len__(self) -> int:
        return len(self.pids)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> "Labels":
        scenes = None if self.scenes is None else self.scenes[rows]
        return Labels(self.pids[rows], self.cameras[rows], scenes)


_Mask = npt.NDArray[np.bool_]
Protocol = Callable[[Labels, Labels], _Mask]
"""Labels of Q queries and of G gallery items in; out comes where the query (row) ignores the item, bool (Q, G)."""


def _same_camera(query: Labels, gallery: Labels) -> _Mask:
    """The query's identity seen by the query's camera: the rule of Market-1501, RGBNT201, RGBNT100, WMVeID863."""
    return _same(query.pids, gallery.pids) & _same(query.cameras, gallery.cameras)


def _same_scene(query: Labels, gallery: Labels) -> _Mask:
    """The query's identity seen in the query's scene: the rule of MSVR310."""
    if query.scenes is None or gallery.scenes is None:
        side = "query" if query.scenes is None else "gallery"
        raise UserError(
            f"protocol 'same_scene': the {side} labels have no scenes; give them, or use protocol 'same_camera'"
        )
    return _same(query.pids, gallery.pids) & _same(query.scenes, gallery.scenes)


def _nothing(query: Labels, gallery: Labels) -> _Mask:
    """No item is ignored, for query and gallery sets that do not overlap in view."""
    return np.zeros((len(query), len(gallery)), dtype=np.bool_)


def _same(query: npt.NDArray[np.int64], gallery: npt.NDArray[np.int64]) -> _Mask:
    """Every query label (Q,) against every gallery label (G,), bool (Q, G)."""
    return np.equal(query[:, None], gallery[None, :], dtype=np.bool_)


PROTOCOLS: dict[str, Protocol] = {"same_camera": _same_camera, "same_scene": _same_scene, "none": _nothing}
