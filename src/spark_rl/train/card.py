"""The model card of `final/`: what was trained from what, on what, how well, and how to ask it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any

from huggingface_hub import ModelCardData

from spark_rl.config import FILE_SUFFIXES, Config, SourceConfig
from spark_rl.prompts import Prompts
from spark_rl.prompts.quoting import fence
from spark_rl.prompts.templates import QUOTED
from spark_rl.train.hub import is_hub_id
from spark_rl.train.validation import HEADLINE, rewards_beside
from spark_rl.types import IMAGE, Message, Role, in_parts

_DOES = {
    Role.ANSWER: "answers questions",
    Role.POINTWISE: "judges whether a response is right",
    Role.PAIRWISE: "judges which of two responses is right",
    Role.REFLECTION: "corrects earlier responses",
}


def model_card(
    config: Config,
    summary: Mapping[str, Any],
    *,
    environment: Mapping[str, Any] | None = None,
    data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    last_step: Mapping[str, Any] | None = None,
    resumes: Sequence[Mapping[str, Any]] = (),
    takes_images: bool = False,
    prompts: Prompts = Prompts(),
) -> str:
    """A model card with the Hub's metadata.

    Args:
        summary: what becomes `summary.json`.
        environment: the run's `environment.json`.
        data: the run's `data.json`: rows used and skipped by source, for `train`, `validation` and `monitor`.
        last_step: the last row of `metrics.jsonl`.
        resumes: the rows of `resumes.jsonl`.
        takes_images: whether it is a vision-language model.
        prompts: what it was shown in training.
    """
    trained = [role for role in Role if config.roles[role].share > 0 and config.roles[role].weight > 0]
    judges = any(role.is_judge for role in trained)
    datasets = sorted({s.path for s in config.data.train if is_hub_id(s.path) and not s.path.endswith(FILE_SUFFIXES)})
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if takes_images else "text-generation",
        base_model=config.model.path if is_hub_id(config.model.path) else None,
        datasets=datasets or None,
        tags=["spark-rl", "grpo", "reinforcement-learning", *(["reward-model", "llm-as-a-judge"] if judges else [])],
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {'A solver and a judge' if judges else 'A solver'}",
        f"Trained from `{config.model.path}`{_revision((environment or {}).get('model'))} by reinforcement learning "
        "with "
        "[SPARK](https://arxiv.org/abs/2509.22624) (spark-rl). The same weights have one task or several: this model "
        f"{_listed([_DOES[role] for role in trained])}.",
        "## Results",
        *_results(config, summary, last_step or {}),
        "## How to ask it",
        _usage(config, judges, takes_images, prompts),
        "## Data",
        _data_table(config, data or {}),
        "## Training",
        _training(config, summary, resumes, prompts),
        *_versions(environment or {}),
        f"<details><summary>Every setting</summary>\n\n{fence(config.dump().rstrip())}\n\n</details>",
        "## Citation",
        _CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def _revision(hub: Mapping[str, Any] | None) -> str:
    """Which state of the starting model it was, for one of the Hub."""
    if not hub:
        return ""
    return f" (revision `{hub['revision']}`" + (f", commit `{hub['commit']}`" if hub["commit"] else "") + ")"


def _results(config: Config, summary: Mapping[str, Any], last_step: Mapping[str, Any]) -> list[str]:
    """Tables of held-out metrics, of accuracies by source, and of the last training step's judging."""
    before, after = summary["before"], summary["after"]
    parts = []
    rewards = rewards_beside(before, after)
    measured = [name for name in (*HEADLINE.values(), *sorted(after)) if _is_metric(name, before) and name in after]
    shown = [*measured, *rewards.values()]
    if shown:
        numbers = {name: after.get(f"n_{role}", "") for of in (HEADLINE, rewards) for role, name in of.items()}
        rows = [(name, f"{before[name]:.3f}", f"{after[name]:.3f}", numbers.get(name, "")) for name in shown]
        parts = [
            "Greedy decoding on held-out questions. Judge and reflection items were made from the starting model's own "
            "responses to them and are the same before and after.",
            _table(("metric", "before", "after", "items"), dict.fromkeys(rows)),
        ]
    earlier, later = (result.get("by_source", {}).get(Role.ANSWER, {}) for result in (before, after))
    if both := [(name, f"{earlier[name]:.3f}", f"{later[name]:.3f}") for name in later if name in earlier]:
        parts.append(_table(("answers to questions from", "before", "after"), both))
    if findings := summary.get("findings"):
        parts.append("\n".join(f"- {finding}" for finding in findings))
    if not config.data.validation:
        parts.append("No held-out questions were given, so how well this model does was not measured.")
    judging = [
        (role.value, name, f"{last_step[key]:.3f}")
        for role in (Role.POINTWISE, Role.PAIRWISE)
        for name in ("balanced_accuracy", "yes_rate", "label_rate", "parse_rate")
        if (key := f"{role}/{name}") in last_step
    ]
    if judging:
        parts += [
            f"Judging in the last training step ({last_step.get('step')}), sampled and on training questions: "
            "`yes_rate` is the share of verdicts that say Yes or A, `label_rate` the share of items where that is so. "
            "They are usually lower than held-out ones, since such items are made of questions that the model still "
            "got wrong in some samples then, and held-out ones of the starting model's responses.",
            _table(("role", "metric", "value"), judging),
        ]
    return parts


