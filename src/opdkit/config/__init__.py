"""All records and presets of the configuration. Torch-free; every key documented where it is declared."""

from opdkit.config.load import dump_toml, explain, load_config, parse_overrides
from opdkit.config.objective import PRESETS, ObjectiveConfig
from opdkit.config.records import (
    Config,
    DiagnosticsConfig,
    EvalConfig,
    FileTask,
    Grader,
    GymTask,
    LearnerConfig,
    LocalTeacher,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SaveConfig,
    SelfTeacher,
)

__all__ = [
    "PRESETS",
    "Config",
    "DiagnosticsConfig",
    "EvalConfig",
    "FileTask",
    "Grader",
    "GymTask",
    "LearnerConfig",
    "LocalTeacher",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "SamplingConfig",
    "SaveConfig",
    "SelfTeacher",
    "dump_toml",
    "explain",
    "load_config",
    "parse_overrides",
]
