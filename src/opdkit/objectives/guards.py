"""What an objective leaves out, per position: how many tokens it compared, how much mass they hold, how often a bound acted.

`guard` returns name → (sum [M], count [M]) per measured position, as diagnostics do; the health monitor has thresholds for them.

support_size             how many tokens were compared                               mean over positions
support_empty_fraction   [none was]: it trains nothing there                         positions
support_mass_student     P_S = Σ_S p                                                 positions, of a set
support_mass_teacher     Q_S = Σ_S q                                                 positions, of a set
mass_left_out            1 − P_S, where nothing stands for it                        positions, of a set without a tail
clipped_fraction         Σ w [a bound changed the advantage], w = p over S, sum 1    positions, where shaping bounds
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from opdkit.config.objective import ObjectiveConfig
from opdkit.objectives.shaping import bounds
from opdkit.support import Dist, mass_of
from opdkit.types import Support

Guards = dict[str, tuple[Float[Tensor, " M"], Float[Tensor, " M"]]]


@torch.no_grad()
def guard(spec: ObjectiveConfig, student: Dist, teacher: Dist, support: Support) -> Guards:
    """Of whole rows or stored log-probs at the support; {} over the vocabulary, which leaves nothing out."""
    if support.ids is None or support.keep is None:
        return {}
    keep = support.keep
    size = keep.sum(-1).float()
    found = {"support_size": size, "support_empty_fraction": (size == 0).float()}
    p, q = student.at(support.ids).detach(), teacher.at(support.ids).detach()
    if spec.support != "sampled":
        found |= {"support_mass_student": mass_of(p, keep), "support_mass_teacher": mass_of(q, keep)}
        if not spec.normalisation.startswith("tail"):
            found["mass_left_out"] = 1.0 - found["support_mass_student"]
    acts = bounds(spec.shaping, torch.where(keep, q - p, 0.0), spec.shaping_value)
    if acts is not None:
        weight = torch.where(keep, p, torch.finfo(p.dtype).min).softmax(-1)
        found["clipped_fraction"] = torch.where(keep & acts, weight, 0.0).sum(-1)
    one = torch.ones_like(size)
    return {name: (value.float(), one) for name, value in found.items()}
