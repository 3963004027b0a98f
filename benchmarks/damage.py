"""Ways in which files of a store come to harm, and back: each changes one file, or what stands beside it."""

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip(target: Path, _other: Path, rng: random.Random) -> None:
    """One bit the other way."""
    raw = bytearray(target.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    target.write_bytes(raw)


def cut(target: Path, _other: Path, rng: random.Random) -> None:
    """Less of it."""
    os.truncate(target, rng.randrange(target.stat().st_size))


def grow(target: Path, _other: Path, rng: random.Random) -> None:
    """Bytes behind its end."""
    with target.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 99)))


def swap(target: Path, other: Path, _rng: random.Random) -> None:
    """The same file of another document."""
    target.write_bytes((other / target.name).read_bytes())


def delete(target: Path, _other: Path, _rng: random.Random) -> None:
    """Gone."""
    target.unlink()


def edit_header(target: Path, _other: Path, rng: random.Random) -> None:
    """Another number somewhere in the first bytes: shapes, offsets, lengths."""
    raw = bytearray(target.read_bytes())
    digits = [i for i, byte in enumerate(raw[:600]) if 48 <= byte <= 57] or [0]
    raw[rng.choice(digits)] = rng.choice(b"0123456789")
    target.write_bytes(raw)


def edit_manifest(target: Path, _other: Path, rng: random.Random) -> None:
    """A line of the manifest beside it gone or changed."""
    path = target.parent / "manifest.json"
    lines = path.read_text(encoding="ascii").splitlines()
    line = rng.randrange(len(lines))
    edits = [lines[:line] + lines[line + 1 :], [*lines[:line], lines[line].replace("1", "2"), *lines[line + 1 :]]]
    path.write_text("\n".join(rng.choice(edits)), encoding="ascii")


DAMAGE: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "grow": grow,
    "swap": swap,
    "delete": delete,
    "edit_header": edit_header,
    "edit_manifest": edit_manifest,
}


def restore(folder: Path, originals: dict[Path, bytes]) -> None:
    """The files as they were; a document that was healed into its place is in the way."""
    places = {path.parent for path in originals}
    for place in Path(folder / "documents").glob("*/*"):
        for path in place.iterdir():
            if place not in places or path not in originals:
                path.unlink()
    for path, raw in originals.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != raw:
            path.write_bytes(raw)
