"""The call, the versions and the device that made a report."""

import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxattn.engine.options import name_of


def call_of(
    fn: Callable[..., Any],
    xs: np.ndarray,
    methods: Mapping[str, Any],
    metrics: Any,
    jacobian: bool,
) -> list[tuple[str, str]]:
    """Return the call that makes a page, the versions and the device."""
    described = []
    for name, method in methods.items():
        options = getattr(method, "keywords", {})
        inside = ", ".join(f"{key}={_short(value)}" for key, value in options.items())
        described.append(f"{name}({inside})" if inside else name)
    device = jax.devices()[0]
    names = (
        "default"
        if metrics is None
        else ", ".join(
            list(metrics) if isinstance(metrics, Mapping) else [name_of(each) for each in metrics]
        )
    )
    call = (
        f"jaxattn.report({name_of(fn)}, {xs.dtype}{list(xs.shape)}, "
        f"methods=[{', '.join(described)}], metrics=[{names}], jacobian={jacobian})"
    )
    versions = [
        f"{package} {importlib.metadata.version(package)}" for package in ("jax", "jaxlib", "numpy")
    ]
    versions.insert(0, f"jaxattn {importlib.import_module('jaxattn').__version__}")
    return [
        ("Call", call),
        ("Versions", ", ".join([*versions, f"Python {platform.python_version()}"])),
        ("Device", f"{jax.device_count()} × {device.device_kind} ({device.platform})"),
    ]


def _short(value: Any) -> str:
    if hasattr(value, "shape") and np.ndim(value):
        return f"array of shape {np.shape(value)}"
    return name_of(value) if callable(value) else repr(value)[:60]
