"""A federation over several machines, on Flower (https://flower.ai): the only place that imports flwr.

    server   `serving` plays the rounds of `experiment`, its clients being `remote`: asked over Flower's grid
    node     `node` answers one message: it holds some of the clients, in a `statefolder`, and trains them as a cohort
    between  `parcels` says what travels, `checks` what is taken for good

A SuperNode starts a new process for every message, and may die in it, so that a node keeps everything on its disk and
answers the same order twice with the same report.
"""
