"""multipart/form-data, read for its `model` field and the beginnings of all others.

Lives here: an incremental scanner that is fed pieces and says where the model's value stands. Elsewhere: where the pieces are kept
(upload.py), what the other fields may name (a plugin).
Idea: bytes in, facts out, no I/O. The gateway must read the form as the upstream will, so whatever two readers could see differently
(a second model field, a name it can't parse) is refused."""

from __future__ import annotations

import re
from typing import Final, Literal

from hookline.errors import BadRequest
from hookline.upload import FormField

HEADERS_BYTES_MAX: Final = 8_192
"""Of one part."""
PARTS_MAX: Final = 1_000
MODEL_BYTES_MAX: Final = 512
FIELD_BYTES_MAX: Final = 1_024
"""So much of each other part's value is kept, for those who want to know what it names."""
_BOUNDARY: Final = re.compile(
    r'(?:^|;)\s*boundary\s*=\s*(?:"([^"\\]{1,70})"|([^\s";,]{1,70}))\s*(?=;|$)', re.IGNORECASE
)
_PARAMETER: Final = re.compile(rb';\s*([A-Za-z0-9!#$&+.^_`|~*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";]*))')

State = Literal["preamble", "after_boundary", "headers", "value", "end"]


def get_boundary(content_type: str) -> bytes:
    """The boundary named by a multipart content type. Raises BadRequest."""
    found = _BOUNDARY.findall(content_type.partition(";")[2])
    if len(found) != 1:
        raise BadRequest("the content-type of a multipart body must name its boundary, once", code="bad_multipart")
    boundary: str = found[0][0] or found[0][1]
    return boundary.encode("utf-8", "surrogateescape")


