"""A pytest plugin: tests use the extension module at PAREDOWN_TEST_EXTENSION."""

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location(
    "paredown.kernels._native", os.environ["PAREDOWN_TEST_EXTENSION"]
)
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["paredown.kernels._native"] = module
spec.loader.exec_module(module)
