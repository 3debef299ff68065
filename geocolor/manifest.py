"""The checksums of a folder's files, so that one that was damaged is named instead of loaded."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from geocolor.json_files import read_json
from geocolor.schema import Count, Frozen, Text, validated

MANIFEST_FILE = "geocolor_manifest.json"
REMEDY = "Copy the whole folder, or save the model again"
OTHERWISE = f"{REMEDY}. If it was changed on purpose, delete {MANIFEST_FILE}"

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Entry(Frozen):
    bytes: Count
    sha256: Digest


class Manifest(Frozen):
    """Size and SHA-256 of every file, by its name in the folder; `sha256` is that of the entries themselves."""

    format_version: Literal[1] = 1
    files: dict[Text, Entry]
    sha256: Digest


def write_manifest(folder: Path) -> None:
    """Note the sizes and checksums of all files that are in the folder now."""
    files = {
        file.relative_to(folder).as_posix(): Entry(bytes=file.stat().st_size, sha256=_file_digest(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = Manifest(files=files, sha256=_own_digest(files))
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n")


def check_manifest(folder: Path, wanted: Callable[[str], bool] = lambda name: True, read: Iterable[str] = ()) -> None:
    """Raise `ValueError` or `FileNotFoundError` naming a file that is missing, or not as it was saved.

    `wanted` chooses by name whose checksums are compared; those that are about to be `read` have to be in the manifest.
    A folder without a manifest (one that transformers' own save_pretrained wrote) is not checked.
    """
    file = folder / MANIFEST_FILE
    try:
        document = read_json(file, REMEDY)
    except FileNotFoundError:
        return
    manifest = validated(Manifest, document, str(file), "the manifest", f"damaged? {REMEDY}")
    if _own_digest(manifest.files) != manifest.sha256:
        raise ValueError(f"{file} is damaged: its own checksum does not agree. {REMEDY}")
    cached = folder.resolve().parent.name == "snapshots"  # of the hub's cache: only what was asked for is there
    for name, entry in manifest.files.items():
        place = folder / name
        if not place.resolve().is_relative_to(folder.resolve()) and not place.is_symlink():
            raise ValueError(f"{file} names {name!r}, which lies outside of the folder. {REMEDY}")
        if not place.is_file():
            if cached:
                continue
            raise FileNotFoundError(f"{place} is missing. {OTHERWISE}")
        if not wanted(name):
            continue
        size = place.stat().st_size
        if size != entry.bytes or _file_digest(place) != entry.sha256:
            how = f"{size:,} bytes instead of {entry.bytes:,}" if size != entry.bytes else "another checksum"
            raise ValueError(f"{place} is not as it was saved ({how}): truncated or damaged? {OTHERWISE}")
    for name in read:
        if name not in manifest.files and (folder / name).exists():
            raise ValueError(f"{folder / name} is not in {MANIFEST_FILE}: it was not saved with the rest. {OTHERWISE}")


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own_digest(files: dict[str, Entry]) -> str:
    text = json.dumps({name: [entry.bytes, entry.sha256] for name, entry in files.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
