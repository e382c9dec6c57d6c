"""Statistics of scores: intervals, verdicts, and what makes two runs replicates."""
