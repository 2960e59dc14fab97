"""Rows through a model, chunk by chunk, into a file that a call that was stopped can go on with."""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from spark_rl.cli.rows import Input, Output, Row, counted, say
from spark_rl.jsonl import decoded, parse_json
from spark_rl.progress import Report, Shown

if TYPE_CHECKING:
    from spark_rl.infer import ChatModel

T = TypeVar("T")
NO_ROOM = "leaves no room for a reply in the model's context; shorten it"
Tell = Callable[[int, int], None]
"""Told (ended, all) items of a chunk."""


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """A row of the input, and what was read of it."""

    number: int
    row: Row
    """As it is written again."""
    value: T


@dataclass(frozen=True, slots=True)
class Carrier(Generic[T]):
    """A model, as rows go through it."""

    model: ChatModel
    check: Callable[[T], None]
    """Raises ValueError where the model's chat template makes no prompt of an item; the reason alone."""
    carry: Callable[[Sequence[T], Tell], Sequence[Row | None]]
    """Makes the columns to add, of the items of a chunk. None: the item does not fit the model's context."""


class Journal(Output):
    """Rows appended to a file as they come. Each says by whom it was made, so that a later call may go on.

    What is no regular file, and standard output, gets the rows alone.

    Args:
        added: the keys that a row gains; those that it had of these names are lost.
        by: who makes the rows; see `signature`.
        count: told of each row, also those that the file holds already.
    """

    def __init__(
        self,
        path: Path | None,
        source: Input,
        *,
        added: Sequence[str],
        by: str,
        resume: bool,
        count: Callable[[Row], None],
    ) -> None:
        super().__init__(path, source)
        self.source, self.by, self.added, self.count = source, by, {*added, "by"}, count
        self.num_done = 0
        """Rows that the file held already."""
        if resume and path is None:
            raise ValueError("--resume goes on with a file; name it with --out")
        self.is_file = path is not None and (path.is_file() or not path.exists())
        self.is_resumed = self.is_file and resume and bool(path and path.exists())
        if self.is_file and path and path.exists() and not resume:
            raise ValueError(f"{self.name}: is there already; go on with it with --resume, or name another file")

    def __enter__(self) -> Self:
        if not self.is_file:
            return super().__enter__()
        assert self.path
        with self._named():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.name}: another process is writing it; wait for its end") from None
        return self

    def rest(self, items: Iterator[Item[T]]) -> Iterator[Item[T]]:
        """The items that the file does not hold yet. Rows that were left out as bad are missing in it, too.

        A half-written last line is cut off, once all before it is known to be ours.

        Raises:
            ValueError: it holds rows of something else.
        """
        held = self._held() if self.is_resumed else iter(())
        awaited = next(held, None)
        for item in items:
            if awaited is None:
                yield item
            elif self._bare(awaited) == self._bare(item.row):
                self.num_done += 1
                self.count(awaited)
                awaited = next(held, None)
            elif self.source.skip_bad:
                self.source.num_bad += 1
            else:
                raise ValueError(self._foreign(f"row {item.number} of {self.source.name}"))
        if awaited is not None:
            raise ValueError(self._foreign(f"any row of {self.source.name} that is left"))

    def append(self, rows: Sequence[Row]) -> None:
        """Write a chunk, and see it off."""
        for row in rows:
            self.write(row | {"by": self.by} if self.is_file else row)
            self.count(row)
        with self._named():
            self._file.flush()

    def _held(self) -> Iterator[Row]:
        assert self.path
        end = 0
        with self._named(), self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = parse_json(decoded(line))
                except ValueError:
                    row = None
                is_half = not line.endswith(b"\n")
                if is_half and row is None and b'{"'.startswith(line[:2]):
                    break
                if not isinstance(row, dict) or "by" not in row:
                    raise ValueError(f"{self.name}, row {number}: was not written by this command; name another file")
                if row["by"] != self.by:
                    raise ValueError(
                        f"{self.name}, row {number}: was made by {row['by']!r}, not by {self.by!r}; name another file"
                    )
                if is_half:
                    break
                end += len(line)
                yield row
            self._file.truncate(end)

    def _bare(self, row: Row) -> Row:
        return {key: value for key, value in row.items() if key not in self.added}

    def _foreign(self, what: str) -> str:
        return f"{self.name}: its row {self.num_done + 1} was not made of {what}; name another file"

    def _abandon(self) -> None:
        """Keep what is there; of a file that nothing was written to, leave nothing."""
        super()._abandon()
        if self.is_file and not self.is_resumed and self.path and not self.path.stat().st_size:
            self.path.unlink()


