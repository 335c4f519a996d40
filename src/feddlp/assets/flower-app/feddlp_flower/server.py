"""The server."""

from feddlp.federation.flower.app import server as app

__all__ = ["app"]