def _is_metric(name: str, metrics: Mapping[str, Any]) -> bool:
    is_count = name == "n" or name.startswith("n_")
    return isinstance(metrics.get(name), float | int) and not is_count and not name.endswith(("_reward", "_reward_std"))


def _usage(config: Config, judges: bool, takes_images: bool, prompts: Prompts) -> str:
    """Code that asks the model as training did, and for pictures commands that need no torchvision."""
    right, other = map(prompts.answer_format.write, ("9", "8"))
    question, response = "What is 3+4+2?", f"3+4=7 and 7+2=9.\n{right}"
    if takes_images:
        question, response = f"{IMAGE}\nHow many discs are there?", f"I count nine discs.\n{right}"
    options = "".join(f", {key}={value!r}" for key, value in config.model.chat_template_kwargs.items())
    model_id = config.train.push_to_hub or str(config.train.output / "final")

    def content(text: str) -> str:
        parts = [part | ({"image": "picture.png"} if part["type"] == "image" else {}) for part in in_parts(text)]
        return repr(parts if takes_images else text)

    def turns(messages: tuple[Message, ...]) -> str:
        listed = [f'{{"role": {m["role"]!r}, "content": {content(m["content"])}}}' for m in messages]
        return f"[{', '.join(listed)}]"

    asked = prompts.question(question, config.data.system)
    asks = [(Role.ANSWER, asked)]
    if judges:
        role = next(role for role in (Role.POINTWISE, Role.PAIRWISE) if _on(config, role))
        template = prompts.template(None, role)
        quoted = {name: {"question": question, "second": other}.get(name, response) for name in QUOTED[role]}
        asks.append((role, prompts.fill(template, **quoted)))
    prints = [f"print(ask({turns(prompts.conversation(role, messages))}))" for role, messages in asks]
    reader, model = (
        ("AutoProcessor", "AutoModelForImageTextToText") if takes_images else ("AutoTokenizer", "AutoModelForCausalLM")
    )
    name = reader.removeprefix("Auto").lower()
    code = f"""from transformers import {model}, {reader}

{name} = {reader}.from_pretrained({model_id!r})
model = {model}.from_pretrained({model_id!r}, dtype="auto")

def ask(messages):
    inputs = {name}.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_tensors="pt", return_dict=True{options},
    )
    output = model.generate(**inputs, max_new_tokens={config.rollout.max_new_tokens}, do_sample=False)
    return {name}.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

{chr(10).join(prints)}"""
    if not takes_images:
        return _block("python", code)
    about = f"{quote(model_id)} --question {quote(question.removeprefix(IMAGE).strip())} --image picture.png"
    commands = [f"spark-rl solve {about}"] + [f"spark-rl judge {about} --response {quote(other)}"] * judges
    torchvision = (
        "The `AutoProcessor` of Qwen's models needs torchvision, since they take videos too; `spark-rl` does not:"
    )
    return "\n\n".join([_block("python", code), torchvision, _block("bash", "\n".join(commands))])


