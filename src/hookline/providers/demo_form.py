"""Demo form: an upload read into memory and taken apart.

Lives here: multipart/form-data, whole, within a bound. Elsewhere: uploads on their way to real upstreams, which nobody takes apart (the surface's `Upload`).
Idea: only the demo needs the parts, and it is for small files: what is larger is refused with 413."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hookline.upload import Upload

MAX_FORM_BYTES = 32 << 20

_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)
_NAME = re.compile(rb'[; ]name="([^"]*)"', re.IGNORECASE)
_FILE_NAME = re.compile(rb'filename="([^"]*)"', re.IGNORECASE)


@dataclass(slots=True)
class Form:
    """Text fields by name (`tags[]` keeps the last), and the files in order: (field, file name, bytes)."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, str, bytes]] = field(default_factory=list)


async def read_form(upload: Upload) -> Form | None:
    """The form, or None if it is larger than the demo takes. A body that is no form is one file without a name."""
    pieces: list[bytes] = []
    size_bytes = 0
    async for piece in upload.chunks(None):
        size_bytes += len(piece)
        if size_bytes > MAX_FORM_BYTES:
            return None
        pieces.append(piece)
    return parse_form(upload.content_type, b"".join(pieces))


def parse_form(content_type: str, body: bytes) -> Form:
    """Take the body apart. Parts without a name are left out."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None or not content_type.lower().startswith("multipart/"):
        return Form(files=[("file", "upload", body)])
    form = Form()
    delimiter = b"\r\n--" + boundary.group(1).encode()
    for part in (b"\r\n" + body).split(delimiter)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(head)
        if name is None:
            continue
        file_name = _FILE_NAME.search(head)
        key = name.group(1).decode(errors="replace")
        if file_name is not None:
            form.files.append((key, file_name.group(1).decode(errors="replace"), content))
        else:
            form.fields[key] = content.decode(errors="replace")
    return form
