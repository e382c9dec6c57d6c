"""Statistics of scores: intervals, verdicts, what makes two runs replicates, and the simulation that the choices rest on."""
