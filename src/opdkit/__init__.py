"""opdkit: on-policy distillation of language models, and knowing what is going on."""

__version__ = "0.1.0"
