"""What goes on between student and teacher: the paper's quantities per position, per bin, per sequence."""

from opdkit.diagnostics.alignment import Measures, measure, measure_alone, overlap_chance
from opdkit.diagnostics.coherence import Coherence, coherence, gradient_coherence
from opdkit.diagnostics.conditions import CONDITIONS, Condition
from opdkit.diagnostics.depth import trusted_depth
from opdkit.diagnostics.extremes import Extreme, Extremes, extremes, merge
from opdkit.diagnostics.monitor import Monitor
from opdkit.diagnostics.reliability import reliability
from opdkit.diagnostics.sequence import (
    auroc,
    gap_recovery,
    repetition_fraction,
    rollout_tally,
    sequence_reward,
    truncated,
)
from opdkit.diagnostics.stopping import stopping
from opdkit.diagnostics.tally import (
    bin_starts,
    by_position,
    by_sequence,
    by_teacher,
    concatenate,
    derived,
    tally,
)
from opdkit.diagnostics.teachable import REACH, success_slope, teachable

__all__ = [
    "CONDITIONS",
    "REACH",
    "Coherence",
    "Condition",
    "Extreme",
    "Extremes",
    "Measures",
    "Monitor",
    "auroc",
    "bin_starts",
    "by_position",
    "by_sequence",
    "by_teacher",
    "coherence",
    "concatenate",
    "derived",
    "extremes",
    "gap_recovery",
    "gradient_coherence",
    "measure",
    "measure_alone",
    "merge",
    "overlap_chance",
    "reliability",
    "repetition_fraction",
    "rollout_tally",
    "sequence_reward",
    "stopping",
    "success_slope",
    "tally",
    "teachable",
    "truncated",
    "trusted_depth",
]
