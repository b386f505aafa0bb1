"""The class of machine that numbers were made on. Imports no host."""

from __future__ import annotations

import os
import platform

import torch


def machine_class() -> str:
    """Cores, architecture and PyTorch of this machine, without its name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()}), torch {torch.__version__}"
