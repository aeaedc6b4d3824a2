"""A compressed net to be written into model files, and files that are not what they say."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.design.matrix import Scheme
from splore.modelfile.file import ModelFileError, load
from splore.modelfile.small import put_together, take_apart

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}


def bits(tensor):
    """A tensor whose equality is that of the bits: -0 is not 0."""
    return tensor if tensor.dtype == torch.bool else tensor.detach().contiguous().view(INTEGERS[tensor.element_size()])


def assert_same(found, expected):
    found, expected = found.state_dict(), expected.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert torch.equal(bits(found[name]), bits(value)), name


def net():
    return nn.Sequential(
        nn.Conv2d(3, 7, (3, 5), stride=2, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 1, bias=False),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 11), nn.Linear(11, 3, bias=False),
    )  # fmt: skip


def compressed(rank=2, sparse=True, scheme=Scheme.SPATIAL, density=0.2, seed=0):
    torch.manual_seed(seed)
    model = net()
    decompose(model, Design(rank=rank, sparse=sparse, scheme=scheme))
    for layer in decomposed_layers(model).values():
        if sparse:
            S, mask = torch.randn_like(layer.S), torch.rand(layer.S.shape) < density
            layer.set_parts(layer.A, layer.B, S * mask + 0.0, mask)
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += 7
    return model


def refused(path, model=None):
    with pytest.raises(ModelFileError) as caught:
        load(path, net() if model is None else model)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def signed(text, tensors):
    """A file with a right digest whatever it says, from what `parts` gave."""
    text = text.copy()
    if "structure" in text:
        tensors = put_together(tensors, text.pop("structure"))
    data = to_safetensors(tensors, {"splore": json.dumps(text | {"sha256": "0" * 64}, separators=(",", ":"))})
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def as_stored(path):
    """What the metadata of a model file say, and its tensors as they lie there."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["splore"]), from_safetensors(data)


def parts(path):
    """The same with the structure among what is said, and with the small tensors among the others."""
    text, tensors = as_stored(path)
    if text["version"] >= 3:
        text["structure"], tensors = take_apart(tensors)
    return text, tensors
