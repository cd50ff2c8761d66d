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


@pytest.mark.slow
def test_scenes_match_captions(few):
    for composed in few:
        for image, objects, reference, caption in zip(*composed, strict=True):
            named = [obj for obj in objects if obj.colour in scenes.COLOURS]
            words = [word for word in reference if word in {*scenes.NAMES, *scenes.COLOURS}]
            assert words == [w for obj in named for w in (obj.colour, obj.name)]
            if len(named) == 2:
                a, b = named
                down, right = b.top - a.top, b.left - a.left
                assert ("above" in reference) == (down > abs(right))
                assert ("left" in reference) == (right > abs(down))
            black = [obj for obj in objects if obj.colour == "black"]
            if black and len(named) == 2:
                assert caption == [*reference[:-1], black[0].name] != reference
            else:
                assert caption == reference
            for obj in named:
                here = image[obj.top : obj.top + 20, obj.left : obj.left + 20] / 255.0
                ink = np.abs(here - scenes.COLOURS[obj.colour]).max(-1)
                assert ink.min() < 0.15  # its colour is there
            blank = np.ones(image.shape[:2], bool)
            for obj in objects:
                blank[obj.top : obj.top + 20, obj.left : obj.left + 20] = False
            assert np.ptp(image[blank].astype(int), axis=0).max() == 0


def test_object_cells_are_at_least_half_covered():
    # Rows 4 to 23 and columns 8 to 27: half of row 0, all of 1 and 2; columns 1, 2 and half of 3.
    found = scenes.SceneObject("one", "red", top=4, left=8).cells
    wanted = np.zeros((8, 8), bool)
    wanted[0:3, 1:3] = wanted[1:3, 3] = True
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_test_and_training_sprites_are_disjoint():
    learnt, new = scenes.sprites(False), scenes.sprites(True)
    assert set(learnt) == set(new) == set(scenes.NAMES)
    for name in scenes.NAMES:
        seen = {shape.tobytes() for shape in learnt[name]}
        assert not any(shape.tobytes() in seen for shape in new[name])


def test_words_of_objects_have_cells():
    objects = [scenes.SceneObject("two", "red", 0, 0), scenes.SceneObject("sun", "blue", 40, 30)]
    objects += [scenes.SceneObject("star", "black", 0, 40)]
    reference = scenes.reference_caption(objects[:2])
    assert reference == "a red two above a blue sun".split()
    found = scenes.word_cells(objects, reference)
    owners = [None, 0, 0, None, None, 1, 1]
    for cells, owner in zip(found, owners, strict=True):
        assert (cells is None) == (owner is None)
        if cells is not None:
            np.testing.assert_array_equal(cells, objects[owner].cells)


