"""Trained weights in files, and a net that starts from them."""

import os
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import nn

from splore.tensors import load_tensors


def start_from(model: nn.Module, trained: Mapping[str, torch.Tensor], what: str, whole: bool = False) -> list[str]:
    """Copies trained tensors into `model`, all but the last layer's where the numbers of classes differ.

    A prefix that all names have, such as `module.`, `_orig_mod.` or `model.`, is left out.

    Returns:
        What there is to say: which layer starts untrained, and which tensors have no place.

    Raises:
        ValueError: they, called `what`, fit less of the model than all but one layer, or lack one that is not the last;
            with `whole`: they fit less than all layers.
    """
    own = model.state_dict()
    trained = _without_prefix(trained, list(own))
    fits = {key: value for key, value in trained.items() if key in own and own[key].shape == value.shape}
    # Old states have no count of batches.
    unfit = [key for key in own if key not in fits and not key.endswith("num_batches_tracked")]
    left = {key.rpartition(".")[0] for key in unfit}
    if len(left) > (0 if whole else 1):
        found = f"{', '.join(sorted(left)[:3])}{', ...' if len(left) > 3 else ''}"
        layers = f"{len(left)} layer{'s' * (len(left) > 1)} ({found})"
        raise ValueError(f"{what} don't fit {layers}; expected {'all' if whole else 'all but one'} to fit")
    lacking = [key for key in unfit if key not in trained]
    if lacking and left != {list(own)[-1].rpartition(".")[0]}:
        raise ValueError(f"{what} lack {', '.join(lacking)}; expected all that is not of the last layer")
    load_tensors(model, fits, strict=False)
    notes = [f"{layer} starts untrained: {what} have nothing of its shape" for layer in left]
    if extra := [key for key in trained if key not in own]:
        some = f"{', '.join(extra[:3])}{', ...' if len(extra) > 3 else ''}"
        notes.append(f"{what} hold {len(extra)} of {len(trained)} tensors that the net has no place for ({some})")
    return notes


def _without_prefix(trained: Mapping[str, torch.Tensor], names: list[str]) -> Mapping[str, torch.Tensor]:
    """Tensors by the names that a model has, where theirs are those after one prefix, and not as they stand."""
    ends = [key for key in trained if names and key.endswith(f".{names[0]}")]
    if len(ends) != 1 or not set(names).isdisjoint(trained):
        return trained
    prefix = ends[0].removesuffix(names[0])
    return {key.removeprefix(prefix): value for key, value in trained.items() if key.startswith(prefix)}


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The state dict in a file, on the CPU: of safetensors, or of torch, read without running what is in it.

    `.safetensors` is told from torch's by the name. A state dict that lies under `state_dict` or `model` is found, and
    the `module.` of a parallel training is left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state dict.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file of weights {path}")
    is_safe = str(path).endswith(".safetensors")
    try:
        if is_safe:
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have no error in common
        raise ValueError(
            f"{path} can't be read as {'safetensors' if is_safe else 'weights of torch'}: it is damaged, of another "
            "format than its name says, or holds more than tensors, such as a whole module or an optimiser; write "
            f"model.state_dict() alone ({type(error).__name__}: {str(error).partition(chr(10))[0]:.80})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        keys = f" with {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) and state else ""
        raise ValueError(
            f"expected a state dict in {path}, tensors by name, perhaps under 'state_dict' or 'model', found a "
            f"{type(state).__name__}{keys}"
        )
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
