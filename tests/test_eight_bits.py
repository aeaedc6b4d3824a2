"""Weights rounded to eight bits: by hand, twice as once, and in the model file to the bit."""

import numpy as np
import pytest
import torch
from blocks import dense, in_blocks
from files import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import SCHEMES
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.eight_bits import integers, real, round_weights, rounded, scales, weights
from splore.design.layers import decomposed_layers
from splore.measure.cost import cost
from splore.modelfile.file import load, read_structure, save
from splore.modelfile.sparse_index import Coding
from splore.postprocess.prune import prune


def quantised(scheme=SCHEMES[0], block=4, kept=0.5):
    model = in_blocks(scheme) if block == 4 else dense()
    if block == 1:
        decompose(model, Design(rank=1, scheme=scheme, exclude=("6",)))
    prune(model, params=kept)
    round_weights(model)
    model.activation_ranges = {"input": (-1.0, 2.5), "0": (0.0, 3.25)}
    return model.eval()


def bits(model):
    return {
        name: value.view(torch.int32) if value.dtype == torch.float32 else value
        for name, value in model.state_dict().items()
    }


def masked(model):
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.masked_fill_(~layer.mask, 0)
    return model


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 9),
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 0.0]),
    seed=st.integers(0, 999),
)
def test_a_row_is_bytes_times_its_scale_and_rounding_twice_is_rounding_once(rows, columns, size, seed):
    W = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    scale = scales(W, rows)
    q = integers(W, scale)
    again = real(q, scale)
    for row, s, numbers in zip(W.double(), scale.double(), q, strict=True):
        assert row.abs().max() / 127 <= s <= row.abs().max() / 127 * (1 + 2**-15)
        for w, n in zip(row, numbers, strict=True):
            assert abs(int(n)) <= 127 and abs(float(w) - int(n) * float(s)) <= float(s) * (0.5 + 1e-6)
    assert torch.equal(scales(again, rows), scale) and torch.equal(integers(again, scale), q)
    assert torch.equal(again.double(), q.double() * scale.double()[:, None])  # exact
    torch.testing.assert_close(rounded(W, rows), again, rtol=1e-6, atol=0)


def test_the_scale_that_an_engine_finds_in_rounded_rows_is_the_one_they_were_rounded_by():
    W = real(integers(W := torch.randn(40, 30), scales(W, 40)), scales(W, 40))
    assert np.array_equal((W.numpy().__abs__().max(1) / 127).astype(np.float32), scales(W, 40).numpy())


def test_rows_are_output_channels_of_S_and_A_and_directions_of_B():
    for scheme in SCHEMES:
        model = in_blocks(scheme)
        found = {(name, part): rows for name, _, part, rows in weights(model)}
        assert found["0", "S"] == found["0", "A"] == 6 and found["0", "B"] == 1
        assert found["6", "S"] == 10 and len(found) == 9
    assert {(part, rows) for _, _, part, rows in weights(dense())} == {("weight", 6), ("weight", 8), ("weight", 10)}


def test_the_gradient_passes_the_rounding_by():
    W = torch.randn(3, 5, requires_grad=True)
    (rounded(W, 3) * torch.arange(15.0).view(3, 5)).sum().backward()
    torch.testing.assert_close(W.grad, torch.arange(15.0).view(3, 5))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("block", [1, 4])
def test_a_model_in_eight_bits_is_written_as_such_and_comes_back_to_the_bit(tmp_path, scheme, block):
    model = quantised(scheme, block)
    save(model, tmp_path / "bytes.safetensors")
    again = load(tmp_path / "bytes.safetensors", dense())
    found, expected = bits(again), bits(masked(model))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert again.activation_ranges == model.activation_ranges
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(again.eval()(x), model(x))
    structure = read_structure(tmp_path / "bytes.safetensors")
    assert set(structure.coded.values()) == {"int8"}
    assert len(structure.coded) == 3 * len(decomposed_layers(model)) + (block == 1)
    save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "bytes.safetensors").read_bytes()


