"""``dmpt demo``: the main job from end to end, on any machine, without a download.

A stand-in until the tiny CLIP is here: with a randomly initialised backbone prompts can adapt little, so the numbers
show that everything runs, not what the method is worth.
"""

from pathlib import Path

from dmpt.config import (
    BackboneConfig,
    BindConfig,
    Config,
    DataConfig,
    ModalityConfig,
    SemanticConfig,
    TextConfig,
    TrainConfig,
)
from dmpt.errors import UserError
from dmpt.evaluate import evaluate, save
from dmpt.progress import console
from dmpt.synthetic.toy import write_toy_set
from dmpt.train import Trainer

TOWER = BackboneConfig(
    name="vit_small_patch16_224", weights="random", overrides={"embed_dim": 96, "depth": 4, "num_heads": 3}
)


def configure(root: Path, epochs: int) -> Config:
    """Small settings of every component that needs no text tower."""
    return Config(
        data=DataConfig(root=str(root), size=(64, 32), pad=2),
        backbone=TOWER,
        semantic=SemanticConfig(length=8),
        modality=ModalityConfig(source="learned"),
        bind=BindConfig(depth=1),
        text=TextConfig(loss="off"),
        train=TrainConfig(epochs=epochs, ids=8, instances=4),
    )


def demo(out: Path, epochs: int = 12) -> None:
    """Write a toy set, train on it, evaluate before and after.

    Args:
        out: folder to write; must not exist or be empty.
        epochs: of training.

    Raises:
        UserError: ``out`` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use; remove it or give another --out")
    console.print(
        "Generated pictures and a randomly initialised backbone: this shows that everything runs, "
        "not what the method is worth."
    )
    write_toy_set(out / "data", train_ids=32, test_ids=16, images=8, cameras=2)
    numbers = {}
    for number, (name, length) in enumerate((("before training", 0), ("after training", epochs)), start=1):
        console.print(f"\n{number} of 2: {name}")
        run = out / name.split()[0]
        Trainer(configure(out / "data", length), run).fit()
        numbers[name] = evaluate(run)
        save(run, numbers[name])
    for name, result in numbers.items():
        print(f"{name:<16} mAP {result['mAP']:5.1f}   rank-1 {result['rank1']:5.1f}   rank-5 {result['rank5']:5.1f}")
    print(
        f"\nThe run is in {out / 'after'}. Now with real data and weights:\n"
        "  dmpt train --config configs/rgbnt201.yaml --data.root DIR --out runs/rgbnt201\n"
        "  dmpt evaluate runs/rgbnt201 --data.root DIR"
    )
