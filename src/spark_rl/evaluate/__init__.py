"""How good a model is at answering, judging and correcting itself: suites, runner, statistics, report."""
