"""Rounds, aggregation and what survives between them."""
