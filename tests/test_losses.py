"""What a training step minimises, against the formulas written out."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from splore.train.losses import cross_entropy, distilled


def batch():
    return torch.randn(6, 4, requires_grad=True), torch.randint(0, 4, (6,)), torch.randn(6, 3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_cross_entropy_is_in_nats_with_the_target_spread_over_all_classes(smoothing):
    outputs, labels, images = batch()
    target = torch.full((6, 4), smoothing / 4)
    target[range(6), labels] += 1 - smoothing
    expected = -(target * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cross_entropy(smoothing)(outputs, labels, images), expected)


@pytest.mark.parametrize("share, temperature", [(0.0, 1.0), (0.3, 4.0), (1.0, 2.0)])
def test_distillation_mixes_the_loss_with_the_divergence_from_the_softened_teacher(share, temperature):
    outputs, labels, images = batch()
    teacher = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 4))
    entropy = cross_entropy(0.0)
    found = distilled(entropy, teacher, share, temperature, nullcontext)(outputs, labels, images)
    p = (teacher[1](images) / temperature).softmax(1)
    q = (outputs / temperature).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = (1 - share) * entropy(outputs, labels, images) + share * temperature**2 * divergence
    torch.testing.assert_close(found, expected)
    found.backward()
    assert outputs.grad.isfinite().all()
    assert all(p.grad is None for p in teacher.parameters()), "the teacher is not trained"


def test_a_student_that_agrees_with_its_teacher_has_no_divergence():
    _, labels, images = batch()
    teacher = nn.Linear(3, 4)
    loss = distilled(cross_entropy(0.0), teacher, 1.0, 3.0, nullcontext)
    assert loss(teacher(images).requires_grad_(), labels, images).item() == pytest.approx(0, abs=1e-6)
