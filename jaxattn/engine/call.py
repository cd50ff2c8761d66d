"""A call from its arguments to a plan: checked, bound, and divided into parts."""

import dataclasses

import numpy as np
from jaxtyping import PyTree

from jaxattn.engine.binding import Binding, explained_input
from jaxattn.engine.checks import Request, check_request
from jaxattn.engine.diagnosis import diagnose
from jaxattn.engine.each import Each, checked_targets
from jaxattn.engine.examples import batch_length, example_structs, split_batched
from jaxattn.engine.inputs import check_baseline_option, check_finite_numbers
from jaxattn.engine.options import count, prepared, traits_of, with_baseline_array
from jaxattn.engine.parts import Examples, Work
from jaxattn.engine.plan import Workload, make_plans
from jaxattn.engine.result_checks import check_target
from jaxattn.engine.target import target_indices


def prepare_request(request: Request) -> Work:
    """Check, bind and plan a call; compile it if a number of evaluations in flight is to be found.

    Raises:
        TypeError: for arguments of a wrong kind.
        ValueError: for arguments that do not fit each other.
    """
    request = check_request(request)
    batch = batch_length(request.x, request.args) if request.batched else None
    if request.check_finite:
        check_finite_numbers(request.name, request.x)
    inputs = request.x, *request.args
    if request.batched:
        inputs = example_structs(inputs)
    try:
        binding, load, of_examples = _bound(request, inputs, batch)
    except Exception as error:
        clearer = diagnose(request, inputs, error)
        if clearer is None:
            raise
        raise clearer from error
    check_target(binding)
    number = None if batch is None or request.key is None else np.arange(batch, dtype=np.int32)
    target = request.target
    index: PyTree
    if isinstance(target, Each):
        checked = checked_targets(target, binding.selected, batch)
        index = dataclasses.replace(checked, select=None)  # it is bound
        binding.targets = index.indices.shape[-2]
        load.targets = binding.targets if traits_of(request.method).backward else 1
    else:
        index = target_indices(target, binding.selected, batch)
    examples = Examples(request.x, index, request.args, number, of_examples)
    plans = make_plans(binding, load, examples, request.batch_size, request.mesh)
    return Work(binding, load, plans, examples)


def _bound(
    request: Request, inputs: tuple[PyTree, ...], batch: int | None
) -> tuple[Binding, Workload, dict[str, PyTree]]:
    """Bind a call, count its evaluations, and return the options that differ between examples."""
    method, fn, at, target = request.method, request.fn, request.at, request.target
    x, *args = inputs
    name = at if isinstance(at, str) and not traits_of(method).keeps_input else None
    explained = explained_input(fn, x, tuple(args), name)
    check_baseline_option(request.options, explained, request.check_finite)
    shared = prepared(method, explained, request.options)
    shared = with_baseline_array(method, shared, explained)
    of_examples: dict[str, PyTree] = {}
    if batch is not None:
        shared, of_examples = split_batched(method, shared, explained, batch)
    named = shared if at is None else {**shared, "at": at}
    selector = target.select if isinstance(target, Each) else target
    binding = Binding(method, fn, inputs, selector, named, request.key)
    options = {"target": target, **shared, **example_structs(of_examples)}
    evaluations, in_flight = (
        count(what, method, explained, binding.output, options)
        for what in ("evaluations", "in_flight")
    )
    shares = traits_of(method).shares_states and options.get("reuse", True) is True
    return binding, Workload(batch, evaluations, in_flight, shares_states=shares), of_examples
