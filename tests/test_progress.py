"""What a log is told of something long, and when."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from spark_rl.progress import LOG_SECONDS, Pulse, Shown, Stage, log_seconds


def stage(*told: tuple[float, float | None], unit: str = "", **values: float | None) -> Stage:
    """A stage that began at 0 and was told this."""
    made = Stage("reading", unit=unit, began=0.0, **values)
    for done, total in told:
        made.tell(done, total)
    return made


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (stage(), "reading: 0:01:40 so far"),
        (stage(total=1280), "reading: 0 of 1,280 (0%), 0:01:40 so far"),
        (stage((0, 1280), (320, 1280), unit="rows"), "reading: 320 of 1,280 rows (25%), 3.2/s, about 0:05:00 left"),
        (stage((0, None), (5000, None), unit="rows"), "reading: 5,000 rows, 50/s, 0:01:40 so far"),
        (stage((900, 1000), (950, 1000)), "reading: 950 of 1,000 (95%), 0.5/s, about 0:01:40 left"),
        (stage((900, 1000)), "reading: 900 of 1,000 (90%), 0:01:40 so far"),
        (stage((0, 64), (0.64, 64)), "reading: 0 of 64 (1%), 0.0064/s, about 2:45:00 left"),
        (stage((0, 0)), "reading: 0:01:40 so far"),
    ],
)
def test_a_line_tells_how_far_it_is_how_fast_and_what_is_left(made: Stage, line: str) -> None:
    assert made.line(100.0) == line


class Heard(list[str]):
    """Lines, of which some can be waited for."""

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(self) >= count


def test_a_long_call_that_tells_nothing_is_seen_again_and_again() -> None:
    heard = Heard()
    with Pulse(heard.append, 0.05) as pulse:
        pulse.begin(Stage("loading the model"))
        heard.wait(3)
    assert all(line.startswith("loading the model: 0:0") and line.endswith("so far") for line in heard)
    told = len(heard)
    time.sleep(0.2)
    assert len(heard) == told, "it is over"


def test_what_is_under_way_inside_of_a_stage_is_told_with_its_own_time() -> None:
    pulse = Pulse(print, 60)
    assert pulse.line() is None
    pulse.begin(Stage("solve", 1000, "rows"))
    pulse.part("replies", 3, 256)
    pulse.part("replies", 64, 256)
    before, _, inside = (pulse.line() or "").partition("; ")
    assert before == "solve: 0 of 1,000 rows (0%), 0:00:00 so far"
    assert inside.startswith("replies: 64 of 256 (25%), ") and inside.endswith("about 0:00:00 left")
    pulse.part("replies", 1, 256)
    assert "replies: 1 of 256" in (pulse.line() or ""), "the next call"
    pulse.begin(Stage("judge", 10, "rows"))
    assert pulse.line() == "judge: 0 of 10 rows (0%), 0:00:00 so far"


def test_a_line_that_was_said_otherwise_puts_the_next_one_off() -> None:
    heard = Heard()
    with Pulse(heard.append, 0.5) as pulse:
        pulse.begin(Stage("generating"))
        longest, last = 0.0, time.monotonic()
        for _ in range(20):
            time.sleep(0.05)
            pulse.heard()
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert not heard or longest > 0.4, "unless this process was put off itself"
        heard.wait(1)


def test_what_is_over_soon_leaves_no_line_and_a_terminal_gets_a_bar_instead() -> None:
    for is_terminal in (False, True):
        file = io.StringIO()
        with Shown(console=Console(file=file, force_terminal=is_terminal)) as shown:
            assert list(shown.track(range(5), "counting [sheep]", 5)) == [0, 1, 2, 3, 4]
            shown.part(1, 2)
        assert ("counting [sheep]" in file.getvalue()) == is_terminal
        assert ("5 of 5 rows" in file.getvalue()) == is_terminal


def test_a_reader_who_is_gone_is_no_error() -> None:
    file = io.StringIO()
    with Pulse(lambda line: print(line, file=file), 0.01) as pulse:
        pulse.begin(Stage("counting"))
        file.close()
        time.sleep(0.1)


def test_the_time_between_lines_is_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_seconds() == LOG_SECONDS <= 30
    monkeypatch.setenv("SPARK_RL_LOG_SECONDS", "0.5")
    assert log_seconds() == 0.5
    for wrong in ("often", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("SPARK_RL_LOG_SECONDS", wrong)
        with pytest.raises(ValueError, match=r"SPARK_RL_LOG_SECONDS is .*; make it a number of seconds above 0"):
            log_seconds()
