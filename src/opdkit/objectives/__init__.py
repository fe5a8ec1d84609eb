"""What is minimised: a divergence from a teacher over a support, by an estimator; or the likelihood of the
tokens taken, weighted. Proven in tests/test_objectives.py and tests/test_likelihood.py."""

from opdkit.objectives.divergence import DIVERGENCES, DivergenceTerms
from opdkit.objectives.guards import guard
from opdkit.objectives.likelihood import (
    Likelihood,
    advantages,
    group_relative,
    imitation,
    push_down,
)
from opdkit.objectives.objective import Objective, pushed
from opdkit.objectives.selection import Moment

__all__ = [
    "DIVERGENCES",
    "DivergenceTerms",
    "Likelihood",
    "Moment",
    "Objective",
    "advantages",
    "group_relative",
    "guard",
    "imitation",
    "push_down",
    "pushed",
]
