"""What the keep's creator called it, as the manager tells it: checked again, since it goes into every answer.

Imported with the first keep-describe. Import rule: that of keep_loader, and keep_protocol.spec.
"""

from __future__ import annotations

from keep_protocol import strict_json
from keep_protocol.constants import MAX_CONTROL_FRAME
from keep_protocol.errors import ErrorKind, KeepfleetError
from keep_protocol.fields import Record
from keep_protocol.spec import Labels, check_labels, check_name

MAX_OWNER = 128
"""Characters of the creator's name: a certificate's common name has at most 64 (RFC 5280, appendix A)."""


class Description(Record):
    """The keep's name and labels, and who created it; each may be empty."""

    name: str
    labels: Labels
    owner: str


def read_description(contents: str) -> Description:
    """The description in a command's contents: `{"name": …, "labels": {…}, "owner": …}`, each of them optional.

    Raises KeepfleetError(BAD_REQUEST) for anything else.
    """
    value = strict_json.loads_object(contents.encode("utf-8", "replace"), MAX_CONTROL_FRAME, "the keep's description")
    name, labels, owner = value.pop("name", ""), value.pop("labels", {}), value.pop("owner", "")
    if value:
        raise _bad(f"{next(iter(value))[:40]!r} is nothing a keep has")
    if not isinstance(name, str) or not isinstance(labels, dict):
        raise _bad("its name must be a string and its labels an object")
    if not isinstance(owner, str) or len(owner) > MAX_OWNER or not owner.isprintable():
        raise _bad(f"its owner must be at most {MAX_OWNER} printable characters")
    return Description(check_name(name), check_labels(labels.items()), owner)


def _bad(why: str) -> KeepfleetError:
    return KeepfleetError(ErrorKind.BAD_REQUEST, f"cannot describe the keep: {why}")
