"""The paper's f_{Delta + theta}: class logits of K clients with the adapters of a chosen view.

adapt = image: the K * B images of a batch pass through the adapted image tower together; the class prompts were
encoded once by the frozen text tower.
adapt = text: the class prompts pass through the text tower once per client and step, never per sample; the images
were encoded once by the frozen image tower.

Either way the result is [K, B, C]: every objective and every distillation is computed from these logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce

import torch
from torch import Tensor

from feddlp.data.batches import Batch
from feddlp.model.adapters import Adapter, Theta
from feddlp.model.backbone import Backbone

View = str | Mapping[str, float]
"""The adapters that act, and their weights: "local", or {"local": 0.5, "teacher": 0.5}; {} is the frozen model."""


class Forward:
    """One callable for all methods.

    Args:
        backbone: the frozen dual encoder.
        adapters: kind of each adapter by name; the cohort's `theta` has the same names.
        theta: the parameters, [K, ...] each, read anew at every call.
        prompts: token ids of the class prompts, [C, L].
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[str, Adapter], theta: dict[str, Theta], prompts: Tensor):
        self.backbone, self.adapters, self.theta, self.prompts = backbone, adapters, theta, prompts
        with torch.no_grad():
            self.prompt_features = backbone.encode_texts(prompts)  # (C, D), of the frozen tower

    def __call__(self, batch: Batch, view: View) -> Tensor:
        """Logits [K, B, C], with gradient."""
        weights = {view: 1.0} if isinstance(view, str) else view
        delta = partial(self._delta, weights, len(batch.labels)) if weights else None
        with self.backbone.adapted(delta):
            if self.backbone.adapt == "image":
                images = self.backbone.encode_images(batch.inputs.flatten(0, 1))  # (K * B, D)
                images, texts = torch.unflatten(images, 0, batch.labels.shape), self.prompt_features
            else:
                clients, classes = len(batch.labels), len(self.prompts)
                texts = self.backbone.encode_texts(self.prompts.repeat(clients, 1))  # (K * C, D)
                images, texts = batch.inputs, torch.unflatten(texts, 0, (clients, classes))
        logits: Tensor = self.backbone.logit_scale * (images @ texts.mT)  # (K, B, D) @ (D, C) or (K, D, C)
        return logits

    @torch.no_grad()
    def frozen(self, batch: Batch, view: View) -> Tensor:
        """The same logits as a teacher or for prediction: no gradient."""
        return self(batch, view)

    def _delta(self, weights: Mapping[str, float], clients: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        rows, base = x.reshape(clients, -1, x.shape[-1]), y.reshape(clients, -1, y.shape[-1])  # (K, rows, d)
        deltas = []
        for name, weight in weights.items():
            delta = self.adapters[name].delta(self.theta[name], site, rows, base)
            deltas.append(delta if weight == 1 else weight * delta)  # a product by one is a pass over memory
        return reduce(torch.add, deltas).view_as(y)
