"""A toy data set in the layout of RGBNT201: people of coloured blocks, different in all three spectra."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FOLDERS = {"RGB": 3, "NI": 1, "TI": 1}
Array = NDArray[np.float64]


def write_toy_set(
    root: Path,
    *,
    train_ids: int = 8,
    test_ids: int = 6,
    images: int = 8,
    cameras: int = 2,
    seed: int = 0,
    size: tuple[int, int] = (64, 32),
) -> None:
    """Write ``root/train_N`` and ``root/test`` with folders ``RGB``, ``NI`` and ``TI`` of JPEG files.

    An identity is a figure whose head, striped torso and legs have values of its own in every spectrum. Each camera
    shifts and re-lights what it sees, each image adds a jitter and noise. The same arguments write the same pixels.

    Args:
        root: folder to fill; it is created.
        train_ids: identities 1 ... ``train_ids``.
        test_ids: identities after them, numbered on.
        images: samples per identity, dealt to the cameras in turn.
        cameras: number of cameras.
        seed: of everything drawn.
        size: height and width.
    """
    for split, pids in {
        f"train_{train_ids}": range(1, train_ids + 1),
        "test": range(train_ids + 1, train_ids + test_ids + 1),
    }.items():
        for folder in _FOLDERS:
            (root / split / folder).mkdir(parents=True, exist_ok=True)
        for pid in pids:
            for number in range(images):
                camera = number % cameras + 1
                jitter = np.random.default_rng([seed, pid, number]).integers(-2, 3, size=2)
                for spectrum, (folder, channels) in enumerate(_FOLDERS.items()):
                    figure = _figure(np.random.default_rng([seed, spectrum, pid]), channels, size)
                    seen = np.roll(figure, jitter, axis=(0, 1))
                    view = np.random.default_rng([seed, spectrum, camera, 10**6])
                    noise = np.random.default_rng([seed, spectrum, pid, number])
                    seen = seen * view.uniform(0.6, 1, channels) + view.uniform(0, 0.15, channels)
                    seen = np.roll(seen, view.integers(-3, 4), axis=1) + noise.normal(0, 0.03, seen.shape)
                    pixels = np.rint(seen.clip(0, 1) * 255).astype(np.uint8)
                    name = f"{pid:06d}_cam{camera}_0_{number:02d}.jpg"
                    Image.fromarray(pixels.squeeze()).save(root / split / folder / name, quality=95)


def _figure(draw: np.random.Generator, channels: int, size: tuple[int, int]) -> Array:
    """One identity in one spectrum: ``(H, W, channels)`` in [0, 1]."""
    y, x = np.mgrid[0 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    head, torso, legs, stripes = draw.uniform(0.2, 1, (4, channels))
    canvas = np.full((*size, channels), 0.1)
    canvas[(y >= 0.05) & (y < 0.2) & (abs(x) < 0.3)] = head
    canvas[(y >= 0.2) & (y < 0.55) & (abs(x) < 0.6)] = torso
    canvas[(y >= 0.55) & (y < 0.95) & (abs(x) < 0.5) & (abs(x) > 0.1)] = legs
    wave = np.sin(draw.uniform(5, 30) * (y + draw.uniform(-1, 1) * x))
    canvas[(wave > 0) & (y >= 0.2) & (y < 0.55) & (abs(x) < 0.6)] = stripes
    return canvas
