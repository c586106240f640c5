"""``dmpt compare``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dmpt.base.terminal import print_json
from dmpt.settings.numbers import ShareBetween
from dmpt.verbs.loaded import Loaded

if TYPE_CHECKING:
    from dmpt.embed.verdict import Verdict

SAME, NOT_THE_SAME, NO_VERDICT = 0, 1, 3
"""Exit codes; 2 is an error's."""


def run(
    a: Path,
    b: Path,
    /,
    *,
    model: Path,
    loaded: Loaded,
    fmr: ShareBetween = 0.01,
    modality: Literal["rgb", "nir", "tir"] | None = None,
    json: bool = False,
) -> None:
    """Say whether two show the same: exit code 0 if so, 1 if not, 2 after an error, 3 where a score is all there is.

    Args:
        a: A picture, or a folder of shots of one: rgb, nir and tir in it, with one name for what belongs together;
            pictures called rgb.jpg, nir.jpg, tir.jpg; or pictures of one modality, in a folder of its name.
        b: The other one, likewise.
        model: Run folder, adapter folder, package:tiny, or a file of dmpt export.
        loaded: how the model is loaded
        fmr: False match rate: the share of pairs of strangers that may pass for the same.
        modality: Of pictures whose folder is not called by it; of a folder of several modalities, the one that counts.
        json: Print JSON.
    """
    from dmpt.embed.shots import find_shots

    found = [find_shots(place, modality) for place in (a, b)]  # before a model is loaded
    embedder = loaded.load(model)
    shots = [embedder.embed(**own) for own in found]
    verdict = embedder.compare(shots[0], shots[1], fmr)
    counts = [len(own) for own in shots]
    if json:
        about = {"adapter": embedder.adapter, "precision": embedder.precision}
        print_json({**asdict(verdict), "fmr_asked": fmr, "shots": counts, **about})
    else:
        print(_said(verdict, fmr, counts, embedder.precision, shots[0].shared is not None))
    raise SystemExit(NO_VERDICT if verdict.same is None else SAME if verdict.same else NOT_THE_SAME)


def _said(verdict: "Verdict", fmr: float, shots: Sequence[int], precision: str, shared: bool) -> str:
    """The verdict, and what it means; ``shared`` = what has no modality in common has shared parts."""
    if not verdict.modalities and not shared:
        return (
            f"no verdict: nothing in common; score {verdict.score:.4f} over the mean of their features, which nothing "
            "was trained to align, so no rate is known"
        )
    what = ", ".join(verdict.modalities) or "shared parts"
    score = f"score {verdict.score:.4f} over {what}"
    if verdict.fmr is None:
        return f"no verdict: {score}; in {precision} that is not calibrated, so no more can be said (dmpt calibrate)"
    several = f", with {shots[0]} and {shots[1]} shots," if max(shots) > 1 else ""
    high = f"of strangers{several} at most {100 * verdict.fmr:.2g} % score as high, and {100 * fmr:.2g} % may (FMR)"
    if verdict.same is None:
        why = "too few identities were calibrated on for that; allow more, or give fewer shots"
        return f"no verdict: {score}; {high}: {why}"
    return f"{'the same' if verdict.same else 'not the same'}: {score}; {high}"
