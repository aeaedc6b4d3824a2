"""Trained weights in files: what is read, what a net starts from, and what is said of the rest."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splore.vision import read_weights, start_from


def net(classes=3):
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
def test_a_state_is_found_under_its_key_and_whatever_prefix(tmp_path, prefix, under):
    trained, model = net(), net()
    state = {f"{prefix}{name}": value for name, value in trained.state_dict().items()}
    torch.save({under: state, "epoch": 3} if under else state, tmp_path / "weights.pt")
    assert start_from(model, read_weights(tmp_path / "weights.pt"), "they") == []
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


def test_two_nets_in_one_state_are_not_guessed_between():
    state = {f"{who}.{name}": value for who in ("teacher", "student") for name, value in net().state_dict().items()}
    with pytest.raises(ValueError, match="don't fit 3 layers"):
        start_from(net(), state, "they")


def test_all_layers_must_fit_where_none_is_to_be_trained():
    state = net().state_dict()
    last = list(state)[-1]
    state[last] = torch.zeros(7)
    assert start_from(net(), state, "they") == [
        f"{last.rpartition('.')[0]} starts untrained: they have nothing of its shape"
    ]
    with pytest.raises(ValueError, match="they don't fit 1 layer .*expected all to fit"):
        start_from(net(), state, "they", whole=True)


@pytest.mark.parametrize("key", ["0.weight", "1.running_mean"])
def test_a_tensor_that_is_missing_within_the_net_is_named(key):
    state = net().state_dict()
    del state[key]
    with pytest.raises(ValueError, match=f"they lack {key}"):
        start_from(net(), state, "they")


def test_what_starts_untrained_and_what_has_no_place_is_said():
    old = {name: value for name, value in net(7).state_dict().items() if "num_batches" not in name}
    (said,) = start_from(net(), old, "they")
    assert said.startswith("2 starts untrained")
    (said,) = start_from(net(), net().state_dict() | {"3.weight": torch.zeros(2)}, "they")
    assert said.startswith("they hold 1 of ") and "3.weight" in said
    headless = {name: value for name, value in old.items() if not name.startswith("2.")}
    assert len(start_from(net(), headless, "they")) == 1


def test_what_holds_more_than_tensors_or_has_the_wrong_name_is_refused(tmp_path):
    torch.save(net(), tmp_path / "whole.pt")
    save_file(net().state_dict(), tmp_path / "safe.pt")
    torch.save(net().state_dict(), tmp_path / "torch.safetensors")
    for name in ("whole.pt", "safe.pt", "torch.safetensors"):
        with pytest.raises(ValueError, match="can't be read as"):
            read_weights(tmp_path / name)
    torch.save({"ema": net().state_dict()}, tmp_path / "ema.pt")
    with pytest.raises(ValueError, match="found a dict with ema"):
        read_weights(tmp_path / "ema.pt")
