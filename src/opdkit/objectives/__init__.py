"""What is minimised: a divergence over a support, by an estimator. Proven in tests/test_objectives.py."""

from opdkit.objectives.divergence import DIVERGENCES, DivergenceTerms
from opdkit.objectives.objective import Objective

__all__ = ["DIVERGENCES", "DivergenceTerms", "Objective"]
