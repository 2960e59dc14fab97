"""Questions with checkable answers, from files and from the embedded sets."""

from spark_rl.data.questions import Questions
from spark_rl.data.sources import load_examples, load_tasks, question_task

__all__ = ["Questions", "load_examples", "load_tasks", "question_task"]
