"""Plans of changed runs: extents, the split of a loop and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxattn.jaxpr.reuse.extent_rules import propagate
from jaxattn.jaxpr.reuse.extents import (
    UNCHANGED,
    WHOLE,
    Count,
    PerRun,
    Rows,
    hull,
    in_run,
    per_run,
)
from jaxattn.jaxpr.reuse.loop_schedule import CommonRows, OwnRows, Schedule, Segment, schedule_runs
from jaxattn.jaxpr.reuse.loop_split import LoopPlan, Span, plan_loop
from jaxattn.jaxpr.reuse.reuse_plan import RestrictedRuns, Traced, plan_reuse

T, D = 12, 2
SERIES = jax.ShapeDtypeStruct((T, D), np.float32)


def step_named(fn, name, x=SERIES):
    return next(step for step in Traced.of(fn, x).flat.steps if step.name == name)


def recurrent(x, **options):
    def advance(h, row):
        return jnp.tanh(jnp.sin(row) + h), h

    return lax.scan(advance, jnp.zeros(D), x, **options)


def loop_plan(changes, fn=recurrent):
    """Return the plan of a scan over the series, some rows of which change in each run."""
    step = step_named(fn, "scan")
    n_fixed = sum(step.counts)
    extents = [UNCHANGED] * n_fixed + [per_run(changes)] * (len(step.inputs) - n_fixed)
    return plan_loop(step, extents, len(changes))


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ([], UNCHANGED),
        ([UNCHANGED, UNCHANGED], UNCHANGED),
        ([Rows(0, 2, 3), UNCHANGED, Rows(0, 5, 7)], Rows(0, 2, 7)),
        ([Rows(0, 2, 3), Rows(1, 2, 3)], WHOLE),
    ],
)
def test_hull_covers_all_extents(extents, expected):
    assert hull(extents) == expected


def test_extents_per_run():
    assert per_run([UNCHANGED, UNCHANGED]) == UNCHANGED
    mixed = per_run([Rows(0, 1, 2), UNCHANGED, Count(3)])
    assert mixed == PerRun((Rows(0, 1, 2), UNCHANGED, Count(3)))
    assert [in_run(mixed, run) for run in range(3)] == list(mixed.runs)
    assert in_run(UNCHANGED, 2) == UNCHANGED


def test_rows():
    rows = Rows(1, 3, 7)
    assert (rows.size, rows.on(0), rows.shifted(-2)) == (4, Rows(0, 3, 7), Rows(1, 1, 5))
    assert rows.within(5, 9) == Rows(1, 5, 7)
    assert rows.within(8, 9).size <= 0


def test_slice_is_restricted_to_the_changed_rows():
    step = step_named(lambda x: x[4:10], "slice")
    restricted = propagate(step, [Rows(0, 2, 6)])
    assert (restricted.outputs, restricted.cuts) == ([Rows(0, 0, 2)], [Rows(0, 4, 6)])
    assert restricted.params["limit_indices"] == (2, D)
    outside = propagate(step, [Rows(0, 0, 4)])
    assert not outside.changes
    assert outside.cost(step, 100) == 0


def test_primitives_without_a_rule_are_whole():
    assert propagate(step_named(jnp.sort, "sort"), [Rows(0, 0, 1)]) == WHOLE
    contracted = step_named(lambda x: x.T @ jnp.ones((T, 3)), "dot_general")
    assert propagate(contracted, [Rows(1, 0, 1), UNCHANGED]) == WHOLE
    assert propagate(contracted, [Rows(0, 0, 1), UNCHANGED]) != WHOLE


def test_comparison_of_a_count_with_positions_changes_rows():
    def fn(length):
        return jnp.arange(T) < length

    plan = plan_reuse(Traced.of(fn, jnp.array(T)), [Count(5), Count(T)])
    assert plan.output_extents() == [Rows(0, 5, T), UNCHANGED]


def test_loop_body_is_split_by_dependence():
    def fn(x):
        def advance(carry, row):
            n, h = carry
            return (n + 1.0, jnp.tanh(jnp.sin(row) * n + h * jnp.exp(scale))), h

        return lax.scan(advance, (0.0, jnp.zeros(D)), x)

    scale = jnp.float32(0.5)
    plan = loop_plan([Rows(0, 2, 4), UNCHANGED], fn)
    split = plan.split
    names = [[step.name for step in steps] for steps in (split.fixed, split.early, split.late)]
    assert "exp" in names[0]
    assert "sin" in names[1]
    assert "tanh" in names[2]
    assert list(split.carry_changes) == [False, True]
    assert plan.extents == [UNCHANGED, WHOLE, PerRun((Rows(0, 2, T), UNCHANGED))]


@pytest.mark.parametrize(
    "change", [Rows(1, 0, 1), Count(3)], ids=["another axis than time", "a count"]
)
def test_unsupported_changes_of_a_loop_are_whole(change):
    assert loop_plan([change]) == WHOLE
    step = step_named(recurrent, "scan")
    assert plan_loop(step, [WHOLE] * len(step.inputs), 1) == WHOLE
    assert plan_loop(step_named(jnp.sin, "sin"), [per_run([Rows(0, 0, 1)])], 1) == WHOLE


def test_runs_join_after_their_windows():
    plan = loop_plan([Rows(0, 6, 8), UNCHANGED, Rows(0, 1, 3), Rows(0, 10, 12), Rows(0, 2, 3)])
    runs = [2, 4, 0, 3]
    own = OwnRows([Span(1, 3), Span(2, 4), Span(6, 8), Span(10, 12)])
    assert schedule_runs(plan) == Schedule(
        runs,
        [1, 2, 6, 10],
        Segment(runs, 4, own),
        [
            Segment([2], 1, CommonRows(Span(3, 4))),
            Segment([2, 4], 1, CommonRows(Span(4, 8))),
            Segment([2, 4, 0], 1, CommonRows(Span(8, 12))),
        ],  # the window of run 3 ends with the loop
    )
    assert [segment.length for segment in schedule_runs(plan).segments] == [2, 1, 4, 4]


def test_reversed_loop_starts_with_the_last_rows():
    plan = loop_plan([Rows(0, 1, 3), Rows(0, 9, 11)], lambda x: recurrent(x, reverse=True))
    assert plan.windows == [Span(9, 11), Span(1, 3)]
    assert schedule_runs(plan).runs == [1, 0]
    assert plan.extents[1] == PerRun((Rows(0, 0, 3), Rows(0, 0, 11)))


@pytest.mark.parametrize(
    "changes",
    [[Rows(0, 1, 8), Rows(0, 4, 11)], [Rows(0, 1, 2), Rows(0, 2, 3), Rows(0, 4, 9)]],
    ids=["long", "of unlike lengths"],
)
def test_runs_with_unequal_windows_use_their_own_rows(changes):
    plan = loop_plan(changes)
    schedule = schedule_runs(plan)
    assert plan.padded is None
    assert schedule.windows is None
    first, *_, last = schedule.tail
    assert first.rows == OwnRows([Span(1, changes[1].lo)])
    assert last.runs == list(range(len(changes)))
    assert last.rows == OwnRows([Span(changes[-1].lo, T)] * len(changes))


def test_runs_with_changed_initial_carries_use_common_rows():
    step = step_named(recurrent, "scan")
    extents = [WHOLE if i == step.counts[0] else UNCHANGED for i in range(len(step.inputs))]
    schedule = schedule_runs(plan_loop(step, extents, 2))
    assert schedule == Schedule([0, 1], [0, 0], None, [Segment([0, 1], 2, CommonRows(Span(0, T)))])


def test_loop_without_changed_carries_has_an_empty_schedule():
    plan = loop_plan([Rows(0, 1, 2)], lambda x: lax.scan(lambda n, r: (n + 1.0, r * n), 0.0, x))
    assert isinstance(plan, LoopPlan)
    assert schedule_runs(plan).segments == []
    assert plan.extents == [UNCHANGED, PerRun((Rows(0, 1, 2),))]


def test_plan_lists_the_changed_steps():
    def fn(x):
        return jnp.cumsum(jnp.tanh(x) + 1.0, 0)

    plan = plan_reuse(Traced.of(fn, SERIES), [Rows(0, 2, 5), UNCHANGED])
    kinds = {step.name: kind for step, kind in plan.steps.items()}
    assert isinstance(kinds["tanh"], RestrictedRuns)
    assert kinds["cumsum"] == WHOLE
    assert plan.output_extents() == [WHOLE, WHOLE]
    tanh, add, cumsum = T * D, T * D, plan.traced.flops - 2 * T * D
    assert plan.flops == plan.traced.flops + (tanh + add) * 3 // T + 2 * cumsum
