"""Where the tokens of the last frozen block look, for looking at, not for training."""

from torch import Tensor

from dmpt.method.network import DMPT


def attention(network: DMPT, images: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the tower gives to PromptIBind, and where each token of its last block looked.

    The probabilities, which training never holds, are written out.

    Args:
        network: in evaluation mode.
        images: normalised, ``(3, B, 3, H, W)``.
        present: bool ``(3, B)``; None = all.

    Returns:
        Tokens before the final norm ``(3, B, N + P, D)``, computed from the probabilities; and the probabilities
        ``(3, B, h, N + P, N + P)``, whose rows (queries) sum to 1. P is 0 without prompts.
    """
    backbone = network.backbone
    prompts = None if network.prompts is None else network.prompts()
    last = backbone.depth - 1
    entering: dict[int, Tensor] = {}

    def keep(layer: int, tokens: Tensor) -> None:
        if layer == last:
            entering[layer] = tokens

    backbone(images.flatten(0, 1), prompts, behind=network.behind(present), watch=keep)
    own = None if prompts is None else prompts[-1]
    x = entering[last]
    x, q, k, v = backbone.in_full(last, x, x.new_zeros(len(images), 0, x.shape[-1]) if own is None else own)
    probabilities = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
    tokens = backbone.finish(last, x, probabilities.to(v.dtype) @ v)
    size = images.shape[:2]
    return tokens.view(*size, *tokens.shape[1:]), probabilities.view(*size, *probabilities.shape[1:])
