"""Reward functions in TRL's signature (trl, docs/source/grpo_trainer.md), named `trl:reward_functions:<function>`."""

import asyncio
import re
import time

from spark_rl.verify import extract_answer


def called_as_by_trl(prompts, completions, **kwargs):
    assert prompts == [[{"role": "user", "content": "?"}]]
    assert completions == [[{"role": "assistant", "content": "<think>hm</think> no box"}]]
    assert kwargs == {"answer": ["5"], "solution": ["5"], "ground_truth": ["5"], "difficulty": [3]}
    return [1.0]


def has_prompt(prompts, **kwargs):
    return [float(len(prompt)) for prompt in prompts]


def think_format(completions, **kwargs):
    return [float(bool(re.match(r"^<think>.*?</think>", completion[0]["content"]))) for completion in completions]


def accuracy(completions, solution, log_extra=None, **kwargs):
    assert log_extra is None
    answers = [extract_answer(completion[0]["content"]) for completion in completions]
    return [float(answer == gold) for answer, gold in zip(answers, solution, strict=True)]


def few_parameters(completions, ground_truth):
    return [0.25 for _ in zip(completions, ground_truth, strict=True)]


async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [0.5 for _ in completions]


class _Scaled:
    def __call__(self, completions, **kwargs):
        return [0.75 for _ in completions]


an_object = _Scaled()
not_callable = 5


def gives_none(completions, **kwargs):
    return [None]


def gives_a_number(completions, **kwargs):
    return 1.0


def gives_two(completions, **kwargs):
    return [1.0, 1.0]


def wants_token_ids(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def slow_without_a_box(completions, **kwargs):
    answer = extract_answer(completions[0][0]["content"])
    if answer is None:
        time.sleep(3600)
    return [float(answer == "5")]
