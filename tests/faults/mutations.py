"""Makes damaged inputs from valid ones, by a seeded generator: bytes, and JSON or YAML with other values."""

import copy
import json
import math
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

DEEP = "@deep@"  # stands for brackets that are nested deeper than a recursive parser can follow
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308,
    math.nan, math.inf, -math.inf, "", " ", "x", "0", "a\nb", "a\rb", "\0", "\ud800", "é", "\u2028", "x" * 5000,
    "../../x", "/dev/zero", "$(touch marker)", "`touch marker`", "; touch marker", "2026-13-45", "!!python/none",
    [], {}, [[]], [None], {"": None}, {"a\nb": 1}, ["x"] * 300, [1, [2, [3, [4]]]], DEEP,
]  # fmt: skip
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def mutate_bytes(generator: Random, valid: Sequence[bytes], tokens: Sequence[bytes] = ()) -> bytes:
    """One of the valid inputs with one to eight changes, or as it is."""
    data = bytearray(generator.choice(valid))
    for _ in range(generator.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        change_bytes(generator, data, valid, tokens)
    return bytes(data)


def change_bytes(generator: Random, data: bytearray, valid: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """Change some bytes in place; half of the time within the first 64, where headers are."""
    limit = len(data) if generator.random() < 0.5 else min(len(data), 64)
    start = generator.randrange(limit + 1)
    end = min(len(data), start + generator.choice((1, 1, 2, 4, 16, 256)))
    match generator.randrange(9):
        case 0 if start < len(data):
            data[start] ^= 1 << generator.randrange(8)
        case 1:
            data[start:end] = generator.randbytes(end - start)
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * generator.choice((1, 2, 100))
        case 4:
            del data[start:]
        case 5:
            layout = generator.choice(("<H", ">H", "<I", ">I"))
            number = generator.choice(NUMBERS) & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF)
            data[start : start + struct.calcsize(layout)] = struct.pack(layout, number)
        case 6 if tokens:
            data[start:start] = generator.choice(tokens)
        case 7:
            other = generator.choice(valid)
            data[start:] = other[generator.randrange(len(other) + 1) :]
        case _:
            data[start:end] = bytes([generator.choice((0, 0xFF, 0x20, 0x7F))]) * (end - start)


def mutate_json(generator: Random, content: Any, values: Sequence[Any] = ()) -> Any:
    """A copy of the content in which one to three values, keys or items are others, missing or moved."""
    content = [copy.deepcopy(content)]
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        container, key = generator.choice(list_places(content))
        match generator.randrange(7):
            case 0 if container is not content:
                del container[key]
            case 1 if isinstance(container, dict):
                container[generator.choice(("x", "a\nb", "", str(key).upper(), f"{key} "))] = container.pop(key)
            case 2:
                other, other_key = generator.choice(list_places(content))
                container[key] = copy.deepcopy(other[other_key])
            case 3:
                container[key] = generator.choice(([container[key]], {"x": container[key]}))
            case _:
                container[key] = copy.deepcopy(generator.choice([*VALUES, *values]))
    return content[0]


def list_places(content: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys or indices, within the content."""
    places, containers = [], [content]
    for container in containers:  # it grows
        keys = list(container) if isinstance(container, dict) else range(min(len(container), 20))
        places += [(container, key) for key in keys]
        containers += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return places


def serialize(generator: Random, content: Any, depth: int = 20_000, **options: Any) -> bytes:
    """As JSON, which is YAML too."""
    text = json.dumps(content, ensure_ascii=generator.random() < 0.5, **options)
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode("utf-8", "surrogatepass")
