"""Every knob of a run (`schema`), and how a run's file is read (`load`)."""

from spark_rl.config.load import config_from, flat, load_config, merge, parse_override
from spark_rl.config.schema import (
    FILE_SUFFIXES,
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    RecycleConfig,
    RoleConfig,
    RolesConfig,
    RolloutConfig,
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
    "LossConfig",
    "ModelConfig",
    "RecycleConfig",
    "RoleConfig",
    "RolesConfig",
    "RolloutConfig",
    "SourceConfig",
    "TrainConfig",
    "ValidationConfig",
    "VerifyConfig",
    "config_from",
    "flat",
    "load_config",
    "merge",
    "parse_override",
]
