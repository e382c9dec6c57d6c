"""Finished work, addressed by what went into it: `stages` makes and finds it, `clearing` lists and frees it.

python -m iterative_ft.store ls [STORE]
python -m iterative_ft.store gc [STORE] [--yes] [--forget-missing]
"""

from iterative_ft.store.events import Event, Purpose
from iterative_ft.store.layout import MANIFEST
from iterative_ft.store.manifest import Kind, Stage, stage_key
from iterative_ft.store.stages import Store

__all__ = ["MANIFEST", "Event", "Kind", "Purpose", "Stage", "Store", "stage_key"]
