"""The table's bodies as MJCF: a board with a low rim, blocks, a round effector, one camera from above.

Frame (REP 103): the origin is the board's centre, x forward (up in the picture), y left (left in the
picture), metres. Blocks slide and turn in the plane of the board: their friction with the board is a loss in
three joints, not a contact, which is an order of magnitude cheaper to simulate and never topples. The rim
stops blocks and not the effector, which can therefore always get behind a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PHYSICS_DT = 0.005  # s
BOARD_HALF = 0.20  # m, from the centre to the rim
EFFECTOR_HALF = 0.222  # m, how far the effector reaches: behind a block that touches the rim
BLOCK_RADIUS = 0.0245  # m, circumscribed; any two touching centres are then less than 0.05 m apart
BLOCK_HEIGHT = 0.022  # m
EFFECTOR_RADIUS = 0.011  # m
EFFECTOR_HEIGHT = 0.05  # m

ARC_POINTS = 9  # of the curved outlines, odd

BANANA = "banana"
BANANA_ARC_RADIUS, BANANA_ARC, BANANA_THICKNESS = 0.075, 1.7, 0.015  # m, rad, m

CAMERA = "top"
CAMERA_DISTANCE, CAMERA_TILT, CAMERA_FOV_DEG = 1.6, 0.25, 17.8  # m, rad from straight down, degrees

COLOURS = {
    "red": "0.95 0.06 0.06",
    "blue": "0.08 0.22 1.0",
    "green": "0.05 0.75 0.12",
    "yellow": "1.0 0.85 0.0",
}
BOARD_COLOUR, RIM_COLOUR, FLOOR_COLOUR = "0.20 0.20 0.22", "0.55 0.55 0.58", "0.36 0.36 0.38"
EFFECTOR_COLOUR, BANANA_COLOUR = "1.0 0.25 0.95", "1.0 0.62 0.15"

# In this order: the first 2, 4 or 8 are the smaller sets, each as distinct as it can be.
BLOCKS = (
    "red moon", "blue cube", "green star", "yellow pentagon",
    "red pentagon", "blue moon", "green cube", "yellow star",
)  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A body's plan: what is drawn, and the convex pieces that collide; each [K, 2] in metres."""

    drawn: np.ndarray
    pieces: tuple[np.ndarray, ...]


def _ring(count: int, radius: float, phase: float = 0.0) -> np.ndarray:
    angle = phase + 2.0 * np.pi * np.arange(count) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _cube() -> Outline:
    corners = _ring(4, BLOCK_RADIUS, np.pi / 4.0)
    return Outline(corners, (corners,))


def _pentagon() -> Outline:
    corners = _ring(5, BLOCK_RADIUS)
    return Outline(corners, (corners,))


def _star() -> Outline:
    tips, notches = _ring(5, BLOCK_RADIUS), _ring(5, 0.5 * BLOCK_RADIUS, np.pi / 5.0)
    drawn = np.stack([tips, notches], axis=1).reshape(-1, 2)
    # The hull collides, so that an effector cannot wedge itself between two tips.
    return Outline(drawn, (tips,))


def _moon() -> Outline:
    """A crescent: a disc less a smaller disc beside it."""
    half, centre = 2.1, -0.62
    tip = np.array([np.cos(half), np.sin(half)])
    bite_radius = np.hypot(tip[0] - centre, tip[1])
    bite_half = np.arctan2(tip[1], tip[0] - centre)
    outer = _arc(1.0, half)
    inner = _arc(bite_radius, bite_half) + (centre, 0.0)
    # The two arcs share their tips: draw them a little apart, so that no piece is degenerate.
    inner[[0, -1]] -= (0.06, 0.0)
    band = _band(outer, inner)
    scale = BLOCK_RADIUS / np.linalg.norm(band.drawn, axis=1).max()
    return Outline(scale * band.drawn, tuple(scale * piece for piece in band.pieces))


def _banana() -> Outline:
    thickness = BANANA_THICKNESS * (0.45 + 0.55 * np.cos(np.linspace(-1.3, 1.3, ARC_POINTS)))[:, None]
    spine = _arc(BANANA_ARC_RADIUS, BANANA_ARC / 2.0)
    return _band(spine * (1.0 + thickness / BANANA_ARC_RADIUS), spine * (1.0 - thickness / BANANA_ARC_RADIUS))


