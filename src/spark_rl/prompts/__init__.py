"""What the model is shown: one template set for training, test time and evaluation, and its rendering to token ids."""

from spark_rl.prompts.chat import CannotRender, ChatRenderer
from spark_rl.prompts.templates import (
    TEMPLATES,
    Template,
    View,
    answer_prompt,
    fill,
    shown,
    templates_for,
    verdict,
)

__all__ = [
    "TEMPLATES",
    "CannotRender",
    "ChatRenderer",
    "Template",
    "View",
    "answer_prompt",
    "fill",
    "shown",
    "templates_for",
    "verdict",
]
