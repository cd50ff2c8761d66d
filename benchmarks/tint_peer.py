"""Attributions by time-interpret, imported as `tint`, of a torch network with the same weights.

FIT has the same generator and draws as jaxattn's. Its predictions and those of temporal integrated
gradients are computed for one time step after the other. Masks are trained on all series at once,
as larger batches take less time, for as many epochs as jaxattn's take steps. All features of a mask
are equal at first, and Dynamask of tint draws those to 1 that a sort puts last. The masks that are
compared, and not measured, share the ones between equal features, as jaxattn's do.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import torch_gru
from benchmarks.cells import Cell, Explanation, Work
from benchmarks.state_cells import RATE, gru_weights

MISSING = "pip install -e '.[peers]' installs time-interpret and torch"


class Setting(NamedTuple):
    """The number of series, or of points on their paths, in one call of the network."""

    chunk: int

    def __str__(self) -> str:
        return str(self.chunk)


def why_not(device: str) -> str | None:
    """Return why tint cannot run on a device, or `None` if it can."""
    try:
        import tint.attr  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed: {MISSING}"
    return None if device == "cpu" else "tint is measured on a CPU only"


def versions() -> dict[str, str]:
    """Return the versions of the packages that are measured."""
    import pytorch_lightning
    import tint
    import torch

    modules = {"time-interpret": tint, "pytorch_lightning": pytorch_lightning, "torch": torch}
    return {name: module.__version__ for name, module in modules.items()}


def kinds(
    cell: Cell,
    device: str,
    chunks: list[int] | None,
    sizes: Callable[[int, list[int] | None], list[int]],
) -> dict[str, list[Setting]]:
    """Return the settings; none for a method that is not tint's work.

    Args:
        cell: the work.
        device: "cpu".
        chunks: the chunk sizes to try; by default the largest, and a quarter of it for gradients.
        sizes: returns the chunk sizes up to a largest one.
    """
    if cell.method not in EXPLANATIONS or cell.network.gates != 3:
        return {}
    if cell.method != "integrated_gradients":
        return {"": [Setting(cell.batch)]}
    largest = cell.batch * cell.options["num_steps"]
    default = [max(cell.batch, largest // 4), largest]
    return {"": [Setting(max(cell.batch, size)) for size in sizes(largest, chunks or default)]}


def build(work: Work, setting: Setting, device: str, tf32: bool = False) -> Explanation:
    """Return a function that explains all series of a cell."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    xs = torch.tensor(work.xs)

    def quiet(explain: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with _Quiet():
                return explain().detach()

        return run

    explain = EXPLANATIONS[work.cell.method](work, xs, setting)
    if work.cell.method != "dynamask":
        return Explanation(quiet(explain))
    return Explanation(quiet(explain), quiet(_dynamask(work, xs, setting, shares_ties=True)))


class _Quiet(warnings.catch_warnings):
    """Neither warnings nor messages of the trainer."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        for name in ("pytorch_lightning", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _temporal_integrated_gradients(work: Work, xs: Any, setting: Setting) -> Callable[[], Any]:
    from tint.attr import TemporalIntegratedGradients

    model = torch_gru.classifier(work)
    explainer = TemporalIntegratedGradients(lambda xs: model(xs)[0][:, -1])
    options = {"n_steps": work.cell.options["num_steps"], "method": "riemann_middle"}
    options |= {"target": 0, "internal_batch_size": setting.chunk}
    return lambda: explainer.attribute(xs, **options)


def _fit(work: Work, xs: Any, setting: Setting) -> Callable[[], Any]:
    import torch
    from tint.attr import Fit

    model = torch_gru.classifier(work)

    def logits(xs: Any) -> Any:
        last = model(xs)[0][:, -1]
        return torch.cat([torch.zeros_like(last), last], -1)

    samples = work.cell.options["num_samples"]
    with _Quiet():
        explainer = Fit(logits, features=xs[:2], trainer=_trainer(0))
    explainer.generator = _generator(work)
    return lambda: explainer.attribute(xs, n_samples=samples)


def noise(work: Work) -> np.ndarray:
    """Return the draws of jaxattn's FIT (samples, B, T, D)."""
    samples, shape = work.cell.options["num_samples"], work.cell.shape

    def of_series(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, samples)
        return jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[1], shape))(keys)

    key = work.options["key"]
    each = [of_series(jax.random.fold_in(key, i)) for i in range(work.cell.batch)]
    return np.stack(each, 1)


