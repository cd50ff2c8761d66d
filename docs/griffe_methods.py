"""Documentation that exists only in the imported package: the arguments that all methods share."""

import importlib
import inspect
from typing import Any

import griffe


class Methods(griffe.Extension):
    """Replace the docstring of each decorated function by that of the function in the package."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Take the docstring that the decorator `jaxattn.method` completes."""
        if not any(str(each.value).startswith("method") for each in func.decorators):
            return
        function = getattr(importlib.import_module(func.parent.path), func.name)
        if func.docstring is not None and function.__doc__:
            func.docstring.value = inspect.cleandoc(function.__doc__)
