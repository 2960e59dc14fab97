"""All that decides what a model is shown: templates, the formats of answers and verdicts, worked examples.

One `Prompts` is made of a run's settings and handed down, so that training, validation, test time and a server ask in
the same words and read replies in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from spark_rl.prompts.quoting import fence
from spark_rl.prompts.templates import TEMPLATES, Template
from spark_rl.types import Message, Role
from spark_rl.verify import BOXED, Format, verdict_side


@dataclass(frozen=True, slots=True)
class Prompts:
    """What the model is shown, and how its replies are read."""

    answer_format: Format = BOXED
    """Of answers, the first ones and those of reflection."""
    verdict_format: Format = BOXED
    """Of a judge's verdicts."""
    templates: tuple[Template, ...] = TEMPLATES
    """At least one of every role, and just one for answers."""
    examples: Mapping[Role, tuple[Message, ...]] = field(default_factory=dict)
    """Worked examples of a role: turns of user and assistant that stand before its prompts."""
    in_first: frozenset[Role] = frozenset()
    """Roles that are recycled in their first template alone, although nothing stands before their prompts."""

    def format(self, role: Role) -> Format:
        """How replies of a role state what they come to."""
        return self.verdict_format if role.is_judge else self.answer_format

    @staticmethod
    def format_key(role: Role) -> str:
        """The setting of that format."""
        return "prompts.verdict_format" if role.is_judge else "data.answer_format"

    def templates_for(self, role: Role) -> tuple[Template, ...]:
        """The templates of one role, in a fixed order."""
        return tuple(t for t in self.templates if t.role is role)

    def recycled_in(self, role: Role) -> tuple[Template, ...]:
        """The templates that recycled prompts of a role are made in: with worked examples just the first one, which
        these are made in. Shown one wording and asked in another, small models answer as if they had seen none. The
        same holds of what they were taught with such examples."""
        templates = self.templates_for(role)
        return templates[:1] if self.examples.get(role) or role in self.in_first else templates

    def template(self, name: str | None, role: Role) -> Template:
        """The template of a role that is called so; the first one without a name.

        Raises:
            ValueError: there is none.
        """
        known = {template.name: template for template in self.templates_for(role)}
        if name is None:
            return next(iter(known.values()))
        if name not in known:
            raise ValueError(f"there is no {role} template {name!r}; known are {', '.join(known)}")
        return known[name]

    def verdicts(self, role: Role, said: str | None = None) -> tuple[str, str]:
        """The words of a judge's two verdicts, in prompts that are of no template: those of the first template of which
        one is `said`, or else of the first one."""
        pairs = [template.verdicts for template in self.templates_for(role)]
        return next((pair for pair in pairs if said and verdict_side(said, pair) is not None), pairs[0])

    def fill(self, template: Template, **quoted: str) -> tuple[Message, ...]:
        """Fill a template with fenced texts, in one pass, so that no quoted text can fill another placeholder.

        Raises:
            KeyError: a placeholder of the template was not given.
        """
        texts = {name: fence(text) for name, text in quoted.items()} | self.statements(template)
        return ({"role": "user", "content": template.filled(texts)},)

    def question(self, question: str, system: str | None = None) -> tuple[Message, ...]:
        """The prompt of a bare question: the question itself, unfenced, and how to state the answer."""
        template = self.template(None, Role.ANSWER)
        user = {"role": "user", "content": template.filled(self.statements(template) | {"question": question})}
        return ({"role": "system", "content": system}, user) if system else (user,)

    def conversation(self, role: Role, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """A prompt as the model sees it: with the worked examples of its role, after the system's turn."""
        examples = self.examples.get(role, ())
        num_system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        return (*messages[:num_system], *examples, *messages[num_system:])

    @property
    def without_examples(self) -> Prompts:
        """The same prompts with no worked examples before them, recycled in no other templates than with them."""
        return replace(self, examples={}, in_first=self.in_first | {role for role in Role if self.examples.get(role)})

    def statements(self, template: Template) -> dict[str, str]:
        """What stands for the placeholders of what is to be stated."""
        positive, negative = map(self.verdict_format.write, template.verdicts)
        of_answers = {"give_answer": self.answer_format.request, "form": self.answer_format.form}
        return of_answers | {"yes": positive, "no": negative, "a": positive, "b": negative}
