"""Packages of the operating system that some tests need, installed where that can be done.

`python -m devtools.system` installs what is missing on Debian and Ubuntu, as root. Elsewhere, or
if it fails, it says what is missing: tests that need it skip themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

_TIMEOUT: Final = 600.0


class Package(Struct, frozen=True):
    """A package by apt's name, and the programs of which one shows that it is there."""

    name: str
    programs: tuple[str, ...]
    #: The tests that it is for.
    tests: str


PACKAGES: Final = (
    Package("chromium", ("chromium", "chromium-browser", "google-chrome"), "browser"),
    Package("iproute2", ("ip",), "network namespace"),
)


def missing(packages: Sequence[Package] = PACKAGES) -> list[Package]:
    """Return the packages of which no program is found."""
    return [package for package in packages if not any(map(shutil.which, package.programs))]


def main() -> int:
    """Install what is missing, as far as possible; what is not does no harm."""
    wanted = missing() if sys.platform == "linux" else []
    if wanted:
        names = [package.name for package in wanted]
        why = _cannot_install() or _apt(names)
        for package in missing(wanted):
            reason = why or "its package brings no program"
            _say(f"{package.name} is missing, {package.tests} tests are skipped: {reason}")
    return 0


def _cannot_install() -> str:
    if shutil.which("apt-get") is None:
        return "there is no apt-get to install it"
    if os.geteuid() != 0:
        return "only root can install it"
    return ""


def _apt(names: Sequence[str]) -> str:
    """Install packages; returns why that failed, or nothing."""
    _say(f"Installing {', '.join(names)} by apt-get ...")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *names]
    try:
        for command in (["apt-get", "update"], install):
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=_TIMEOUT,
                env=environment,
            )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return lines[-1] if lines else f"{error.cmd[0]} ended with {error.returncode}"
    except subprocess.TimeoutExpired:
        return f"apt-get took over {_TIMEOUT:g} s"
    return ""


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
