"""`spark-rl doctor MODEL --data FILE`: whether a model could learn from questions, and a config to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_rl.cli.model import open_model
from spark_rl.cli.rows import say
from spark_rl.config import (
    Config,
    Inference,
    flat,
    given_settings,
    load_config,
    load_inference,
    merge,
    parse_override,
)
from spark_rl.progress import Shown

if TYPE_CHECKING:
    from spark_rl.data import Data
    from spark_rl.evaluate.trial import Trial, Trier

_TOKENS, _FEW_TOKENS = 256, 16
"""Length limit of a reply where none is set, and the least that it is lowered to."""
_ROWS = 512
"""Rows of a source that are read: the first ones."""
_ITEMS = 16
"""Answers that are judged."""
_SHOWN = 0.02
"""Share of the replies from which on a format is named."""
_EXAMPLES: tuple[tuple[str, dict[str, Any] | str], ...] = (
    ("with the worked examples of the package", "ready"),
    ("with two questions of the data as worked examples", {"num": 2, "from": "data.train"}),
)
"""What is tried where a model cannot be read and is shown none, and the setting of it."""


def try_model(
    model: str | None,
    data: str | None,
    overrides: Sequence[str],
    *,
    questions: int,
    samples: int,
    seconds: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Try a model, say what was found, and print or write the config.

    Raises:
        ValueError: model, data or a setting cannot be used.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: must be above 0")
    patient = Patient(model, data, overrides)
    if out and patient.is_remote:
        raise ValueError(f"--out {out}: there is no config for a server's model; leave it out")
    with Shown() as shown:
        found = patient.examine(shown, questions, samples, seconds)
    if as_json:
        print(json.dumps(found))
        return
    for line in lines(found):
        say(line)
    if not patient.is_remote:
        text = f"# spark-rl doctor: {found['verdict']['text']}\n{found['yaml']}"
        if out is None:
            print(text, end="")
        else:
            _write(out, text)


class Patient:
    """A model and questions, with the settings of a run that is not begun.

    Raises:
        ValueError: they cannot be used.
    """

    def __init__(self, model: str | None, data: str | None, overrides: Sequence[str]) -> None:
        if data is None:
            raise ValueError("there are no questions to try the model on; name some with --data")
        file = data if data.endswith((".yaml", ".yml")) else None
        if model is None and file is None:
            raise ValueError("there is no model to try; name one, or a run's config with --data run.yaml")
        of_engine = [override for override in overrides if override.startswith("engine.")]
        of_run = [override for override in overrides if override not in of_engine]
        named = [] if model is None else [f"model.path={json.dumps(model)}"]
        if file is None:
            named.append(f"data.train={data if data.startswith(('{', '[')) else json.dumps(data)}")
        self.given = given_settings(file, [*named, *of_run])
        preset = [] if file or "preset" in self.given else ["preset=spark"]
        self._overrides, self._file = [*preset, *named, *of_run], file
        self._engine: dict[str, Any] = {}
        for override in of_engine:
            self._engine = merge(self._engine, parse_override(override)["engine"])
        self.config = load_config(file, self._overrides)
        self.is_remote = self.config.model.path.startswith(("http://", "https://"))
        self.context = None if self.is_remote else self._look_into_folder()
        limit = self.config.rollout.max_new_tokens
        if "rollout.max_new_tokens" not in flat(self.given):
            limit = min(_TOKENS, self.context // 2) if self.context else _TOKENS
        self.config = self.with_settings(**{"rollout.max_new_tokens": limit})

    def with_settings(self, **settings: Any) -> Config:
        """The config with further settings, by dotted key."""
        more = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        limit = f"rollout.max_new_tokens={self.config.rollout.max_new_tokens}"
        return load_config(self._file, [*self._overrides, limit, *more])

    def _look_into_folder(self) -> int | None:
        """The model's context, if that can be told before it is loaded."""
        from spark_rl.models.folder import check_folder, check_hub, context_length

        if (folder := check_folder(self.config.model)) is None:
            check_hub(self.config.model.path, self.config.model.revision)
            return None
        return context_length(folder)

    def examine(self, shown: Shown, questions: int, samples: int, seconds: float) -> dict[str, Any]:
        """All that was found, as JSON types."""
        from spark_rl.evaluate.prognosis import answer_figures, example_replies, judge_figures, prognosis
        from spark_rl.evaluate.trial import Trier
        from spark_rl.train.unread import Unread
        from spark_rl.types import Role
        from spark_rl.verify import VerifierPool

        config = self.config
        data = _few(config, shown)
        shown.stage(f"loading {config.model.name}")
        chat = open_model(self._inference(), data.prompts)
        if not chat.takes_images:
            data.refuse_images()
        with VerifierPool.of(config.verify) as pool:
            trier = Trier(chat, pool, config, config.rollout.max_new_tokens)
            tasks = trier.questions(data, questions)
            read = None if self.is_remote else self._set_pace(trier, tasks, data, samples, seconds, shown)
            ask = f"{len(tasks)} questions x {samples}"
            trials = [trier.answers(tasks, data.prompts, samples, "", shown.stage(f"sampling {ask}"))]
            changes: list[dict[str, Any]] = [{}]
            for name, change in self._other_prompts(data, trials[0]):
                other = _few(self.with_settings(**change), shown)
                asked = trier.questions(other, questions)
                told = shown.stage(f"sampling {ask}, {name}")
                trials.append(trier.answers(asked, other.prompts, samples, name, told))
                changes.append(change)
                if 2 * trials[-1].num_mixed >= len(asked):
                    break  # good enough
            best = max(range(len(trials)), key=lambda i: (trials[i].num_mixed, trials[i].parse_rate, -i))
            trial = trials[best]
            verdicts = trier.verdicts(trial, _ITEMS, shown.stage(f"judging {_ITEMS} of the answers"))
            remedy = Unread(data.prompts, pool, config.recycle.right_at).remedy(Role.ANSWER, trials[0].seen)
        if len(trials) > 1 and "prompts.examples" in remedy:
            remedy = "it states no answers, with worked examples or without; teach it with warm_start"
        vocab = len(chat.renderer.tokenizer) if chat.renderer else None
        right_at, limit = config.recycle.right_at, trier.max_new_tokens
        figures = [answer_figures(each, right_at, vocab) for each in trials]
        verdict = prognosis(figures[best], remedy, limit)
        found: dict[str, Any] = {
            "model": config.model.name,
            "data": [source.path for source in config.data.train],
            "max_new_tokens": limit,
            "verdict": {"kind": verdict.kind, "text": verdict.sentence + _with(trial, config, changes[best])},
            "trials": figures,
            "best": best,
            "replies": example_replies(trial.groups, right_at),
            "judge": judge_figures(verdicts) if verdicts else None,
        }
        if read is None:
            return found
        shown.stage("weighing a run")
        return found | self._run(changes[best], trial, verdicts, read, limit, chat, data)

    def _inference(self) -> Inference:
        config = self.config
        engine = {"max_new_tokens": config.rollout.max_new_tokens}
        if config.rollout.max_batch_tokens:
            engine["max_batch_tokens"] = config.rollout.max_batch_tokens
        return load_inference(
            model=config.model.model_dump(mode="json"),
            verify=config.verify.model_dump(),
            engine=engine | self._engine,
            seed=config.train.seed,
        )

    def _set_pace(
        self, trier: Trier, tasks: Sequence[Any], data: Data, samples: int, seconds: float, shown: Shown
    ) -> float:
        """See how fast the model is here, say how long it will take, and shorten the replies where that is too long.

        Returns the seconds that a token of a prompt takes to be read.
        """
        shown.stage("measuring its speed")
        read = trier.seconds_to_read(tasks, data.prompts)
        write = trier.seconds_to_write(tasks, data.prompts, samples)
        limit = trier.max_new_tokens
        if limit * write > seconds:
            trier.max_new_tokens = min(limit, max(_FEW_TOKENS, int(seconds / write)))
            say(
                f"replies of {limit} tokens would take up to {_time(limit * write)}, so they are cut at "
                f"{trier.max_new_tokens} (--seconds {seconds:g})"
            )
        say(
            f"sampling {len(tasks)} questions x {samples} replies of at most {trier.max_new_tokens} tokens: "
            f"up to {_time(trier.max_new_tokens * write)} each time, once or up to three times"
        )
        return read

    def _other_prompts(self, data: Data, first: Trial) -> list[tuple[str, dict[str, Any]]]:
        """Worked examples or none, where that is worth a try: a name and settings that lead to other prompts."""
        from spark_rl.types import Role

        if data.prompts.examples.get(Role.ANSWER):
            return [("without worked examples", {"prompts.examples": "none"})]
        if 2 * sum(r.extracted is not None for r in first.rollouts) >= len(first.rollouts):
            return []
        found = []
        for name, setting in _EXAMPLES:
            try:
                self.with_settings(**{"prompts.examples": setting})
            except ValueError:  # there are none of this kind for such prompts
                continue
            found.append((name, {"prompts.examples": setting}))
        return found

    def _run(
        self,
        change: dict[str, Any],
        trial: Trial,
        verdicts: Trial | None,
        read: float,
        limit: int,
        chat: Any,
        data: Data,
    ) -> dict[str, Any]:
        """What a run would take here, and its config."""
        from spark_rl.evaluate.first_config import as_yaml, first_config, measured_speed
        from spark_rl.train.plan import make_plan

        speed = measured_speed(trial, verdicts, read)
        model = getattr(chat.engine, "model", None)
        num_params = sum(p.numel() for p in model.parameters()) if model is not None else None
        config = first_config(
            self.with_settings(**change),
            self.given,
            trial,
            verdicts,
            speed=speed,
            limit=limit,
            context=chat.context,
            num_params=num_params,
            rows=data.train.num_rows,
        )
        plan = make_plan(config, data)
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


