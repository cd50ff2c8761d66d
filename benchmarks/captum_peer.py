"""Attributions by Captum, of a torch network with the same weights.

Captum explains one output per call. Only its occlusion and integrated gradients have a chunk size.
An experienced user can repeat each example once per output of a chunk and compute a Jacobian with
fewer and larger calls; the benchmark lists this separately as "captum, repeated". Captum's FAQ
disables cuDNN, because cuDNN's LSTM has no backward pass in inference mode. On a GPU both settings
are tried; with cuDNN the network is in training mode, which computes the same without dropout.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import captum_groups
from benchmarks.cells import Cell, Explanation, Work

MISSING = "pip install -e '.[peers]' installs Captum and torch"


class Setting(NamedTuple):
    """A chunk size, the number of evaluations at once, and whether cuDNN is used."""

    chunk: int
    cudnn: bool = False

    def __str__(self) -> str:
        return f"{self.chunk}{', cuDNN' if self.cudnn else ''}"


def why_not(device: str) -> str | None:
    """Return why Captum cannot run on a device, "cpu" or "gpu", or `None` if it can."""
    try:
        import captum.attr  # noqa: F401
        import torch
    except ImportError as error:
        return f"{error.name} is not installed: {MISSING}"
    if device == "gpu" and not torch.cuda.is_available():
        return "torch sees no GPU: it may be a CPU build"
    return None if device in ("cpu", "gpu") else f"torch has no {device}"


def versions() -> dict[str, str]:
    """Return the versions of the packages that are measured."""
    import captum
    import torch

    return {"captum": captum.__version__, "torch": torch.__version__}


def kinds(
    cell: Cell,
    device: str,
    chunks: list[int] | None,
    sizes: Callable[[int, list[int] | None], list[int]],
) -> dict[str, list[Setting]]:
    """Return the settings of Captum, and of Captum with repeated examples for a Jacobian.

    None for a method or a network that is not Captum's work.

    Args:
        cell: the work.
        device: "cpu" or "gpu".
        chunks: the chunk sizes to try, or `None`.
        sizes: returns the chunk sizes up to a largest one.
    """
    net = cell.network
    if net.gates != 4:
        return {}
    outputs = net.classes * (net.steps if net.per_step else 1)
    plain = sizes(_largest_chunk(cell), chunks)
    ways = {"": plain}
    if cell.method == "jacobian":
        ways[", repeated"] = [size for size in sizes(outputs, chunks) if size > 1] or [outputs]
    kernels = (False, True)[: 1 + (device == "gpu")]
    return {
        kind: [Setting(chunk, cudnn) for cudnn in kernels for chunk in of_kind]
        for kind, of_kind in ways.items()
    }


def _largest_chunk(cell: Cell) -> int:
    if cell.method in captum_groups.METHODS:
        return captum_groups.METHODS[cell.method](cell)
    most = {"occlusion": cell.windows, "integrated_gradients": cell.options.get("num_steps")}
    return most.get(cell.method) or 1


def build(work: Work, setting: Setting, device: str, tf32: bool = False) -> Explanation:
    """Return a function that explains all examples of a cell and waits for the result."""
    import torch
    from captum import attr

    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    where = "cuda" if device == "gpu" else "cpu"
    cell, net = work.cell, work.cell.network
    model = network(work).to(where).train(setting.cudnn)
    xs = torch.tensor(work.xs, device=where)
    targets = None if work.targets is None else torch.tensor(work.targets, device=where)

    def saliency() -> Any:
        return attr.Saliency(model).attribute(xs.requires_grad_(), target=targets)

    def integrated_gradients() -> Any:
        return attr.IntegratedGradients(model).attribute(
            xs,
            target=targets,
            n_steps=cell.options["num_steps"],
            method="riemann_middle",
            internal_batch_size=setting.chunk * cell.batch,
        )

    def occlusion() -> Any:
        window, stride = cell.options["window"], cell.options["stride"]
        return attr.Occlusion(model).attribute(
            xs,
            target=targets,
            sliding_window_shapes=window + cell.shape[len(window) :],
            strides=stride + cell.shape[len(stride) :],
            perturbations_per_eval=setting.chunk,
        )

    def jacobian() -> Any:
        outputs: list[Any] = list(range(net.classes))
        if net.per_step:
            outputs = [(step, k) for step in range(net.steps) for k in outputs]
        rows = []
        for start in range(0, len(outputs), setting.chunk):
            some = outputs[start : start + setting.chunk]
            repeated = xs.repeat(len(some), 1, 1).requires_grad_()
            each = [output for output in some for _ in range(cell.batch)]
            target = each if net.per_step else torch.tensor(each, device=where)
            values = attr.Saliency(model).attribute(repeated, target=target, abs=False)
            rows.append(values.reshape(len(some), *xs.shape))
        rows = torch.cat(rows).transpose(0, 1)
        shape = (net.steps, net.classes) if net.per_step else (net.classes,)
        return rows.reshape(cell.batch, *shape, *xs.shape[1:])

    explain: dict[str, Callable[[], Any]] = {
        f.__name__: f for f in (saliency, integrated_gradients, occlusion, jacobian)
    }

    chosen, compared = explain.get(cell.method), None
    if chosen is None:
        chosen = captum_groups.explanation(work, model, xs, targets, setting.chunk)
        compared = captum_groups.example_by_example(work, model, xs, targets)

    def run() -> Any:
        with _cudnn(setting.cudnn):
            values = chosen()
        if where == "cuda":
            torch.cuda.synchronize()
        return values.detach()

    return Explanation(run, compared)


@contextlib.contextmanager
def _cudnn(enabled: bool) -> Iterator[None]:
    import torch

    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def network(work: Work) -> Any:
    import torch

    net = work.cell.network

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(
                net.features, net.units, batch_first=True, bidirectional=net.bidirectional
            )
            self.head = torch.nn.Linear(net.units * (1 + net.bidirectional), net.classes)

        def forward(self, xs: Any) -> Any:
            outputs, (last, _) = self.lstm(xs)
            if net.per_step:
                return self.head(outputs)
            return self.head(torch.cat(list(last), -1))

    model = Classifier()
    with torch.no_grad():
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            if direction in work.weights:
                kernel, recurrent, bias = work.weights[direction]
                values = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias_ih": bias}
                for name, value in values.items():
                    getattr(model.lstm, f"{name}_l0{suffix}").copy_(torch.tensor(value))
                getattr(model.lstm, f"bias_hh_l0{suffix}").zero_()
        kernel, bias = work.weights["head"]
        model.head.weight.copy_(torch.tensor(kernel.T))
        model.head.bias.copy_(torch.tensor(bias))
    return model.requires_grad_(False)  # the fastest setting: no gradients of weights
