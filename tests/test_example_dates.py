"""Tests of the date translation example: dates, alignment, and a run on a small budget."""

import contextlib
import io
import re
import sys
from datetime import date

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import jaxattn as ja
from examples import alignment, checkpoints, date_translation, dates

DAY = date(2016, 5, 3)


@pytest.mark.parametrize("locale", dates.LOCALES)
def test_parts_agree_with_babel(locale):
    from babel import dates as babel

    for form in dict.fromkeys(dates.FORMATS):
        text, parts = dates.format_date(DAY, form, locale)
        assert text == babel.format_date(DAY, form, locale)
        of = {
            part: "".join(c for c, p in zip(text, parts, strict=True) if p == part)
            for part in "ymdw."
        }
        assert of["y"] in ("2016", "16")
        assert int(of["d"]) == 3
        assert not set("0123456789") & set(of["."] + of["w"])
        if "m" in parts and of["m"].isdigit():
            assert int(of["m"]) == 5
        else:
            assert of["m"]
        assert (form == "full") == bool(of["w"])


def test_parts_of_a_known_date():
    assert dates.format_date(DAY, "full", "en_US", str.upper) == (
        "TUESDAY, MAY 3, 2016", "wwwwwww..mmm.d..yyyy",
    )  # fmt: skip
    assert dates.format_date(DAY, "dd, MMM YYY", "de") == ("03, Mai 2016", "dd..mmm.yyyy")
    assert dates.format_date(DAY, "long", "ja") == ("2016年5月3日", "yyyy.m.d.")


def test_dates_are_reproducible_and_splits_disjoint():
    learnt, others = dates.load(300, 100)
    assert learnt == dates.sample_dates(300, test=False, locales=dates.LOCALES, seed=0)
    assert not {d.day for d in learnt} & {d.day for d in others}
    assert not {d.text for d in learnt} & {d.text for d in others}
    assert {d.format for d in learnt} == set(dates.FORMATS)
    assert {d.locale for d in learnt} == set(dates.LOCALES)
    capitals = np.mean([d.text.isupper() for d in learnt])
    assert 0.15 < capitals < 0.6
    for dated in [*learnt, *others]:
        year = "".join(c for c, part in zip(dated.text, dated.parts, strict=True) if part == "y")
        assert dated.day.isoformat()[:4].endswith(year)
        assert len(dated.parts) == len(dated.text) < dates.LONGEST


def test_week_year_is_not_used():
    # That Monday belongs to the first week of 2019.
    assert dates.format_date(date(2018, 12, 31), "d MMM YYY", "en_US")[0] == "31 Dec 2019"
    drawn = dates.sample_dates(400, test=False, locales=["en_US"], seed=3)
    assert all(str(d.day.year)[2:] in d.text for d in drawn)


def test_encode_appends_end_token():
    vocabulary = dates.vocabulary_of(["3 May", "a"])
    ids, lengths = dates.encode(["May", "3xy a"], vocabulary)
    assert ids.shape == (2, 50) and lengths.tolist() == [4, 6]
    known = {c: vocabulary[c] for c in "May3 a"}
    assert ids[0, :5].tolist() == [known["M"], known["a"], known["y"], dates.END, dates.PAD]
    # Characters outside the vocabulary share one id.
    assert ids[1, :7].tolist() == [
        known["3"], dates.UNKNOWN, known["y"], known[" "], known["a"], dates.END, dates.PAD,
    ]  # fmt: skip
    assert min(vocabulary.values()) > dates.UNKNOWN
    longest = dates.encode(["a" * 49], vocabulary)
    assert longest.lengths.tolist() == [50]


@pytest.mark.parametrize("text", ["", "a" * 50])
def test_empty_or_too_long_texts_raise(text):
    with pytest.raises(ValueError, match=rf"1 to 49 characters each, got {len(text)}: '{text}'"):
        dates.encode(["a", text], {"a": 3})


def test_label_round_trip():
    labels = dates.labels_of([DAY], 14)
    assert labels.shape == (1, 14)
    assert dates.decode(labels[0]) == "2016-05-03"
    assert dates.decode(np.array([dates.LABELS.index("7"), 1, 5, 5])) == "7"
    assert labels[0, 10:].tolist() == [dates.END, dates.PAD, dates.PAD, dates.PAD]


def test_gold_alignment_of_a_known_date():
    text, parts = dates.format_date(DAY, "full", "en_US")
    where = dates.gold(dates.DateText(text, parts, DAY, "full", "en_US"))
    assert where.shape == (11, len(text) + 1)
    aligned = ["".join(c for c, here in zip(text, row[:-1], strict=True) if here) for row in where]
    assert aligned == ["2016"] * 4 + ["", "May", "May", "", "3", "3", ""]


