"""Inside of recurrent layers: weights, states and gates, their derivatives, and memory.

Weights and values by gate, of one layer of a model of any library:
    layers: The recurrent layers of a model and their names, as `LayerInfo`.
    weights: Kernel, recurrent kernel and bias by gate, as `Weights`.
    states, gates: Hidden and cell states, and gates, over time, as `States` and `GateValues`.

Derivatives:
    gate_gradients: Gradients of a score or loss, also through single gates, as `GateGradients`.
    gate_jacobians: The Jacobian of the output through each gate.
    state_jacobians: dh_t/dh_s and dc_t/dc_s, their norms or spectra, as `StateJacobians`.

Memory:
    memory_reach: The number of steps after which dh_t/dh_s has decayed, as `MemoryReach`.
    half_life: The half-life of each unit.

Signs of trouble:
    saturation, dead_units: Saturated gates, as `Saturation`, and units that never change.
    check_finite: NaN and infinite entries by gate, as `FiniteReport` of `NonFinite`.
    summary: A table of all recurrent layers.

Training:
    record_history: An optax transformation that records norms and probes, as `History`.
    weight_penalty: Penalties of the weights of single gates.

Values by gate are `LSTMGates`, `GRUGates` or `RNNGates`, with an attribute per gate.
"""

from jaxattn.introspect.gate_derivatives import gate_gradients, gate_jacobians
from jaxattn.introspect.health import check_finite, dead_units, saturation
from jaxattn.introspect.inspection import gates, layers, states, weights
from jaxattn.introspect.memory_measures import half_life, memory_reach, state_jacobians
from jaxattn.introspect.results import (
    FiniteReport,
    GateGradients,
    GateValues,
    GRUGates,
    LayerInfo,
    LSTMGates,
    MemoryReach,
    NonFinite,
    RNNGates,
    Saturation,
    StateJacobians,
    States,
    Weights,
)
from jaxattn.introspect.summary_table import summary
from jaxattn.introspect.training_history import History, record_history
from jaxattn.introspect.weight_penalties import weight_penalty

__all__ = [
    "FiniteReport",
    "GRUGates",
    "GateGradients",
    "GateValues",
    "History",
    "LSTMGates",
    "LayerInfo",
    "MemoryReach",
    "NonFinite",
    "RNNGates",
    "Saturation",
    "StateJacobians",
    "States",
    "Weights",
    "check_finite",
    "dead_units",
    "gate_gradients",
    "gate_jacobians",
    "gates",
    "half_life",
    "layers",
    "memory_reach",
    "record_history",
    "saturation",
    "state_jacobians",
    "states",
    "summary",
    "weight_penalty",
    "weights",
]
