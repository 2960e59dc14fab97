import shutil
from pathlib import Path

import pytest

from spark_rl.config import ModelConfig
from spark_rl.models.folder import resolve_path
from spark_rl.models.load import load_model


@pytest.mark.parametrize(("base", "kind"), [("embedded", "causal LM"), ("embedded-vision", "vision-language model")])
def test_a_model_without_weights_is_named_as_what_it_was_tried_as(tmp_path, base, kind):
    shutil.copy(Path(resolve_path(base)) / "config.json", tmp_path)
    with pytest.raises(ValueError, match=f"^model.path: no {kind} could be loaded from '{tmp_path}'"):
        load_model(ModelConfig(path=str(tmp_path)))
