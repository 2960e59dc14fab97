"""Every knob of a run (`schema`) and of test time (`inference`), and how they are read (`load`)."""

from spark_rl.config.inference import EngineConfig, Inference, JudgeConfig, SolveConfig
from spark_rl.config.load import config_from, flat, load_config, load_inference, merge, parse_override
from spark_rl.config.prompts import PromptsConfig
from spark_rl.config.schema import (
    FILE_SUFFIXES,
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
    SourceConfig,
    TrainConfig,
    ValidationConfig,
    VerifyConfig,
)

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
    "config_from",
    "flat",
    "load_config",
    "load_inference",
    "merge",
    "parse_override",
]
