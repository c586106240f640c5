"""``text.loss: identity``: learnable identity tokens in the text prompts, one text per identity (N of Eq. 5).

The only reading of Eq. 5 that keeps the frozen text tower during training.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.method.losses import Reduction, text_contrast
from dmpt.method.modalities import Features
from dmpt.settings.config import TextConfig
from dmpt.towers.phrases import SPECTRA
from dmpt.towers.text import load_text_tower, tokenizer_of


class IdentityText(nn.Module):
    """Text features of learnable identities, after CLIP-ReID: "a visible photo of a X X X X person.".

    The vectors in the place of X are the only parameters. The frozen tower is deliberately no submodule: it is neither
    saved nor switched to training, but follows ``.to(device)``.

    Args:
        config: tower, weights and number of tokens; a ready ``file`` does not replace the tower here.
        identities: N of Eq. 5.
        thing: the object word.

    Raises:
        UserError: as ``load_text_tower``; more tokens than the tower's context takes.
    """

    _fixed: Tensor  # embeddings of the prompts, (3, L, d_t)

    def __init__(self, config: TextConfig, identities: int, thing: str) -> None:
        super().__init__()
        tower = load_text_tower(config)
        self._frozen = (tower,)
        tokenizer = tokenizer_of(tower)
        first, last = tokenizer.sot_token_id, tokenizer.eot_token_id
        openings = [f"a {spectrum} photo of a" for spectrum in SPECTRA]
        words = [tokenizer.encode(f"{opening} {'X ' * config.tokens}{thing}.") for opening in openings]
        prompts = [[first, *ids, last] for ids in words]
        self._start = [1 + len(tokenizer.encode(opening)) for opening in openings]
        self._end = [len(prompt) - 1 for prompt in prompts]
        # What follows the end changes nothing under a causal mask, so the context is cut to the longest prompt.
        length = max(map(len, prompts))
        if length > tower.context_length:
            room = config.tokens - (length - tower.context_length)
            raise UserError(f"text.tokens {config.tokens}: the tower's context takes at most {room}; lower it")
        ids = torch.tensor([prompt + [0] * (length - len(prompt)) for prompt in prompts])
        self.register_buffer("_fixed", tower.token_embedding(ids), persistent=False)
        shape = len(SPECTRA), identities, config.tokens, tower.token_embedding.embedding_dim
        self.tokens = nn.Parameter(torch.randn(shape) * 0.02)  # of each modality and identity

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._frozen[0]._apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self) -> Tensor:
        """Text features (3, N, d), not normalised."""
        tower = self._frozen[0]
        modalities, count, inserted, _ = self.tokens.shape
        with torch.autocast(self.tokens.device.type, enabled=False):
            rows = []
            for fixed, tokens, start in zip(self._fixed, self.tokens, self._start, strict=True):
                parts = fixed.expand(count, -1, -1)
                rows.append(torch.cat([parts[:, :start], tokens, parts[:, start + inserted :]], dim=1))
            x = torch.cat(rows)  # (3N, L, d_t)
            length = x.shape[1]
            x = tower.transformer(x + tower.positional_embedding[:length], attn_mask=tower.attn_mask[:length, :length])
            x = tower.ln_final(x).unflatten(0, (modalities, count))
            x = torch.stack([features[:, end] for features, end in zip(x, self._end, strict=True)])
            projection = tower.text_projection
            projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
            return projected


def text_identity(z: Features, text: Tensor, labels: Tensor, scale: float, reduction: Reduction = "mean") -> Tensor:
    """L_con of image features ``(3, B, d)`` with one text per identity and modality, ``(3, C, d)``; labels ``(B,)``."""
    return text_contrast(z, text, labels.expand(z.x.shape[:2]), scale, reduction)
