"""The slow twin: every method as a tutorial would write it, and the oracle of the fast path.

One client after the other, each with a CLIP of its own, `torch.optim`, both towers run for every batch, gates pruned
one number at a time, no client axis, no padding, no cache. It shares nothing with the package but the starting
values, the sample orders and the draw of participants, all of which are addressed by (seed, client, ...). Written
from what the papers and their public code say; of a method it reads the fields.

    client      one client: its CLIP with adapters, its optimisers, a step, what it receives and sends
    training    the losses, one batch of each family of methods, and what predicts
    federation  the server, and rounds; start here
    comparison  the twin beside the fast path
"""
