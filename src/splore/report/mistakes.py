"""Test images that the compressed net or the dense one classifies wrongly."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splore.report.pictures import image_uri
from splore.report.run_folder import LeftOut, RunFolder
from splore.vision import Batches

NETS = {"compressed": "after fine-tuning", "dense": "dense"}
"""What the nets are called, and the stages whose nets they are."""
SHOWN = 24
"""Images that are shown of each group."""
IMAGES = 10_000
"""Test images that are looked at; of more, batches spread evenly over the split."""


@dataclass(frozen=True)
class Answer:
    """What a net says of an image: the class, and the probability that it gives it, from 0 to 1."""

    name: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Case:
    """An image with its class, and what the nets say of it, by the name of the net."""

    picture: str
    label: str
    answers: dict[str, Answer]


Rights = tuple[bool, bool]
"""Whether the first net and the second are right; where there is one net alone, it stands for both."""


@dataclass(frozen=True)
class Mistakes:
    """How often the nets are right.

    Attributes:
        nets: the names of the nets, one or two.
        samples: test images looked at, of `of` in the split.
        counts: images by which nets are right.
        cases: the first few images of each group in which a net is wrong.
    """

    nets: tuple[str, ...]
    samples: int
    of: int
    counts: dict[Rights, int]
    cases: dict[Rights, list[Case]]


@torch.no_grad()
def find_mistakes(run: RunFolder) -> Mistakes:
    """Classifies the test images with the run's nets. Raises LeftOut where the images or the nets are not at hand."""
    data = run.data
    nets = {name: run.net(stage) for name, stage in NETS.items() if run.has(stage)}
    if not nets:
        raise LeftOut("The run's folder has no net.")
    groups = [(first, second) for first in (True, False) for second in (True, False)]
    counts: Counter[Rights] = Counter(dict.fromkeys(groups, 0))
    raw: dict[Rights, list[tuple[Tensor, int, list[tuple[int, float]]]]] = {group: [] for group in groups}
    low = high = torch.zeros(data.image_shape[0], 1, 1)
    for x, y in _some(data.test):
        low, high = torch.minimum(low, _edge(x, torch.amin)), torch.maximum(high, _edge(x, torch.amax))
        answers = [_answers(net, x) for net in nets.values()]
        for i, label in enumerate(y.tolist()):
            said = [(int(classes[i]), float(probability[i])) for classes, probability in answers]
            group = said[0][0] == label, said[-1][0] == label
            counts[group] += 1
            if not all(group) and len(raw[group]) < SHOWN:
                raw[group].append((x[i].cpu(), label, said))
    scale = (high - low).clamp_min(1e-12)  # black and white, as the normalisation has made them
    cases = {
        group: [
            _case((x - low) / scale, label, dict(zip(nets, said, strict=True)), data.classes)
            for x, label, said in found
        ]
        for group, found in raw.items()
    }
    return Mistakes(tuple(nets), counts.total(), data.test.samples, dict(counts), cases)


def _some(test: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that are looked at. Raises LeftOut where an image can't be read."""
    steps = len(test)
    wanted = max(IMAGES * steps // test.samples, 1)
    try:
        if test.samples <= IMAGES:
            yield from test.epoch(0)
        else:
            for number in range(wanted):
                yield next(iter(test.epoch(0, start=number * steps // wanted)))
    except (ValueError, OSError) as error:
        raise LeftOut(f"The images can't be read: {error}.") from error


def _edge(x: Tensor, edge: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
    """The least or the greatest value of each channel."""
    return edge(x, (0, 2, 3)).cpu()[:, None, None]


def _answers(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The class that is most probable, and its probability."""
    try:
        best = net.to(x.device)(x).float().softmax(1).max(1)
    except RuntimeError as error:
        raise LeftOut(f"The nets can't take the images: {error}.") from error
    return best.indices, best.values


def _case(image: Tensor, label: int, said: dict[str, tuple[int, float]], names: list[str]) -> Case:
    answers = {net: Answer(names[found], share, found == label) for net, (found, share) in said.items()}
    return Case(image_uri(image), names[label], answers)
