"""What the model is shown, in training and at test time."""

from __future__ import annotations

from pathlib import Path

from spark_rl.config.base import Section


class PromptsConfig(Section):
    """The prompts of all roles. They are saved in a run's `final/`, and hold at test time unless other ones are
    named."""

    templates: Path | None = None
    """A YAML file with templates of yours, by role, which take the place of the shipped ones of that role."""
    verdict_format: str = "boxed"
    """How judgements state their verdict: `boxed`, `tags`, `phrase` or `json:<key>` (paper: `boxed`)."""
