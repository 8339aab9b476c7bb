"""Builds the package; what it is called, its version and its licence are said once, in package.xml."""

from xml.etree import ElementTree

from setuptools import find_packages, setup

about = ElementTree.parse("package.xml").getroot()
name = about.findtext("name")
maintainer = about.find("maintainer")

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
    ],
    zip_safe=False,
    extras_require={"test": ["pytest"]},
    entry_points={
        "console_scripts": [
            "policy_node = efm_policy_node.main:main",
            "teleop_node = efm_policy_node.teleop_main:main",
            "teleop_keyboard = efm_policy_node.keyboard:main",
        ]
    },
)
