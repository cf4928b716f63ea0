"""Ways to damage a file: blind ones on bytes, and ones that know safetensors, JSON and the small text languages.

Everything is a function of the random generator that is given, so a case is the same each time.
"""

import json
import random
from collections.abc import Callable

HUGE = [2**31, 2**32, 2**53, 2**63 - 1, 2**64, 10**30]
NAMES = ["../../escape", "/etc/passwd", "..\\up", "C:\\x", "", ".", "..", "a\0b", "x" * 5000, "model." * 300, "naïve ☂", "\ud800", "con"]
SCALARS = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    0.5,
    -0.5,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    *HUGE,
    *NAMES,
    [],
    {},
    [[]],
    [1, 2, 3],
    {"a": 1},
]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "F4",
    "F32x",
    "",
    7,
]


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """One blind change."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    buffer = bytearray(data)
    at = rng.randrange(len(buffer)) if rng.random() < 0.5 else min(len(buffer) - 1, int(rng.expovariate(1 / 200)))
    length = min(len(buffer) - at, 1 << rng.randrange(12))
    kind = rng.randrange(9)
    if kind == 0:
        return bytes(buffer[:at])
    if kind == 1:
        for _ in range(1 << rng.randrange(5)):
            buffer[rng.randrange(len(buffer))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        buffer[at] ^= 1 << rng.randrange(8)
    elif kind == 3:
        buffer[at : at + length] = bytes([rng.choice((0, 0xFF, 0x20, 0x7F))]) * length
    elif kind == 4:
        del buffer[at : at + length]
    elif kind == 5:
        buffer[at:at] = buffer[at : at + length]
    elif kind == 6:
        buffer[at:at] = bytes(rng.randrange(256) for _ in range(min(length, 64)))
    elif kind == 7:
        return rng.choice([b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\0" * 8, b"{}", b"\xff" * 64, b"GGUF", b"version https://git-lfs"]) + (
            bytes(buffer) if rng.random() < 0.3 else b""
        )
    else:
        other = rng.randrange(len(buffer))
        buffer[at : at + length] = buffer[other : other + length]
    return bytes(buffer)


def places(value, path=()) -> list[tuple]:
    """Where a JSON value has something inside."""
    found = [path] if path else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*path, key))
    return found


def damage_value(rng: random.Random, value):
    """A JSON value with one change somewhere: another kind or size, a key gone, moved, copied or made up."""
    spots = places(value)
    if not spots:
        return rng.choice(SCALARS)
    *parents, last = rng.choice(spots)
    holder = value
    for key in parents:
        holder = holder[key]
    kind = rng.randrange(8)
    if kind < 4:
        old = holder[last]
        if isinstance(old, (int, float)) and not isinstance(old, bool) and rng.random() < 0.6:
            holder[last] = rng.choice([old + 1, old - 1, old * 2, -old, old * 1000, old / 2, str(old), [old], *HUGE])
        else:
            holder[last] = rng.choice(SCALARS)
    elif kind == 4:
        del holder[last]
    elif kind == 5 and isinstance(holder, dict):
        holder[rng.choice([*NAMES, "type", "config", "unknown"])] = holder[last] if rng.random() < 0.5 else rng.choice(SCALARS)
    elif kind == 6:
        *other, key = rng.choice(spots)
        source = value
        for step in other:
            source = source[step] if isinstance(source, (dict, list)) and _has(source, step) else {}
        holder[last] = json.loads(json.dumps(source[key])) if isinstance(source, (dict, list)) and _has(source, key) else None
    else:
        holder[last] = nested(rng, 30)
    return value


def _has(holder, key) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def nested(rng: random.Random, depth: int):
    value = 1
    for _ in range(rng.randrange(depth)):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def dumps(value) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """JSON text with changes to what it says, or to how it is written."""
    kind = rng.randrange(12)
    if kind == 0:
        depth = rng.choice([100, 990, 5000, 100_000])
        return rng.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b'{"config":' * depth + b"1" + b"}" * depth])
    if kind == 1:
        return damage_bytes(rng, data)
    if kind == 2:
        at = data.find(b'"', rng.randrange(len(data))) if data else -1
        end = data.find(b",", at)
        return data if at < 0 or end < 0 else data[: end + 1] + data[at : end + 1] + data[end + 1 :]  # often a key that is there twice
    if kind == 3:
        return rng.choice(
            [b"\xef\xbb\xbf" + data, data.decode("utf-8", "replace").encode("utf-16"), data + b"}", data + data, b"\0" + data]
        )
    if kind == 4:
        return dumps(rng.choice(SCALARS))
    try:
        value = json.loads(data)
        for _ in range(1 + int(rng.expovariate(1))):
            value = damage_value(rng, value)
        return dumps(value)
    except (ValueError, RecursionError):  # not JSON, or nested too deep by an earlier change
        return damage_bytes(rng, data)


def damage_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header lies, or whose numbers are none."""
    if rng.random() < 0.25 or len(data) < 8:
        return damage_bytes(rng, data)
    size = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + size], bytearray(data[8 + size :])
    try:
        header = json.loads(head)
    except (ValueError, RecursionError):
        return damage_bytes(rng, data)
    if not isinstance(header, dict) or not header:
        return damage_bytes(rng, data)
    for _ in range(1 + int(rng.expovariate(1.5))):
        header = damage_header(rng, header, body)
    text = dumps(header)
    if rng.random() < 0.1:
        text = damage_json(rng, text)
    lie = rng.choice([0, 1, size + 1, 10**8, 2**40, 2**63, 2**64 - 1]) if rng.random() < 0.08 else len(text)
    return lie.to_bytes(8, "little") + text + bytes(body)