def test_numeric_dates_are_ambiguous():
    assert dates.readings("3/5/16") == {date(2016, 5, 3), date(2016, 3, 5)}
    assert dates.readings("3/15/16") == {date(2016, 3, 15)}
    assert dates.readings("3/5/16", ("en_US",)) == {date(2016, 3, 5)}
    assert dates.readings("May 3, 2016") == set()


ENGLISH = [
    dates.DateText(*dates.format_date(DAY, "full", "en_US", str.upper), DAY, "full", "en_US"),
    dates.DateText(*dates.format_date(DAY, "long", "en_GB"), DAY, "long", "en_GB"),
]


def test_swaps_change_one_part_and_its_label():
    made = alignment.swaps(ENGLISH)
    assert [len(made[kind]) for kind in ("weekday", "month", "year", "day")] == [6, 2, 2, 2]
    for row, text, iso in made["weekday"]:
        assert row == 0 and iso == "2016-05-03"
        assert re.fullmatch(r"[A-Z]+DAY, MAY 3, 2016", text) and "TUESDAY" not in text
    row, text, iso = made["month"][1]
    assert row == 1 and re.fullmatch(r"3 [A-Z][a-z]+ 2016", text) and "May" not in text
    assert dates.format_date(date.fromisoformat(iso), "long", "en_GB")[0] == text
    row, text, iso = made["year"][0]
    assert text == f"TUESDAY, MAY 3, {iso[:4]}" and iso[4:] == "-05-03"
    row, text, iso = made["day"][1]
    assert text == f"{int(iso[8:])} May 2016" and iso[:8] == "2016-05-"


def test_alignment_scores_by_hand():
    # "3 May 2016" and the end token have length 11; the last position is padding.
    looked = np.zeros((1, 13, 12))
    looked[0, :2, 6] = 1  # year digits 1 and 2: the first character of the year
    looked[0, 2] = 1 / 11  # year digit 3: uniform, so the maximum is at the start
    looked[0, 2, 11] = 0
    looked[0, 3, [5, 9]] = 0.75, 0.25  # the fourth at the space before the year
    looked[0, 5, [2, 5]] = 0.25, 0.75  # the month at the space behind it
    looked[0, 6, 7] = 1  # and at the year, 3 characters behind it
    looked[0, 8, 0] = looked[0, 9, 1] = 1  # the day at itself, and at the space behind it
    found = alignment.align(alignment.Translations(None, None, looked), ENGLISH[1:], np.array([11]))
    np.testing.assert_allclose(found.on, [[1, 1, 4 / 11, 0.25, 0.25, 0, 1, 0]])
    np.testing.assert_allclose(found.uniform * 11, [[4, 4, 4, 4, 3, 3, 1, 1]])
    assert found.error.astype(int).tolist() == [[0, 0, 1, 1, 1, 1, 0, 1]]
    assert found.error_tolerant.astype(int).tolist() == [[0, 0, 1, 1, 0, 1, 0, 0]]


def test_rank_correlation_is_spearman_with_tied_ranks():
    a = np.array([[5.0, 5, 7, 9, 0], [3, 1, 2, 9, 9]])
    b = np.array([[1.0, 2, 3, 4, 0], [1, 2, 3, 9, -9]])
    present = np.arange(5) < np.array([4, 3])[:, None]
    # The ranks are 1.5, 1.5, 3, 4 in a and 1, 2, 3, 4 in b.
    got = alignment.rank_correlation(a, b, present)
    np.testing.assert_allclose(got, [4.5 / np.sqrt(4.5 * 5), -0.5], rtol=1e-12)