def _arc(radius: float, half: float) -> np.ndarray:
    angle = np.linspace(-half, half, ARC_POINTS)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _band(outer: np.ndarray, inner: np.ndarray) -> Outline:
    """Returns what lies between two arcs of ARC_POINTS points, its centroid in the origin."""
    shift = np.concatenate([outer, inner]).mean(axis=0)
    outer, inner = outer - shift, inner - shift
    pieces = tuple(np.concatenate([outer[i : i + 3], inner[i : i + 3]]) for i in range(0, ARC_POINTS - 2, 2))
    return Outline(np.concatenate([outer, inner[::-1]]), pieces)


_OUTLINES = {"cube": _cube, "pentagon": _pentagon, "star": _star, "moon": _moon, BANANA: _banana}


def outline(name: str) -> Outline:
    """Returns the outline of a body, `"red moon"` or `"banana"`."""
    return _OUTLINES[name.split()[-1]]()


def _prism(points: np.ndarray) -> np.ndarray:
    """Returns the vertices of an outline stood on the board, [2 K, 3]: bottom ring, then top ring."""
    height = np.repeat([0.0, BLOCK_HEIGHT], len(points))[:, None]
    return np.concatenate([np.tile(points, (2, 1)), height], axis=1)


def _prism_faces(points: np.ndarray) -> np.ndarray:
    """Returns triangles [F, 3] of the sides and the top of an outline stood on the board."""
    count = len(points)
    here, there = np.arange(count), (np.arange(count) + 1) % count
    lower = np.stack([here, there, there + count], axis=1)
    upper = np.stack([here, there + count, here + count], axis=1)
    return np.concatenate([lower, upper, _ears(points) + count])


