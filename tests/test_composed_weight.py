"""What is written into the weight of a decomposed layer takes effect or is refused, whatever way it is written."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_layers import SCHEMES, conv, filled, linear
from torch import nn

from splore.design.layers import LowRankSparseConv2d


def open_layer(rank=2, scheme=SCHEMES[0]):
    layer = filled(LowRankSparseConv2d(nn.Conv2d(3, 4, (3, 2)), rank, True, scheme), density=2)
    assert layer.mask.all()
    return layer


def by_slices(weight):
    weight[1:3, 0] = 0.5


def by_rows(weight):
    for row in weight:
        row.mul_(3)


def other_data_and_a_write(weight):
    weight.data = torch.ones(weight.shape)
    weight.mul_(3)


WRITES = {
    "an initialiser": lambda w: nn.init.kaiming_normal_(w),
    "a method of the data": lambda w: w.data.clamp_(-0.1, 0.1),
    "a copy": lambda w: w.copy_(torch.ones_like(w)),
    "an operator": lambda w: w.__imul__(2),
    "a slice": by_slices,
    "rows": by_rows,
    "a view of the detached": lambda w: w.detach().view(-1)[5:9].zero_(),
    "a flattened view": lambda w: torch.flatten(w, 1).t().add_(1),
    "an out argument": lambda w: torch.mul(w, 2, out=w),
    "a list of tensors": lambda w: torch._foreach_mul_([w], 3.0),
    "the data in new dress": lambda w: w.data.to(torch.float32).fill_(2),
    "other data": lambda w: setattr(w, "data", w.detach() * 2),
    "other data, and then a write": other_data_and_a_write,
    "a mask": lambda w: w.masked_fill_(w.abs() < 0.3, 0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_write_takes_effect_as_in_a_dense_layer(write, rank, scheme):
    layer = open_layer(rank, scheme)
    dense = layer.to_dense()
    for owner in (layer, dense):
        torch.manual_seed(1)
        with torch.no_grad():
            write(owner.weight)
    torch.testing.assert_close(layer.weight.detach(), dense.weight.detach())
    assert layer.rank == rank
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)


def test_writes_one_after_another_into_one_tensor_add_up():
    layer = open_layer()
    wanted = layer.weight.detach().clone() * 2 + 1
    with torch.no_grad():
        weight = layer.weight
        weight.mul_(2)
        weight.add_(1)
    torch.testing.assert_close(layer.weight.detach(), wanted)


def test_an_operator_that_assigns_in_place_takes_effect():
    layer = open_layer()
    wanted = layer.weight.detach().clone() * 2 + 1
    with torch.no_grad():
        layer.weight *= 2
        layer.weight += 1
    torch.testing.assert_close(layer.weight.detach(), wanted)


@pytest.mark.parametrize("write", ["copy_", "fill"])
def test_a_write_that_the_mask_or_the_lack_of_S_forbids_is_refused_and_leaves_the_layer(write):
    for layer, message in ((conv(2), "entries of S were cut"), (conv(2, sparse=False), "without a sparse part")):
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ValueError, match=message), torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight_shape)) if write == "copy_" else layer.weight.data.fill_(3)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_write_that_keeps_to_the_mask_takes_effect():
    layer = conv(2)
    assert not layer.mask.all()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.view(4, -1)[layer.mask] += 1
    torch.testing.assert_close(layer.weight.detach(), before + layer.mask.view(4, 3, 3, 2).float())


@pytest.mark.parametrize("value", [nn.Parameter(torch.zeros(5, 6)), torch.zeros(5, 6), linear().weight, None])
def test_the_weight_can_not_be_replaced_or_tied(value):
    layer = linear()
    with pytest.raises(ValueError, match="no parameter to be replaced"):
        layer.weight = value


def test_it_can_not_be_given_other_memory_which_nobody_would_see():
    layer = linear()
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="write into it"):
        layer.weight.detach().set_(torch.zeros(5, 6))
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("array", [lambda w: w.numpy(), np.asarray])
def test_an_array_of_it_is_read_only(array):
    found = array(linear().weight.detach())
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_what_is_computed_from_it_is_plain_and_differentiable():
    layer = conv(2)
    for value in (layer.weight * 2, layer.weight.clone(), layer.weight.sum(), copy.deepcopy(layer.weight.detach())):
        assert type(value) is torch.Tensor
    layer.weight.square().sum().backward()
    wanted = copy.deepcopy(layer)
    wanted.zero_grad()
    wanted.compose().square().sum().backward()
    for part in ("A", "B", "S"):
        assert torch.equal(getattr(layer, part).grad, getattr(wanted, part).grad) and getattr(layer, part).grad.any()


def test_it_can_be_written_to_a_file_that_needs_no_trust():
    layer, file = conv(2), io.BytesIO()
    torch.save({"weight": layer.weight.detach()}, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)["weight"]
    assert type(again) is torch.Tensor and torch.equal(again, layer.weight)


class ByFunction(nn.Module):
    """Reads the weight of its layer and never calls it, as attention does."""

    def __init__(self):
        super().__init__()
        self.layer = linear(2)

    def forward(self, x):
        return F.linear(x, self.layer.weight, self.layer.bias)


def test_a_module_that_reads_the_weight_trains_the_parts_compiled_or_not():
    torch._dynamo.reset()
    model, x = ByFunction(), torch.randn(3, 6)
    assert torch.equal(model(x), model.layer(x))
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
    model(x).sum().backward()
    assert all(p.grad.any() for p in model.parameters())
    names = dict(model.named_parameters())
    gradients = torch.func.grad(lambda ps: torch.func.functional_call(model, ps, x).sum())(names)
    for name, parameter in names.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("training", [True, False])
def test_attention_whose_projection_is_decomposed_computes_the_same(training):
    from splore.design.decompose import Design, decompose, materialise

    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(training)
    decompose(layer, Design(rank=2))
    x = torch.randn(2, 5, 16)
    wanted = materialise(copy.deepcopy(layer))(x)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
