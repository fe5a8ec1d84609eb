"""Which tokens count, and the ways to hold one model's distribution at packed positions, or one made of several."""

from opdkit.support.blend import blend, with_one_end
from opdkit.support.dist import ColumnDist, Dist, RowDist, StoredDist
from opdkit.support.select import choose, in_set, mass_of

__all__ = [
    "ColumnDist",
    "Dist",
    "RowDist",
    "StoredDist",
    "blend",
    "choose",
    "in_set",
    "mass_of",
    "with_one_end",
]
