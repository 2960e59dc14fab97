"""spark-rl: one reinforcement-learning run that trains a solver and a judge (SPARK, arXiv 2509.22624)."""

__version__ = "0.1.0"
