"""Where the files that belong to the stack are, in an installed workspace and in the source tree alike."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from efm_core.errors import BadRequest

# Either names the file with the settings of Fast DDS.
MIDDLEWARE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def share_folder(name: str) -> Path:
    """Returns the folder `config`, `launch` or `rviz` of the bring-up package.

    Raises:
        BadRequest: It is neither installed nor in a source tree above this file.
    """
    prefixes = [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]
    candidates = [Path(__file__).resolve().parents[3] / name, Path(__file__).resolve().parents[1] / name]
    candidates += [Path(prefix) / "share" / "efm_bringup" / name for prefix in [*prefixes, sys.prefix]]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise BadRequest(
        f"the folder '{name}' of efm_bringup was not found; looked in {[str(c) for c in candidates]}"
    )


def config_file(name: str) -> Path:
    """Returns a file of `config/`.

    Raises:
        BadRequest: There is none of that name.
    """
    path = share_folder("config") / name
    if not path.is_file():
        raise BadRequest(f"expected {path}, found nothing")
    return path


def use_middleware_profile(environment: MutableMapping[str, str]) -> None:
    """Lets processes with that environment use EFM's Fast DDS settings, unless somebody chose others.

    Without them images are lost on the way and nodes take seconds to find one another.
    """
    if not any(name in environment for name in MIDDLEWARE_VARIABLES):
        alone = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE") == "LOCALHOST"
        environment[MIDDLEWARE_VARIABLES[0]] = str(
            config_file("fastdds_localhost.xml" if alone else "fastdds.xml")
        )