def through(
    what: str,
    journal: Journal,
    read: Callable[[Row, int], Item[T]],
    prepare: Callable[[], Carrier[T]],
    chunk: int,
) -> None:
    """Carry the rows of the journal's source through a model, in order, `chunk` at a time.

    Args:
        what: the verb, for the display of progress.
        prepare: loads the model, when something is found to do.

    Raises:
        ValueError: there are no rows, or (unless they are skipped) a row is bad, its prompt cannot be rendered, or it
            does not fit.
    """
    if chunk < 1:
        raise ValueError("--chunk must be at least 1")
    source = journal.source
    total = _checked(source, read)
    with journal:
        items = journal.rest(source.read(read))
        if (first := next(items, None)) is None:
            if not journal.num_done and not source.num_bad:
                raise ValueError(f"{source.name}: has no rows; give at least one")
            return
        with Shown(bar=journal.path is not None) as shown:
            shown.stage("loading the model")
            carrier = prepare()
            carrier.model.told = shown.part
            shown.stage("rendering the prompts")
            _checked(source, lambda row, number: carrier.check(read(row, number).value))
            good = _renderable(itertools.chain([first], items), carrier, source)
            report, done = shown.stage(what, total, "rows"), journal.num_done
            report(done, total)
            while todo := list(itertools.islice(good, chunk)):
                _carry(todo, carrier, journal, partial(_tell, report, done, total))
                done += len(todo)
                report(done, total)


def _tell(report: Report, before: int, total: int | None, ended: int, of_chunk: int) -> None:
    report(before + ended, total)


def sum_up(summary: Mapping[str, Any], came: str) -> None:
    """Say in a line what came of a call's rows, and what it took."""
    bad = f", and {counted(summary['bad_rows'], 'bad one')} left out" if summary["bad_rows"] else ""
    before = f" ({summary['rows_before']:,} of them before)" if summary["rows_before"] else ""
    tokens = f"{summary['prompt_tokens']:,} tokens read, {summary['generated_tokens']:,} written"
    say(f"{counted(summary['rows'], 'row')}{before}{bad}: {came}; {tokens}; {summary['seconds']:,.1f} s")


def _renderable(items: Iterable[Item[T]], carrier: Carrier[T], source: Input) -> Iterator[Item[T]]:
    for item in items:
        try:
            carrier.check(item.value)
        except ValueError as error:
            source.refuse(item.number, str(error))
        else:
            yield item


def _carry(
    todo: Sequence[Item[T]],
    carrier: Carrier[T],
    journal: Journal,
    tell: Tell,
) -> None:
    made, rows = carrier.carry([item.value for item in todo], tell), list[Row]()
    try:
        for item, columns in zip(todo, made, strict=True):
            if columns is None:
                journal.source.refuse(item.number, NO_ROOM)
            else:
                rows.append(item.row | columns)
    finally:
        journal.append(rows)


def _checked(source: Input, read: Callable[[Row, int], Any]) -> int | None:
    """The number of rows of a file, all of which are looked at before anything is done; None for a stream."""
    if source.path is None or not source.path.is_file():
        return None
    num_bad = source.num_bad
    total = sum(1 for _ in source.read(read))
    source.num_bad = num_bad
    return total