def test_weights_that_moved_on_are_written_as_they_are(tmp_path):
    model = quantised()
    with torch.no_grad():
        model[0].S[model[0].mask] += 1e-3 * torch.randn(int(model[0].mask.sum()))
    save(model, tmp_path / "moved.safetensors")
    assert "0.S.values" not in read_structure(tmp_path / "moved.safetensors").coded
    found, expected = bits(load(tmp_path / "moved.safetensors", dense())), bits(masked(model))
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("block", [1, 4])
def test_float16_on_request_rounds_weights_alone_and_gives_float32_back(tmp_path, block):
    model = quantised(block=block)
    del model.activation_ranges
    with torch.no_grad():
        for layer in decomposed_layers(model).values():
            layer.S.add_(torch.randn(layer.S.shape)).masked_fill_(~layer.mask, 0)
    save(model, tmp_path / "half.safetensors", values="float16")
    again = load(tmp_path / "half.safetensors", dense())
    names = {f"{name}.{part}" if name else part for name, _, part, _ in weights(model)}
    for name, value in again.state_dict().items():
        before = model.state_dict()[name]
        assert value.dtype == before.dtype
        assert torch.equal(value, before.half().float() if name in names else before), name
    with torch.no_grad():
        model[0].A.fill_(1e6)
    with pytest.raises(ValueError, match="float16 holds"):
        save(model, tmp_path / "large.safetensors", values="float16")


def test_what_the_file_takes_is_counted_and_what_it_must_take_at_the_least():
    layer = nn.Conv2d(64, 96, 3, bias=False)
    model = nn.Sequential(layer)
    decompose(model, Design(rank=2, block=4))
    prune(model, params=0.2)
    round_weights(model)
    whole = cost(model, (64, 5, 5)).bytes
    model.activation_ranges = {"input": (0.0, 1.0)}
    found = cost(model, (64, 5, 5))
    numbers = found.params + 4 * (96 + 96 + 2)  # a byte each, and the scales of S, A and B
    places, kept = 96 * 16 * 9, model[0].blocks.any(model[0].S).double().mean().item()
    entropy = -places * (kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept)) / 8
    assert found.bytes_least == pytest.approx(numbers + entropy)
    assert found.bytes_least < found.bytes < 1.02 * found.bytes_least and found.bytes < whole / 3
    assert sum(layer.bytes for layer in found.layers) == found.bytes


def test_tensors_that_are_not_coded_as_the_file_says_are_refused(tmp_path):
    from test_file_refused import parts, signed

    save(quantised(), tmp_path / "bytes.safetensors")
    text, tensors = parts(tmp_path / "bytes.safetensors")
    path = tmp_path / "altered.safetensors"
    short, none = tensors["0.S.scale"][:4].contiguous(), {k: v for k, v in tensors.items() if k != "0.A.scale"}
    for altered in (
        tensors | {"0.S.scale": short}, none, tensors | {"0.B": tensors["0.B"].to(torch.int16)},
        tensors | {"0.S.values": tensors["0.S.values"].float()}, tensors | {"0.A.scale": tensors["0.A.scale"].double()},
    ):  # fmt: skip
        path.write_bytes(signed(text, altered))
        refused(path, dense())
    structure = text["structure"]
    for wrong in (
        {"coded": {"0.A": "int4"}},
        {"coded": {"9.A": "int8"}},
        {"ranges": {"0": [1.0, 2.0]}},
        {"ranges": {"0": [0]}},
    ):
        path.write_bytes(signed(text | {"structure": structure | wrong}, tensors))
        refused(path, dense())


def test_positions_of_blocks_and_of_bytes_are_rice_codes():
    codings = set()
    for block in (1, 4):
        model = quantised(block=block)
        from splore.modelfile.packed import pack
        from splore.modelfile.values import Values

        codings |= {pack(layer, Values.INT8).support.coding for layer in decomposed_layers(model).values()}
    assert Coding.RICE in codings and Coding.GAPS not in codings
