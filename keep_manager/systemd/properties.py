"""What the manager itself sets on a keep's unit, as (name, D-Bus signature, value). Pure.

Everything else stands in the installed drop-in keep@.service.d/10-keepfleet.conf. No text of a client's ever
reaches a unit: systemd 252 writes some strings of a transient unit unescaped into a unit file.
"""

from __future__ import annotations

from keep_protocol.constants import slice_name

Property = tuple[str, str, str]


def keep_properties(kuuid: int) -> tuple[Property, ...]:
    """The transient properties of the keep `kuuid`: its slice alone (man systemd.resource-control, Slice=)."""
    return (("Slice", "s", slice_name(kuuid)),)
