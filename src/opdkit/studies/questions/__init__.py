"""The questions that `opd study` knows, one file each, in the order of the paper (arXiv 2604.13016).

Every rule was committed before the first run of its arms at any scale; where an arm had been seen before, its file says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from opdkit.studies.factory import BEYOND, FACTORY
from opdkit.studies.questions.candidates import CANDIDATES
from opdkit.studies.questions.code_or_equation import CODE_OR_EQUATION
from opdkit.studies.questions.cold_start import COLD_START
from opdkit.studies.questions.consistency import CONSISTENCY
from opdkit.studies.questions.content import CONTENT
from opdkit.studies.questions.continuation import CONTINUATION
from opdkit.studies.questions.controls import CONTROLS
from opdkit.studies.questions.dynamics import DYNAMICS
from opdkit.studies.questions.length import LENGTH
from opdkit.studies.questions.local_reward import LOCAL_REWARD
from opdkit.studies.questions.new_knowledge import NEW_KNOWLEDGE
from opdkit.studies.questions.reverse import REVERSE
from opdkit.studies.questions.template import TEMPLATE
from opdkit.studies.questions.which_tokens import WHICH_TOKENS
from opdkit.studies.study import Study

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        CONSISTENCY,
        NEW_KNOWLEDGE,
        REVERSE,
        DYNAMICS,
        WHICH_TOKENS,
        COLD_START,
        TEMPLATE,
        CONTENT,
        LENGTH,
        CONTINUATION,
        LOCAL_REWARD,
        CANDIDATES,
        CONTROLS,
        CODE_OR_EQUATION,
    )
}
"""By name."""
RUNNABLE: Mapping[str, Study] = {**STUDIES, FACTORY.name: FACTORY, BEYOND.name: BEYOND}
"""Beside the questions, the pair factory: the predictor's table, run the same way."""
