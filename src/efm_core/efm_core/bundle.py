"""Model bundles: a folder `<id>/` with `manifest.json` and the files that it lists with size and SHA-256.

A bundle is written under a temporary name, synced, and renamed to its id. A loader refuses what is missing,
added, changed or renamed, and never guesses. Nothing here opens a model: that is left to onnx_model.py and to
the learner. No file is unpickled, and only formats that cannot run code are allowed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efm_core.embodiment import Embodiment
from efm_core.errors import BundleInvalid, BundleTampered, BundleUnknown, EmbodimentMismatch
from efm_core.files import BLOCK_BYTES, disk_full_is_told, sha256_of, sync, temporary_folder, write_synced
from efm_core.manifest import MANIFEST, BundleManifest, bundle_id, file_faults, leaves, parse_manifest

__all__ = [
    "Bundle",
    "BundleManifest",
    "bundle_id",
    "embodiment_differences",
    "load_bundle",
    "parse_manifest",
    "write_bundle",
]

MAX_MANIFEST_BYTES = 16 << 20
PARTIAL = ".bundle-"  # How the folder of a bundle that is being written begins.


@dataclass(frozen=True)
class Bundle:
    """A bundle on this disk whose manifest was checked."""

    path: Path
    manifest: BundleManifest
    id: str

    def file(self, name: str) -> Path:
        """Returns the path of one of the bundle's files.

        Raises:
            BundleInvalid: the manifest does not list it.
        """
        if name not in self.manifest.files:
            there = ", ".join(sorted(self.manifest.files))
            raise BundleInvalid(f"bundle {self.id}: expected a file '{name}', found {there}")
        return self.path / name

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment that the bundle was made for."""
        return Embodiment.from_dict(self.manifest.embodiment, where=f"bundle {self.id}")

    def check_embodiment(self, embodiment: Embodiment) -> None:
        """Does nothing where the bundle fits the robot.

        Raises:
            EmbodimentMismatch: lists what differs among the parts that a model depends on.
        """
        mine = self.embodiment
        if mine.digest != embodiment.digest:
            raise EmbodimentMismatch(
                f"bundle {self.id} was made for embodiment '{mine.name}' ({mine.digest}), the robot is "
                f"'{embodiment.name}' ({embodiment.digest}); bundle against robot: "
                f"{'; '.join(embodiment_differences(mine, embodiment))}; use a bundle made for this robot"
            )


def load_bundle(path: Path | str, verify: bool = True) -> Bundle:
    """Opens the bundle in the folder `path`, or behind the link `path`.

    Args:
        path: folder that is named by the bundle's id.
        verify: hash every file; else only their names and sizes are compared.

    Raises:
        BundleUnknown: there is no such folder.
        BundleInvalid: the manifest breaks its schema, a file is missing or is not listed.
        BundleTampered: a file or the manifest is not what the id names.
    """
    asked = Path(path)
    if not asked.is_dir():
        found = "a file" if asked.exists() else "nothing"
        raise BundleUnknown(f"{asked}: expected a bundle's folder, found {found}")
    folder = asked.resolve()
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file() or manifest_path.is_symlink():
        inside = sorted(path.parent for path in folder.glob(f"bundles/*/{MANIFEST}"))
        hint = (
            f"name one of its bundles: {', '.join(map(str, inside))}"
            if inside
            else "is this a bundle's folder?"
        )
        raise BundleInvalid(f"{folder}: expected a file {MANIFEST}, found none: {hint}")
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleInvalid(f"{manifest_path}: expected at most {MAX_MANIFEST_BYTES} bytes, found more")
    text = manifest_path.read_bytes()
    manifest = parse_manifest(text, where=str(manifest_path))
    identity = bundle_id(text)
    if folder.name != identity:
        raise BundleTampered(
            f"{folder}: expected a folder named {identity}, which is what its manifest says; either the "
            "manifest was changed or the folder was renamed (link to a bundle instead of renaming it)"
        )
    _check_files(folder, manifest, verify)
    return Bundle(folder, manifest, identity)


def write_bundle(
    parent_dir: Path | str, manifest: BundleManifest, files: Mapping[str, bytes | Path]
) -> Bundle:
    """Writes a bundle into `parent_dir/<id>/`; one that is there already is checked and returned.

    Args:
        parent_dir: made where it is missing.
        manifest: with an empty table of files.
        files: name -> content, or the file to copy.

    Raises:
        BundleInvalid: the manifest breaks its schema, or a file's name or format is refused.
        BundleTampered: the bundle is there already, but damaged.
        SpoolFull: the disk is full; nothing is left behind.
    """
    if manifest.files:
        raise BundleInvalid("expected a manifest with an empty table of files, which write_bundle fills")
    parent = Path(parent_dir)
    with disk_full_is_told("the bundle", parent), temporary_folder(parent, PARTIAL) as partial:
        table = {name: _store(partial, name, content) for name, content in files.items()}
        text = dataclasses.replace(manifest, files=table).to_json()
        parse_manifest(text, where="manifest")
        write_synced(partial / MANIFEST, text)
        sync(partial)
        final = parent / bundle_id(text)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise  # Else the same content is there already.
        sync(parent)
        return load_bundle(final)


def embodiment_differences(mine: Embodiment, other: Embodiment) -> list[str]:
    """Returns in words where two embodiments differ, among the parts that a model depends on."""
    left, right = leaves(mine.model_part()), leaves(other.model_part())
    return [
        f"{key} {left.get(key, 'missing')} against {right.get(key, 'missing')}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _check_files(folder: Path, manifest: BundleManifest, verify: bool) -> None:
    """Compares a bundle's folder with its manifest."""
    present = {item.name for item in folder.iterdir()}
    wanted = {MANIFEST, *manifest.files}
    if missing := sorted(wanted - present):
        raise BundleInvalid(f"{folder}: expected {', '.join(missing)}, which is missing; fetch it again")
    if extra := sorted(present - wanted):
        raise BundleInvalid(f"{folder}: {', '.join(extra)} is not in the manifest; remove it")
    for name, entry in sorted(manifest.files.items()):
        path, expected = folder / name, entry["sha256"]
        if path.is_symlink() or not path.is_file():
            raise BundleTampered(f"{path}: expected a regular file, found a link or a folder")
        if (size := path.stat().st_size) != entry["size"]:
            raise BundleTampered(f"{path}: expected {entry['size']} bytes, found {size}; fetch it again")
        if verify and (found := sha256_of(path)) != expected:
            raise BundleTampered(f"{path}: expected SHA-256 {expected}, found {found}; fetch it again")


def _store(folder: Path, name: str, content: bytes | Path) -> dict[str, Any]:
    """Writes one file of a bundle to the disk and returns its entry in the manifest."""
    if faults := list(file_faults({name: {"size": 0, "sha256": "0" * 64}})):
        raise BundleInvalid("; ".join(faults))
    if isinstance(content, bytes):
        write_synced(folder / name, content)
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    digest, size = hashlib.sha256(), 0
    with content.open("rb") as source, (folder / name).open("xb") as sink:
        while block := source.read(BLOCK_BYTES):
            sink.write(block)
            digest.update(block)
            size += len(block)
        sink.flush()
        os.fsync(sink.fileno())
    return {"size": size, "sha256": digest.hexdigest()}
