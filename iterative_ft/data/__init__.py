"""Texts on disk: the files of personas and pools, and which prompts a cycle gets."""
