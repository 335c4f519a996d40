"""A frozen dual encoder with named sites, the adapters that act there, and the forward pass that joins them."""

from typing import Literal

Adapt = Literal["image", "text", "both"]
"""The tower that carries the adapters."""
