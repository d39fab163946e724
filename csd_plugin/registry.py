"""Registering named objects with BasicSR, explicitly and without overwriting."""

from typing import Any

from basicsr.utils.registry import Registry


def register(registry: Registry, obj: Any) -> None:
    """Register `obj` under its own name; doing it again changes nothing.

    Raises:
        KeyError: another object has that name; the message names both owners.
    """
    owner = dict(iter(registry)).get(obj.__name__)
    if owner is obj:
        return
    if owner is not None:
        raise KeyError(
            f"{obj.__name__} of {obj.__module__} cannot be registered: {owner.__module__} has registered that name"
        )
    registry.register(obj)
