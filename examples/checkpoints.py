"""Save and restore the weights of networks with orbax."""

from pathlib import Path
from typing import TypeVar

import orbax.checkpoint as ocp
from flax import nnx

Network = TypeVar("Network", bound=nnx.Module)


def save(model: nnx.Module, folder: str | Path) -> Path:
    """Save the weights in `folder`, replacing an earlier checkpoint, and return its path."""
    path = Path(folder).resolve()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.to_pure_dict(nnx.state(model, nnx.Param)), force=True)
    return path


def restore(model: Network, folder: str | Path) -> Network:
    """Load the weights in `folder` into a network of the same sizes, in place."""
    state = nnx.state(model, nnx.Param)
    with ocp.StandardCheckpointer() as checkpointer:
        pure = checkpointer.restore(Path(folder).resolve(), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    nnx.update(model, state)
    return model
