"""Judges and gauges: texts in, numbers out. They know no store, no run and no policy."""
