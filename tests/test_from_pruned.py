"""What torch.nn.utils.prune has masked becomes S under the same mask, from the live net and from its checkpoint."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import splore
from splore.modelfile.file import ModelFileError


def dense():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 6, 3, groups=6), nn.Flatten(),
        nn.Linear(6 * 25, 10), nn.Linear(10, 4),
    )  # fmt: skip


def masked():
    """Unstructured, structured and of a bias; layer 6 has no mask."""
    model = dense().eval()
    prune.l1_unstructured(model[0], "weight", 0.7)
    prune.random_unstructured(model[0], "weight", 0.2)  # two masks one over the other
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=1)
    prune.l1_unstructured(model[3], "weight", 0.5)
    prune.l1_unstructured(model[5], "weight", 0.9)
    prune.l1_unstructured(model[5], "bias", 0.5)
    return model


X = torch.randn(2, 3, 8, 8)


def check(found, model, state):
    torch.testing.assert_close(found.eval()(X), model(X), rtol=1e-5, atol=1e-5)
    layers = splore.decomposed_layers(found)
    assert set(layers) == {"0", "2", "5"} and all(layer.rank == 0 for layer in layers.values())
    for name, layer in layers.items():
        assert torch.equal(layer.fold(layer.mask), state[f"{name}.weight_mask"].bool())
        assert int(layer.mask.sum()) < layer.mask.numel()
    assert not any("orig" in name for name in found.state_dict())


def test_a_live_net_keeps_its_masks_and_what_it_computes():
    model, found = masked(), masked()
    state = model.state_dict()
    summary = splore.from_pruned(found)
    check(found, model, state)
    assert summary.ranks == {"0": 0, "2": 0, "5": 0} and set(summary.dense) == {"3.weight", "5.bias"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_is_loaded_as_it_is(suffix, tmp_path):
    model, path = masked(), tmp_path / f"pruned{suffix}"
    state = model.state_dict()
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    check(splore.load(path, dense()), model, state)


def test_training_leaves_the_masked_places_at_zero(tmp_path):
    model = masked()
    splore.from_pruned(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    splore.hold_masks(model, optimizer)
    for _ in range(3):
        model(X).square().sum().backward()
        optimizer.step()
    for layer in splore.decomposed_layers(model).values():
        assert not layer.S[~layer.mask].any() and layer.S[layer.mask].all()
    splore.save(model, tmp_path / "model.safetensors")
    assert torch.equal(splore.load(tmp_path / "model.safetensors", dense()).eval()(X), model.eval()(X))


def test_a_state_of_another_net_leaves_the_model_untouched(tmp_path):
    torch.save(masked().state_dict(), tmp_path / "pruned.pt")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ModelFileError, match="another network"):
        splore.load(tmp_path / "pruned.pt", other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_without_a_mask_there_is_nothing_to_take(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        splore.from_pruned(dense())
    torch.save(dense().state_dict(), tmp_path / "dense.pt")
    with pytest.raises(ModelFileError):
        splore.load(tmp_path / "dense.pt", dense())
