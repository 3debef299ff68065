"""Where accelerate may put the layers of a shared basis, which is one module with one place."""

from collections.abc import Mapping
from typing import Any

import torch

from geocolor.plans import Plan


def check_placement(device_map: Mapping[str, Any], plan: Plan, names: Mapping[str, str]) -> None:
    """Raise ValueError where `device_map` puts layers of one basis where accelerate cannot serve them all.

    `names` says where the layers of the plan are in the model, in its order. Read in accelerate 1.15: what follows a
    device may be offloaded to memory, since the basis is then fetched for all of its layers; nothing else may differ.
    """
    accelerators = {place for place in map(_place, device_map.values()) if place not in ("cpu", "disk")}
    for cls in plan.classes:
        members = [found for name, found in names.items() if name in cls.layers]
        places = [_place_of(member, device_map) for member in members]
        to_memory = len(accelerators) == 1 and places == sorted(places, key="cpu".__eq__) and "disk" not in places
        other = next((i for i, place in enumerate(places) if place != places[0]), None)
        if cls.kind != "dense" and other is not None and not to_memory:
            raise ValueError(
                f"layers {members[0]!r} and {members[other]!r} share a basis, and device_map puts one on "
                f"{places[0]!r}, the other on {places[other]!r}: put all such layers on one device, as "
                f"device_map={{'': {places[0] if places[0] != 'disk' else 'cpu'!r}}} does, or all of them on 'disk'; "
                "behind those on a single accelerator others may be on 'cpu'"
            )


def _place_of(name: str, device_map: Mapping[str, Any]) -> str:
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next((_place(device_map[prefix]) for prefix in prefixes if prefix in device_map), "cpu")


def _place(device: Any) -> str:
    if not isinstance(device, int):
        return str(device)
    accelerator = torch.accelerator.current_accelerator()
    return f"{accelerator.type if accelerator is not None else 'cuda'}:{device}"
