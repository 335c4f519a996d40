"""The losses, one batch of each family of methods, and what a client predicts with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.client import Client, Samples


def cross_entropy(logits: Tensor, labels: Tensor, objective: str) -> Tensor:
    if objective == "class_ce":
        return F.cross_entropy(logits, labels)
    pairs, own = logits[:, labels], torch.arange(len(labels))
    if objective == "in_batch":
        return (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2
    halves = []
    for scores in (pairs, pairs.T):
        chances = scores.softmax(-1)
        halves.append(
            torch.stack([-chances[row, labels == label].sum().log() for row, label in enumerate(labels)]).mean()
        )
    return (halves[0] + halves[1]) / 2


def kl(student: Tensor, teacher: Tensor, labels: Tensor, method) -> Tensor:
    """T^2 KL(teacher || student), or the other way round; the teacher is fixed."""

    def one(s: Tensor, t: Tensor) -> Tensor:
        log_s, log_t = F.log_softmax(s / method.kd_temperature, -1), F.log_softmax(t / method.kd_temperature, -1)
        log_p, log_q = (log_t, log_s) if method.kd_direction == "teacher_student" else (log_s, log_t)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * method.kd_temperature**2

    teacher = teacher.detach()
    if method.objective == "class_ce":
        return one(student, teacher)
    student, teacher = student[:, labels], teacher[:, labels]
    return (one(student, teacher) + one(student.T, teacher.T)) / 2


def train_one(client: Client, batch: Samples, round: int) -> None:
    """FedAvg, FedCLIP, FLoRA, Local, SoRA-local: one thing to train, one loss."""
    if not client.trained:
        return  # zero-shot
    (name,) = client.trained
    logits = client.logits(batch, {name: 1.0})
    client.step(name, cross_entropy(logits, batch.labels, client.method.objective), round)


def train_feddlp(client: Client, batch: Samples, round: int) -> None:
    """FedDLP and its combined form: local and global, each teaching the other, the paper's §V-C line by line.

    Who steps second is taught by the first as just updated; "simultaneous": as both were before the batch.
    """
    m = client.method
    acts = {"local": own_view(client), "global": {"global": 1.0}}
    pairs = [("local", "global"), ("global", "local")]
    before = {}
    if m.update_order == "simultaneous":
        before = {name: client.logits(batch, mix) for name, mix in acts.items()}
    for student, teacher in reversed(pairs) if m.update_order == "global_first" else pairs:
        taught = before[teacher] if before else client.logits(batch, acts[teacher])
        logits = client.logits(batch, acts[student])
        weight = m.kd_weight if student == "local" else 1.0
        loss = cross_entropy(logits, batch.labels, m.objective) + weight * kl(logits, taught, batch.labels, m)
        client.step(student, loss, round)


def own_view(client: Client) -> dict[str, float]:
    """How the local adapter acts: alone, or in Combined on top of the global adapter as it arrived."""
    return {"local": 1.0, "copy": 1.0} if client.kind == "combined" else {"local": 1.0}


def train_feddat(client: Client, batch: Samples, round: int) -> None:
    """FedDAT. Its authors: global first, then DAT with the global's logits from before. FedDLP's: local first."""
    m = client.method

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        distilled = m.kd_weight * kl(student, teacher, batch.labels, m)
        return m.loss_share * (cross_entropy(student, batch.labels, m.objective) + distilled)

    dat = {"local": m.adapter_share, "copy": m.adapter_share}
    before = client.logits(batch, {"global": 1.0})
    if m.update_order == "simultaneous":
        client.step("global", loss(before, client.logits(batch, dat)), round)
        client.step("local", loss(client.logits(batch, dat), before), round)
    else:
        client.step("local", loss(client.logits(batch, dat), before), round)
        client.step("global", loss(client.logits(batch, {"global": 1.0}), client.logits(batch, dat)), round)


TRAIN = {"combined": train_feddlp, "feddat": train_feddat, "feddlp": train_feddlp, "feddlp_shared": train_feddlp}


@torch.no_grad()
def predict(client: Client, batch: Samples) -> Tensor:
    """Logits of the model that the client would use. [b, C]"""
    m = client.method
    if client.kind not in TRAIN:
        return client.logits(batch, dict.fromkeys(client.trained, 1.0))
    if client.kind == "feddat":
        return client.logits(batch, {"local": m.adapter_share, "copy": m.adapter_share})
    if m.inference == "ensemble":
        both = [client.logits(batch, mix).softmax(-1) for mix in (own_view(client), {"global": 1.0})]
        return ((both[0] + both[1]) / 2).log()
    mixes = {"local": own_view(client), "global": {"global": 1.0}, "combined": {"local": 1.0, "global": 1.0}}
    return client.logits(batch, mixes[m.inference])
