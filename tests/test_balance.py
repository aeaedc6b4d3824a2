"""How L and S stand to each other: energies, prices and cancellation, beside what is computed by hand."""

import json

import pytest
import torch
from command import splore as command
from torch import nn

import splore
from splore.budget.balance import balance, balance_table


def linear(A, B, S):
    model = nn.Sequential(nn.Linear(len(B[0]), len(A), bias=True))
    splore.decompose(model, splore.Design(rank=1))
    model[0].set_parts(torch.tensor(A), torch.tensor(B), torch.tensor(S))
    return model


def test_energies_and_cancellation_are_those_of_the_parts():
    model = linear([[1.0], [2.0]], [[1.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    (row,) = balance(model, [torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])])
    # L x is (1, 2) for both inputs, S x is (-1, 1) and (-1, 4): opposed in the first output alone.
    assert row.cancellation == pytest.approx((1 + 1) / (1 + 1 + 1 + 2))
    assert row.low_rank == pytest.approx(5 / (0 + 9 + 9)) and row.sparse == pytest.approx(11 / 18)
    assert (row.rank, row.entries) == (1, 3)
    assert row.direction == 4 * 5 and row.entry > 4


def test_a_convolution_s_cancellation_is_that_of_its_two_branches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    splore.decompose(model, splore.Design(rank=2))
    layer, x = model[0], torch.randn(2, 3, 5, 5)
    (row,) = balance(model, [x])
    L, S = (nn.functional.conv2d(x, part.view(8, 3, 3, 3), padding=1) for part in (layer.low_rank, layer.S))
    least = torch.minimum(L.abs(), S.abs())
    assert row.cancellation == pytest.approx((least[L * S < 0].sum() / least.sum()).item(), rel=1e-5)


def test_a_layer_without_both_has_no_cancellation_and_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).train()
    splore.decompose(model, splore.Design(rank=0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert [row.cancellation for row in balance(model, [torch.randn(2, 6)])] == [None, None]
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "energy of L" in str(balance_table(balance(model, [torch.randn(2, 6)])))


def test_inspect_shows_it(tmp_path):
    model = splore.build("digits_cnn", 10, 1)
    splore.decompose(model, splore.Design(rank=2))
    splore.prune(model, params=0.5)
    splore.save(model, tmp_path / "net.safetensors")
    done = command("inspect", "net.safetensors", folder=tmp_path)
    assert done.code == 0 and "cancellation" in done.out and "bytes an entry" in done.out, done
    rows = json.loads(command("inspect", "net.safetensors", "--json", folder=tmp_path).out)["balance"]
    assert all(0 <= row["cancellation"] <= 1 for row in rows)
