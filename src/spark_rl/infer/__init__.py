"""Test time: the trained model judges, corrects itself, and chooses among its own samples (SPARK section 3.3)."""

from spark_rl.infer.chat import ChatModel
from spark_rl.infer.judge import Judge, Preference, Verdict
from spark_rl.infer.plan import Ask, Done, Plan, Spent, run
from spark_rl.infer.solver import Solution, Solver

__all__ = ["Ask", "ChatModel", "Done", "Judge", "Plan", "Preference", "Solution", "Solver", "Spent", "Verdict", "run"]
