"""Tests of the captioning example: scenes, vocabulary, scores, and a run on a small budget."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from examples import captioning, describing, scenes, stamps

SIZES = {"channels": (8, 8, 8, 16), "hidden_features": 16, "attention_units": 8}


@pytest.fixture(scope="module")
def few():
    return scenes.compose(60, seed=0), scenes.compose(40, test=True, seed=1)


@pytest.fixture
def as_it_comes(monkeypatch):
    """Set JAX's default promotion, and a terminal wide enough for the tables."""
    monkeypatch.setenv("COLUMNS", "140")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_scenes_match_captions(few):
    for composed in few:
        for image, things, truth, caption in zip(*composed, strict=True):
            named = [thing for thing in things if thing.colour in scenes.COLOURS]
            words = [word for word in truth if word in {*scenes.NAMES, *scenes.COLOURS}]
            assert words == [w for thing in named for w in (thing.colour, thing.name)]
            if len(named) == 2:
                a, b = named
                down, right = b.top - a.top, b.left - a.left
                assert ("above" in truth) == (down > abs(right))
                assert ("left" in truth) == (right > abs(down))
            black = [thing for thing in things if thing.colour == "black"]
            if black and len(named) == 2:
                assert caption == [*truth[:-1], black[0].name] != truth
            else:
                assert caption == truth
            for thing in named:
                here = image[thing.top : thing.top + 20, thing.left : thing.left + 20] / 255.0
                ink = np.abs(here - scenes.COLOURS[thing.colour]).max(-1)
                assert ink.min() < 0.15  # the colour occurs
            blank = np.ones(image.shape[:2], bool)
            for thing in things:
                blank[thing.top : thing.top + 20, thing.left : thing.left + 20] = False
            assert np.ptp(image[blank].astype(int), axis=0).max() == 0


def test_object_cells_are_at_least_half_covered():
    # Rows 4 to 23 cover half of cell row 0 and all of 1 and 2; columns 8 to 27 cover cell columns
    # 1 and 2 and half of 3.
    found = scenes.Thing("one", "red", top=4, left=8).cells
    want = np.zeros((8, 8), bool)
    want[0:3, 1:3] = want[1:3, 3] = True
    np.testing.assert_array_equal(found, want)


def test_test_and_training_sprites_are_disjoint():
    learnt, new = scenes.sprites(False), scenes.sprites(True)
    assert set(learnt) == set(new) == set(scenes.NAMES)
    for name in scenes.NAMES:
        seen = {shape.tobytes() for shape in learnt[name]}
        assert not any(shape.tobytes() in seen for shape in new[name])


def test_words_of_objects_have_cells():
    things = [scenes.Thing("two", "red", 0, 0), scenes.Thing("sun", "blue", 40, 30)]
    things += [scenes.Thing("star", "black", 0, 40)]
    truth = scenes.caption(things[:2])
    assert truth == "a red two above a blue sun".split()
    found = scenes.cells(things, truth)
    owners = [None, 0, 0, None, None, 1, 1]
    for cells, owner in zip(found, owners, strict=True):
        assert (cells is None) == (owner is None)
        if cells is not None:
            np.testing.assert_array_equal(cells, things[owner].cells)


def test_vocabulary_round_trip():
    vocabulary = scenes.Vocabulary([["a", "b"], ["c"]], 4)
    ids = vocabulary.encode([["a", "c", "b"], ["b"]])
    assert ids.tolist() == [[1, 3, 2, 0], [2, 0, 0, 0]]
    assert vocabulary.decode(ids) == [["a", "c", "b"], ["b"]]
    assert vocabulary.decode(np.array([[1, 1, 1, 1]])) == [["a"] * 4]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (["a"] * 4, "a caption has 4 words, at most 3 fit"),
        (["a", "zebra", ""], "not in the vocabulary: 'zebra', ''"),
    ],
)
def test_invalid_captions_raise(caption, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scenes.Vocabulary([["a"]], 4).encode([caption])


def test_pointing_and_wrong_words_by_hand():
    things = [scenes.Thing("two", "red", 0, 0), scenes.Thing("sun", "blue", 40, 30)]
    truth = scenes.caption(things)
    weights = np.zeros((1, 7, 8, 8), np.float32)
    weights[0, :, 6, 4] = 1.0  # within the sun, for every word
    weights[0, 2] = 0
    weights[0, 2, 0, 0], weights[0, 2, 4, 0] = 0.75, 0.25
    scene = scenes.Scenes(np.zeros((1, 64, 64, 3), np.uint8), [things], [truth], [truth])
    found = describing.pointing(scene, weights, [0])
    sizes = [thing.cells.mean() for thing in things]
    assert found["colours"] == pytest.approx((0.5, np.mean(sizes), 0.5, 2))
    assert found["names"] == pytest.approx((0.875, np.mean(sizes), 1.0, 2))

    predicted = "a red six above a pink sun".split()
    wrong = describing.wrong_words(scene, describing.Said([predicted], weights))
    assert [(w.step, w.word, w.meant) for w in wrong] == [(2, "six", 0), (5, "pink", 1)]
    assert [w.masses for w in wrong] == [[0.75, 0.0], [0.0, 1.0]]


@pytest.fixture
def printed(few, as_it_comes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captioning, "load", lambda *_: few)
    path = captioning.main(
        tmp_path, steps=3, sizes=SIZES, least=dict.fromkeys(captioning.LEAST, 0.0)
    )
    return path, capsys.readouterr().out


def rows(printed, columns):
    """Return the rows of all printed tables with `columns` columns, by their first cell."""
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == columns}


