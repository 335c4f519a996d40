"""How fast this machine trains: its matrix rate, the training step, the round, and the ratio to the naive twin."""
