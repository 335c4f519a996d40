"""How fast this machine trains, next to its own matrix rate and to research code."""
