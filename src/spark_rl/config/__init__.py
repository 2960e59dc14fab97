"""Every knob of a run (`schema`) and of test time (`inference`), and how they are read (`load`)."""

from spark_rl.config.inference import EngineConfig, Inference, JudgeConfig, SolveConfig
from spark_rl.config.load import (
    config_from,
    flat,
    given_settings,
    load_config,
    load_inference,
    merge,
    parse_override,
    read_yaml,
)
from spark_rl.config.prompts import PromptsConfig
from spark_rl.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    HealthConfig,
    LossConfig,
    ModelConfig,
    RecycleConfig,
    RoleConfig,
    RolesConfig,
    RolloutConfig,
    SelfRewardConfig,
    TrainConfig,
    ValidationConfig,
    VerifyConfig,
)
from spark_rl.config.sources import FILE_SUFFIXES, SourceConfig
from spark_rl.config.warm_start import WarmStartConfig

__all__ = [
    "FILE_SUFFIXES",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EngineConfig",
    "HealthConfig",
    "Inference",
    "JudgeConfig",
    "LossConfig",
    "ModelConfig",
    "PromptsConfig",
    "RecycleConfig",
    "RoleConfig",
    "RolesConfig",
    "RolloutConfig",
    "SelfRewardConfig",
    "SolveConfig",
    "SourceConfig",
    "TrainConfig",
    "ValidationConfig",
    "VerifyConfig",
    "WarmStartConfig",
    "config_from",
    "flat",
    "given_settings",
    "load_config",
    "load_inference",
    "merge",
    "parse_override",
    "read_yaml",
]
