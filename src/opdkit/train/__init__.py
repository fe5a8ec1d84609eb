"""The stories. Each loop reads top to bottom: plan → feed → collate → learner → distill; evaluate."""

from opdkit.train.distill import distill

STORIES = {"distill": distill}
"""`story = …` of a config → the loop that tells it."""

__all__ = ["STORIES", "distill"]
