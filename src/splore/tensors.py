"""Tensors by name, as files hold them, into a model."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """`model.load_state_dict` of tensors that come without the versions of their modules: those of the model's own.

    Some nets, torchvision's MNASNet among them, refuse a state that says none.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=strict)