def _block(language: str, code: str) -> str:
    marks, _, rest = fence(code).partition("\n")
    return f"{marks}{language}\n{rest}"


def _on(config: Config, role: Role) -> bool:
    return config.roles[role].share > 0 and config.roles[role].weight > 0


def _data_table(config: Config, data: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    kinds = {"train": config.data.train, "validation": config.data.validation, "monitor": config.data.monitor}
    kinds |= {"warm_start": config.warm_start.data} if config.warm_start.data else {}
    rows = [(kind, *row) for kind, sources in kinds.items() for row in _sources(sources, data.get(kind))]
    return _table(("use", "source", "rows", "skipped"), rows)


def _sources(sources: Sequence[SourceConfig], counted: Sequence[Mapping[str, Any]] | None) -> list[tuple[Any, ...]]:
    if counted:
        return [(row.get("source", ""), row.get("rows", ""), _skipped(row.get("skipped", ""))) for row in counted]
    return [(source.path, "", "") for source in sources]


def _skipped(counts: Any) -> Any:
    """`{"too_long": 3}` as `3 too long`."""
    if not isinstance(counts, Mapping):
        return counts
    return ", ".join(f"{count} {str(reason).replace('_', ' ')}" for reason, count in counts.items()) or 0


def _warm_start(config: Config, report: Mapping[str, Any]) -> str:
    kinds = {"rows": config.warm_start.data, "right rollouts with worked examples": config.warm_start.from_rollouts}
    given = " and ".join(kind for kind, is_used in kinds.items() if is_used)
    steps, rate = report["steps"], config.warm_start.learning_rate
    return f"{steps} supervised steps before, on {report['trained']:.0f} responses of {given}, learning rate {rate:g}"


def _examples(prompts: Prompts) -> list[tuple[str, Any]]:
    counts = ", ".join(f"{role} {len(turns) // 2}" for role, turns in prompts.examples.items())
    return [("worked examples before prompts", counts)] if counts else []


def _training(
    config: Config, summary: Mapping[str, Any], resumes: Sequence[Mapping[str, Any]], prompts: Prompts
) -> str:
    shares = ", ".join(f"{role} {config.roles[role].share:g}" for role in Role if config.roles[role].share)
    rows: list[tuple[str, Any]] = [
        ("steps", summary["steps"]),
        *([("warm start", _warm_start(config, summary["warm_start"]))] if "warm_start" in summary else []),
        ("weights taken after step", summary.get("final_from_step", summary["steps"])),
        ("groups a step, rollouts each", f"{config.rollout.groups_per_step}, {config.rollout.num_generations}"),
        ("shares of the roles", shares),
        ("longest rollout, tokens", config.rollout.max_new_tokens),
        ("learning rate", f"{config.train.learning_rate:g}, {config.train.schedule}"),
        ("loss", f"{config.loss.aggregation}, advantages by {config.loss.advantage_scale}, KL {config.loss.kl_coef:g}"),
        *_examples(prompts),
        ("seed", config.train.seed),
        ("hours", f"{summary['wall_seconds'] / 3600:.2f}"),
    ]
    changes = [
        (f"changed after step {resume['step']}", f"{key}: {old} to {new}")
        for resume in resumes
        for key, (old, new) in resume["changes"].items()
    ]
    return _table(("", ""), [*rows, *changes])


def _versions(environment: Mapping[str, Any]) -> list[str]:
    packages = environment.get("packages", {})
    if not packages:
        return []
    names = [f"{name} {version}" for name, version in packages.items()]
    machine = f"{environment.get('processes', 1)} process(es) on {environment.get('device', 'an unknown device')}"
    return [f"Made by {', '.join([*names, 'Python ' + str(environment.get('python', ''))])}; {machine}."]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


_CITATION = """```bibtex
@article{liu2025spark,
  title   = {SPARK: Synergistic Policy And Reward Co-Evolving Framework},
  author  = {Liu, Ziyu and Zang, Yuhang and Ding, Shengyuan and Cao, Yuhang and Dong, Xiaoyi and Duan, Haodong and
             Lin, Dahua and Wang, Jiaqi},
  journal = {arXiv preprint arXiv:2509.22624},
  year    = {2025}
}
```"""