def test_vocabulary_round_trip():
    vocabulary = scenes.Vocabulary([["a", "b"], ["c"]], 4)
    ids = vocabulary.encode([["a", "c", "b"], ["b"]])
    assert ids.tolist() == [[1, 3, 2, 0], [2, 0, 0, 0]]
    assert vocabulary.decode(ids) == [["a", "c", "b"], ["b"]]
    assert vocabulary.decode(np.array([[1, 1, 1, 1]])) == [["a"] * 4]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (["a"] * 4, "`captions` must have at most 3 words each, got 4"),
        (["a", "zebra", ""], "`captions` has words outside of the vocabulary: 'zebra', ''"),
    ],
)
def test_invalid_captions_raise(caption, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scenes.Vocabulary([["a"]], 4).encode([caption])


def test_pointing_and_wrong_words_by_hand():
    objects = [scenes.SceneObject("two", "red", 0, 0), scenes.SceneObject("sun", "blue", 40, 30)]
    reference = scenes.reference_caption(objects)
    weights = np.zeros((1, 7, 8, 8), np.float32)
    weights[0, :, 6, 4] = 1.0  # within the sun, for every word
    weights[0, 2] = 0
    weights[0, 2, 0, 0], weights[0, 2, 4, 0] = 0.75, 0.25
    scene = scenes.Scenes(np.zeros((1, 64, 64, 3), np.uint8), [objects], [reference], [reference])
    found = describing.pointing(scene, weights, [0])
    sizes = [obj.cells.mean() for obj in objects]
    assert found["colours"] == pytest.approx((0.5, np.mean(sizes), 0.5, 2))
    assert found["names"] == pytest.approx((0.875, np.mean(sizes), 1.0, 2))

    said = "a red six above a pink sun".split()
    wrong = describing.find_errors(scene, describing.Captions([said], weights))
    assert [(w.step, w.word, w.target) for w in wrong] == [(2, "six", 0), (5, "pink", 1)]
    assert [w.masses for w in wrong] == [[0.75, 0.0], [0.0, 1.0]]


@pytest.fixture
def printed(few, as_it_comes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(captioning, "load", lambda *_: few)
    # In so few steps, the likelihood rises, but no caption is exact yet.
    path = captioning.main(
        tmp_path, steps=60, sizes=SIZES, minimum=dict.fromkeys(captioning.MINIMUM, 0.0)
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
    losses = rows(out, 5)
    likelihoods = [float(losses[f"soft, {when} tenth"][0]) for when in ("first", "last")]
    assert likelihoods[1] > likelihoods[0] + 2  # nats per caption
    pointing = {k: v for k, v in rows(out, 6).items() if "colours" in k or "names" in k}
    assert set(pointing) == {f"{k}, {w}" for k in ("soft", "hard") for w in ("colours", "names")}
    for mass, chance, times, hit, count in pointing.values():
        share, area = float(mass[:-1]), float(chance[:-1])
        assert 0 < share < 100 and 5 < area < 15 and 0 <= float(hit[:-1]) <= 100
        assert float(times) == pytest.approx(share / area, abs=0.07)
        assert int(count) > 20


@pytest.mark.slow
def test_inaccurate_network_raises(few, tmp_path, monkeypatch):
    def nonsense(out, images, captions, tests, *_):
        said = describing.Captions([["a"]] * len(tests), np.ones((len(tests), 10, 8, 8)))
        return dict.fromkeys(describing.KINDS, describing.TrainedCaptioner(None, said, None))

    monkeypatch.setattr(captioning, "load", lambda *_: few)
    monkeypatch.setattr(captioning, "train_both", nonsense)
    with pytest.raises(SystemExit, match=r"^0% of the captions are correct, needed at least 50%$"):
        captioning.main(tmp_path)


@pytest.mark.slow
def test_misdirected_attention_raises(few, tmp_path, monkeypatch):
    test = few[1]
    even = np.full((len(test.images), 10, 8, 8), 1 / 64)
    there = even.copy()
    for w, objects, reference in zip(there, test.objects, test.references, strict=True):
        for at, here in zip(w, scenes.word_cells(objects, reference), strict=False):
            at[:] = even[0, 0] if here is None else here / here.sum()
    said = describing.Captions(test.captions, even)  # the largest weight is the top left one
    taught = dict.fromkeys(describing.KINDS, describing.TrainedCaptioner(None, said, None))
    monkeypatch.setattr(captioning, "load", lambda *_: few)
    monkeypatch.setattr(captioning, "train_both", lambda *_: taught)
    for attention, message in (
        (even, "1.0 times chance, needed at least 3.0"),
        (there, "weight of planted errors is on the black object in"),
    ):
        monkeypatch.setattr(
            describing, "caption_attention", lambda *_, attention=attention: attention
        )
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
    path = stamps.main(tmp_path / "out", steps=2, sizes=SIZES, test_fraction=0.25)
    assert path.exists()
    assert set(rows(capsys.readouterr().out, 5)) >= {"soft, training images", "hard, test images"}


def test_missing_stamps_raise_with_install_command(tmp_path):
    with pytest.raises(SystemExit, match="apt-get install tuxpaint-stamps-default"):
        stamps.load(tmp_path)
