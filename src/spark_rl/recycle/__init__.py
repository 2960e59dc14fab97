"""Recycling: a step's rollouts and rewards become the next steps' judge and reflection prompts."""

from spark_rl.recycle.pool import Pool
from spark_rl.recycle.recycler import Bundle, Recycled, recycle

__all__ = ["Bundle", "Pool", "Recycled", "recycle"]