def _ears(points: np.ndarray) -> np.ndarray:
    """Triangulates a simple counter-clockwise polygon by cutting ears, [K - 2, 3]."""
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        for i in range(len(left)):
            a, b, c = left[i - 1], left[i], left[(i + 1) % len(left)]
            others = [p for p in left if p not in (a, b, c)]
            if _turn(points[a], points[b], points[c]) > 0 and not any(
                _inside(points[p], points[a], points[b], points[c]) for p in others
            ):
                triangles.append((a, b, c))
                left.pop(i)
                break
        else:
            raise ValueError("the outline is not a simple counter-clockwise polygon")
    return np.array([*triangles, tuple(left)])


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def _inside(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    return _turn(a, b, p) >= 0 and _turn(b, c, p) >= 0 and _turn(c, a, p) >= 0


def _text(values: np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in np.ravel(values))


def _meshes(names: Sequence[str]) -> str:
    lines = []
    for shape in sorted({name.split()[-1] for name in names}):
        plan = outline(shape)
        faces = " ".join(str(index) for index in _prism_faces(plan.drawn).ravel())
        corners = _text(_prism(plan.drawn))
        lines.append(f'<mesh name="{shape}" inertia="shell" vertex="{corners}" face="{faces}"/>')
        for i, piece in enumerate(plan.pieces):
            lines.append(f'<mesh name="{shape}_{i}" vertex="{_text(_prism(piece))}"/>')
    return "\n".join(lines)


def _body(name: str) -> str:
    shape = name.split()[-1]
    colour = BANANA_COLOUR if shape == BANANA else COLOURS[name.split()[0]]
    mass, radius = (0.10, 0.045) if shape == BANANA else (0.05, 0.018)
    # Coulomb friction of 0.8 with the board: force mu m g along the plane, torque about 2/3 radius of it.
    force = 0.8 * mass * 9.81
    joint = f'frictionloss="{force:.4g}" damping="0.2"'
    turn = f'frictionloss="{force * radius * 0.67:.4g}" damping="0.0003"'
    pieces = "".join(
        f'<geom class="collides" type="mesh" mesh="{shape}_{i}"/>' for i in range(len(outline(name).pieces))
    )
    return f"""
    <body name="{name}">
      <inertial pos="0 0 0.01" mass="{mass}" diaginertia="1e-4 1e-4 {0.5 * mass * radius**2:.4g}"/>
      <joint name="{name} x" type="slide" axis="1 0 0" {joint}/>
      <joint name="{name} y" type="slide" axis="0 1 0" {joint}/>
      <joint name="{name} turn" type="hinge" axis="0 0 1" {turn}/>
      <geom class="drawn" type="mesh" mesh="{shape}" rgba="{colour} 1"/>
      {pieces}
    </body>"""


def _rim() -> str:
    geoms, half, wide = [], BOARD_HALF, 0.004
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        length = half + 2 * wide
        drawn = (wide, length) if x else (length, wide)
        position = f"{x * (half + wide):.4g} {y * (half + wide):.4g}"
        geoms.append(
            f'<geom class="drawn" type="box" size="{drawn[0]} {drawn[1]} .004" pos="{position} .004" '
            f'rgba="{RIM_COLOUR} 1"/>'
        )
        # What collides is thicker, so that nothing tunnels through it.
        thick = (0.05, half + 0.1) if x else (half + 0.1, 0.05)
        position = f"{x * (half + 0.05):.4g} {y * (half + 0.05):.4g}"
        geoms.append(
            f'<geom type="box" group="3" contype="1" conaffinity="1" pos="{position} .02" '
            f'size="{thick[0]} {thick[1]} .02"/>'
        )
    return "\n".join(geoms)


def scene_xml(names: Sequence[str], height: int, width: int) -> str:
    """Returns the MJCF of a table with the given bodies.

    Args:
        names: Members of `BLOCKS`, and `BANANA`.
        height: Image height in pixels, for the off-screen buffer.
        width: Image width in pixels.
    """
    sin, cos = np.sin(CAMERA_TILT), np.cos(CAMERA_TILT)
    # Picture right is -y, picture up is forward and, by the tilt, upwards.
    axes = _text(np.array([0.0, -1.0, 0.0, cos, 0.0, sin]))
    eye = _text(np.array([-CAMERA_DISTANCE * sin, 0.0, CAMERA_DISTANCE * cos]))
    return f"""
<mujoco model="table">
  <compiler angle="radian"/>
  <option timestep="{PHYSICS_DT}" integrator="implicitfast" gravity="0 0 0" iterations="30"/>
  <visual>
    <global offwidth="{width}" offheight="{height}"/>
    <quality offsamples="0" shadowsize="0"/>
    <headlight ambient="0.55 0.55 0.55" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <map znear="0.05" zfar="10"/>
  </visual>
  <default>
    <geom solref="0.01 1" friction="0.3 0.005 0.0001"/>
    <default class="drawn"><geom group="1" contype="0" conaffinity="0"/></default>
    <default class="collides"><geom group="3" contype="3" conaffinity="3"/></default>
  </default>
  <asset>
{_meshes(names)}
  </asset>
  <worldbody>
    <light pos="-0.3 0.4 1.5" dir="0.2 -0.25 -1" directional="true" castshadow="false"
      diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <camera name="{CAMERA}" pos="{eye}" xyaxes="{axes}" fovy="{CAMERA_FOV_DEG}"/>
    <geom class="drawn" type="plane" size="1 1 0.1" pos="0 0 -0.002" rgba="{FLOOR_COLOUR} 1"/>
    <geom class="drawn" type="box" size="{BOARD_HALF} {BOARD_HALF} 0.001" rgba="{BOARD_COLOUR} 1"/>
{_rim()}
    <body name="effector">
      <inertial pos="0 0 0.02" mass="0.2" diaginertia="1e-4 1e-4 1e-4"/>
      <joint name="effector x" type="slide" axis="1 0 0"/>
      <joint name="effector y" type="slide" axis="0 1 0"/>
      <geom type="cylinder" group="1" contype="2" conaffinity="2" rgba="{EFFECTOR_COLOUR} 1"
        size="{EFFECTOR_RADIUS} {EFFECTOR_HEIGHT / 2}" pos="0 0 {EFFECTOR_HEIGHT / 2 + 0.003}"/>
    </body>
{"".join(_body(name) for name in names)}
  </worldbody>
  <actuator>
    <velocity name="effector x" joint="effector x" kv="25" forcerange="-12 12"/>
    <velocity name="effector y" joint="effector y" kv="25" forcerange="-12 12"/>
  </actuator>
</mujoco>
"""
