"""Committed pictures are small, and have all of their colours; methods have styles of their own."""

from pathlib import Path

import pytest
from PIL import Image

import jaxattn as ja
from jaxattn.plot.method_styles import STYLES, identifier, line_styles

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PICTURES = sorted(path.relative_to(IMAGES) for path in IMAGES.rglob("*.*"))


@pytest.mark.parametrize("name", PICTURES, ids=str)
def test_pictures_are_small_and_have_no_palette(name):
    path = IMAGES / name
    assert path.stat().st_size < 300_000
    if path.suffix == ".png":
        with Image.open(path) as picture:
            assert picture.mode in ("RGB", "RGBA")


def test_no_two_methods_have_the_same_style():
    assert len(set(STYLES.values())) == len(STYLES)
    methods = {name for name in STYLES if hasattr(ja, name)}
    assert len(methods) > 35
    assert identifier("Grad-CAM++") == "grad_cam_plus_plus"


def test_other_names_get_the_styles_that_are_free():
    names = ["occlusion", *(f"own {i}" for i in range(30)), "LRP"]
    styles = line_styles(names)
    assert list(styles) == names
    assert len(set(styles.values())) == len(names)
    assert styles["occlusion"] == line_styles(["a", "occlusion"])["occlusion"]
