"""`spark-rl doctor MODEL --data FILE`: whether a model could learn from questions, and a config to start from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_rl.cli.model import open_model
from spark_rl.cli.rows import say
from spark_rl.progress import Shown

if TYPE_CHECKING:
    from spark_rl.evaluate.patient import Patient

_SHOWN = 0.02
"""Share of the replies from which on a format is named."""


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
    from spark_rl.evaluate.patient import Patient
    from spark_rl.models.folder import context_length, model_folder
    from spark_rl.train.preflight import check_model

    if not seconds > 0:
        raise ValueError(f"--seconds {seconds:g} is no time; give more than 0")
    if out and out.is_dir():
        raise ValueError(f"--out {out}: is a folder; name a file for the config")
    patient, context = Patient(model, data, overrides), None
    if patient.is_remote and out:
        raise ValueError(f"--out {out}: there is no config to train a server's model with; leave it out")
    if not patient.is_remote and (folder := model_folder(patient.config.model.path)):
        context = context_length(folder)
    patient.limit_replies(context)
    if not patient.is_remote:
        check_model(patient.config)
    found = _examined(patient, questions, samples, seconds)
    if as_json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            say(line)
    config = f"# spark-rl doctor: {found['verdict']['text']}\n{found.get('yaml', '')}"
    if out:
        _write(out, config)
    elif not as_json and not patient.is_remote:
        print(config, end="")


def _examined(patient: Patient, questions: int, samples: int, seconds: float) -> dict[str, Any]:
    from spark_rl.models.folder import is_surely_text_only
    from spark_rl.verify import VerifierPool

    with Shown() as shown:
        data = patient.data(shown)
        if not patient.is_remote and is_surely_text_only(patient.config.model.path):
            data.refuse_images()
        shown.stage("loading libraries")
        from spark_rl.evaluate.examination import Examination

        shown.stage(f"loading {patient.config.model.name}")
        chat = open_model(patient.inference(), data.prompts)
        chat.told = shown.part
        with VerifierPool.of(patient.config.verify) as pool:
            examination = Examination(
                patient, chat, data, pool, shown, say, questions=questions, samples=samples, seconds=seconds
            )
            return examination.results()


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What was found, for people."""
    from spark_rl.evaluate.examination import duration
    from spark_rl.train.estimate import readable

    for number, figures in enumerate(found["trials"]):
        yield from _of_answers(figures, found["max_new_tokens"])
        if number == found["best"]:
            yield from (f"  {name}: {reply}" for name, reply in found["replies"].items())
    yield _of_judge(found["judge"])
    if "step" in found:
        step, memory = found["step"], found["memory"]
        generation, update = step["measured_generation_seconds"], step["estimated_update_seconds"]
        yield (
            f"a step of {step['groups']} x {step['num_generations']} rollouts here: about "
            f"{duration(generation + update)}, {duration(generation)} of it to generate (by the time that these "
            f"replies took), up to {duration(update)} to update (estimated: three times what the tokens take to be "
            "read)"
        )
        fits = f"does not fit: {memory['advice']}" if memory["advice"] else "fits"
        yield (
            f"memory (estimated, {memory['parameters']:,} parameters): {readable(memory['peak'])} of "
            f"{readable(memory['available'])} ({memory['device']}), {fits}"
        )
    else:
        yield "a model cannot be trained over HTTP: for time, memory and a config name its folder or its Hub id"
    yield found["verdict"]["text"]


def _of_answers(figures: dict[str, Any], limit: int) -> Iterator[str]:
    replies, right = figures["replies"], figures["pass@1"]
    most = next(name for name in figures if name.startswith("pass@") and name != "pass@1")
    shown = [each for each in figures["formats"] if each["answers"] >= _SHOWN * replies]
    formats = [f"{each['format']} {each['answers'] / replies:.0%} ({each['golds'] / replies:.0%})" for each in shown]
    name = figures["name"] or ("with the worked examples of the settings" if figures["examples"] else "asked as set")
    yield f"{name}: answers (of them the gold) are stated as {', '.join(formats) or 'nothing'}"
    yield (
        f"  read as {figures['answer_format']}: pass@1 {right['value']:.1%} ({right['low']:.1%} to "
        f"{right['high']:.1%}), {most} {figures[most]:.1%}; {figures['mixed_groups']} of {figures['questions']} groups "
        "are mixed"
    )
    yield f"  {figures['tokens']:.0f} tokens a reply, {figures['cut_rate']:.0%} cut at {limit}"


def _of_judge(judge: dict[str, Any] | None) -> str:
    from spark_rl.evaluate.patient import written

    if judge is None:
        return "judge: not tried"
    said = f"judge: {judge['parse_rate']:.0%} of {judge['items']} greedy verdicts can be read"
    if judge["yes_rate"] is not None:
        said += f", {judge['yes_rate']:.0%} of these say {judge['yes']} ({judge['label_rate']:.0%} should)"
    if judge["balanced_accuracy"] is not None and 0 < judge["label_rate"] < 1:
        said += f", balanced accuracy {judge['balanced_accuracy']:.0%}"
    return said + (f"; set {written(judge['settings'])}" if judge["settings"] else "")


def _write(out: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror}); name another file") from None