def _generator(work: Work) -> Any:
    """Return the generator of jaxattn's FIT, with its draws."""
    import torch

    source = work.options["generator"].generator
    size = source.in_features

    def layers(sequence: Any) -> Any:
        first, last = (
            torch_gru.linear(np.asarray(layer.kernel[...]), np.asarray(layer.bias[...]))
            for layer in sequence.layers[::2]
        )
        return torch.nn.Sequential(first, torch.nn.Tanh(), last)

    class Generator(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch_gru.gru(gru_weights(source.recurrent))
            self.latent, self.mean = layers(source.latent), layers(source.mean)
            self.factor = layers(source.factor)
            self.draws: Iterator[Any] = iter(())

        def forward_conditional(self, past: Any, current: Any, known: list[int]) -> Any:
            """Draw the features of the current step that are not known."""
            state = self.gru(past)[1][0]
            latent = torch.tanh(self.latent(state)).chunk(2, -1)[0]
            mean, square = self.mean(latent), self.factor(latent).reshape(-1, size, size)
            scales = torch.nn.functional.softplus(square.diagonal(dim1=1, dim2=2)) + 1e-3
            lower = square.tril(-1) + torch.diag_embed(scales)
            drawn = next(self.draws, None)
            if drawn is None:  # the samples of the next feature or step
                self.draws = iter(every)
                drawn = next(self.draws)
            joint = mean + (lower @ drawn[:, past.shape[1], :, None])[..., 0]
            covariance = lower @ lower.mT
            (i,) = known
            gain = covariance[:, :, i] / covariance[:, i, i, None]
            full = joint + gain * (current - joint)[:, i, None]
            full[:, i] = current[:, i]
            return full, mean

    every = torch.tensor(noise(work))
    return Generator().requires_grad_(False)


def _trainer(epochs: int) -> Any:
    from pytorch_lightning import Trainer

    names = "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"
    return Trainer(max_epochs=epochs, accelerator="cpu", **dict.fromkeys(names, False))


def _adam() -> dict[str, Any]:
    return {"optim": "adam", "lr": RATE}


def _dynamask(
    work: Work, xs: Any, setting: Setting, *, shares_ties: bool = False
) -> Callable[[], Any]:
    import torch
    from tint.attr import DynaMask
    from tint.attr.models import MaskNet

    class Penalised(MaskNet):
        """With the penalty of the area, which new versions of the trainer do not call."""

        def training_step(self, *arguments: Any) -> Any:
            loss = super().training_step(*arguments)
            if not shares_ties:
                return self.training_step_end(loss)
            masks = self.net.mask.reshape(len(self.net.mask), -1)
            ends = [
                _shared(mask, ones)
                for mask, ones in zip(masks.detach(), self.net.reg_ref, strict=True)
            ]
            return loss + self.net.size_reg_factor * ((torch.stack(ends) - masks) ** 2).mean()

    model, options = torch_gru.classifier(work), work.cell.options

    def logits(xs: Any) -> Any:
        return model(xs)[0]

    def explain() -> Any:
        net = Penalised(logits, keep_ratio=list(options["area"]), **_adam())
        return DynaMask(logits).attribute(
            xs, trainer=_trainer(options["num_steps"]), mask_net=net, batch_size=setting.chunk
        )

    return explain


def _shared(mask: Any, ones: Any) -> Any:
    """Return to what each feature is drawn, the mean of sorted `ones` over equal features."""
    import torch

    _, places, counts = torch.unique(mask, return_inverse=True, return_counts=True)
    sums = torch.cat([torch.zeros(1), ones.cumsum(0)])
    ends = counts.cumsum(0)
    return ((sums[ends] - sums[ends - counts]) / counts)[places]


def _extremal_mask(work: Work, xs: Any, setting: Setting) -> Callable[[], Any]:
    import torch
    from tint.attr import ExtremalMask
    from tint.attr.models import ExtremalMaskNet

    model, options = torch_gru.classifier(work), work.cell.options
    features, units = xs.shape[-1], options.get("num_units", 16)

    class Replacements(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = torch.nn.GRU(features, units, batch_first=True, bidirectional=True)
            self.readout = torch.nn.Linear(2 * units, features)
            for weights in self.readout.parameters():
                torch.nn.init.zeros_(weights)

        def forward(self, xs: Any) -> Any:
            return self.readout(self.gru(xs)[0])

    def logits(xs: Any) -> Any:
        return model(xs)[0]

    def explain() -> Any:
        net = ExtremalMaskNet(
            logits,
            model=Replacements(),
            lambda_1=options["mask_weight"],
            lambda_2=options["replacement_weight"],
            **_adam(),
        )
        return ExtremalMask(logits).attribute(
            xs, trainer=_trainer(options["num_steps"]), mask_net=net, batch_size=setting.chunk
        )

    return explain


EXPLANATIONS: dict[str, Callable[[Work, Any, Setting], Callable[[], Any]]] = {
    "integrated_gradients": _temporal_integrated_gradients,
    "fit": _fit,
    "dynamask": _dynamask,
    "extremal_mask": _extremal_mask,
}
