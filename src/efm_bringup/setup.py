"""Builds the package; what it is called, its version and its licence are said once, in package.xml.

`launch/` and `config/` stand at the root of the workspace, where people look for them, and are installed from
there.
"""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

about = ElementTree.parse("package.xml").getroot()
name = about.findtext("name")
maintainer = about.find("maintainer")


def shared(folder, base):
    """Every file under base/folder, as entries that install it under share/<package>/folder."""
    entries = {}
    for path in sorted(Path(base, folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            entries.setdefault(f"share/{name}/{path.parent.relative_to(base)}", []).append(str(path))
    return list(entries.items())


setup(
    name=name,
    version=about.findtext("version"),
    description=about.findtext("description"),
    license=about.findtext("license"),
    maintainer=maintainer.text,
    maintainer_email=maintainer.get("email"),
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{name}"]),
        (f"share/{name}", ["package.xml"]),
        *shared("launch", "../.."),
        *shared("config", "../.."),
        *shared("rviz", "."),
    ],
    zip_safe=False,
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": [
            "efm = efm_bringup.efm:main",
            "view_node = efm_bringup.view_node:main",
            "annotate_node = efm_bringup.annotate_node:main",
        ]
    },
)
