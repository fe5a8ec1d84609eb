"""Run folders become one self-contained HTML page: words, curves, evaluation, rollouts and settings."""

from opdkit.report.page import write_report

__all__ = ["write_report"]
