from __future__ import annotations

import pytest

from spark_rl.config import load_inference
from spark_rl.infer import ChatModel


@pytest.fixture(scope="session")
def embedded() -> ChatModel:
    """The base that ships with the package."""
    return ChatModel.open(load_inference(["engine.max_new_tokens=40"], model={"path": "embedded"}))