def _few(config: Config, shown: Shown) -> Data:
    """The training questions of a config, of files the first rows only."""
    from spark_rl.data import load_data

    def first(source: Any) -> Any:
        is_made = source.path.startswith(("embedded:", "reasoning_gym:"))
        return source if is_made else source.model_copy(update={"size": min(_ROWS, source.size or _ROWS)})

    train = [first(source) for source in config.data.train]
    few = config.data.model_copy(update={"train": train, "validation": [], "monitor": []})
    return load_data(config.model_copy(update={"data": few}), shown.track)


def _with(trial: Trial, config: Config, change: dict[str, Any]) -> str:
    """The settings that it takes beside the given ones."""
    needed = [
        f"{key}={json.dumps(value)}" if isinstance(value, dict) else f"{key}={value}" for key, value in change.items()
    ]
    if trial.prompts.answer_format.name != config.data.answer_format:
        needed.insert(0, f"data.answer_format={trial.prompts.answer_format.name}")
    return f", with {' and '.join(needed)}" if needed else ""


def lines(found: dict[str, Any]) -> list[str]:
    """What was found, for people."""
    from spark_rl.train.estimate import readable

    said = [line for figures in found["trials"] for line in _of_answers(figures, found["max_new_tokens"])]
    said += [f"  {name}: {reply}" for name, reply in found["replies"].items()]
    said.append(_of_judge(found["judge"]))
    if "step" in found:
        step, memory = found["step"], found["memory"]
        seconds = step["measured_generation_seconds"], step["estimated_update_seconds"]
        said.append(
            f"a step of {step['groups']} x {step['num_generations']} rollouts here: about {_time(sum(seconds))}, of it "
            f"{_time(seconds[0])} to generate (measured on these replies) and up to {_time(seconds[1])} to update "
            "(estimated: three times what its tokens take to be read)"
        )
        fits = f"does not fit: {memory['advice']}" if memory["advice"] else "fits"
        said.append(
            f"memory (estimated): {readable(memory['peak'])} of {readable(memory['available'])} ({memory['device']}), "
            f"{memory['parameters']:,} parameters: {fits}"
        )
    else:
        said.append("a model cannot be trained over HTTP: for figures of a run name its folder or its Hub id")
    return [*said, found["verdict"]["text"]]


