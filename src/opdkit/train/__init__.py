"""The stories: plan → feed → collate → learner → publish, one loop for all; evaluation."""

from opdkit.train.loop import Silent, Talk, run_story

__all__ = ["Silent", "Talk", "run_story"]
