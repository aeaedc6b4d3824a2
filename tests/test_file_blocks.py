"""Blocks of S in the model file and in what a net costs: one position a block, all else bit for bit."""

import pytest
import torch
from blocks import block_numbers, dense, in_blocks
from files import refused
from small_layers import SCHEMES
from torch import nn

from splore.design.layers import LowRankSparseConv2d, decomposed_layers
from splore.measure.cost import cost
from splore.modelfile.file import load, read_structure, save
from splore.postprocess.prune import prune


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cut", [False, True])
def test_the_file_keeps_blocks_bit_for_bit_and_one_position_for_each(tmp_path, scheme, cut):
    model = in_blocks(scheme)
    if cut:
        prune(model, params=0.4)
    with torch.no_grad():
        first = model[0]
        first.S[tuple(first.mask.nonzero()[0].tolist())] = -0.0
        first.S[tuple(first.mask.nonzero()[-1].tolist())] = -0.0
    save(model, tmp_path / "blocks.safetensors")
    again = load(tmp_path / "blocks.safetensors", dense())
    for a, b in zip(decomposed_layers(model).values(), decomposed_layers(again).values(), strict=True):
        assert torch.equal(a.S.masked_fill(~a.mask, 0).view(torch.int32), b.S.view(torch.int32))
        assert torch.equal(a.mask, b.mask)
        assert a.blocks == b.blocks
    for layer, described in zip(
        decomposed_layers(model).values(), read_structure(tmp_path / "blocks.safetensors").layers, strict=True
    ):
        numbers = block_numbers(layer.weight_shape, layer.scheme, 4)
        assert described.sparse.support.count == len(numbers[layer.S != 0].unique())
        assert described.nnz == int(sum((numbers == b).sum() for b in numbers[layer.S != 0].unique()))


def test_a_file_of_blocks_that_the_layer_can_not_have_is_refused(tmp_path):
    from test_file_refused import parts, signed

    save(in_blocks(), tmp_path / "blocks.safetensors")
    text, tensors = parts(tmp_path / "blocks.safetensors")
    for block, entries in ((0, 5), (10**12, 5), (2, 5), (4, 5), ("4", 5), (4, -1)):
        sparse = text["structure"]["layers"][1]["sparse"]
        sparse["block"], sparse["entries"] = block, entries
        path = tmp_path / "altered.safetensors"
        path.write_bytes(signed(text, tensors))
        refused(path)


def test_a_mask_of_parts_of_blocks_is_refused_wherever_it_comes_from(tmp_path):
    layer = LowRankSparseConv2d(nn.Conv2d(8, 3, 2), 1, block=4)
    mask = torch.ones(3, 32, dtype=torch.bool)
    mask[1, 5] = False
    with pytest.raises(ValueError, match="whole blocks of 4"):
        layer.set_parts(layer.A, layer.B, layer.S, mask)
    state = layer.state_dict()
    state["mask"] = mask
    with pytest.raises(RuntimeError, match="parts of blocks of 4"):
        layer.load_state_dict(state)
    layer.mask.copy_(mask)
    with pytest.raises(ValueError, match="whole blocks of 4"):
        save(nn.Sequential(layer), tmp_path / "parts.safetensors")


def test_the_cost_of_a_block_is_that_of_its_entries_and_one_position():
    layer = LowRankSparseConv2d(nn.Conv2d(8, 16, 3, bias=False), 0, block=4)
    mask = layer.blocks.spread(torch.rand(16, 18) < 0.1)
    layer.set_parts(None, None, torch.randn(16, 72), mask)
    found = cost(nn.Sequential(layer), (8, 5, 5))
    entries = int(mask.sum())
    assert found.params == entries and found.macs == 9 * entries
    assert found.bytes <= 4 * entries + entries // 4 + 2
