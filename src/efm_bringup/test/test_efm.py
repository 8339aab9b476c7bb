"""The command `efm`: what the system refuses is told in words; an output that nobody reads is no fault."""

import errno
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from efm_bringup import efm


def failing(monkeypatch, error):
    """Puts a command in place that fails in this way."""

    def main(arguments):
        raise error

    monkeypatch.setattr(efm.importlib, "import_module", lambda name: SimpleNamespace(main=main))


@pytest.mark.parametrize(
    "code", [errno.EROFS, errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.ENAMETOOLONG]
)
def test_a_place_that_the_system_refuses_is_named_without_a_traceback(monkeypatch, capsys, code):
    failing(monkeypatch, OSError(code, os.strerror(code), "/some/place"))
    assert efm.main(["episodes"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith(f"efm episodes: /some/place: {os.strerror(code)}; expected") and "try again" in said
    )


def test_a_full_disk_is_told_where_the_system_names_no_file(monkeypatch, capsys):
    failing(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert efm.main(["sft"]) == 1
    assert "No space left on device; expected a place" in capsys.readouterr().err


def test_a_fault_that_no_file_is_to_blame_for_shows_where_it_came_from(monkeypatch):
    failing(monkeypatch, OSError(errno.EBADF, os.strerror(errno.EBADF)))
    with pytest.raises(OSError, match="Bad file"):
        efm.main(["sft"])


def test_a_reader_who_leaves_early_sees_no_traceback():
    command = (
        "import sys; from types import SimpleNamespace; from efm_bringup import efm\n"
        "talkative = SimpleNamespace(main=lambda rest: print('line\\n' * 100000))\n"
        "efm.importlib.import_module = lambda name: talkative\n"
        "sys.exit(efm.main(['episodes']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_script_started_in_the_background_ends_when_it_is_interrupted(number):
    """A shell lets it ignore SIGINT; `efm evaluate &` in a script could not be stopped in order."""
    command = (
        "import sys, time; from types import SimpleNamespace; from efm_bringup import efm\n"
        "patient = SimpleNamespace(main=lambda rest: print('up', flush=True) or time.sleep(60))\n"
        "efm.importlib.import_module = lambda name: patient\n"
        "sys.exit(efm.main(['evaluate']))"
    )
    shell = subprocess.Popen(
        ["sh", "-c", '"$@" & echo $!; wait $!', "sh", sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    assert shell.stdout.readline() == "up\n"
    os.kill(pid, number)
    assert shell.wait(timeout=60) == 130
