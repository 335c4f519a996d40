"""feddlp: federated fine-tuning of vision-language models with dual adapters and selective pruning."""

import os

# OpenMP threads that spin at their barriers starve each other as soon as anything else wants a core: measured, a round
# is then 10 to 20 times slower. Sleeping costs next to nothing. It must be said before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Large tensors on huge pages, where Linux has them: a new tensor of 48 MiB costs 24 page faults in place of 12,000.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
