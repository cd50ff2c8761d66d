"""The libraries that are measured beside jaxattn do the same work: their values agree."""

import numpy as np
import pytest
from flax import nnx

import jaxattn as ja
from benchmarks import cells, coalition_cells, contest, speed, state_cells
from benchmarks.faithfulness import classifier

NETWORKS = {
    "image": cells.Network(6, 8, 3, 2, bidirectional=True),
    "long": cells.Network(12, 1, 3, 2),
    "state": cells.Network(7, 3, 6, 1, per_step=True, gates=3),
}
OPTIONS = {
    "image": {"groups": (2, 4), "num_samples": 12},
    "long": {"groups": (2,), "num_samples": 12},
    "state": {"max_events": 3, "num_samples": 14, "area": (1 / 3,)},
}
#: What trained masks may differ by. Adam's first steps have the size of the rate, whatever the
#: slope, so rounding decides where it is close to zero.
MASKS = {"state-dynamask": 0.1, "state-extremal-mask": 0.01}
CELLS = {**coalition_cells.CELLS, **state_cells.CELLS}


@pytest.fixture(autouse=True)
def default_promotion():
    import jax

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def tiny(name):
    place, cell = name.split("-")[0], CELLS[name]
    smaller = {key: value for key, value in OPTIONS[place].items() if key in cell.options}
    return cell._replace(network=NETWORKS[place], batch=2, options={**cell.options, **smaller})


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("peer", contest.PEERS)
def test_values_agree(name, peer):
    module, cell = contest.PEERS[peer], tiny(name)
    kinds = module.kinds(cell, "cpu", None, contest.powers_of_two)
    if not kinds:
        pytest.skip("other work")
    if module.why_not("cpu") is not None:
        pytest.skip("not installed")
    work = cells.prepare(cell)
    ours = ja.explain(work.method, work.model, work.xs, work.targets, **work.options).values
    for settings in kinds.values():
        for setting in {settings[0], settings[-1]}:
            built = contest.by_peer(peer, work, setting, "cpu", False)
            result = (built.compared or built.run)()
            contest.compare(peer, result, np.asarray(ours), MASKS.get(name, 1e-4))


def test_each_cell_is_the_work_of_a_peer():
    for name, cell in speed.CELLS.items():
        able = {
            peer
            for peer, module in contest.PEERS.items()
            if module.kinds(cell, "cpu", [1], contest.powers_of_two)
        }
        assert len(able) == 1, name
        assert set(cell.at_least) - {"handwritten"} <= able, name


def test_new_cells_are_not_written_by_hand():
    assert set(contest.contenders(_work("long-ablation"), ["captum"], "cpu", [1, 64])) == {"captum"}


def test_captum_takes_a_group_at_a_time_or_all():
    (settings,) = (
        contest.PEERS["captum"]
        .kinds(CELLS["image-ablation"], "cpu", None, contest.powers_of_two)
        .values()
    )
    assert [setting.chunk for setting in settings] == [1, 2, 4, 8, 16, 32, 49]


def _work(name):
    return cells.Work(CELLS[name], None, {}, np.zeros(1), None, {})


def test_values_that_are_compared_may_be_others_than_those_that_are_measured():
    calls = []

    def compared():
        calls.append(1)
        return np.ones(3)

    def build():
        return contest.Built("a", lambda: np.zeros(3), compared=compared)

    best, _, difference = contest._sweep(
        "peer", [("a", build), ("b", build)], np.ones(3), tolerance=1e-4
    )
    assert (best.setting, difference, calls) == ("a", 0, [1])


def test_full_size_of_state_has_the_trained_network(monkeypatch):
    network = classifier.Classifier(classifier.UNITS, rngs=nnx.Rngs(3))
    monkeypatch.setattr(classifier, "trained", lambda *series_and_seed: network)
    classifier.classifier.cache_clear()
    try:
        work = state_cells.prepare(CELLS["state-fit"])
    finally:
        classifier.classifier.cache_clear()  # the untrained one
    assert work.model is network
    assert work.xs.shape == (8, 200, 3)
