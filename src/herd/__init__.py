"""Herd turns the machines that a small team owns into one AI endpoint."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ollama-herd")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
