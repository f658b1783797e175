"""Whether this machine's NVIDIA driver and cards suit the CUDA lock; asked before it is installed.

    python tools/driver.py             # exits with 2 and says what to do, where they do not
    python tools/driver.py --flavour   # prints cuda or cpu

Plain Python: it runs before there is an environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import which

DRIVER = 580
"""The oldest that runs CUDA 13, for which the locked torch is built."""
DEVICES = os.environ.get("TRAITMILL_DEVICES", "/dev/nvidiactl /dev/dxg").split()
"""Where a driver hands out its cards: on Linux, and under Windows."""
_ANY_VENDOR = "/dev/dxg"
"""Is there under Windows whoever made the card: only nvidia-smi beside it makes it NVIDIA's."""
CAPABILITY = (7, 5)
"""The oldest cards the locked torch has code for: Turing (T4); Volta (V100) is not among them."""
_CPU = "or take the CPU build, for small models only: export FLAVOUR=cpu, then make setup"


def fault(lines: list[str]) -> str:
    """Return why cards cannot be used, empty where they can.

    `lines` are nvidia-smi's: name, driver version and compute capability, comma-separated.
    """
    for line in lines:
        name, driver, capability = (part.strip() for part in line.split(","))
        if int(driver.partition(".")[0]) < DRIVER:
            return (
                f"the NVIDIA driver is {driver}; the CUDA build needs {DRIVER} or newer. Rent a "
                f"machine with a newer one (CUDA 13), or have it updated; on data-centre cards "
                f"NVIDIA's package cuda-compat-13-0 does instead (untested here: put its folder "
                f"on LD_LIBRARY_PATH and say export DRIVER=compat); {_CPU}"
            )
        major, minor = capability.split(".")
        if (int(major), int(minor)) < CAPABILITY:
            oldest = ".".join(map(str, CAPABILITY))
            return (
                f"{name} has compute capability {capability}; the CUDA build needs {oldest} or "
                f"newer (T4, A100, L4 and later, no V100). Take another card, hide it with "
                f"CUDA_VISIBLE_DEVICES and say export DRIVER=compat, {_CPU}"
            )
    return ""


def cards() -> list[str]:
    """Return what nvidia-smi says of the cards. Raise OSError where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return [line for line in said.stdout.splitlines() if line.strip()]


def flavour() -> str:
    """Return cuda where there is a card, be it one that set-up then refuses; cpu elsewhere.

    nvidia-smi alone makes no GPU, whatever it answers: images bring it along to machines that have
    none.
    """
    for device in DEVICES:
        if Path(device).exists() and (device != _ANY_VENDOR or which("nvidia-smi")):
            return "cuda"
    return "cpu"


def main() -> None:
    """Ask nvidia-smi; exit with 2 where its cards cannot be used."""
    if sys.argv[1:] == ["--flavour"]:
        print(flavour())
        return
    try:
        found = fault(cards())
    except ValueError:  # so old a driver does not know the question
        found = (
            f"nvidia-smi does not say driver and compute capability; the CUDA build needs driver "
            f"{DRIVER} or newer; {_CPU}"
        )
    except OSError as error:
        found = (
            f"nvidia-smi cannot be run ({error.strerror}), so driver and card are not known: "
            f"install it (it comes with the driver; in a container, with the capability `utility`) "
            f"or, where the driver is {DRIVER} or newer, say export DRIVER=compat; {_CPU}"
        )
    if found:
        print(found, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
