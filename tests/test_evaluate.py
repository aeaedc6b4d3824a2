"""Accuracy by any loader that gives inputs and labels, and a model that is left as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from splore.forward import evaluating, run, split
from splore.measure.accuracy import evaluate
from splore.postprocess.recalibrate import recalibrate

X, Y = torch.randn(23, 3, 6, 6), torch.randint(12, (23,))


class Net(nn.Module):
    """Takes its images by name, and says more than the logits where it is asked to."""

    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        self.norm, self.fc, self.answer = nn.BatchNorm2d(3), nn.Linear(108, 12), answer

    def forward(self, images, scale=None):
        logits = self.fc(self.norm(images).flatten(1))
        return self.answer(logits if scale is None else logits * scale)


class Epochs:
    def epoch(self, epoch, start=0):
        assert (epoch, start) == (0, 0)
        return zip(X.split(5), Y.split(5), strict=True)


LOADERS = {
    "tuples": lambda: zip(X.split(5), Y.split(5), strict=True),
    "lists of a DataLoader": lambda: DataLoader(TensorDataset(X, Y), 5),
    "tuples with more": lambda: ((x, y, "path") for x, y in LOADERS["tuples"]()),
    "names of the parameters": lambda: ({"images": x, "labels": y} for x, y in LOADERS["tuples"]()),
    "usual keys": lambda: ({"pixel_values": x, "target": y, "index": 3} for x, y in LOADERS["tuples"]()),
    "an unusual key alone": lambda: ({"photo": x, "y": y} for x, y in LOADERS["tuples"]()),
    "a dict and labels": lambda: (({"images": x}, y) for x, y in LOADERS["tuples"]()),
    "several arguments": lambda: ((((x, torch.ones(1))), y) for x, y in LOADERS["tuples"]()),
    "arguments by name": lambda: ({"images": x, "scale": torch.ones(1), "y": y} for x, y in LOADERS["tuples"]()),
    "epochs": Epochs,
}


def by_hand(model):
    with torch.no_grad():
        logits = model.eval()(X)
    ranks = (logits > logits.gather(1, Y[:, None])).sum(1)
    hits = [100 * (ranks < most).float().mean().item() for most in (1, 5)]
    return *hits, F.cross_entropy(logits, Y).item()


@pytest.mark.parametrize("name", LOADERS)
def test_the_score_is_the_one_by_hand_for_every_kind_of_loader(name):
    model = Net()
    score = evaluate(model, LOADERS[name]())
    assert score.samples == 23
    assert (score.accuracy, score.top5, score.loss) == pytest.approx(by_hand(model), rel=1e-5)


@pytest.mark.parametrize("name", LOADERS)
def test_recalibrate_takes_the_same_loaders(name):
    torch.manual_seed(0)
    model, other = Net(), Net()
    assert recalibrate(model, LOADERS[name]()) == recalibrate(other, X.split(5)) == 5
    assert torch.equal(model.norm.running_mean, other.norm.running_mean)


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: (logits, logits.sum()),
        lambda logits: {"loss": logits.sum(), "logits": logits},
        lambda logits: {"out": logits, "aux": None},
    ],
)
def test_logits_are_found_among_several_outputs(answer):
    model = Net(answer)
    score = evaluate(model, LOADERS["tuples"]())
    model.answer = lambda logits: logits
    assert score.loss == pytest.approx(by_hand(model)[2], rel=1e-5)


def test_a_compiled_wrapper_is_asked_for_its_models_parameters():
    model = Net()
    batch = {"images": X, "index": torch.arange(23)}
    wrapped = torch.compile(model, backend="eager")
    torch.testing.assert_close(run(wrapped, batch), model(X))


@pytest.mark.parametrize("works", [True, False])
def test_every_modules_mode_is_restored_also_after_an_error(works):
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), nn.Linear(108, 12)).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    if works:
        evaluate(model, LOADERS["tuples"]())
    else:
        with pytest.raises(RuntimeError):
            evaluate(model, [(X[:, :2], Y)])
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("model", "loader", "message"),
    [
        (Net(), [], "the loader gave no batch"),
        (Net(), [X], "expected labels"),
        (Net(), [{"images": X}], "expected labels"),
        (Net(), [(X, F.one_hot(Y))], "expected labels, one whole number"),
        (Net(), [(X, Y[:5])], r"found torch.int64 of shape \(5,\)"),
        (Net(), ["words"], "expected batches of a tensor"),
        (Net(), [({}, Y)], "expected batches of a tensor"),
        (Net(), [{"photo": X, "text": X, "y": Y}], r"takes none of \['photo', 'text'\]: name the entry"),
        (nn.Identity(), [(X, Y)], r"logits of shape \(N, classes\), found a tensor of shape \(23, 3, 6, 6\)"),
        (Net(lambda logits: None), [(X, Y)], "found NoneType"),
    ],
)
def test_what_cannot_be_classified_is_said(model, loader, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, loader)


def test_top_5_is_left_out_below_ten_classes_and_sums_are_those_of_all_processes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 9))
    one = evaluate(model, [(X, Y % 9)])
    two = evaluate(model, [(X, Y % 9)], total=lambda sums: 2 * sums)
    assert one.top5 is None and two.samples == 46 and two.accuracy == one.accuracy


def test_labels_and_inputs_of_a_batch():
    assert split(X) == (X, None) and split((X,)) == (X, None) and split([X, Y, 1]) == (X, Y)
    assert split({"a": 1, "label": 2}) == ({"a": 1}, 2)