def test_verdict_depends_on_scores():
    def falling(*left):
        return np.array([[1.0, *left]] * 3)

    curves = {
        "attention": falling(0.6, 0.5, 0.4, 0.3), "LRP": falling(0.9, 0.8, 0.7, 0.6),
        "occlusion": falling(0.6, 0.5, 0.4, 0.2), "random": falling(1.0, 1.0, 0.9, 0.9),
    }  # fmt: skip
    others = {
        "own": 1.0, "largest weight only": 0.9, "source characters only": 0.8,
        "uniform": 0.1,
    }  # fmt: skip
    said = alignment.summary(curves, others)
    # Occlusion takes away 0.575 on average, random characters 0.05, attention 0.55.
    assert "as well as occlusion" in said and "nearly" not in said
    assert "0.55 (attention), 0.25 (LRP), 0.57 (occlusion), 0.05 (random)" in said
    assert said.endswith("The output depends on the attention weights: with uniform attention, 10% "
                         "of these dates are still translated correctly, with the largest weight "
                         "only, 90%, and with attention on the source characters only, 80%. "
                         "Attention explains the output.")  # fmt: skip
    assert "Occlusion measures such a deletion itself, which favours it." in said
    weak = curves | {"attention": falling(0.9, 0.8, 0.7, 0.6)}
    weaker = alignment.summary(weak, others)
    assert "less well than occlusion" in weaker
    assert "Attention explains the output only in part" in weaker
    unused = others | {"uniform": 0.9}
    idle = alignment.summary(curves, unused)
    assert "does not depend" in idle and "explains the output only in part" in idle
    assert "Attention does not explain the output" in alignment.summary(weak, unused)


@pytest.mark.parametrize("evenly", [0.1, 0.95])
def test_verdict_on_uninformative_attention(evenly):
    curves = {
        name: np.array([[1.0] + [1 - fall] * 4] * 2)
        for name, fall in {"attention": 0.0, "LRP": 0.73, "random": 0.1}.items()
    }
    others = {
        "own": 1.0, "largest weight only": 0.9, "source characters only": 0.8,
        "uniform": evenly,
    }  # fmt: skip
    said = alignment.summary(curves, others)
    assert "no better than a random ranking" in said
    assert said.endswith("Attention does not explain the output.")


@pytest.fixture(scope="module")
def small():
    vocabulary = dates.vocabulary_of(d.text for d in ENGLISH)
    model = ja.models.Translator(
        len(vocabulary) + 3, 4, len(dates.LABELS), output_length=11, rngs=nnx.Rngs(0)
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        texts = dates.encode([d.text for d in ENGLISH], vocabulary).take(np.arange(2))
        yield model, texts, alignment.translate(model, texts)


@pytest.fixture
def as_a_user_runs_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_translate_equals_network_outputs(small, as_a_user_runs_it):
    model, texts, found = small
    x = alignment.one_hot(model, texts.ids)
    np.testing.assert_allclose(
        found.probabilities, jax.nn.softmax(model(x, texts.lengths)), rtol=0, atol=1e-6
    )
    _, seen = ja.capture(model, "attention")(x[1], texts.lengths[1])
    np.testing.assert_allclose(found.attention[1], seen["attention"], rtol=0, atol=1e-6)
    # The attention can be replaced.
    again = alignment.translate(model, texts, found.attention)
    np.testing.assert_allclose(again.probabilities, found.probabilities, rtol=0, atol=1e-6)
    other = alignment.replaced_attention(found, ENGLISH, texts.lengths)
    for name, weights in other.items():
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-6, err_msg=name)
        assert not weights[1, :, 11:].any(), name
    swapped = alignment.translate(model, texts, other["uniform"])
    np.testing.assert_array_equal(swapped.attention, other["uniform"])


def test_other_attention_excludes_padding():
    own = np.zeros((2, 11, 22), np.float32)
    own[0][:, [4, 6, 15]] = 0.2, 0.2, 0.6  # the second text has ended by 15
    own[0, 0] = np.eye(22)[20]
    own[1, :, 3] = 1
    found = alignment.Translations(None, None, own)
    other = alignment.replaced_attention(found, ENGLISH, np.array([21, 11]))
    another, alike = (other[k] for k in ("of another date", "uniform"))
    np.testing.assert_array_equal(another[0], own[1])
    np.testing.assert_allclose(another[1, 1:][:, [4, 6]], 0.5)
    np.testing.assert_allclose(alike[:, 5], (np.arange(22) < [[21], [11]]) / [[21], [11]])
    np.testing.assert_array_equal(another[1, 0], alike[1, 0])  # no weight lies within this text


@pytest.mark.slow
def test_deletion_order_is_highest_first(small, as_a_user_runs_it):
    model, texts, found = small
    values = np.random.default_rng(0).normal(size=(2, 8, texts.ids.shape[1]))
    curves = alignment.deletion(model, texts, found, {"any": values}, max_deleted=2)["any"]
    assert curves.shape == (16, 3)
    row, digit = 1, 5
    t = alignment.DIGITS[digit]
    first = np.argsort(-values[row, digit, : texts.lengths[row] - 1])[:2]  # the end stays
    ids = texts.ids[row].copy()
    ids[first] = dates.UNKNOWN
    logits = model(alignment.one_hot(model, ids), texts.lengths[row])
    expected = jax.nn.softmax(logits)[t, found.labels[row, t]]
    np.testing.assert_allclose(curves[8 + digit, 2], expected, rtol=1e-5)