def _of_answers(figures: dict[str, Any], limit: int) -> list[str]:
    replies, right = figures["replies"], figures["pass@1"]
    most = next(name for name in figures if name.startswith("pass@") and name != "pass@1")
    shown = [each for each in figures["formats"] if each["answers"] >= _SHOWN * replies]
    formats = [f"{each['format']} {each['answers'] / replies:.0%} ({each['golds'] / replies:.0%})" for each in shown]
    name = figures["name"] or ("with the worked examples of the settings" if figures["examples"] else "asked as set")
    return [
        f"{name}: answers (of them the gold) are stated as {', '.join(formats) or 'nothing'}",
        f"  read as {figures['answer_format']}: pass@1 {right['value']:.1%} ({right['low']:.1%} to {right['high']:.1%}), "
        f"{most} {figures[most]:.1%}; {figures['mixed_groups']} of {figures['questions']} groups are mixed",
        f"  {figures['tokens']:.0f} tokens a reply, {figures['cut_rate']:.0%} cut at {limit}",
    ]


def _of_judge(judge: dict[str, Any] | None) -> str:
    if judge is None:
        return "judge: not tried, since no prompt could be made of these answers"
    balanced = judge["balanced_accuracy"]
    yes = (
        ""
        if judge["yes_rate"] is None
        else f", {judge['yes_rate']:.0%} of them Yes (right are {judge['label_rate']:.0%})"
    )
    right = "" if balanced is None or judge["label_rate"] in (0, 1) else f", balanced accuracy {balanced:.0%}"
    return f"judge: {judge['parse_rate']:.0%} of {judge['items']} greedy verdicts can be read{yes}{right}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another file") from None
