"""Every row is read, and every gold graded against itself, before a run's first step."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from spark_rl.config import DataConfig
from spark_rl.data.row_images import MARKER
from spark_rl.data.rows import RowReader
from spark_rl.data.sources import Source
from spark_rl.images import ImageError
from spark_rl.prompts import Prompts
from spark_rl.types import IMAGE, Image, Role, Task
from spark_rl.verify import SELF, Check, VerifierPool, formats_seen, gold_problem, resolve
from spark_rl.verify.seen import OF_ANSWERS, OF_VERDICTS

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int], Iterable[T]]
"""Passes items on and shows how far they are: (items, what is done with them, how many there are)."""
_LISTED = 20
"""Columns that a message lists."""
_SAMPLE = 64
"""Generated rows are made when they are drawn; only so many are checked before."""


def refuse_unknown_columns(sources: Sequence[Source]) -> None:
    """Refuse a column that the config names for a field, and that no row has: a mistyped one would do nothing.

    Of the sources that one setting is for, one row with the column is enough: not all need have images.

    Args:
        sources: all of a run, every row read.

    Raises:
        ValueError: there is such a column.
    """
    readers: dict[tuple[str, str], list[RowReader]] = defaultdict(list)
    for source in sources:
        if reader := source.reader:
            for field, setting in reader.mapped.items():
                readers[setting, field].append(reader)
    for (setting, field), of_setting in readers.items():
        if not any(reader.makes_use_of(field) for reader in of_setting):
            there = _columns(of_setting)
            raise ValueError(
                f"{setting}: no row has the column {of_setting[0].columns[field]!r}, which is to hold the {field}; "
                f"columns there: {there}; name one of them"
            )


def _columns(readers: Iterable[RowReader]) -> str:
    """The columns of the rows read, as messages list them."""
    names = list(dict.fromkeys(name for reader in readers for name in reader.seen))
    return ", ".join([*names[:_LISTED], *["..."] * (len(names) > _LISTED)])


def untracked(items: Iterable[T], name: str, total: int) -> Iterable[T]:
    return items


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def question_key(task: Task, prompts: Prompts = Prompts()) -> int:
    """A 64-bit number for a question's text, whatever its case, its white space and our own answer instruction, and
    for its images, wherever they stand in the text.

    So a question is the same one given as text, or as chat messages that already ask for the answer as we would; and
    the same text about two images is two questions.
    """
    return _question_key(task.example.question, task.example.images, prompts)


def example_questions(prompts: Prompts) -> dict[int, str]:
    """The questions of the worked examples of answers, by their keys."""
    before, _, after = prompts.question(IMAGE)[0]["content"].partition(IMAGE)
    asked = (turn["content"] for turn in prompts.examples.get(Role.ANSWER, ()) if turn["role"] == "user")
    bare = (text.removeprefix(before).removesuffix(after) for text in asked)
    return {_question_key(text, (), prompts): text for text in bare}


def _question_key(question: str, images: Sequence[Image], prompts: Prompts) -> int:
    instruction = _plain(prompts.question("")[0]["content"])
    text = _plain(question.replace(IMAGE, " ")).removesuffix(instruction).rstrip()
    return _key("\0".join([text, *(image.sha256 for image in images)]))


class Checker:
    """Finds the rows of some sources that cannot be asked, and refuses them or leaves them out, as `bad_rows` says.

    Args:
        part: what the sources are for (`training`, ...), for messages.
        held_out: keys of the questions that must not be among them.
        refuse_self: what to do about a row whose verifier is the model itself; None if such may be among them.
        right_at: the reward from which on an answer is right: a gold must be, by its own verifier.
        prompts: how answers are stated.
        examples: keys of the questions that stand in the prompts as worked examples, and so are left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: DataConfig,
        part: str,
        held_out: Collection[int],
        track: Track[Any],
        refuse_self: str | None = None,
        right_at: float = 1.0,
        prompts: Prompts = Prompts(),
        examples: Collection[int] = (),
    ) -> None:
        self.prompts, self.examples = prompts, examples
        self.sources, self.config, self.part, self.held_out, self.track = sources, config, part, held_out, track
        self.refuse_self, self.right_at = refuse_self, right_at
        self.has_rule = any(source.generator for source in sources)
        """Whether some row is verified by a rule."""
        self.first_reasons: dict[Source, dict[str, str]] = defaultdict(dict)
        """By kind, as in `left_out`: the first such row's place and what is wrong with it."""
        self.images: dict[str, Image] = {}
        """By the hash of their content: where a saved run finds its images if they were moved."""
        self._digests: list[hashlib.blake2b] = []
        self._with_images: dict[Source, array[int]] = defaultdict(lambda: array("q"))
        self._says_image: Counter[Source] = Counter()
        """Rows whose text has a marker, and which have no images."""
        self._unasked: dict[Source, str] = {}
        """What a statement looks like that no prompt of a source asks for, as far as it was read."""
        self._asks = set[Source]()
        """Sources of which some prompt does."""

    def run(self, verifiers: VerifierPool) -> None:
        """Fill `left_out` of every source.

        Raises:
            ValueError: a row is bad and the config refuses such, or a source has no other rows.
        """
        self._read_all()
        if self.config.check_golds:
            self._grade_golds(verifiers)
        self._grade_responses(verifiers)
        self._require_usable()
        if self.sources and not self.has_rule:
            raise ValueError(
                f"data.train: every row has the verifier {SELF!r}, but the judge is trained on questions that a "
                "rule verifies; add some"
            )

    def check_prompts(self, check: Callable[[Task], None]) -> set[str]:
        """Leave out, or refuse, the rows of which `check` raises ValueError; it knows the model that they are put to.

        Returns the ids of the tasks that are left out.

        Raises:
            ValueError: as `run`.
        """
        left_out = set()
        for source, index in self._rows("rendering"):
            task = source.task(index)
            try:
                check(task)
            except ValueError as error:
                self._leave_out(source, index, "bad_prompt", str(error))
                left_out.add(task.id)
        self._require_usable()
        return left_out

    def _rows(self, what: str, sources: Sequence[Source] | None = None) -> Iterator[tuple[Source, int]]:
        """The rows that are asked, all that are stored and some that are generated, tracked as this is done to them."""
        for source in self.sources if sources is None else sources:
            rows = range(min(source.num_rows, _SAMPLE) if source.generator else source.num_rows)
            for index in self.track(rows, f"{what} {source.path}", len(rows)):
                if index not in source.left_out:
                    yield source, index

    def _require_usable(self) -> None:
        for source in self.sources:
            if len(source.left_out) == source.num_rows:
                first = next(iter(self.first_reasons[source].values()))
                raise ValueError(f"{source.path}: no row is usable; the first one: {first}")

    def report(self) -> list[dict[str, Any]]:
        """On each source as it stands: `source`, `rows`, `skipped` (reason to count), `fingerprint`.

        Equal fingerprints mean that the same is asked: the same rows, of which the same ones are left out.
        """
        reports: list[dict[str, Any]] = []
        for source, digest in zip(self.sources, self._digests, strict=True):
            fingerprint = digest.copy()
            fingerprint.update(repr(sorted(source.left_out.items())).encode())
            skipped = dict(Counter(source.left_out.values()))
            reports.append({"source": source.path, "rows": source.num_rows, "skipped": skipped})
            reports[-1]["fingerprint"] = fingerprint.hexdigest()
        return reports

    def first_with_images(self) -> str | None:
        """The place of the first row that is asked and has images."""
        places = (s.where(i) for s, rows in self._with_images.items() for i in rows if i not in s.left_out)
        return next(places, None)

    def messages(self) -> list[str]:
        """A sentence for every source and kind of rows that were left out, and for every source whose images were not
        found.

        The latter is no reason to refuse them: in a row without images a marker may be meant as text.
        """
        blind = [
            f"{count} of {s.num_rows} rows of {s.path} say {MARKER} and have no images; columns there: "
            f"{_columns([s.reader])}; if one of them holds the images, name it: data.columns.images=<name>"
            for s, count in self._says_image.items()
            if s.reader and not self._with_images[s] and "bad_image" not in s.left_out.values()
        ]
        unasked = [
            f"no prompt of {source.path} asks for {form}, and only that will be read as an answer: chat messages are "
            "shown as they are, so have them ask for it, or set data.answer_format to what the model writes"
            for source, form in self._unasked.items()
        ]
        return [*blind, *unasked] + [
            f"{count} of the {s.num_rows} rows of {s.path} are left out of {self.part} ({kind.replace('_', ' ')}); "
            f"the first one is {self.first_reasons[s][kind]}"
            for s in self.sources
            for kind, count in Counter(s.left_out.values()).items()
            if kind in self.first_reasons[s]
        ]

    def _read_all(self) -> None:
        """Read every stored row once."""
        ids, owners = array("Q"), list[tuple[int, Source]]()
        for source in self.sources:
            digest = hashlib.blake2b(source.generator.encode(), digest_size=8)
            owners.append((len(ids), source))
            rows = range(0 if source.generator else source.num_rows)
            for index in self.track(rows, f"reading {source.path}", len(rows)):
                key = 0
                try:
                    task = source.read(index)
                except ValueError as error:
                    kind = "bad_image" if isinstance(error, ImageError) else "bad_row"
                    self._leave_out(source, index, kind, str(error))
                else:
                    key = _key(task.example.id)
                    digest.update(_content(task))
                    if task.example.images:
                        self._with_images[source].append(index)
                        self.images.update((image.sha256, image) for image in task.example.images)
                    elif any(MARKER in message["content"] for message in task.messages):
                        self._says_image[source] += 1
                    self._note_what_it_asks(source, task)
                    self.has_rule = self.has_rule or task.verifier != SELF
                    if self.refuse_self and task.verifier == SELF:
                        reason = f"has the verifier {SELF!r}, no rule; {self.refuse_self}"
                        self._leave_out(source, index, "unverified", reason)
                    elif self.held_out or self.examples:
                        question = question_key(task, self.prompts)
                        if question in self.held_out:
                            self._leave_out(source, index, "held_out", "the question is held out", refuse=False)
                        elif question in self.examples:
                            reason = "the question stands in the prompts as a worked example"
                            self._leave_out(source, index, "example", reason, refuse=False)
                ids.append(key or 1)
            self._digests.append(digest)
        self._find_duplicates(ids, owners)

    def _note_what_it_asks(self, source: Source, task: Task) -> None:
        if source in self._asks:
            return
        stated, shown = self.prompts.format(task.role), self.prompts.conversation(task.role, task.messages)
        if resolve(task.verifier).reads == "response" or any(stated.asked_in(turn["content"]) for turn in shown):
            self._asks.add(source)
            self._unasked.pop(source, None)
        else:
            self._unasked[source] = stated.form

    def _find_duplicates(self, ids: array[int], owners: list[tuple[int, Source]]) -> None:
        """Keys that occur twice are looked up again: equal keys need not mean equal ids."""
        keys = np.frombuffer(ids, dtype=np.uint64)
        ordered = np.sort(keys)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        repeated = np.flatnonzero(np.isin(keys, twice)) if len(twice) else twice
        first: dict[str, str] = {}
        for position in repeated.tolist():
            start, source = next(owner for owner in reversed(owners) if owner[0] <= position)
            index = position - start
            if source.left_out.get(index) in ("bad_row", "bad_image"):
                continue
            id = source.task(index).example.id
            if id in first:
                reason = f"its id {id!r} is also that of {first[id]}; give every row an 'id' of its own"
                self._leave_out(source, index, "duplicate_id", reason)
            else:
                first[id] = source.where(index)

    def _grade_golds(self, verifiers: VerifierPool) -> None:
        asked: deque[tuple[Source, int, Task]] = deque()

        def checks() -> Iterator[Check]:
            for source, index in self._rows("checking the golds of"):
                task = source.task(index)
                gold, verifier = task.example.answer, task.example.verifier
                if gold:
                    asked.append((source, index, task))
                    stated = self.prompts.format(task.role)
                    yield Check(stated.write(gold), gold, verifier, task.example.metadata, task.messages, stated)

        for verdict in verifiers.stream(checks()):
            source, index, task = asked.popleft()
            right_at, stated = task.role.right_at(self.right_at), self.prompts.format(task.role)
            if problem := gold_problem(verdict, task.verifier, right_at, stated):
                if ":" in task.verifier and verdict.is_graded:  # it may be right never to give so much
                    problem = f"{problem.removesuffix('.')}, or grade no golds before a run: data.check_golds=false"
                self._leave_out(source, index, "bad_gold", problem)

    def _grade_responses(self, verifiers: VerifierPool) -> None:
        """Leave out the rows that have responses to train on, and none that is right."""
        asked: deque[tuple[Source, int, Task, bool]] = deque()

        def checks() -> Iterator[Check]:
            for source, index in self._rows("grading the responses of", [s for s in self.sources if s.has_responses]):
                task = source.task(index)
                for number, text in enumerate(task.responses, start=1):
                    asked.append((source, index, task, number == len(task.responses)))
                    yield self._response(task, text)

        without: list[tuple[Source, int, Task, str]] = []
        has_right = False
        for verdict in verifiers.stream(checks()):
            source, index, task, is_last = asked.popleft()
            right_at = task.role.right_at(self.right_at)
            has_right |= verdict.reward is not None and verdict.reward >= right_at
            if is_last and not has_right:
                without.append((source, index, task, verdict.at(right_at).reason))
            has_right = has_right and not is_last
        for source, index, task, reason in without:
            if "no_right_response" not in self.first_reasons[source]:
                reason = f"its response is graded {reason!r}{self._other_format(task, verifiers)}"
            self._leave_out(source, index, "no_right_response", reason, refuse=False)

    def _response(self, task: Task, text: str) -> Check:
        stated = self.prompts.format(task.role)
        return Check(text, task.label, task.verifier, task.example.metadata, task.messages, stated)

    def _other_format(self, task: Task, verifiers: VerifierPool) -> str:
        """The words on another format in which a row's response is right; none if there is none."""
        names, right_at = OF_VERDICTS if task.role.is_judge else OF_ANSWERS, task.role.right_at(self.right_at)
        checks = [self._response(task, task.responses[-1])]
        seen = formats_seen(checks, verifiers, self.prompts.format(task.role), right_at, names)
        stated = (each for each in seen[1:] if each.format.name != "last_number")  # any number ends a response
        better = next((each for each in stated if each.golds), None)
        return f", but {better.advice(self.prompts.format_key(task.role), 'the responses')}" if better else ""

    def _leave_out(self, source: Source, index: int, kind: str, reason: str, refuse: bool = True) -> None:
        refuse = refuse and self.config.bad_rows == "refuse"
        if refuse or kind not in self.first_reasons[source]:  # a place is found by counting lines
            place = f"{source.where(index)}: {reason}"
            if refuse:
                raise ValueError(f"{place.removesuffix('.')} (or leave such rows out: data.bad_rows=skip)")
            self.first_reasons[source][kind] = place
        source.left_out[index] = kind


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _content(task: Task) -> bytes:
    """All that a question's rollouts and their grades hang on."""
    e = task.example
    parts = (task.id, task.messages, task.label, task.verifier, e.question, e.source, e.metadata)  # its id has the role
    images = "".join(image.sha256 for image in e.images)  # not their paths: they may lie elsewhere when a run goes on
    return (repr(parts) + "".join(map(repr, task.responses)) + images).encode()
