"""A module of which only some tensors are trained, and the rest comes from a pretrained file."""

from torch import Tensor, nn

from dmpt.base.errors import UserError


class PartlyTrained(nn.Module):
    """Knows what of it is trained, and so has to be saved."""

    def trained(self) -> dict[str, nn.Parameter]:
        """The tensors that training moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def trained_count(self) -> int:
        """How many numbers training moves."""
        return sum(p.numel() for p in self.trained().values())

    def own_state(self) -> dict[str, Tensor]:
        """All tensors but the frozen parameters, which the pretrained files hold."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_own_state(self, tensors: dict[str, Tensor], source: str) -> None:
        """Load what ``own_state`` gave, strictly.

        Raises:
            UserError: a tensor is missing, unknown, or of another shape.
        """
        expected = self.own_state()
        for name in [*expected, *tensors]:
            if name not in tensors or name not in expected:
                which = "lacks" if name not in tensors else "holds an unknown"
                raise UserError(f"{source} {which} tensor {name}; it belongs to a model with other settings")
            if tensors[name].shape != expected[name].shape:
                raise UserError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model wants "
                    f"{tuple(expected[name].shape)}; it belongs to a model with other settings"
                )
        self.load_state_dict(tensors, strict=False)
