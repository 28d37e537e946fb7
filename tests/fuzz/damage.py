"""Damage to bytes, texts and JSON values, drawn by a seeded generator."""

import json
from random import Random

TEXTS = (
    "", " ", "x", "../../x", "/dev/null", "a\x00b", "\x1b[31mred", "\u202egnp", "\ud800", "=1+1", "ü" * 300,
    "9" * 5000, "nan", "inf", "1e999", "-0", "0x10", "True", "null", "[]", "{}", '"', "'", ";", ",", "\t", "\r\n",
    "\ufeff",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 255, 256, -32769, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


def damage_bytes(rng: Random, content: bytes) -> bytes:
    """Return bytes with one to four edits."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        what = rng.choice(["flip", "insert", "delete", "cut", "double", "zero"])
        if what == "flip" and at < len(data):
            data[at] ^= rng.randint(1, 255)
        elif what == "insert":
            data[at:at] = rng.randbytes(rng.randint(1, 5))
        elif what == "delete":
            del data[at : at + rng.randint(1, 20)]
        elif what == "cut":
            del data[at:]
        elif what == "double":
            data[at:at] = data[max(0, at - 60) : at]
        elif what == "zero":
            data[at : at + 8] = bytes(len(data[at : at + 8]))
    return bytes(data)


def damage_text(rng: Random, text: str) -> bytes:
    """Return the bytes of a text with words exchanged, lines moved, another encoding, or damaged bytes."""
    what = rng.choice(["bytes", "word", "word", "line", "twice", "encoding", "ends"])
    if what == "bytes":
        return damage_bytes(rng, text.encode())
    if what == "encoding":
        return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-8-sig", "utf-32", "latin-1"]), errors="replace")
    if what == "ends":
        return text.replace("\n", rng.choice(["\r", "\r\n", "\n\n", "\u2028", "\0\n"])).encode()
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    if what == "line":
        del lines[at]
    elif what == "twice":
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    else:
        line = lines[at]
        start = rng.randrange(len(line) + 1)
        end = min(len(line), start + rng.randrange(8))
        lines[at] = line[:start] + rng.choice([*TEXTS, *map(str, NUMBERS)]) + line[end:]
    return "\n".join(lines).encode(errors="surrogatepass")


def damage_json(rng: Random, text: str) -> bytes:
    """Return the bytes of a JSON document with one value exchanged, removed, nested or added; or of a damaged text."""
    if rng.random() < 0.25:
        return damage_text(rng, text)
    document = json.loads(text)
    for _ in range(rng.randint(1, 2)):
        _damage_value(rng, document)
    return json.dumps(document).encode()


def _damage_value(rng: Random, document: object) -> None:
    """Change one value of a document, at any depth."""
    place = document
    while isinstance(place, dict | list) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        inner = place[key]  # type: ignore[index]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.85:
            place = inner
            continue
        what = rng.choice(["value", "value", "remove", "nest", "add"])
        if what == "remove":
            del place[key]  # type: ignore[arg-type]
        elif what == "nest":
            place[key] = [inner]  # type: ignore[index]
        elif what == "add" and isinstance(place, dict):
            place[rng.choice(TEXTS)] = inner
        else:
            deep: object = json.loads("[" * 900 + "]" * 900)
            place[key] = rng.choice([*TEXTS, *NUMBERS, None, True, [], {}, [[]], deep])  # type: ignore[index]
        return