class ModelFinder:
    """Feed it the body; `model` is set when the field has been seen whole, `value_at` says where it stands.

    Keeps at most a part's headers, a boundary's length of a value it skips, and the beginning of every value."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._dashed = b"--" + boundary
        self._buffer = b"\r\n"  # so that the first boundary looks like all others
        self._offset = -2  # of the buffer's first byte in the body
        self._state: State = "preamble"
        self._parts = 0
        self._value_starts_at = -1
        self._is_model = False
        self.model: str | None = None
        self.value_at: tuple[int, int] | None = None
        self.fields: list[FormField] = []
        """The parts that have ended, `model` aside."""
        self._name = ""
        self._is_file = False
        self._value = bytearray()
        self._value_bytes = 0

    @property
    def is_complete(self) -> bool:
        """The closing boundary has been seen."""
        return self._state == "end"

    def feed(self, data: bytes) -> None:
        """Look at the next bytes. Raises BadRequest for a form that can't be read one way only."""
        self._buffer += data
        while self._step():
            pass

    def _step(self) -> bool:
        """One step of the scan; False when more bytes are needed."""
        if self._state in ("preamble", "value"):
            return self._skip_to_boundary()
        if self._state == "after_boundary":
            return self._read_boundary_end()
        if self._state == "headers":
            return self._read_headers()
        self._drop(len(self._buffer))
        return False

    def _skip_to_boundary(self) -> bool:
        at = self._find_delimiter()
        if at < 0:
            keep = len(self._delimiter) - 1
            if self._is_model:
                if len(self._buffer) > MODEL_BYTES_MAX + keep:
                    raise BadRequest("the form's model field is too long to be a model's name", param="model")
            else:
                self._skip(max(0, len(self._buffer) - keep))
            return False
        if self._is_model:
            self._set_model(self._buffer[:at])
        else:
            self._skip(at)
            at = 0
            if self._state == "value":
                is_whole = self._value_bytes == len(self._value)
                self.fields.append(FormField(self._name, bytes(self._value), is_whole, self._is_file))
        self._drop(at + len(self._delimiter))
        self._state = "after_boundary"
        return True

    def _find_delimiter(self) -> int:
        """Where the next one begins, or -1. Raises BadRequest for one that some readers take and others don't: after half a line break, or with
        none of its own, right behind a part's headers."""
        buffer = self._buffer
        at = buffer.find(self._dashed)
        while at >= 0:
            before = buffer[max(0, at - 2) : at]
            if before == b"\r\n":
                return at - 2
            if before[-1:] in (b"\r", b"\n") or self._offset + at == self._value_starts_at:
                raise _broken("a boundary stands where no line of CRLF ended before it")
            at = buffer.find(self._dashed, at + 1)
        return -1

    def _read_boundary_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self._state = "end"
            return True
        padding = len(self._buffer) - len(self._buffer.lstrip(b" \t"))
        if padding > 64:
            raise _broken("a boundary line does not end")
        if len(self._buffer) < padding + 2:
            return False
        if not self._buffer.startswith(b"\r\n", padding):
            # A longer token that begins like the boundary: part of the value, as RFC 2046 readers see it, or not: refuse.
            raise _broken("a line begins like its boundary and is not one")
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _broken(f"it has more than {PARTS_MAX} parts")
        self._drop(padding)  # the line break stays: a part without headers is CRLF CRLF, like the end of headers
        self._state = "headers"
        return True

    def _read_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEADERS_BYTES_MAX:
                raise _broken("a part's headers are too long")
            return False
        name = _find_field_name(self._buffer[:end])
        self._is_file = b"filename" in self._buffer[:end].lower()
        self._drop(end + 4)
        self._is_model = name == b"model"
        self._name = (name or b"").decode("utf-8", "replace")
        self._value.clear()
        self._value_bytes = 0
        self._state = "value"
        self._value_starts_at = self._offset
        if self._is_model and self.model is not None:
            raise BadRequest("the form has two model fields; send one", param="model", code="repeated_member")
        return True

    def _set_model(self, value: bytes) -> None:
        start = self._offset
        try:
            self.model = value.decode()
        except UnicodeDecodeError:
            raise BadRequest("the form's model field is not UTF-8", param="model") from None
        if not self.model or len(value) > MODEL_BYTES_MAX:
            raise BadRequest("the form's model field is empty or too long to be a model's name", param="model")
        self.value_at = (start, start + len(value))
        self._is_model = False

    def _skip(self, size_bytes: int) -> None:
        """Drop bytes of a value, of which the beginning is kept."""
        if self._state == "value":
            self._value_bytes += size_bytes
            if len(self._value) < FIELD_BYTES_MAX:
                self._value += self._buffer[: min(size_bytes, FIELD_BYTES_MAX - len(self._value))]
        self._drop(size_bytes)

    def _drop(self, size_bytes: int) -> None:
        self._buffer = self._buffer[size_bytes:]
        self._offset += size_bytes


def _find_field_name(headers: bytes) -> bytes | None:
    """The `name` of a part's content-disposition. Raises BadRequest where it could be read in two ways."""
    lines = [line for line in headers.split(b"\r\n") if line]
    if any(line[:1] in b" \t" or b":" not in line for line in lines):
        raise _broken("a part has folded or malformed headers")
    found = [line for line in lines if line.partition(b":")[0].strip().lower() == b"content-disposition"]
    if len(found) != 1:
        raise _broken("a part has no content-disposition, or two")
    value = found[0].partition(b":")[2]
    kind, _, _ = value.partition(b";")
    parameters = [(name.lower(), quoted or plain) for name, quoted, plain in _PARAMETER.findall(value[len(kind) :])]
    names: list[bytes] = [value for name, value in parameters if name == b"name"]
    if kind.strip().lower() != b"form-data" or len(names) != 1 or any(name == b"name*" for name, _ in parameters):
        raise _broken("a part's content-disposition does not name one form field")
    return names[0].replace(b"\\", b"")


def _broken(what: str) -> BadRequest:
    return BadRequest(f"the multipart body can't be read: {what}", code="bad_multipart")
