"""The stages of a run, a module a kind: what is in its key (`inputs`) and how it is built stand side by side.

Only these modules call `Store.stage`. `bench` holds what they share.
"""
