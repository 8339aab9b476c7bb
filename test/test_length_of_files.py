"""No file of code is so long that a line in it is hard to find."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400


def test_no_file_of_code_is_longer_than_four_hundred_lines():
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "scripts/*", "*.msg", "*.srv", "*.action"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert listed
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
