"""The command in this process, which spares the import of torch; its streams and its exit code are the real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from spark_rl.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def spark_rl(capsys: pytest.CaptureFixture[str]) -> Command:
    """`spark_rl("judge", "embedded", ...)`."""

    def call(*arguments: Any) -> Done:
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        return Done(int(leaving.value.code or 0), out, err)

    return call
