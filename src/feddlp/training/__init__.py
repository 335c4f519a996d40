"""Losses per client, the optimiser with a client axis, and the one training loop."""
