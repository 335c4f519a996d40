"""Losses per client against PyTorch's own, and what masks, teachers and directions do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from feddlp.data.batches import Batch
from feddlp.training.losses import cross_entropy, distillation

CLASSES = 6


def make_batch(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(*sizes, 1)
    labels = torch.randint(CLASSES, (len(sizes), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(sizes)[:, None]
    return Batch(torch.empty(len(sizes), width, 0), labels, mask)


def random_logits(batch, seed):
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(*batch.labels.shape, CLASSES, generator=generator, dtype=torch.float64)


def plain_views(logits, labels, objective):
    """One client's own samples: (scores, targets) as a tutorial writes them."""
    if objective == "class_ce":
        return [(logits, labels)]
    pairs, own = logits[:, labels], torch.arange(len(labels))
    return [(pairs, own), (pairs.T, own)]


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=4)
objectives = st.sampled_from(["class_ce", "in_batch", "in_batch_positives"])
indexed = st.sampled_from(["class_ce", "in_batch"])  # with one right column a row


@settings(max_examples=40)
@given(sizes=sizes, seed=st.integers(0, 1000))
def test_any_sample_of_the_class_is_right_under_in_batch_positives(sizes, seed):
    batch = make_batch(sizes, seed)
    logits = random_logits(batch, seed + 1)
    losses = cross_entropy(logits, batch, "in_batch_positives")
    for k, size in enumerate(sizes):
        labels, pairs = batch.labels[k, :size], logits[k, :size][:, batch.labels[k, :size]]
        missed = [
            -scores.softmax(-1)[row, labels == label].sum().log()
            for scores in (pairs, pairs.T)
            for row, label in enumerate(labels)
        ]
        assert losses[k].item() == pytest.approx(float(sum(missed)) / max(1, len(missed)), abs=1e-10)
        if len(set(labels.tolist())) == 1:
            assert losses[k].item() == pytest.approx(0, abs=1e-10)  # nothing can be wrong, where in_batch still errs


@settings(max_examples=60)
@given(sizes=sizes, objective=indexed, seed=st.integers(0, 1000))
def test_cross_entropy_is_each_clients_own_mean(sizes, objective, seed):
    batch = make_batch(sizes, seed)
    logits = random_logits(batch, seed + 1)
    losses = cross_entropy(logits, batch, objective)
    for k, size in enumerate(sizes):
        views = plain_views(logits[k, :size], batch.labels[k, :size], objective)
        expected = sum(F.cross_entropy(scores, targets) for scores, targets in views) / len(views) if size else 0.0
        assert losses[k].item() == pytest.approx(float(expected), abs=1e-10)


@settings(max_examples=60)
@given(sizes=sizes, objective=objectives, seed=st.integers(0, 1000), temperature=st.sampled_from([1.0, 3.0]))
def test_distillation_is_temperature_squared_kl_from_teacher_to_student(sizes, objective, seed, temperature):
    batch = make_batch(sizes, seed)
    student, teacher = random_logits(batch, seed + 1), random_logits(batch, seed + 2)
    losses = distillation(student, teacher, batch, objective, temperature)
    for k, size in enumerate(sizes):
        learned, taught = (plain_views(x[k, :size], batch.labels[k, :size], objective) for x in (student, teacher))
        divergences = [
            F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1), reduction="batchmean")
            for (s, _), (t, _) in zip(learned, taught, strict=True)
        ]
        expected = temperature**2 * sum(divergences) / len(divergences) if size else 0.0
        assert losses[k].item() == pytest.approx(float(expected), abs=1e-9)


def test_the_papers_direction_swaps_the_arguments_of_the_divergence():
    batch = make_batch([4, 2])
    a, b = random_logits(batch, 1), random_logits(batch, 2)
    paper = distillation(a, b, batch, "class_ce", 2.0, "student_teacher")
    swapped = distillation(b, a, batch, "class_ce", 2.0, "teacher_student")
    torch.testing.assert_close(paper, swapped)
    assert not torch.allclose(paper, distillation(a, b, batch, "class_ce", 2.0))


@pytest.mark.parametrize("objective", ["class_ce", "in_batch"])
@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_only_the_student_gets_gradient(objective, direction):
    batch = make_batch([4, 2])
    student, teacher = (random_logits(batch, seed).requires_grad_() for seed in (1, 2))
    distillation(student, teacher, batch, objective, 3.0, direction).sum().backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@settings(max_examples=30)
@given(objective=objectives, seed=st.integers(0, 1000))
def test_padding_has_neither_value_nor_gradient(objective, seed):
    batch = make_batch([3, 0, 5], seed)
    logits = random_logits(batch, seed).requires_grad_()
    other = torch.where(batch.mask[..., None], logits.detach(), 1e4).requires_grad_()
    for x in (logits, other):
        teacher = random_logits(batch, seed + 5)
        loss = cross_entropy(x, batch, objective) + distillation(x, teacher, batch, objective, 3.0)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert not x.grad[~batch.mask].any()
    torch.testing.assert_close(logits.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", ["class_ce", "in_batch"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(objective):
    batch = make_batch([4, 1])
    logits = random_logits(batch, 3).requires_grad_()
    loss = distillation(logits, logits.detach().clone(), batch, objective, 3.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
@pytest.mark.parametrize("temperature", [0.01, 0.5, 1.0, 100.0])
def test_hidden_columns_stay_finite_at_every_temperature(temperature, direction):
    batch = make_batch([3, 0, 5])
    student, teacher = (random_logits(batch, seed).float().requires_grad_() for seed in (1, 2))
    loss = distillation(student, teacher, batch, "in_batch", temperature, direction)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
