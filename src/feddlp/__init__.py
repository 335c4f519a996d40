"""feddlp: federated fine-tuning of vision-language models with dual adapters and selective pruning."""

__version__ = "0.1.0"
