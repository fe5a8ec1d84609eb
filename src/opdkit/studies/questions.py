"""The questions that `opd study` knows, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from opdkit.studies.study import Study
from opdkit.studies.which_tokens import WHICH_TOKENS

STUDIES: Mapping[str, Study] = {study.name: study for study in (WHICH_TOKENS,)}
"""By name, in the order of the paper."""
