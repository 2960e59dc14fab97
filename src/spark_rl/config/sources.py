"""Where rows come from: files, data sets of the Hub, generators and embedded sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_serializer

from spark_rl.config.base import Positive, Section, listed

FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Sources whose path ends so are files, not data sets of the Hub."""


Columns = dict[
    Literal[
        "prompt", "answer", "id", "source", "system", "verifier", "metadata", "role", "question", "images", "response"
    ],
    str,
]


class SourceConfig(Section):
    """One source of rows; a plain string in the config is its `path`."""

    path: str
    """A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file or a pattern such as `data/*.jsonl`; a data set of the
    Hub such as `openai/gsm8k`; `reasoning_gym:<task>`, or several tasks joined by `+`; or an embedded set:
    `embedded:train`, `embedded:validation`, `embedded:test`, `embedded:transfer`, `embedded:retention`; of pictures
    `embedded:vision-train`, `embedded:vision-validation`, `embedded:vision-test`."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """How often its rows are drawn, relative to the weights of the other sources; null is its number of rows."""
    split: str | None = None
    """Split of a Hub data set; null is `train` for training and `test` for held-out questions."""
    subset: str | None = None
    """Subset (configuration) of a Hub data set, for example `main` of `openai/gsm8k`."""
    revision: str | None = None
    """Revision of a Hub data set: a branch, a tag or a commit; null is its newest state."""
    size: Positive | None = None
    """Only so many rows, from the first; for `reasoning_gym` how many are generated (null: 2000, held out 500). The
    first rows of a training file can so be held out of it: training leaves out what is held out."""
    options: dict[str, Any] = {}
    """Settings of a reasoning-gym task, for example `min_terms: 2`."""
    columns: Columns = {}
    """Overrides keys of `data.columns` for this source."""
    answer_pattern: str | None = None
    """Overrides `data.answer_pattern` for this source."""
    verifier: str | None = None
    """Overrides `data.verifier` for this source."""
    system: str | None = None
    """Overrides `data.system` for this source."""

    @model_serializer(mode="wrap")
    def _short(self, serialize: Any) -> Any:
        given = {key: value for key, value in serialize(self).items() if key in self.model_fields_set}
        return self.path if given.keys() <= {"path"} else given


Sources = Annotated[
    list[Annotated[SourceConfig, BeforeValidator(lambda v: {"path": v} if isinstance(v, str) else v)]],
    BeforeValidator(lambda v: [v] if isinstance(v, dict | SourceConfig) else listed(v)),
]