@pytest.mark.slow
def test_example_runs(printed):
    path, out = printed
    page = path.read_text(encoding="utf-8")
    assert {p.name for p in path.parent.iterdir() if p.is_dir()} == {"soft", "hard"}
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 35
    assert {f"explained-{kind}" for kind in ("soft", "hard")} <= {
        p.stem for p in path.parent.glob("*.png")
    }
    for section in ("the-loss", "captions", "pointing", "planted-wrong-words", "explaining-a-word"):
        assert f'id="{section}"' in page
    assert len(rows(out, 5)) >= 4  # two tables have five columns
    pointing = {k: v for k, v in rows(out, 6).items() if "colours" in k or "names" in k}
    assert set(pointing) == {f"{k}, {w}" for k in ("soft", "hard") for w in ("colours", "names")}
    for mass, chance, times, hit, count in pointing.values():
        share, area = float(mass[:-1]), float(chance[:-1])
        assert 0 < share < 100 and 5 < area < 15 and 0 <= float(hit[:-1]) <= 100
        assert float(times) == pytest.approx(share / area, abs=0.07)
        assert int(count) > 20


def test_inaccurate_network_raises(few, tmp_path, monkeypatch):
    def nonsense(out, images, captions, tests, *_):
        predicted = describing.Said([["a"]] * len(tests), np.ones((len(tests), 10, 8, 8)))
        return dict.fromkeys(describing.KINDS, describing.Taught(None, predicted, None))

    monkeypatch.setattr(captioning, "load", lambda *_: few)
    monkeypatch.setattr(captioning, "teach_both", nonsense)
    with pytest.raises(SystemExit, match=r"^0% of the captions are right, wanted 50%$"):
        captioning.main(tmp_path)


def test_misdirected_attention_raises(few, tmp_path, monkeypatch):
    test = few[1]
    even = np.full((len(test.images), 10, 8, 8), 1 / 64)
    there = even.copy()
    for w, things, truth in zip(there, test.things, test.truths, strict=True):
        for at, here in zip(w, scenes.cells(things, truth), strict=False):
            at[:] = even[0, 0] if here is None else here / here.sum()
    predicted = describing.Said(test.captions, even)  # the largest weight is the top left one
    trained = dict.fromkeys(describing.KINDS, describing.Taught(None, predicted, None))
    monkeypatch.setattr(captioning, "load", lambda *_: few)
    monkeypatch.setattr(captioning, "teach_both", lambda *_: trained)
    for looks, message in (even, "1.0 times chance, wanted 3.0"), (there, "planted words peak"):
        monkeypatch.setattr(describing, "look", lambda *_, looks=looks: looks)
        with pytest.raises(SystemExit, match=message):
            captioning.main(tmp_path)


@pytest.mark.slow
def test_stamps_example_runs(as_it_comes, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stamps"
    folder.mkdir()
    for i, name in enumerate(["frog", "plane", "star", "house"] * 4):
        picture = Image.new("RGBA", (90, 40 + i), (20 * i, 60, 200, 255))
        picture.save(folder / f"{name}{i}.png")
        (folder / f"{name}{i}.txt").write_text(f"A green {name}.\nmore\n", encoding="utf-8")
    images, captions = stamps.load(folder)
    assert images.shape == (16, 64, 64, 3) and images.dtype == np.uint8
    assert captions[0] == ["a", "green", "frog"]
    assert (images[:, 0] == 255).all()  # wide images are padded with white
    monkeypatch.setattr(stamps, "load", lambda: (images, captions))
    path = stamps.main(tmp_path / "out", steps=2, sizes=SIZES, tests=0.25)
    assert path.exists()
    assert set(rows(capsys.readouterr().out, 5)) >= {"soft, learnt", "hard, new"}


def test_missing_stamps_raise_with_install_command(tmp_path):
    with pytest.raises(SystemExit, match="apt-get install tuxpaint-stamps-default"):
        stamps.load(tmp_path)
