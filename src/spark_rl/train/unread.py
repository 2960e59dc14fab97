"""What to do about replies in which no answer is found: in which format they hold one, and which setting reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from spark_rl.prompts import Prompts
from spark_rl.train.records import rollout_record
from spark_rl.types import Group, Role
from spark_rl.verify import SELF, Check, Seen, VerifierPool, better_format, formats_seen, resolve, verdicts_seen

FEW = 0.1
"""Share of replies that can be read, below which it is said at once."""
Rows = Sequence[dict[str, Any]]
"""Groups as `rollouts/` has them."""


class Unread:
    """Explains why replies cannot be read.

    Args:
        prompts: what was asked for.
        right_at: the reward from which on an answer is right.
    """

    def __init__(self, prompts: Prompts, verifiers: VerifierPool, right_at: float) -> None:
        self.prompts, self.verifiers, self.right_at = prompts, verifiers, right_at

    def explain(self, role: Role, rows: Rows) -> str:
        r"""What replies of a role lack and what to do about it: ``an answer as `\boxed{}`; 40% of the replies hold the
        gold as `#### ...`: set data.answer_format=hash``."""
        what = f"{'a verdict' if role.is_judge else 'an answer'} as `{self.prompts.format(role).form}`"
        cut = [
            rollout["finish_reason"] == "length" for row in rows if row["role"] == role for rollout in row["rollouts"]
        ]
        if 2 * sum(cut) > len(cut):
            return f"{what}; {sum(cut) / len(cut):.0%} are cut at their length limit: raise max_new_tokens"
        return f"{what}; {self.remedy(role, self.seen(role, rows))}"

    def sentences(self, groups: Iterable[Group]) -> list[str]:
        """A sentence on every role of whose replies hardly any can be read, before any was trained on."""
        rows = [rollout_record(group) for group in groups if _needs_format(group.task.verifier)]
        found = []
        for role in Role:
            read = [rollout["extracted"] for row in rows if row["role"] == role for rollout in row["rollouts"]]
            if read and (share := sum(answer is not None for answer in read) / len(read)) < FEW:
                many = f"only {share:.0%} of the replies hold" if share else "no reply holds"
                found.append(f"{role}: {many} {self.explain(role, rows)}")
        return found

    def seen(self, role: Role, rows: Rows) -> list[Seen]:
        """The formats of a role's replies."""
        of_role = [row for row in rows if row["role"] == role and _needs_format(row["verifier"])]
        own = self.prompts.format(role)
        if role.is_judge:
            words = {template.name: template.verdicts for template in self.prompts.templates_for(role)}
            replies = [
                (rollout["text"], words.get(row["template"]) or self.prompts.verdicts(role, row["answer"]))
                for row in of_role
                for rollout in row["rollouts"]
            ]
            return verdicts_seen(replies, own)
        checks = [
            Check(rollout["text"], row["answer"], row["verifier"], row.get("metadata", {}))
            for row in of_role
            for rollout in row["rollouts"]
        ]
        return formats_seen(checks, self.verifiers, own, self.right_at)

    def remedy(self, role: Role, seen: Sequence[Seen]) -> str:
        """The setting that would help."""
        if not seen or seen[0].answers > seen[0].replies / 2:  # of the last rows; those before were others
            return "look at rollouts/"
        show = "" if self.prompts.examples.get(role) else "show the model how with prompts.examples (worked examples)"
        if better := better_format(seen):
            but = "" if better.golds else "the gold is in no other format either, but "
            weak = f", or better {show}" if show and better.format.name == "last_number" else ""
            return f"{but}{better.advice(self.prompts.format_key(role))}{weak}"
        if show:
            return f"hardly any holds one in another format: {show}, or teach it with warm_start"
        return "hardly any holds one in another format, although worked examples are shown: look at rollouts/"


def _needs_format(verifier: str) -> bool:
    """Whether replies are graded by the answer that is found in them."""
    return verifier != SELF and resolve(verifier).reads == "answer"
