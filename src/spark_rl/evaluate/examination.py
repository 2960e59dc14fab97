"""What a model writes when it is asked some questions, and whether RL could learn from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spark_rl.data import Data
from spark_rl.evaluate.first_config import as_yaml, first_config, held_out, measured_speed
from spark_rl.evaluate.patient import Patient, Settings, with_examples, written
from spark_rl.evaluate.prognosis import answer_figures, example_replies, is_noise, judge_figures, prognosis
from spark_rl.evaluate.trial import Trial, Trier
from spark_rl.infer.chat import ChatModel
from spark_rl.models.prompts import prompts_of_run
from spark_rl.progress import Shown
from spark_rl.train.plan import make_plan
from spark_rl.train.unread import Unread
from spark_rl.types import Role, Task
from spark_rl.verify import VerifierPool, better_format

_FEW_TOKENS = 16
"""The least that replies are shortened to."""
_ITEMS = 16
"""Answers that are judged."""
_EXAMPLES: tuple[tuple[str, Any], ...] = (
    ("with the worked examples of the package", "ready"),
    ("with two questions of the data as worked examples", {"num": 2, "from": "data.train"}),
)
"""Of answers: what is tried where a model that is shown none cannot be read."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial, and the settings that lead to its prompts."""

    trial: Trial
    data: Data
    settings: Settings
    figures: dict[str, Any]
    unset: str = ""
    """The words on a format that the replies were read by, and that no setting of the patient's can have."""


