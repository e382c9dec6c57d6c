"""The machine a run is on: its files, devices, memory, processes, and the libraries installed."""
