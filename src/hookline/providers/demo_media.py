"""Demo media: embeddings, moderations, sound, pictures, transcripts.

Lives here: small answers that are real: vectors of length 1 that are near for texts alike, a WAV that plays, a PNG that opens. Elsewhere: chat (demo_chat.py), stored things (demo_objects.py).
Idea: everything is made from the request alone, so the same request has the same answer."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
import zlib
from array import array
from typing import Any

from hookline.providers.demo_chat import count_tokens

DIMENSIONS = 256
MAX_DIMENSIONS = 4096
MAX_INPUTS = 2048
SAMPLE_RATE = 8000
MAX_SPEECH_CHARS = 4096
PICTURE_PIXELS = 16

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
_VIOLENT = re.compile(r"\b(kill|murder|attack|bomb)", re.IGNORECASE)


def embeddings(payload: dict[str, Any], *, model: str) -> dict[str, Any] | str:
    """The embeddings object, or a sentence about what is wrong with the request."""
    inputs = _embedding_inputs(payload.get("input"))
    if not inputs or len(inputs) > MAX_INPUTS:
        return f'"input" must be a text, a list of texts or of tokens, at most {MAX_INPUTS} and not empty'
    dimensions = payload.get("dimensions", DIMENSIONS)
    if type(dimensions) is not int or not 1 <= dimensions <= MAX_DIMENSIONS:
        return f'"dimensions" must be a number from 1 to {MAX_DIMENSIONS}'
    is_base64 = payload.get("encoding_format") == "base64"
    data = []
    for index, words in enumerate(inputs):
        vector = _vector(words, dimensions)
        shown = base64.b64encode(_little_endian(vector)).decode() if is_base64 else list(vector)
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = sum(count_tokens(" ".join(words)) for words in inputs)
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def moderations(payload: dict[str, Any], *, model: str, seed: str) -> dict[str, Any] | str:
    """The moderation object: texts that speak of killing are flagged as violence."""
    given = payload.get("input")
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not inputs or len(inputs) > MAX_INPUTS:
        return f'"input" must be a text or a list of at most {MAX_INPUTS}'
    results = []
    for item in inputs:
        text = item if isinstance(item, str) else str(item.get("text", "")) if isinstance(item, dict) else ""
        is_violent = _VIOLENT.search(text) is not None
        scores = {name: 0.9 if is_violent and name == "violence" else 0.001 for name in CATEGORIES}
        results.append(
            {
                "flagged": is_violent,
                "categories": {name: score > 0.5 for name, score in scores.items()},
                "category_scores": scores,
                "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
            }
        )
    return {"id": f"modr-{seed[:24]}", "model": model, "results": results}


def speech(text: str) -> bytes:
    """A WAV file (8 kHz, 16 bit, mono): one short tone for each word, higher for longer words."""
    samples = array("h")
    for word in text[:MAX_SPEECH_CHARS].split():
        hertz = 200 + 40 * min(len(word), 12)
        size = SAMPLE_RATE // 20
        step = 2 * math.pi * hertz / SAMPLE_RATE
        samples.extend(int(8000 * math.sin(step * n) * (1 - n / size)) for n in range(size))
    data = _little_endian(samples)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
    chunk = form + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunk), b"WAVE") + chunk


def picture(seed: str) -> bytes:
    """A PNG of one colour, made from the seed."""
    colour = bytes.fromhex(seed[:6])
    row = b"\0" + colour * PICTURE_PIXELS
    header = struct.pack(">IIBBBBB", PICTURE_PIXELS, PICTURE_PIXELS, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * PICTURE_PIXELS)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def images(fields: dict[str, Any], *, created: int, seed: str) -> dict[str, Any]:
    """The images object: pictures in base64, or as data: addresses where the request wants an address."""
    count = fields.get("n", 1)
    count = int(count) if str(count).isdigit() else 1
    shown = []
    for number in range(max(1, min(count, 10))):
        data = base64.b64encode(picture(hashlib.sha256(f"{seed}{number}".encode()).hexdigest())).decode()
        shown.append(
            {"url": f"data:image/png;base64,{data}"} if fields.get("response_format") == "url" else {"b64_json": data}
        )
    inputs, outputs = count_tokens(str(fields.get("prompt", ""))), 16 * len(shown)
    details = {"text_tokens": inputs, "image_tokens": 0}
    usage = {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "total_tokens": inputs + outputs,
        "input_tokens_details": details,
    }
    return {"created": created, "data": shown, "usage": usage}


def transcript(file_name: str, size_bytes: int, wanted: str) -> tuple[str, bytes | dict[str, Any]]:
    """(content type, body) of a transcription in the format wanted."""
    text = f"The demo heard {size_bytes} bytes of {file_name}."
    if wanted == "text":
        return "text/plain; charset=utf-8", f"{text}\n".encode()
    if wanted == "srt":
        return "text/plain; charset=utf-8", f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n".encode()
    if wanted == "vtt":
        return "text/vtt; charset=utf-8", f"WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n{text}\n\n".encode()
    if wanted == "verbose_json":
        segment = {
            "id": 0, "seek": 0, "start": 0.0, "end": 1.0, "text": text, "tokens": [], "temperature": 0.0,
            "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0,
        }  # fmt: skip
        return "application/json", {
            "task": "transcribe",
            "language": "english",
            "duration": 1.0,
            "text": text,
            "segments": [segment],
        }
    tokens = count_tokens(text)
    usage = {"type": "tokens", "input_tokens": 10, "output_tokens": tokens, "total_tokens": 10 + tokens}
    return "application/json", {"text": text, "usage": usage}


def _embedding_inputs(given: Any) -> list[list[str]]:
    if isinstance(given, str):
        return [given.split()] if given else []
    if not isinstance(given, list):
        return []
    if given and all(type(token) is int for token in given):
        return [[str(token) for token in given]]
    if all(isinstance(item, str) and item for item in given):
        return [item.split() for item in given]
    if all(isinstance(item, list) and item for item in given):
        return [[str(token) for token in item] for item in given]
    return []


def _vector(words: list[str], dimensions: int) -> array[float]:
    """Each word adds to four places: texts that share words are near each other."""
    places = [0.0] * dimensions
    for word in words or [""]:
        for value in struct.unpack("<4q", hashlib.sha256(word.lower().encode()).digest()):
            places[value % dimensions] += 1.0 if value & 1 else -1.0
    length = math.sqrt(sum(place * place for place in places))
    if not length:
        places[0] = length = 1.0
    return array("f", (place / length for place in places))


def _little_endian(values: array[Any]) -> bytes:
    # The formats are little-endian; so is every machine this has run on, and the others swap here.
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        values = array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
