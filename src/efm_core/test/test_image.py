"""Images: one way to a model's size, and files that come back as they went."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from efm_core.errors import ObservationInvalid
from efm_core.image import decode_compressed, encode_image, prepare_image

RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_an_image_that_fits_is_not_copied():
    image = noise(6, 8)
    assert prepare_image(image, 6, 8) is image


def test_a_view_into_a_padded_message_becomes_contiguous():
    padded = noise(6, 10)
    prepared = prepare_image(padded[:, :8], 6, 8)
    np.testing.assert_array_equal(prepared, padded[:, :8])
    assert prepared.flags.c_contiguous


def test_shrinking_takes_the_mean_of_areas_and_does_not_alias():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 200
    np.testing.assert_array_equal(prepare_image(image, 2, 4), 100)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (12, 16), (3, 16), (12, 4), (1, 1)])
def test_any_size_comes_out_as_asked_and_contiguous(height, width):
    for image in (noise(6, 8), noise(12, 16)[::-2, ::2]):
        prepared = prepare_image(image, height, width)
        assert prepared.shape == (height, width, 3) and prepared.dtype == np.uint8
        assert prepared.flags.c_contiguous


def test_one_colour_stays_what_it_is():
    image = np.broadcast_to(np.array([10, 20, 30], np.uint8), (7, 9, 3))
    np.testing.assert_array_equal(prepare_image(image, 5, 20), np.broadcast_to([10, 20, 30], (5, 20, 3)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"found uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"found uint8 \[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), r"found float32 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        ([[1, 2, 3]], "found list"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ObservationInvalid, match=message):
        prepare_image(image, 2, 2)


def test_a_png_comes_back_pixel_by_pixel_and_in_rgb():
    image = noise(5, 7)
    data = encode_image(image, "png")
    np.testing.assert_array_equal(decode_compressed(data), image)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), image[..., ::-1]
    )


def test_a_jpeg_comes_back_nearly_and_better_with_quality():
    image = cv2.resize(noise(4, 4), (64, 48), interpolation=cv2.INTER_CUBIC)
    good, poor = encode_image(image, "jpeg", 95), encode_image(image, "jpeg", 10)
    assert len(poor) < len(good)
    assert np.abs(decode_compressed(good).astype(int) - image).mean() < 5


def test_all_kinds_of_buffers_are_decoded():
    data = encode_image(noise(5, 7), "png")
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert decode_compressed(buffer).shape == (5, 7, 3)


def test_grey_and_deep_pngs_become_rgb():
    for other in (np.full((4, 5), 7, np.uint8), np.full((4, 5, 3), 7 << 8, np.uint16)):
        data = cv2.imencode(".png", other)[1].tobytes()
        np.testing.assert_array_equal(decode_compressed(data), np.full((4, 5, 3), 7, np.uint8))


@pytest.mark.parametrize("data", [b"", b"no image at all", encode_image(noise(9, 9), "png")[:20]])
def test_bytes_that_are_no_image_are_refused_with_their_beginning(data):
    with pytest.raises(ObservationInvalid, match=r"expected PNG or JPEG, found \d+ bytes that begin with"):
        decode_compressed(data)


@pytest.mark.parametrize(("kind", "quality"), [("bmp", 95), ("jpeg", 0), ("jpeg", 101)])
def test_formats_and_qualities_that_do_not_exist_are_refused(kind, quality):
    with pytest.raises(ValueError, match="expected"):
        encode_image(noise(2, 2), kind, quality)


def test_encoding_leaves_the_image_as_it_is():
    image = noise(5, 7)
    before = image.copy()
    encode_image(image, "png")
    encode_image(image[::-1, ::-1], "jpeg")
    np.testing.assert_array_equal(image, before)
