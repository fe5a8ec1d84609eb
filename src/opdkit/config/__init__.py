"""All records and presets of the configuration. Torch-free; every key documented where it is declared."""

from opdkit.config.coldstart import ColdstartConfig, FilterConfig, UntilConfig
from opdkit.config.horizon import HorizonConfig, PrefixConfig, PruneConfig
from opdkit.config.load import build, dump_table, dump_toml, explain, load_config, parse_overrides
from opdkit.config.mix import MixConfig, refused_of_demonstrations
from opdkit.config.models import (
    LocalTeacher,
    LoraConfig,
    ModelConfig,
    Patience,
    RouterTeacher,
    SelfTeacher,
    ServerTeacher,
    TeacherConfig,
)
from opdkit.config.objective import ObjectiveConfig
from opdkit.config.presets import PRESETS, RECIPES
from opdkit.config.prompts import PromptsConfig
from opdkit.config.records import (
    Config,
    DiagnosticsConfig,
    EvalConfig,
    GroupConfig,
    HealthConfig,
    ImproveConfig,
    LearnerConfig,
    OptimConfig,
    PushDownConfig,
    SaveConfig,
)
from opdkit.config.sampling import (
    LocalSampling,
    SamplerConfig,
    SamplingConfig,
    VllmSampling,
    VllmServerSampling,
    as_local,
)
from opdkit.config.signal import SignalConfig
from opdkit.config.tasks import FileTask, Grader, GymTask, MathTask, TaskConfig, WorldTask
from opdkit.config.widen import WidenConfig

__all__ = [
    "PRESETS",
    "RECIPES",
    "ColdstartConfig",
    "Config",
    "DiagnosticsConfig",
    "EvalConfig",
    "FileTask",
    "FilterConfig",
    "Grader",
    "GroupConfig",
    "GymTask",
    "HealthConfig",
    "HorizonConfig",
    "ImproveConfig",
    "LearnerConfig",
    "LocalSampling",
    "LocalTeacher",
    "LoraConfig",
    "MathTask",
    "MixConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Patience",
    "PrefixConfig",
    "PromptsConfig",
    "PruneConfig",
    "PushDownConfig",
    "RouterTeacher",
    "SamplerConfig",
    "SamplingConfig",
    "SaveConfig",
    "SelfTeacher",
    "ServerTeacher",
    "SignalConfig",
    "TaskConfig",
    "TeacherConfig",
    "UntilConfig",
    "VllmSampling",
    "VllmServerSampling",
    "WidenConfig",
    "WorldTask",
    "as_local",
    "build",
    "dump_table",
    "dump_toml",
    "explain",
    "load_config",
    "parse_overrides",
    "refused_of_demonstrations",
]