class Examination:
    """Tries a patient's model.

    Args:
        say: told in a sentence how long it will take.
        seconds: what one trial may take.
    """

    def __init__(
        self,
        patient: Patient,
        chat: ChatModel,
        data: Data,
        pool: VerifierPool,
        shown: Shown,
        say: Callable[[str], None],
        *,
        questions: int,
        samples: int,
        seconds: float,
    ) -> None:
        self.patient, self.chat, self.data, self.shown, self.say = patient, chat, data, shown, say
        self.num_questions, self.samples, self.seconds = questions, samples, seconds
        self.right_at = patient.config.recycle.right_at
        self.trier = Trier(chat, pool, patient.config, patient.config.rollout.max_new_tokens)
        self.unread = Unread(data.prompts, pool, self.right_at)
        self._said: set[str] = set()
        self._say_notes(data)
        if not chat.takes_images:
            data.refuse_images()
        self._vocab_size = len(chat.renderer.tokenizer) if chat.renderer else None

    def results(self) -> dict[str, Any]:
        """All that was found, as JSON types."""
        tasks = self.trier.questions(self.data, self.num_questions)
        read = None if self.patient.is_remote else self._set_pace(tasks)
        tried = [self._try("", self.data, tasks, {})]
        for name, settings in self._other_prompts(tried[0]):
            if data := self._data(settings):
                tasks = self.trier.questions(data, self.num_questions)
                tried.append(self._try(name, data, tasks, settings))
                if 2 * tried[-1].trial.num_mixed >= len(tasks):
                    break  # good enough
        best = max(tried, key=lambda each: (each.trial.num_mixed, each.trial.is_stated, each.trial.parse_rate))
        verdicts, settings = (None, best.settings) if is_noise(best.figures) else self._judged(best)
        verdict = prognosis(best.figures, self._remedy(tried), self.trier.max_new_tokens)
        found = {
            "model": self.patient.config.model.name,
            "data": [source.path for source in self.patient.config.data.train],
            "max_new_tokens": self.trier.max_new_tokens,
            "verdict": {"kind": verdict.kind, "text": verdict.sentence + _with(best.settings) + best.unset},
            "trials": [each.figures for each in tried],
            "best": tried.index(best),
            "replies": example_replies(best.trial.groups, self.right_at),
            "judge": judge_figures(verdicts) | {"settings": _added(settings, best.settings)} if verdicts else None,
        }
        return found if read is None else found | self._run(best, verdicts, settings, read)

    def _data(self, settings: Settings) -> Data | None:
        """The questions with further settings; None where these do not go with them, such as examples that are to be
        taken from too few rows."""
        if (config := self.patient.with_settings(settings)) is None:
            return None
        try:
            data = self.patient.data(self.shown, config)
        except ValueError:
            return None
        self._say_notes(data)
        return data

    def _say_notes(self, data: Data) -> None:
        for note in data.messages:
            if note not in self._said:
                self._said.add(note)
                self.say(note)

    def _set_pace(self, tasks: Sequence[Task]) -> float:
        """See how fast the model is here, say how long it will take, and shorten replies that would take too long.

        Returns the seconds that a token of a prompt takes to be read.
        """
        self.shown.stage("measuring its speed")
        prompts, limit = self.data.prompts, self.trier.max_new_tokens
        read = self.trier.seconds_to_read(tasks, prompts)
        write = self.trier.seconds_to_write(tasks, prompts, self.samples)
        if limit * write > self.seconds:
            self.trier.max_new_tokens = min(limit, max(_FEW_TOKENS, int(self.seconds / write)))
            self.say(
                f"replies of {limit} tokens could take {duration(limit * write)}, so they are cut at "
                f"{self.trier.max_new_tokens} (--seconds {self.seconds:g})"
            )
        self.say(
            f"sampling {len(tasks)} questions x {self.samples} replies of at most {self.trier.max_new_tokens} tokens: "
            f"up to {duration(self.trier.max_new_tokens * write)}, and up to three times that if other prompts are "
            "tried"
        )
        return read

    def _try(self, name: str, data: Data, tasks: Sequence[Task], settings: Settings) -> Tried:
        what = f"sampling {len(tasks)} x {self.samples} answers{f', {name}' if name else ''}"
        trial = self.trier.answers(tasks, data.prompts, self.samples, name, self.shown.stage(what))
        unset, stated = "", trial.prompts.answer_format
        if stated.name != data.prompts.answer_format.name:
            wanted = {"data.answer_format": stated.name} | settings
            if self.patient.with_settings(wanted):
                settings = wanted
            else:
                unset = (
                    f", once your templates, or responses of warm_start.data, have `{stated.form}`, which is "
                    f"data.answer_format={stated.name}"
                )
        return Tried(trial, data, settings, answer_figures(trial, self.right_at, self._vocab_size), unset)

    def _other_prompts(self, first: Tried) -> Sequence[tuple[str, Settings]]:
        """Worked examples of answers or none, where that is worth a try; other roles keep theirs."""
        config, prompts = self.patient.config, self.data.prompts
        if prompts.examples.get(Role.ANSWER):
            return [("without worked examples", with_examples(config, prompts, {Role.ANSWER: "none"}))]
        is_read = first.trial.is_stated and first.trial.parse_rate >= 0.5
        if is_read or not first.trial.seen or is_noise(first.figures):
            return []
        ready: dict[Role, Any] = {role: "ready" for role in Role if role not in prompts.examples}
        found = []
        for name, of_answers in _EXAMPLES:
            examples = with_examples(config, prompts, ready | {Role.ANSWER: of_answers})
            settings = examples if prompts.examples else {"prompts.examples": of_answers}
            if of_answers != "ready":  # no row that the run would hold out
                settings |= {"data.validation": held_out(config, self.data.train.num_rows)}
            found.append((name, settings))
        return found

    def _judged(self, best: Tried) -> tuple[Trial | None, Settings]:
        """The model's verdicts on those answers, and the settings that lead to them: where it gives none, with worked
        examples for judges, if that helps."""
        trial, told = best.trial, self.shown.stage(f"judging {_ITEMS} of the answers")
        verdicts = self.trier.verdicts(trial, trial.prompts, _ITEMS, told)
        if verdicts is None or verdicts.parse_rate >= 0.5:
            return verdicts, best.settings
        if better := better_format(verdicts.seen):
            settings = best.settings | {"prompts.verdict_format": better.format.name}
            return verdicts, settings if self.patient.with_settings(settings) else best.settings
        config = self.patient.with_settings(best.settings)
        assert config is not None
        ready = {role: "ready" for role in Role if role.is_judge}
        settings = best.settings | with_examples(config, trial.prompts, ready)
        config = self.patient.with_settings(settings)
        if config is None or trial.prompts.examples.get(Role.POINTWISE):
            return verdicts, best.settings
        examples = prompts_of_run(config)[0].examples
        prompts = replace(trial.prompts, examples=dict(examples) | dict(trial.prompts.examples))
        shown_how = self.trier.verdicts(trial, prompts, _ITEMS, told)
        if shown_how and shown_how.parse_rate > verdicts.parse_rate:
            return shown_how, settings
        return verdicts, best.settings

    def _remedy(self, tried: Sequence[Tried]) -> str:
        remedy = self.unread.remedy(Role.ANSWER, tried[0].trial.seen)
        if len(tried) > 1 and "prompts.examples" in remedy:
            return "it states no answers, with worked examples or without; teach it with warm_start"
        return remedy

    def _run(self, best: Tried, verdicts: Trial | None, settings: Settings, read: float) -> dict[str, Any]:
        """What a run would take here, and its config."""
        self.shown.stage("weighing a run")
        speed = measured_speed(best.trial, verdicts, read)
        model = getattr(self.chat.engine, "model", None)
        base = self.patient.with_settings(settings)
        assert base is not None
        config = first_config(
            base,
            self.patient.given,
            best.trial,
            verdicts,
            speed=speed,
            limit=self.trier.max_new_tokens,
            context=self.chat.context,
            num_params=sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else None,
            rows=best.data.train.num_rows,
        )
        plan = make_plan(config, best.data)
        generation, update = speed.step(config)
        return {
            "step": {
                "groups": config.rollout.groups_per_step,
                "num_generations": config.rollout.num_generations,
                "measured_generation_seconds": generation,
                "estimated_update_seconds": update,
            },
            "memory": {
                "peak": plan.memory.peak,
                "available": plan.available,
                "device": plan.device,
                "parameters": plan.shape.num_params,
                "advice": plan.advice,
            },
            "config": config.model_dump(mode="json"),
            "yaml": as_yaml(config),
        }


def duration(seconds: float) -> str:
    """`12 s`, `3 min`."""
    return f"{max(1, seconds):.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _added(settings: Mapping[str, Any], before: Mapping[str, Any]) -> Settings:
    return {key: value for key, value in settings.items() if before.get(key) != value}


def _with(settings: Settings) -> str:
    """The settings that it takes, after a sentence."""
    return f" (with {written(settings)})" if settings else ""
