"""What `opd prompts` does with the task's training prompts before a run: template, duplicates, content, difficulty, breadth."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from opdkit.config.base import FilePath, Record

PLACE = "{question}"
"""Where a wrapper has the question."""
NAMED = ("dapo", "boxed")
Share = Annotated[float, Field(ge=0, le=1)]


class PromptsConfig(Record):
    """Read by `opd prompts` only; `opd train` reads the file that it writes."""

    templates: bool = True
    """Compare candidate wrappers on the student's own rollouts, where there is a teacher; false leaves prompts as they are."""
    wrappers: list[str] = Field(default=[])
    """Candidates beside the teacher's chat template and what its model card names: a text with `{question}`, or `dapo`,
    `boxed`."""
    probe: int = Field(default=32, ge=8)
    """Prompts that every candidate is tried on, `probe_responses` responses each."""
    probe_responses: int = Field(default=2, ge=1)
    """Responses to each of them."""
    gain: float = Field(default=0.03, ge=0)
    """A wrapper is taken if the teacher's probability on shared tokens rises by this at least, its interval above 0."""
    near: float = Field(default=0.6, gt=0, le=1)
    """Cosine to an evaluation prompt, or one of `apart`, from which a prompt is dropped; the paper's .6 is of
    all-mpnet-base-v2. 1 drops equal texts only."""
    near_own: float = Field(default=1.0, gt=0, le=1)
    """The same among the prompts themselves, the first of each stays; 1 drops equal texts only."""
    apart: list[FilePath] = Field(default=[])
    """Other sets that prompts must not be near: benchmarks, what was trained on, for a control the teacher's own set."""
    taught: FilePath | None = None
    """The teacher's training prompts, JSONL or parquet: prompts are ranked by their cosine to the nearest of them."""
    embedding: str | None = None
    """`ngrams` (hashed n-gram TF-IDF, no model), or a sentence-transformers model, Hub id or folder. Unset: the paper's
    all-mpnet-base-v2 where the extra `embed` is installed, else `ngrams`, which is told."""
    rank: Literal["auto", "closeness", "teacher_logp", "teacher_entropy", "none"] = "auto"
    """`closeness` to `taught` · `teacher_logp` of the student's responses, high first · `teacher_entropy` on them, low first ·
    `auto`: closeness where `taught` is given, else `teacher_logp` where `keep` is."""
    keep: int = Field(default=0, ge=0)
    """At most so many prompts, the best ranked; 0 = all."""
    responses: int = Field(default=0, ge=0)
    """Of the student to every prompt that is left: what pass rates, p(1 − p) weights, teacher likelihood and coverage come
    from. 0 = none, but four where `rank`, `band`, `few` or `clusters` asks for them."""
    band: tuple[Share, Share] = (0.0, 1.0)
    """Pass rates that are kept, both ends included; [0.1, 0.9] drops what is always or never solved. Needs a grader."""
    few: int = Field(default=0, ge=0)
    """Few-prompt mode: so many prompts that together reach the most clusters of teacher states (arXiv 2609.04172)."""
    clusters: int = Field(default=0, ge=0)
    """K-means clusters of the teacher's hidden states on the student's responses, whose share reached is told; 0 = 200 with
    `few`, else not asked for."""

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, data: Any) -> Any:  # TOML has lists, strict records want a tuple
        if isinstance(data, dict) and isinstance(data.get("band"), list):
            return {**data, "band": tuple(data["band"])}
        return data

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for wrapper in self.wrappers:
            if wrapper not in NAMED and wrapper.count(PLACE) != 1:
                raise ValueError(
                    f"a wrapper is a text with {PLACE} in it once, or one of {', '.join(NAMED)} "
                    f"(use prompts.wrappers='[\"{PLACE} Think step by step.\"]')"
                )
        if self.band[0] > self.band[1]:
            low, high = sorted(self.band)
            raise ValueError(f"the band ends below its beginning (use prompts.band=[{low}, {high}])")
        if self.rank == "closeness" and self.taught is None:
            raise ValueError(
                "closeness is to the teacher's training prompts, and there are none (use prompts.taught=FILE, or "
                "prompts.rank=teacher_logp)"
            )
        if self.few and self.keep:
            raise ValueError("few and keep both say how many prompts are kept (use one of the two)")
        return self

    @property
    def ranks_by(self) -> Literal["closeness", "teacher_logp", "teacher_entropy", "none"]:
        """`rank` with `auto` resolved."""
        if self.rank != "auto":
            return self.rank
        if self.taught is not None:
            return "closeness"
        return "teacher_logp" if self.keep else "none"

    @property
    def num_clusters(self) -> int:
        return self.clusters or (200 if self.few else 0)

    @property
    def num_responses(self) -> int:
        """To every prompt; 0 where nothing asks for any."""
        asked = self.ranks_by.startswith("teacher_") or self.band != (0.0, 1.0) or self.num_clusters > 0
        return self.responses or (4 if asked else 0)
