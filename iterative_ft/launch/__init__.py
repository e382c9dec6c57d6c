"""Between the command line and the experiment: Hydra (`compose`), checks and errors (`cli`), tasks, sweeps and launchers."""