@pytest.mark.slow
def test_explanations_have_one_target_per_digit(small, as_a_user_runs_it):
    model, texts, found = small
    values = alignment.explain_digits(model, texts, found)
    row, digit = 0, 6
    t = alignment.DIGITS[digit]
    label = found.labels[row, t]
    x = alignment.one_hot(model, texts.ids[row])
    slope = jax.grad(lambda x: model(x, texts.lengths[row])[t, label])(x)
    np.testing.assert_allclose(
        values["saliency"][row, digit], jnp.linalg.norm(slope, axis=-1), rtol=1e-4, atol=1e-7
    )
    without = x.at[2].set(jax.nn.one_hot(dates.UNKNOWN, x.shape[1]))
    score, changed = (model(inputs, texts.lengths[row])[t, label] for inputs in (x, without))
    np.testing.assert_allclose(values["occlusion"][row, digit, 2], score - changed, atol=1e-5)
    np.testing.assert_array_equal(values["attention"][row, digit], found.attention[row, t])


# A run of the example.

UNITS = 32
FIGURES = {"attention", "odd", "methods", "deletion"}
SECTIONS = (
    "attention-maps", "attention-maps-of-unusual-dates", "attention-and-three-attributions",
    "deletion-curves", "exact-matches-by-format", "attention-and-the-gold-alignment",
    "the-effect-of-one-part-on-the-output", "unusual-dates", "attention-as-an-explanation",
    "translations-with-replaced-attention-weights",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the path of the page, and the printed text."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("COLUMNS", "160")
        patch.setattr(dates, "WIDTHS", (dates.LONGEST,))  # each width is compiled
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            learnt, _ = dates.load(256, 1)  # so small a network learns only its training dates
            patch.setattr(dates, "load", lambda *_: (learnt, learnt))
            fit = date_translation.fit
            patch.setattr(
                date_translation,
                "fit",
                lambda *args, **o: fit(*args, **o | {"learning_rate": 1e-2}),
            )
            path = date_translation.main(
                tmp_path_factory.mktemp("dates"), train_size=256, epochs=100, units=UNITS,
                num_explained=4, min_accuracy=0.8,
            )  # fmt: skip
    return path, printed.getvalue()


@pytest.mark.slow
def test_page_contains_all_figures_and_tables(run):
    path, _ = run
    assert {file.stem for file in path.parent.glob("*.png")} == FIGURES
    for file in path.parent.glob("*.png"):
        with Image.open(file) as picture:
            assert min(picture.size) > 75
    text = path.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert f'<section id="{section}">' in text
    figures = re.findall(r'<img class="figure"[^>]* alt="[^"]{20,}" src="data:image/png;', text)
    assert len(figures) >= 4
    assert not re.search(r'(src|href)="(?!data:|#)', text)


@pytest.mark.slow
def test_prints_tables(run):
    path, printed = run
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    first = [row[0] for row in cells if row]
    assert set(dates.FORMATS) <= set(first)
    assert {"weekday", "month", "year", "day"} <= set(first)
    assert {"attention", "saliency", "LRP", "occlusion", "random"} <= set(first)
    assert set(date_translation.UNUSUAL) <= set(first)
    assert "“January 2016 5” is translated" in printed
    assert re.search("Attention (explains|does not explain) the output", printed)
    assert str(path) in printed.replace("\n", "")


@pytest.mark.slow
def test_checkpoint_is_saved(run):
    path, _ = run
    learnt, _ = dates.load(256, 1)
    count = len(dates.vocabulary_of(d.text for d in learnt)) + 3
    model = ja.models.Translator(
        count, UNITS, len(dates.LABELS), output_length=11, rngs=nnx.Rngs(1)
    )
    before = np.asarray(model.decoder.W_s[...])
    checkpoints.restore(model, path.parent / "checkpoint")
    assert not np.array_equal(model.decoder.W_s[...], before)


@pytest.mark.slow
def test_inaccurate_network_raises(tmp_path, monkeypatch, as_a_user_runs_it):
    monkeypatch.setattr(date_translation, "fit", lambda *args, **options: None)
    with pytest.raises(SystemExit, match=r"test accuracy 0.0% is below 97%"):
        date_translation.main(tmp_path, train_size=64, test_size=60, epochs=1, units=2)


@pytest.mark.parametrize("name", ["babel", "faker"])
def test_missing_packages_raise_with_install_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match="pip install babel faker"):
        dates.load(1, 1)
