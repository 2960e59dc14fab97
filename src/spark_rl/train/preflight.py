"""What is surely wrong with a run's model, its prompts or its number of processes, found before its first step; all but
the prompts, which the model's tokenizer renders, before torch and transformers are imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from spark_rl.config import Config
from spark_rl.data import Data
from spark_rl.data.sources import Source
from spark_rl.models.folder import check_folder, check_hub, context_length, model_folder
from spark_rl.prompts import ChatRenderer, Prompts, check_room
from spark_rl.prompts.templates import QUOTED
from spark_rl.types import Message, Role

_SMALLER = "the smaller of data.max_prompt_tokens and what the model's context leaves beside rollout.max_new_tokens"
_GENERATED = 64
"""Generated questions that are made to look at their lengths."""


def check_model(config: Config) -> None:
    """Look into the folder of `model.path`, or else see whether the Hub can be asked for it, and at
    `model.chat_template`.

    Raises:
        ValueError: the run could not start; the sentence names the file or folder and what to change.
    """
    folder = check_folder(config.model)
    if folder is None:
        check_hub(config.model.path, config.model.revision)
    elif (folder / "adapter_config.json").exists():
        raise ValueError(
            f"model.path: {folder} holds an adapter, and all weights are trained; merge it into its base "
            "(merge_and_unload of PEFT), save that and name its folder"
        )
    else:
        longest_prompt(config, context_length(folder))


def trained_prompts(config: Config, prompts: Prompts) -> Prompts:
    """The prompts that are trained on and evaluated, of those of a run: where a warm start's rollouts are made with
    worked examples, without these."""
    return prompts.without_examples if config.warm_start.from_rollouts else prompts


def check_lengths(
    config: Config, sources: Iterable[Source], prompts: Prompts = Prompts(), key: str = "data.train"
) -> None:
    """At least one question of every source must fit, of generated ones one of the first few: a source that has none
    would end the run when its turn comes. Stops at the first that fits.

    Counted are the tokens of the bare messages, worked examples included, which the chat template only adds to.

    Args:
        key: the setting that names the sources.

    Raises:
        ValueError: every question of a source is too long, or worked examples leave no room for any.
    """
    folder = model_folder(config.model.path)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return
    from tokenizers import Tokenizer

    context = context_length(folder)
    limit = longest_prompt(config, context)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    check_examples(config, prompts, limit, lambda role: _at_least(tokenizer, prompts.examples[role]))
    for source in sources:
        num_rows = min(source.num_rows, _GENERATED) if source.generator else source.num_rows
        rows = (i for i in range(num_rows) if i not in source.left_out)
        tasks = map(source.task, rows)
        asked = (prompts.conversation(task.role, task.messages) for task in tasks)
        if not any(_at_least(tokenizer, messages) <= limit for messages in asked):
            raise ValueError(
                f"{source.path}: every question is longer than {limit} tokens, {_SMALLER}; change these, or leave it "
                f"out of {key}"
            )


def check_examples(config: Config, prompts: Prompts, limit: int, num_tokens: Callable[[Role], int]) -> None:
    """`check_room` for the longest prompt, in tokens, and the roles that a run asks."""
    reason = f"a prompt may have {limit}, {_SMALLER}"
    check_room(prompts, _asked(config), limit, num_tokens, reason)


def _asked(config: Config) -> list[Role]:
    """The roles whose prompts a run makes."""
    measured = config.validation.roles if config.data.validation else []
    return [role for role in Role if config.roles[role].share or role in measured]


def check_prompts(config: Config, data: Data, renderer: ChatRenderer) -> None:
    """Every prompt of the data, and every kind of prompt that is made of rollouts, must be one that the chat template
    renders.

    Raises:
        ValueError: one is not; the sentence names the row, or the role.
    """
    data.check_prompts(renderer)
    prompts = renderer.prompts
    for template in (template for template in prompts.templates if template.role in _asked(config)):
        texts = dict.fromkeys(QUOTED[template.role], "1")
        try:
            renderer.check(prompts.conversation(template.role, prompts.fill(template, **texts)))
        except ValueError as error:
            shown = "worked examples before it" if template.role in prompts.examples else "one turn of the user"
            raise ValueError(f"prompts of the role {template.role} ({shown}): {error}") from None


def longest_prompt(config: Config, context: int | None) -> int:
    """Tokens that the settings allow a prompt and that leave room for the longest rollout in the model's context.

    Raises:
        ValueError: the rollouts alone do not fit.
    """
    if context is None:
        return config.data.max_prompt_tokens
    longest = max(config.max_new_tokens(role) for role in Role if config.roles[role].share)
    if longest >= context:
        raise ValueError(
            f"max_new_tokens is {longest}, but the model {config.model.path} has a context of {context} tokens; "
            "lower it"
        )
    return min(config.data.max_prompt_tokens, context - longest)


def check_processes(config: Config, num_processes: int) -> None:
    """Processes share the groups of a step, and each holds the whole model.

    Raises:
        ValueError: not evenly, or the model is to be sharded.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise ValueError(
                f"accelerate is set to {name}, and models cannot be sharded here: each process holds all of its model; "
                "launch with --multi_gpu, or change `accelerate config`"
            )
    if config.rollout.groups_per_step % num_processes:
        raise ValueError(
            f"rollout.groups_per_step is {config.rollout.groups_per_step}, which {num_processes} processes cannot "
            "share evenly; make it a multiple of their number"
        )


def _at_least(tokenizer: Any, messages: Iterable[Message]) -> int:
    """Tokens that any rendering of a prompt has. A template may drop earlier assistant turns and trim
    contents, and one token a message may merge with what the template puts around it."""
    contents = [m["content"].strip() for m in messages if m["role"] != "assistant" and isinstance(m["content"], str)]
    return sum(max(0, len(tokenizer.encode(text, add_special_tokens=False).ids) - 1) for text in contents)
