"""Values of events by timeshap, of a torch network with the same weights.

timeshap explains one series per call. Its network may return its state, from which the old past,
one group here, is not computed anew for each coalition. Both ways are tried.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import torch_gru
from benchmarks.cells import Cell, Explanation, Work

MISSING = "pip install -e '.[peers]' installs timeshap and torch"


class Setting(NamedTuple):
    """The number of coalitions in a call of the network, and whether it returns its state."""

    chunk: int
    state: bool

    def __str__(self) -> str:
        return f"{self.chunk}{', state' if self.state else ''}"


def _kernel() -> Any:
    """Return timeshap's explainer. It was written for versions of shap that name its base so."""
    from shap.explainers import _kernel

    if not hasattr(_kernel, "Kernel"):
        _kernel.Kernel = _kernel.KernelExplainer
    from timeshap.explainer.kernel import TimeShapKernel

    return TimeShapKernel


def why_not(device: str) -> str | None:
    """Return why timeshap cannot run on a device, or `None` if it can."""
    try:
        _kernel()
        import torch  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed: {MISSING}"
    return None if device == "cpu" else "timeshap is measured on a CPU only"


def versions() -> dict[str, str]:
    """Return the versions of the packages that are measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("timeshap", "shap", "torch")}


def kinds(
    cell: Cell,
    device: str,
    chunks: list[int] | None,
    sizes: Callable[[int, list[int] | None], list[int]],
) -> dict[str, list[Setting]]:
    """Return the settings; none for a method that is not timeshap's work.

    Args:
        cell: the work.
        device: "cpu".
        chunks: the chunk sizes to try, or `None`.
        sizes: returns the chunk sizes up to a largest one.
    """
    if cell.method != "time_shap":
        return {}
    most = cell.options["num_samples"]
    some = sizes(most, chunks or [128, 512, most])
    return {"": [Setting(chunk, state) for state in (False, True) for chunk in some]}


def build(work: Work, setting: Setting, device: str, tf32: bool = False) -> Explanation:
    """Return a function that explains all series of a cell."""
    import torch
    from timeshap.wrappers import TorchModelWrapper

    torch.set_num_threads(os.cpu_count() or 1)
    options, length = work.cell.options, work.cell.network.steps
    pruned, samples = length - options["max_events"], options["num_samples"]
    network = torch_gru.classifier(work)

    class Last(torch.nn.Module):
        """The score of the last step, and the state if it shall be used."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, xs: Any, states: Any = None) -> Any:
            outputs, last = self.network(xs, states)
            return (outputs[:, -1], last) if setting.state else outputs[:, -1]

    explainer_of = _kernel()
    steps = length - pruned if setting.state else length
    wrapper = TorchModelWrapper(Last(), batch_budget=setting.chunk * steps)
    background = np.zeros((1, work.cell.network.features), np.float32)

    def of_series(x: np.ndarray) -> np.ndarray:
        explainer = explainer_of(wrapper.predict_last_hs, background, 0, "event")
        # Values from the last event back, then that of the old past.
        values = explainer.shap_values(x[None], pruning_idx=pruned, nsamples=samples, l1_reg=0)
        by_step = np.append(np.full(pruned, values[-1]), values[:-1][::-1])
        return np.repeat(by_step[:, None], x.shape[1], 1)

    return Explanation(lambda: np.stack([of_series(x) for x in work.xs]))
