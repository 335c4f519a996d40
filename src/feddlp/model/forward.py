"""The paper's f_{Delta + theta}: class logits of K clients with the adapters of a chosen view.

adapt = image: the K * B images of a batch pass through the adapted image tower together; the class prompts were
encoded once by the frozen text tower.
adapt = text: the class prompts pass through the text tower once per client and step, never per sample; the images
were encoded once by the frozen image tower.
adapt = both: both, each client with its own pair of towers.

Either way the result is [K, B, C]: every objective and every distillation is computed from these logits. Clients at the
end of the batch that have finished cost nothing; their logits are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddlp.data.batches import Batch
from feddlp.data.prompts import Prompts
from feddlp.model.adapters import Adapter, Dense, FeatureAdapter, LinearAdapter, Theta, View, sites_of
from feddlp.model.backbone import Backbone
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
        clients = len(batch.inputs)  # K': those that have not finished
        images, texts = batch.inputs, self.prompts.features  # (K', B, ...), (C, D)
        if "image" in self.backbone.adapted_towers:
            images = self._encode(self.backbone.encode_images, images, weights)  # (K', B, D)
        if "text" in self.backbone.adapted_towers:
            tokens = self.prompts.tokens.expand(clients, -1, -1)  # (K', C, L)
            if batch.classes is not None:
                tokens = self.prompts.tokens[batch.classes[:clients]]
            texts = self._encode(self.backbone.encode_texts, tokens, weights)  # (K', C, D)
        logits = self.backbone.logits(images, texts)  # (K', B, D) and (C, D) or (K', C, D)
        return F.pad(logits, (0, 0, 0, 0, 0, len(batch.labels) - clients))

    @torch.no_grad()
    def frozen(self, batch: Batch, view: View) -> Tensor:
        """The same logits as a teacher or for prediction: no gradient."""
        return self(batch, view)

    def _encode(self, encode: Encode, inputs: Tensor, view: Mapping[str, float]) -> Tensor:
        """[K, n, ...] -> unit features [K, n, D]: all clients in one pass, or one by one where weights are replaced."""
        if self.dense & view.keys():
            return torch.stack([encode(rows, self._weights(view, k)) for k, rows in enumerate(inputs)])
        with self.backbone.adapted(Acting(self, view, len(inputs)) if view else None):
            return torch.unflatten(encode(inputs.flatten(0, 1), None), 0, inputs.shape[:2])

    def _weights(self, view: Mapping[str, float], client: int) -> dict[str, Tensor]:
        """The tower's weights with one client's differences added."""
        ((name, share),) = view.items()  # whole weights do not mix with adapters at single layers
        weights = {}
        for site in self.sites[name]:
            base = self.backbone.model.get_parameter(site)
            weights[site] = (base + share * self.theta[name][f"{site}.difference"][client]).to(base.dtype)
        return weights


class Acting:
    """The adapters of a view at work, for the first clients of a cohort."""

    def __init__(self, forward: Forward, view: Mapping[str, float], clients: int):
        self.adapters, self.sites, self.view, self.clients = forward.adapters, forward.sites, view, clients
        self.theta = {name: {leaf: value[:clients] for leaf, value in forward.theta[name].items()} for name in view}

    def linear(self, site: str, layer: nn.Linear, x: Tensor) -> Tensor:
        """A linear layer with the adapters that act there; several are one with the sum of their ranks."""
        downs, ups = [], []
        for name, weight in self.at(site):
            down, up = cast("LinearAdapter", self.adapters[name]).factors(self.theta[name], site)
            downs.append(down)
            ups.append(up if weight == 1 else weight * up)
        if not downs:
            return F.linear(x, layer.weight, layer.bias)
        return adapted_linear(x, layer.weight, layer.bias, torch.cat(downs, dim=1), torch.cat(ups, dim=2))

    def features(self, site: str, features: Tensor) -> Tensor:
        """A tower's output features [K n, D] with the adapters that act on them."""
        for name, weight in self.at(site):
            adapter = cast("FeatureAdapter", self.adapters[name])
            changed = adapter.transform(self.theta[name], site, by_client(features, self.clients)).view_as(features)
            features = features + weight * (changed - features)
        return features

    def at(self, site: str) -> Iterator[tuple[str, float]]:
        """The adapters that act at a site, and their weights."""
        return ((name, weight) for name, weight in self.view.items() if site in self.sites[name])
