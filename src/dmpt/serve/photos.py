"""Pictures of the gallery's rows: those under its source alone, as small JPEGs."""

import io
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlencode

from PIL import Image

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.data.images import contents_of, read_record
from dmpt.gallery.pictures import Pictures
from dmpt.gallery.store import Gallery
from dmpt.serve.refused import Refused

_QUALITY = 85


class Photos:
    """Of one gallery.

    Args:
        gallery: whose source is looked in.
        value_range: of the model, for pictures of 16 bits.

    Attributes:
        there: whether the source is.

    Raises:
        UserError: a manifest that lies there cannot be read.
    """

    def __init__(self, gallery: Gallery, value_range: tuple[float, float]):
        root = None if gallery.source is None else expanded(gallery.source)
        self.there = root is not None and root.is_dir()
        self._pictures, self._range = Pictures(root), value_range

    def urls(self, key: str, has: Sequence[str]) -> dict[str, str]:
        """Where a row's pictures are fetched, by modality; of those that are there."""
        record = self._pictures.of(key, has)
        there = () if record is None else record.paths
        return {name: f"/gallery/picture?{urlencode({'key': key, 'modality': name})}" for name in has if name in there}

    def files(self, key: str, has: Sequence[str]) -> dict[str, bytes]:
        """What is in a row's pictures.

        Raises:
            Refused: they are not there, or lie side by side in one file.
        """
        record = self._pictures.of(key, has)
        if record is None or record.columns:
            raise Refused(404, "the pictures of this row are not there")
        try:
            return {name: contents_of(path) for name, path in record.paths.items()}
        except UserError:
            raise Refused(404, "the pictures of this row cannot be read") from None

    def jpeg(self, key: str, has: Sequence[str], modality: str, size: int) -> bytes:
        """A row's picture.

        Args:
            key: of the row.
            has: modalities that its vectors have.
            modality: of the picture.
            size: of the longer side, pixels, at most.

        Raises:
            Refused: it is not there, or does not decode.
        """
        record = self._pictures.of(key, has)
        path = None if record is None else record.paths.get(modality)
        if record is None or path is None:
            raise Refused(404, f"this row has no {modality} picture here")
        try:
            pixels = read_record(replace(record, paths={modality: path}), self._range)[modality]
        except UserError:
            raise Refused(404, f"the {modality} picture of this row cannot be read") from None
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image.thumbnail((size, size), Image.Resampling.BICUBIC, reducing_gap=None)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()
