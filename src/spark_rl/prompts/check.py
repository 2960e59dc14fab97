"""What a prompt must be so that its ideal replies are graded right, and no quoted text passes for its instruction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from spark_rl.prompts.prompts import Prompts
from spark_rl.prompts.templates import OF_ANSWERS, OF_VERDICTS, QUOTED, Template
from spark_rl.types import Role
from spark_rl.verify import Format, format_of, verdict_side

_FENCE = re.compile(r"```|~~~")
_OTHER_MARKS = ("boxed", "tags", "hash")
"""Formats of which a text can be seen to speak."""


def check_templates(prompts: Prompts) -> None:
    """See that every template can be filled and asks for what will be read.

    What is a matter of style is let pass: the question not first, which only costs time, or no fence around it.

    Raises:
        ValueError: one cannot, or does not; the sentence names it.
    """
    for role in Role:
        if not prompts.templates_for(role):
            raise ValueError(f"there is no template of the role {role}; add one")
    for template in prompts.templates:
        try:
            _check_placeholders(template)
            if template.role.is_recycled:
                _check_fences(template)
            _check_instruction(template, prompts)
            if template.role.is_judge:
                _check_verdicts(template, prompts.verdict_format)
        except ValueError as error:
            raise ValueError(f"the {template.role} template {template.name!r} {error}") from None
    for role in OF_VERDICTS:
        _check_agreement(prompts, role)


def check_room(
    prompts: Prompts, roles: Iterable[Role], limit: int, num_tokens: Callable[[Role], int], reason: str
) -> None:
    """See that worked examples leave room for a prompt.

    Args:
        limit: tokens that examples and prompt may have together.
        num_tokens: what the examples of a role take, or at least take.
        reason: the words on the limit, after "and".

    Raises:
        ValueError: those of one of the roles do not.
    """
    for role in roles:
        if prompts.examples.get(role) and (tokens := num_tokens(role)) >= limit:
            raise ValueError(
                f"prompts.examples.{role}: the worked examples take {tokens} tokens, and {reason}; give fewer or "
                f"shorter ones, or none: prompts.examples={{{role}: none}}"
            )


def _check_placeholders(template: Template) -> None:
    there, known = template.placeholders(), ", ".join(f"{{{name}}}" for name in template.known)
    if unknown := [name for name in there if name not in template.known]:
        raise ValueError(f"has the placeholder {{{unknown[0]}}}, which there is not; those of its role are {known}")
    if missing := [name for name in QUOTED[template.role] if name not in there]:
        raise ValueError(f"has no {{{missing[0]}}}; add it: the placeholders of its role are {known}")


def _check_fences(template: Template) -> None:
    """Quoted texts come in fences, which begin a line, and which other ones around them would close."""
    for name in QUOTED[template.role]:
        if len(re.findall(rf"(?m)^\{{{name}\}}[ \t]*$", template.text)) < template.placeholders().count(name):
            raise ValueError(f"has text beside {{{name}}}; put it on a line of its own, where it is fenced as a quote")
    if _FENCE.search(template.text):
        raise ValueError("has a fence of its own (``` or ~~~); remove it, since quoted texts are fenced without it")


def _check_instruction(template: Template, prompts: Prompts) -> None:
    """What is to be stated must be said, and in a prompt that quotes responses after all of them."""
    names = QUOTED[template.role] if template.role.is_recycled else ()
    end = max((template.text.rfind(f"{{{name}}}") + len(name) + 2 for name in names), default=0)
    stated, setting = prompts.format(template.role), prompts.format_key(template.role)
    texts = prompts.statements(template) | dict.fromkeys(QUOTED[template.role], "")
    instruction = Template("", template.role, template.text[end:]).filled(texts)
    after = " after the texts that it quotes" if template.role.is_recycled else ""
    if template.role.is_judge:
        placeholders = OF_VERDICTS[template.role]
        said = all(stated.write(word) in instruction for word in template.verdicts)
    else:
        placeholders = OF_ANSWERS
        said = stated.asked_in(instruction)
    if said:
        return
    joined = (" and " if template.role.is_judge else " or ").join(f"{{{name}}}" for name in placeholders)
    others = [format_of(name) for name in _OTHER_MARKS if name != stated.name]
    if other := next((each for each in others if each.asked_in(instruction)), None):
        raise ValueError(
            f"asks for {other.form}, but {setting} is {stated.name}; write {joined} instead, which follow the setting"
        )
    raise ValueError(
        f"does not say{after} how to state the {'verdict' if template.role.is_judge else 'answer'}; add {joined}"
    )


def _check_verdicts(template: Template, stated: Format) -> None:
    """Each verdict, stated as the prompt asks, must be right where it is the label and wrong where the other one is."""
    for word in template.verdicts:
        if stated.read(stated.write(word)) != word:
            raise ValueError(
                f"has the verdict {word!r}, which {stated.name!r} cannot state; set prompts.verdict_format to boxed, "
                "tags, phrase or json:<key>, or choose another word"
            )
    sides = [verdict_side(word, template.verdicts) for word in template.verdicts]
    within = [
        re.search(rf"\b{re.escape(a)}(?!\w)", b, re.IGNORECASE) for a, b in (template.verdicts, template.verdicts[::-1])
    ]
    if sides != [0, 1] or any(within):
        raise ValueError(
            f"has the verdicts {' and '.join(map(repr, template.verdicts))}, which cannot be told apart for sure; "
            "choose words of which neither is in the other"
        )


def _check_agreement(prompts: Prompts, role: Role) -> None:
    positive, negative = ({t.verdicts[i].casefold(): t.name for t in prompts.templates_for(role)} for i in (0, 1))
    if both := positive.keys() & negative.keys():
        word = min(both)
        raise ValueError(
            f"the {role} templates {positive[word]!r} and {negative[word]!r} mean opposite verdicts by {word!r}; let "
            "their verdicts stand in the same order"
        )
