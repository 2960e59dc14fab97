"""Questions with checkable answers: from files, the Hub, reasoning-gym and the embedded sets."""

from spark_rl.data.load import Data, load_data
from spark_rl.data.questions import Questions
from spark_rl.data.rows import question_task

__all__ = ["Data", "Questions", "load_data", "question_task"]
