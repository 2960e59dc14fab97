"""What the model is shown: one set of prompts for training, test time and evaluation, and how they become token ids."""

from spark_rl.prompts.build import build_prompts, kept_prompts, save_prompts, saved_prompts
from spark_rl.prompts.chat import CannotRender, ChatRenderer
from spark_rl.prompts.check import check_room
from spark_rl.prompts.examples import one_sided
from spark_rl.prompts.prompts import Prompts
from spark_rl.prompts.quoting import View, shown
from spark_rl.prompts.templates import TEMPLATES, Template

__all__ = [
    "TEMPLATES",
    "CannotRender",
    "ChatRenderer",
    "Prompts",
    "Template",
    "View",
    "build_prompts",
    "check_room",
    "kept_prompts",
    "one_sided",
    "save_prompts",
    "saved_prompts",
    "shown",
]
