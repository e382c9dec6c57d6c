"""Stage `expected`: what base, or an adapter that was trained elsewhere, gives to the canary's texts.

A training writes that of its own policy beside the adapter. This one is asked for only when an engine is to serve the policy,
so it is in no plan and in no run's record. While a run that asked for it works, `gc` leaves it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.expected import EXPECTED, Expected, expected_here, write_expected
from iterative_ft.models.forward import Reader
from iterative_ft.models.policy import Policy
from iterative_ft.store import Kind, Store, stage_key

EXPECTED_KIND = Kind("expected", 1)


def expected_file(store: Store, policy: Policy, reader: Reader) -> Path:
    """The file of it, written first where the store has none.

    Args:
        reader: of the policy's base model; its engine must not hold the device.
    """
    inputs = {
        "policy": policy.digest,
        "dtype": reader.dtype,
        "device": reader.device,
        "versions": library_versions("torch", "transformers", "tokenizers", "peft"),
    }

    def build(out: Path) -> dict[str, Any]:
        found = reader.run(expected_here, adapter=None if policy.adapter is None else str(policy.adapter))
        write_expected(out / EXPECTED, Expected(**found))
        return {"policy": policy.name, "n_tokens": sum(map(len, found["ids"]))}

    name = f"{EXPECTED_KIND.name}/{stage_key(EXPECTED_KIND, inputs)}"
    store.use(name)
    quiet = Store(store.root)
    quiet.used.add(name)
    return quiet.stage(EXPECTED_KIND, inputs, build, f"what to expect of {policy.name}").path / EXPECTED