def damage_header(rng: random.Random, header: dict, body: bytearray) -> dict:
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header
    name = rng.choice(names)
    entry = header[name]
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), list) or not isinstance(entry.get("data_offsets"), list):
        return header
    kind = rng.randrange(12)
    if kind == 0:
        entry["shape"] = rng.choice(
            [entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], [], [0], [2**62, 4], *[[n] for n in HUGE]]
        )
    elif kind == 1 and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice([0, 1, -1, 1.5, "2", None, *HUGE])
    elif kind == 2:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 3:  # the same bytes under another type, so that the header still adds up
        alike = {
            "F32": ["I32", "U32"],
            "F16": ["BF16", "I16", "U16"],
            "BF16": ["F16", "I16"],
            "F64": ["I64", "U64", "C64"],
            "U8": ["I8", "BOOL", "F8_E4M3"],
        }
        entry["dtype"] = rng.choice(alike.get(entry.get("dtype"), DTYPES))
    elif kind == 4:
        entry["data_offsets"] = rng.choice(
            [[0, 0], entry["data_offsets"][::-1], [0, len(body) + 8], [-8, 8], [0, 2**63], [1], [0, 1, 2], "x"]
        )
    elif kind == 5:
        header[rng.choice([*NAMES, name + ".weight", "x" + name, name[1:]])] = header.pop(name)
    elif kind == 6:
        del header[name]
    elif kind == 7:
        header[rng.choice([*NAMES, "extra.weight"])] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    elif kind == 8:
        header["__metadata__"] = rng.choice(
            [
                rng.choice(SCALARS),
                {"format": "pt", "lora_config": dumps(rng.choice(SCALARS)).decode("utf-8", "replace")},
                {"lora_config": "[" * 5000},
                {"a": 1},
            ]
        )
    elif kind == 9 and isinstance(header.get("__metadata__"), dict):
        key = rng.choice(list(header["__metadata__"]) or ["format"])
        text = header["__metadata__"].get(key)
        header["__metadata__"][key] = damage_json(rng, str(text).encode("utf-8", "replace")).decode("utf-8", "replace")
    else:
        damage_numbers(rng, entry, body)
    return header


def damage_numbers(rng: random.Random, entry: dict, body: bytearray) -> None:
    """NaN, infinities, zeros or the largest numbers into a tensor."""
    start, end = (entry["data_offsets"] + [0, 0])[:2]
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(body):
        return
    words = {
        "F32": [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0"],
        "F16": [b"\0\x7e", b"\0\x7c", b"\xff\x7b", b"\0\0"],
    }
    word = rng.choice(words.get(entry.get("dtype"), [b"\xff\x7f", b"\0\0"]))
    if rng.random() < 0.5:
        body[start:end] = (word * ((end - start) // len(word) + 1))[: end - start]
    else:
        at = start + rng.randrange(max(1, (end - start) // len(word))) * len(word)
        body[at : at + len(word)] = word[: end - at]


WORDS = [
    "1.5-3", "0:01-0:02", "10-12.25", "-", "--", ":", "::", ",", ";", "\n", " ", "inf", "-inf", "nan", "1e308", "1e400", "9" * 400,
    "0x10", "[0-3]", "[9-0]", "[0-999999999]", "[0-99][0-99][0-99][0-99]", "[" + "9" * 5000 + "-1]", "[a-b]", "layers.", "to_qkv",
    "seconds_total", "(a+)+$", "<think>", "</think>", "```", "Prompt:", '"', "'", "**", "#", "\0", "٣", "½", "–", "☂", "\u202e",
    "\ud800", "rain", "[bracket:1.3]", "<bos>", "%s", "{0}", "../",
]  # fmt: skip


def text(rng: random.Random) -> str:
    """A line of a small language, or what looks like one; sometimes very long."""
    if rng.random() < 0.1:
        word = rng.choice(WORDS)
        return word * min(rng.choice([100, 5000, 50_000]), 1_000_000 // len(word))
    return rng.choice(["", " ", ","]).join(rng.choice(WORDS) for _ in range(rng.randrange(12)))


def mutate(rng: random.Random, data: bytes, damage: Callable[[random.Random, bytes], bytes]) -> bytes:
    """One to a few changes, one on top of the other."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        data = damage(rng, data)
    return data
