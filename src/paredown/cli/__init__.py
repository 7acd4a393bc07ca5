"""The `pare` command: one function per verb, with the names and arguments of the Python API."""

from paredown.cli.main import main as main
