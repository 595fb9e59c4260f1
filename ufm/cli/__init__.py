"""The command line."""

from ufm.cli.main import main

__all__ = [
    "main",
]
