"""What a sampler's state is checked for, before it is gone on from."""

from typing import Any

from fastpack import checks

VERSION = 2  # of how plans are made: raise it when the same settings would give other batches
POSITIONS = ("epoch", "batches")  # the entries that say where one is; all others decide the batches


def fitting(state_dict: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return `state_dict`, whose entries are those of `wanted`, and equal, but for those of `POSITIONS`."""
    if not isinstance(state_dict, dict):
        raise TypeError(f"state_dict is {checks.described(state_dict)}, not a dict: pass what state_dict() returned")
    if state_dict.keys() != wanted.keys():
        differ = sorted(map(str, state_dict.keys() ^ wanted.keys()))
        raise ValueError(f"state_dict does not have the entries of a {wanted['sampler']}'s state: they differ in {', '.join(differ)}")
    for name, value in wanted.items():
        if name not in POSITIONS and state_dict[name] != value:
            raise ValueError(
                f"state_dict was taken with {name} {state_dict[name]!r}, but this sampler has {value!r}: "
                "its batches are others, so make the sampler as it was then, or begin an epoch by set_epoch"
            )
    return state_dict


def batches(value: Any, name: str, most: int) -> int:
    """Return a checked number of batches done."""
    number = checks.count(value, name, 0)
    if number > most:
        raise ValueError(f"{name} is {number}, but the epoch has {checks.counted(most, 'batch')}")
    return number
