"""Anthropic content: the parts of a message as the blocks of the Messages API.

Lives here: text, refusals, images, PDF and text files, prompt-caching marks.
Elsewhere: whose message it is and how messages become turns (anthropic_messages.py), tool calls (anthropic_tools.py).
Idea: a part becomes exactly one block or an error with its path; only text without a visible character vanishes, because the API refuses such blocks and they say nothing (some models put "\\n" before their tool calls)."""

from __future__ import annotations

import base64
import binascii

from hookline.providers.untranslatable import (
    JsonObject,
    Untranslatable,
    read_choice,
    read_list,
    read_name,
    read_object,
    read_text,
    refuse_unknown,
    show,
)

TARGET = "an Anthropic model"
"""How error messages call the other side."""

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
"""Media types the Messages API takes; `image/jpg` is read as `image/jpeg`."""

FILE_TYPES = ("application/pdf", "text/plain")


def write_blocks(content: object, path: str, kinds: tuple[str, ...]) -> list[JsonObject]:
    """Content (a string or a list of parts of these `kinds`) as blocks. Raises `Untranslatable`."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    if not isinstance(content, list):
        read_text(content, path)
    blocks = []
    for number, item in enumerate(read_list(content, path)):
        where = f"{path}[{number}]"
        part = read_object(item, where)
        kind = part.get("type")
        if kind not in kinds:
            raise Untranslatable(
                f'"{where}.type" = {show(kind)} cannot be sent to an Anthropic model here; send {" or ".join(kinds)}',
                param=f"{where}.type",
            )
        refuse_unknown(part, ("type", kind, "cache_control"), where, target=TARGET)
        block = _PARTS[kind](part.get(kind), f"{where}.{kind}")
        if block is None:
            continue
        if part.get("cache_control") is not None:
            block["cache_control"] = read_cache_control(part["cache_control"], f"{where}.cache_control")
        blocks.append(block)
    return blocks


def _text_part(value: object, path: str) -> JsonObject | None:
    text = read_text(value, path)
    return {"type": "text", "text": text} if text.strip() else None


def _image_part(value: object, path: str) -> JsonObject:
    image = read_object(value, path)
    refuse_unknown(image, ("url", "detail"), path, target=TARGET)
    if image.get("detail") is not None:
        # The API always looks at the whole picture: that is "auto" and "high", and nothing else.
        read_choice(image["detail"], f"{path}.detail", ("auto", "high"))
    url = read_name(image.get("url"), f"{path}.url")
    if url[:5].lower() != "data:":
        return {"type": "image", "source": _url_source(url, f"{path}.url")}
    media_type, data = _split_data_url(url, f"{path}.url")
    media_type = "image/jpeg" if media_type == "image/jpg" else media_type
    if media_type not in IMAGE_TYPES:
        raise Untranslatable(
            f'"{path}.url" holds {show(media_type)}, which cannot be sent to an Anthropic model; send {", ".join(IMAGE_TYPES)}',
            param=f"{path}.url",
        )
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _file_part(value: object, path: str) -> JsonObject:
    file = read_object(value, path)
    refuse_unknown(file, ("file_data", "filename"), path, target=TARGET)
    media_type, data = _split_data_url(read_name(file.get("file_data"), f"{path}.file_data"), f"{path}.file_data")
    if media_type not in FILE_TYPES:
        raise Untranslatable(
            f'"{path}.file_data" holds {show(media_type)}, which cannot be sent to an Anthropic model; send {" or ".join(FILE_TYPES)}',
            param=f"{path}.file_data",
        )
    source = {"type": "base64", "media_type": media_type, "data": data}
    if media_type == "text/plain":
        source = {"type": "text", "media_type": media_type, "data": _decode_text(data, f"{path}.file_data")}
    block: JsonObject = {"type": "document", "source": source}
    if file.get("filename") is not None:
        block["title"] = read_name(file["filename"], f"{path}.filename")
    return block


_PARTS = {"text": _text_part, "refusal": _text_part, "image_url": _image_part, "file": _file_part}


def _url_source(url: str, path: str) -> JsonObject:
    if not url.lower().startswith(("https://", "http://")):
        raise Untranslatable(f'"{path}" must be a data:, https: or http: URL', param=path)
    return {"type": "url", "url": url}


def _decode_text(data: str, path: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Untranslatable(f'"{path}" must be UTF-8 text in base64', param=path) from None


def _split_data_url(url: str, path: str) -> tuple[str, str]:
    """Media type and base64 text of a `data:` URL."""
    head, comma, data = url.partition(",")
    media_type, *parameters = head[5:].split(";")
    if (
        head[:5].lower() != "data:"
        or not comma
        or not data
        or "base64" not in [parameter.strip().lower() for parameter in parameters]
    ):
        raise Untranslatable(
            f'"{path}" must be a data: URL with base64 content, as in data:image/png;base64,iVBOR...', param=path
        )
    return media_type.strip().lower(), data


def read_cache_control(value: object, path: str) -> JsonObject:
    """A prompt-caching mark, passed on as it is."""
    mark = read_object(value, path)
    read_choice(mark.get("type"), f"{path}.type", ("ephemeral",))
    refuse_unknown(mark, ("type", "ttl"), path, target=TARGET)
    if "ttl" in mark:
        read_choice(mark["ttl"], f"{path}.ttl", ("5m", "1h"))
    return dict(mark)
