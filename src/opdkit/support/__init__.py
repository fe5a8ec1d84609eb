"""Which tokens count, and the three ways to hold one model's distribution at packed positions."""

from opdkit.support.dist import ColumnDist, Dist, RowDist, StoredDist
from opdkit.support.select import choose, in_set

__all__ = ["ColumnDist", "Dist", "RowDist", "StoredDist", "choose", "in_set"]
