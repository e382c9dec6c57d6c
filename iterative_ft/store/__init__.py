"""Finished work, addressed by what went into it: `stages` makes and finds it, `clearing` lists and frees it.

python -m iterative_ft.store ls [STORE]
python -m iterative_ft.store gc [STORE] [--yes]
"""

from iterative_ft.store.stages import MANIFEST, Event, Kind, Purpose, Stage, Store, stage_key

__all__ = ["MANIFEST", "Event", "Kind", "Purpose", "Stage", "Store", "stage_key"]
