"""A node."""

from feddlp.federation.flower.app import client as app

__all__ = ["app"]
