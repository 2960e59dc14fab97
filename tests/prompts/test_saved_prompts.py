"""What a trained model was shown, in its folder."""

import json

import pytest

from spark_rl.prompts import Prompts, save_prompts, saved_prompts
from spark_rl.prompts.build import FILE, prompts_as_json
from spark_rl.types import Role
from spark_rl.verify import format_of


def test_prompts_come_back_as_they_were_saved(tmp_path):
    turns = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "#### 2"})
    prompts = Prompts(answer_format=format_of("hash"), examples={Role.ANSWER: turns})
    save_prompts(prompts, tmp_path)
    assert saved_prompts(tmp_path) == prompts
    assert saved_prompts(tmp_path / "elsewhere") is None


GOOD = prompts_as_json(Prompts())
ANSWER = [template for template in GOOD["templates"] if template["role"] == "answer"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "damaged, or no file of prompts; mend or remove it"),
        (json.dumps(GOOD | {"templates": None}), "damaged, or no file of prompts; mend or remove it"),
        (json.dumps(GOOD | {"answer_format": "nonsense"}), "'nonsense' is no answer format"),
        (json.dumps(GOOD | {"templates": ANSWER}), "there is no template of the role pointwise"),
        (json.dumps(GOOD | {"templates": [ANSWER[0] | {"text": "hello"}]}), "there is no template of the role"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, written, words):
    (tmp_path / FILE).write_text(written)
    with pytest.raises(ValueError, match=FILE) as refused:
        saved_prompts(tmp_path)
    assert words in str(refused.value) and "Error" not in str(refused.value)


def test_so_is_a_folder_in_its_place(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(ValueError, match="mend or remove it"):
        saved_prompts(tmp_path)
