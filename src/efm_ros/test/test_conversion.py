"""Messages to arrays and back: every encoding, padding, names instead of indices."""

import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray, Header

from efm_core.embodiment import State, StateEntry
from efm_core.errors import ObservationInvalid
from efm_core.image import encode_image
from efm_ros.conversion import (
    compressed_to_rgb,
    image_to_rgb,
    ns_to_stamp,
    rgb_to_image,
    stamp_to_ns,
    state_from_message,
)

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ARM = State(
    topic="joint_states",
    interface="joint_states",
    entries=(
        StateEntry(name="elbow", unit="rad", low=-1.0, high=1.0),
        StateEntry(name="speed", unit="rad/s", low=-1.0, high=1.0, joint="shoulder", field="velocity"),
    ),
)
POSES = State(
    topic="poses",
    interface="float64_multi_array",
    entries=tuple(StateEntry(name=name, unit="m", low=-1.0, high=1.0) for name in ("x", "y")),
)


def image(pixels, encoding, padding=0):
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    data = np.pad(rows, ((0, 0), (0, padding)))
    step = data.shape[1]
    return Image(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=step, data=data.tobytes()
    )


def joints(**fields):
    return JointState(
        name=["shoulder", "elbow", "wrist"],
        **{"position": [1.0, 2.0, 3.0], "velocity": [4.0, 5.0, 6.0], **fields},
    )


def test_a_stamp_survives_the_way_to_nanoseconds_and_back():
    for ns in (0, 1, 999_999_999, 1_000_000_000, 1_795_356_373_620_101_120):
        assert stamp_to_ns(ns_to_stamp(ns)) == ns


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_encoding_becomes_the_same_rgb_with_and_without_padding(padding):
    alpha = np.full((5, 7, 1), 9, np.uint8)
    for encoding, pixels in {
        "rgb8": RGB,
        "bgr8": RGB[..., ::-1],
        "rgba8": np.concatenate([RGB, alpha], axis=2),
        "bgra8": np.concatenate([RGB[..., ::-1], alpha], axis=2),
    }.items():
        np.testing.assert_array_equal(image_to_rgb(image(pixels, encoding, padding)), RGB, encoding)
    grey = RGB[..., :1]
    np.testing.assert_array_equal(image_to_rgb(image(grey, "mono8", padding)), np.repeat(grey, 3, axis=2))


def test_an_rgb_image_is_read_without_a_copy():
    message = image(RGB, "rgb8", padding=3)
    pixels = image_to_rgb(message)
    message.data[0] = (int(RGB[0, 0, 0]) + 1) % 256
    assert pixels[0, 0, 0] == message.data[0]


def test_an_unknown_encoding_is_refused_with_the_nearest_known_one():
    with pytest.raises(ObservationInvalid, match="found 'rgb16', did you mean 'rgb8'"):
        image_to_rgb(image(RGB, "rgb16"))


@pytest.mark.parametrize("broken", [{"step": 20}, {"height": 6}, {"width": 0}, {"data": b""}])
def test_an_image_that_contradicts_itself_is_refused(broken):
    message = image(RGB, "rgb8")
    for field, value in broken.items():
        setattr(message, field, value)
    with pytest.raises(ObservationInvalid, match="contradicts itself"):
        image_to_rgb(message)


def test_rgb_to_image_and_back_gives_the_same_pixels_also_from_a_strided_view():
    header = Header(stamp=ns_to_stamp(5), frame_id="camera")
    message = rgb_to_image(RGB[:, ::2], header)
    assert (message.width, message.step, message.encoding, message.header.frame_id) == (
        4,
        12,
        "rgb8",
        "camera",
    )
    np.testing.assert_array_equal(image_to_rgb(message), RGB[:, ::2])


def test_rgb_to_image_refuses_what_is_no_image():
    with pytest.raises(ObservationInvalid, match="float64"):
        rgb_to_image(RGB / 255.0, Header())


def test_a_compressed_image_decodes_to_its_pixels_and_rubbish_is_refused():
    message = CompressedImage(format="png", data=encode_image(RGB, "png"))
    np.testing.assert_array_equal(compressed_to_rgb(message), RGB)
    message.data = b"no image"
    with pytest.raises(ObservationInvalid):
        compressed_to_rgb(message)


def test_joints_are_matched_by_name_and_field_whatever_their_order():
    np.testing.assert_array_equal(state_from_message(joints(), ARM), [2.0, 4.0])


def test_a_missing_joint_is_named_with_what_there_is():
    message = joints()
    message.name[1] = "elbo"
    with pytest.raises(ObservationInvalid, match="no joint 'elbow', did you mean 'elbo'"):
        state_from_message(message, ARM)


def test_a_joint_state_without_velocities_is_refused():
    with pytest.raises(ObservationInvalid, match="expected the velocity of 'shoulder', found none"):
        state_from_message(joints(velocity=[]), ARM)


def test_a_state_that_is_not_finite_is_refused_by_entry():
    with pytest.raises(ObservationInvalid, match="elbow"):
        state_from_message(joints(position=[1.0, float("nan"), 3.0]), ARM)


def test_an_array_is_the_state_in_the_order_of_the_embodiment():
    np.testing.assert_array_equal(state_from_message(Float64MultiArray(data=[1.0, 2.0]), POSES), [1.0, 2.0])
    with pytest.raises(ObservationInvalid, match="expected 2 numbers"):
        state_from_message(Float64MultiArray(data=[1.0]), POSES)
