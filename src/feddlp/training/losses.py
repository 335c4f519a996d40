"""Losses of K clients side by side: logits [K, B, C] in, one number per client out, [K].

An objective says which classification problems the logits pose:

    class_ce   one problem: each image among all C class prompts (the paper's CE(logits, labels), §V-C)
    in_batch   two problems, CLIP's pre-training loss: each image among the captions of its batch, and each caption
               among the images. The caption of a sample is its class prompt, so both score matrices are a gather
               from the class logits. Two samples of one class are false negatives of each other, as in FedDLP's
               public code.
    in_batch_positives
               the same, but any sample of its class is right: -log of their probabilities' sum, so that there are
               no false negatives. (Sharing the target among them instead would change nothing: captions of one class
               have one score.)

Cross-entropy and distillation average over the problems, so each objective is written once, here. Padded samples are
left out of every mean; a client without samples has loss 0.

Distillation: T^2 KL(softmax(teacher / T) || softmax(student / T)), teacher without gradient (Hinton et al. 2015, and
the public code). The paper writes D_KL(student || teacher), §V-C: `direction="student_teacher"`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from feddlp.data.batches import Batch

HIDDEN = -1e20

Objective = Literal["class_ce", "in_batch", "in_batch_positives"]
Direction = Literal["teacher_student", "student_teacher"]


class Problem(NamedTuple):
    """A classification: rows of scores, which columns are right, and which rows count."""

    scores: Tensor  # [K, rows, columns]
    right: Tensor  # [K, rows, columns] bool
    mask: Tensor  # [K, rows]


def problems(logits: Tensor, batch: Batch, objective: Objective) -> list[Problem]:
    """The classification problems that an objective poses. logits [K, B, C]"""
    if objective == "class_ce":
        classes = torch.arange(logits.shape[2], device=logits.device)
        return [Problem(logits, batch.labels[..., None] == classes, batch.mask)]
    captions = batch.labels[:, None, :].expand(-1, batch.labels.shape[1], -1)  # (K, B, B)
    scores = logits.gather(2, captions)  # (K, B images, B captions)
    if objective == "in_batch":
        right = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device).expand_as(scores)
    else:
        right = (batch.labels[:, :, None] == batch.labels[:, None, :]) & batch.mask[:, None, :]
    return [Problem(hide(side, batch.mask), right, batch.mask) for side in (scores, scores.mT)]


def hide(scores: Tensor, mask: Tensor) -> Tensor:
    """Columns of padded samples get probability 0. scores [K, B, B], mask [K, B]

    The score is low for every temperature, and finite after division by any: -inf - -inf would be NaN.
    """
    return scores.masked_fill(~mask[:, None, :], HIDDEN)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the samples that count; 0 where there is none. [K, B] -> [K]"""
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)


def cross_entropy(logits: Tensor, batch: Batch, objective: Objective) -> Tensor:
    """Cross-entropy of each client, averaged over the objective's problems. [K, B, C] -> [K]"""
    losses = []
    for scores, right, mask in problems(logits, batch, objective):
        missed = scores.logsumexp(-1) - scores.masked_fill(~right, HIDDEN).logsumexp(-1)  # -log P(a right column)
        losses.append(masked_mean(missed, mask))
    return torch.stack(losses).mean(0)


def distillation(
    student: Tensor,
    teacher: Tensor,
    batch: Batch,
    objective: Objective,
    temperature: float,
    direction: Direction = "teacher_student",
) -> Tensor:
    """Distillation loss of each client; the teacher gets no gradient.

    Args:
        student, teacher: logits [K, B, C].
        temperature: T > 0; the loss is multiplied by T^2, which keeps gradients of the same size for every T.
        direction: "teacher_student" is KL(teacher || student), "student_teacher" the paper's KL(student || teacher).

    Returns:
        [K], in nats, mean over the problems' rows.
    """
    losses = []
    posed = zip(problems(student, batch, objective), problems(teacher.detach(), batch, objective), strict=True)
    for learned, taught in posed:
        p, q = (taught, learned) if direction == "teacher_student" else (learned, taught)
        log_p, log_q = ((side.scores / temperature).log_softmax(-1) for side in (p, q))
        losses.append(masked_mean((log_p.exp() * (log_p - log_q)).sum(-1), learned.mask))
    return temperature**2 * torch.stack(losses).mean(0)


def ensemble(*members: Tensor) -> Tensor:
    """Logits of the mean of the members' class probabilities. [K, B, C] each"""
    return torch.stack([logits.softmax(-1) for logits in members]).mean(0).log()
