"""The paper's f_{Delta + theta}: class logits of K clients with the adapters of a chosen view.

adapt = image: the K * B images of a batch pass through the adapted image tower together; the class prompts were
encoded once by the frozen text tower.
adapt = text: the class prompts pass through the text tower once per client and step, never per sample; the images
were encoded once by the frozen image tower.
adapt = both: both, each client with its own pair of towers.

Either way the result is [K, B, C]: every objective and every distillation is computed from these logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddlp.data.batches import Batch
from feddlp.data.prompts import Prompts
from feddlp.model.adapters import Adapter, Dense, FeatureAdapter, LinearAdapter, Theta, View, sites_of
from feddlp.model.backbone import Backbone, Change
from feddlp.model.linear import adapted_linear, by_client

Encode = Callable[[Tensor, Mapping[str, Tensor] | None], Tensor]
"""One of the backbone's two encoders."""


class Forward:
    """One callable for all methods.

    Args:
        backbone: the frozen dual encoder.
        adapters: kind of each adapter by name; the cohort's `theta` has the same names.
        theta: the parameters, [K, ...] each, read anew at every call.
        prompts: of the classes.
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[str, Adapter], theta: dict[str, Theta], prompts: Prompts):
        self.backbone, self.adapters, self.theta, self.prompts = backbone, adapters, theta, prompts
        self.sites = {name: sites_of(leaves).keys() for name, leaves in theta.items()}
        self.dense = {name for name, adapter in adapters.items() if isinstance(adapter, Dense)}

    def __call__(self, batch: Batch, view: View) -> Tensor:
        """Logits [K, B, C], with gradient."""
        weights = {view: 1.0} if isinstance(view, str) else view
        images, texts = batch.inputs, self.prompts.features  # (K, B, ...), (C, D)
        if "image" in self.backbone.adapted_towers:
            images = self._encode(self.backbone.encode_images, images, weights)  # (K, B, D)
        if "text" in self.backbone.adapted_towers:
            tokens = self.prompts.tokens.expand(len(batch.labels), -1, -1)  # (K, C, L)
            texts = self._encode(self.backbone.encode_texts, tokens, weights)  # (K, C, D)
        logits: Tensor = self.backbone.logit_scale * (images @ texts.mT)  # (K, B, D) @ (D, C) or (K, D, C)
        return logits

    @torch.no_grad()
    def frozen(self, batch: Batch, view: View) -> Tensor:
        """The same logits as a teacher or for prediction: no gradient."""
        return self(batch, view)

    def _encode(self, encode: Encode, inputs: Tensor, view: Mapping[str, float]) -> Tensor:
        """[K, n, ...] -> unit features [K, n, D]: all clients in one pass, or one by one where weights are replaced."""
        if self.dense & view.keys():
            return torch.stack([encode(rows, self._weights(view, k)) for k, rows in enumerate(inputs)])
        with self.backbone.adapted(Change(partial(self.linear, view), partial(self.features, view)) if view else None):
            return torch.unflatten(encode(inputs.flatten(0, 1), None), 0, inputs.shape[:2])

    def _weights(self, view: Mapping[str, float], client: int) -> dict[str, Tensor]:
        """The tower's weights with one client's differences added."""
        ((name, share),) = view.items()  # whole weights do not mix with adapters at single layers
        weights = {}
        for site in self.sites[name]:
            base = self.backbone.model.get_parameter(site)
            weights[site] = (base + share * self.theta[name][f"{site}.difference"][client]).to(base.dtype)
        return weights

    def linear(self, view: Mapping[str, float], site: str, layer: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer with the adapters of a view that act there; several are one of the sum of their ranks."""
        factors = [
            (down, up if weight == 1 else weight * up)
            for name, weight in view.items()
            if site in self.sites[name]
            for down, up in [cast("LinearAdapter", self.adapters[name]).factors(self.theta[name], site)]
        ]
        if not factors:
            return F.linear(x, layer.weight, layer.bias)
        downs, ups = zip(*factors, strict=True)
        return adapted_linear(x, layer.weight, layer.bias, torch.cat(downs, dim=1), torch.cat(ups, dim=2))

    def features(self, view: Mapping[str, float], site: str, features: Tensor) -> Tensor:
        """A tower's output features [K n, D] with the adapters of a view that act on them."""
        for name, weight in view.items():
            if site in self.sites[name]:
                theta, adapter = self.theta[name], cast("FeatureAdapter", self.adapters[name])
                rows = by_client(features, len(next(iter(theta.values()))))
                changed = adapter.transform(theta, site, rows).view_as(features)
                features = features + weight * (changed - features)
        return features
