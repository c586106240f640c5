"""The tiny CLIP: timm's image tower, open_clip's text tower over few words, the loss, and the files that ship."""

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from dmpt.base.files import sha256, write_atomically, write_text
from dmpt.towers.phrases import ATTRIBUTES, PHRASES, PROMPTS, TextFile
from tiny_data import SIZE

NAME = "vit_base_patch16_clip_quickgelu_224"
OVERRIDES: dict[str, Any] = {"embed_dim": 192, "depth": 8, "num_heads": 3, "num_classes": 128}
TEXT: dict[str, Any] = {"width": 128, "layers": 4, "heads": 4, "context_length": 40}
TEMPLATES = {
    "rgb": ("a photo of a {}", "a visible photo of a {}", "a visual photo of a {}", "a picture of a {}", "a {}"),
    "nir": ("a near-infrared photo of a {}",),
    "tir": ("a thermal-infrared photo of a {}",),
}
"""What stands before a caption; a full stop follows half of the time."""
VIT, TEXT_FILE = "vit.safetensors", "text.safetensors"
TOWER, TOWER_CONFIG = "text_tower.safetensors", "text_tower.json"


class Words:
    """CLIP's tokenizer with the few of its tokens that occur, numbered anew in their order.

    Args:
        kept: CLIP's token ids, ascending; begins with padding's 0, ends with the end of text, as ``argmax`` wants.
    """

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = list(kept)
        self.clip = SimpleTokenizer(context_length=TEXT["context_length"])
        self.ids = {old: new for new, old in enumerate(self.kept)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Words":
        """The words of ``texts``, and those of the paper's prompts."""
        clip = SimpleTokenizer()
        kept = {0, clip.sot_token_id, clip.eot_token_id}
        templates = [template.format("") for group in TEMPLATES.values() for template in group]
        for text in {*texts, *templates, *PHRASES.values(), *ATTRIBUTES.values(), *PROMPTS}:
            kept.update(clip.encode(text))
        return cls(sorted(kept))

    @property
    def tokens(self) -> list[str]:
        """The vocabulary as text."""
        return [self.clip.decoder[old] for old in self.kept]

    def encode(self, text: str) -> list[int]:
        """Ids of a text's own tokens; a word that never occurred counts as padding."""
        return [self.ids.get(old, 0) for old in self.clip.encode(text)]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids ``(N, L)`` with start and end, padded to the longest: what follows the end changes nothing."""
        ids = self.clip(list(texts))
        ids = ids[:, : int((ids != 0).sum(dim=1).max())]
        return torch.tensor([[self.ids.get(old, 0) for old in row] for row in ids.tolist()])


class TinyCLIP(nn.Module):
    """Both towers and the temperature.

    The image tower keeps its positions on a square grid, like every CLIP, and resamples them to ``SIZE`` in each pass:
    so its file needs no code of its own when it is loaded.

    Args:
        vocabulary: number of words.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vit: Any = timm.create_model(NAME, img_size=max(SIZE), dynamic_img_size=True, **OVERRIDES)
        self.vit.head = nn.Linear(OVERRIDES["embed_dim"], OVERRIDES["num_classes"], bias=False)
        self._start()
        self.text = TextTransformer(
            **TEXT,
            vocab_size=vocabulary,
            output_dim=OVERRIDES["num_classes"],
            act_layer=QuickGELU,
            norm_layer=LayerNorm,
        )
        self.causal = self.text.attn_mask
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        cfg: Any = self.vit.pretrained_cfg
        self.mean, self.std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def _start(self) -> None:
        """CLIP's initial values: with timm's smaller ones all pictures look alike for long."""
        width, depth = OVERRIDES["embed_dim"], OVERRIDES["depth"]
        std = width**-0.5
        for block in self.vit.blocks:
            block.attn.fused_attn = False  # on a CPU slower than two matrix products, see attention.py
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                nn.init.zeros_(layer.bias)
            nn.init.normal_(block.attn.qkv.weight, std=std)
            nn.init.normal_(block.attn.proj.weight, std=std * (2 * depth) ** -0.5)
            nn.init.normal_(block.mlp.fc1.weight, std=std * 2**-0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=std * (2 * depth) ** -0.5)
        for parameter in (self.vit.cls_token, self.vit.pos_embed, self.vit.head.weight):
            nn.init.normal_(parameter, std=std)

    def encode_image(self, pictures: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [0, 1] to features ``(B, d)``, not normalised."""
        features: Tensor = self.vit((pictures - self.mean) / self.std)
        return features

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids ``(B, L)`` to features ``(B, d)``, not normalised."""
        length = ids.shape[1]
        self.text.attn_mask = self.causal[:length, :length]  # open_clip cuts the positions to the text, not the mask
        features: Tensor = self.text(ids)
        return features

    def export(self, folder: Path, words: Words, licence: str) -> dict[str, str]:
        """Write what ships; returns the sha256 of each file.

        Raises:
            UserError: they cannot be written.
        """
        tensors = {name: tensor.detach().half().contiguous() for name, tensor in self.vit.state_dict().items()}
        write_atomically(folder / VIT, partial(save_file, tensors, metadata={"licence": licence}))
        digest = sha256(folder / VIT)

        def embeddings(texts: dict[str, str]) -> dict[str, Tensor]:
            return {m: self.text.token_embedding(torch.tensor(words.encode(text))) for m, text in texts.items()}

        self.eval()
        with torch.no_grad():
            file = TextFile(
                words=embeddings(PHRASES),
                attributes=embeddings(ATTRIBUTES),
                features=self.encode_text(words(PROMPTS)),
                logit_scale=self.logit_scale.exp().item(),
                tower="tiny",
                sha256=digest,  # the CLIP is known by its image tower
                quick_gelu=True,
            )
        file.save(folder / TEXT_FILE)
        tower = {name: tensor.detach().half().contiguous() for name, tensor in self.text.state_dict().items()}
        tower["logit_scale"] = self.logit_scale.detach().clone()
        about = {"licence": licence, "vocabulary": json.dumps(words.kept)}
        write_atomically(folder / TOWER, partial(save_file, tower, metadata=about))
        config = {"embed_dim": OVERRIDES["num_classes"], "quick_gelu": True, "vision_cfg": {}}
        config["text_cfg"] = {**TEXT, "vocab_size": words.clip.vocab_size}
        write_text(folder / TOWER_CONFIG, dumps(config) + "\n")
        return {name: sha256(folder / name) for name in (VIT, TEXT_FILE, TOWER, TOWER_CONFIG)}


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE; another picture with the very same words is no negative.

    Args:
        image: features ``(B, d)``.
        text: features ``(B, d)``.
        scale: what cosines are multiplied by.
        ids: tokens ``(B, L)``.
    """
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    same = (ids[:, None] == ids[None]).all(dim=-1) & ~torch.eye(len(ids), dtype=torch.bool)
    logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(len(ids))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def dumps(value: Any) -> str:
    """JSON of a checkpoint's or a report's content."""
    return json.dumps(value, indent=1)
