"""The stories. Each loop reads top to bottom: plan → feed → collate → learner → distill; evaluate."""
