"""All records and presets of the configuration. Torch-free; every key documented where it is declared."""

from opdkit.config.load import build, dump_table, dump_toml, explain, load_config, parse_overrides
from opdkit.config.objective import PRESETS, ObjectiveConfig
from opdkit.config.records import (
    Config,
    DiagnosticsConfig,
    EvalConfig,
    GroupConfig,
    HealthConfig,
    ImproveConfig,
    LearnerConfig,
    LocalTeacher,
    ModelConfig,
    OptimConfig,
    PushDownConfig,
    SamplingConfig,
    SaveConfig,
    SelfTeacher,
)
from opdkit.config.tasks import FileTask, Grader, GymTask, MathTask, TaskConfig, WorldTask

__all__ = [
    "PRESETS",
    "Config",
    "DiagnosticsConfig",
    "EvalConfig",
    "FileTask",
    "Grader",
    "GroupConfig",
    "GymTask",
    "HealthConfig",
    "ImproveConfig",
    "LearnerConfig",
    "LocalTeacher",
    "MathTask",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PushDownConfig",
    "SamplingConfig",
    "SaveConfig",
    "SelfTeacher",
    "TaskConfig",
    "WorldTask",
    "build",
    "dump_table",
    "dump_toml",
    "explain",
    "load_config",
    "parse_overrides",
]
