"""Objects of a synthetic street. Labels are Cityscapes ids.

Every function draws one object on a `Canvas` at ``(x, z)`` metres, far objects first.
"""

from __future__ import annotations

import cv2
import numpy as np

from ovenet.synthetic.canvas import Canvas, Color, random_color

POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION = 17, 19, 20, 21
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 24, 25, 26, 27, 28, 31, 32, 33
STATIC = 4

# label: (width, height, length) in metres, lower and upper bound
_VEHICLE_SIZES = {
    CAR: ((1.6, 1.9), (1.35, 1.8), (3.6, 4.8)),
    TRUCK: ((2.2, 2.5), (2.6, 3.8), (6.0, 10.0)),
    BUS: ((2.4, 2.6), (2.9, 3.4), (9.0, 13.0)),
    TRAIN: ((2.4, 2.7), (3.2, 3.8), (18.0, 40.0)),
}
_PAINTS = ((200, 200, 205), (40, 40, 45), (120, 125, 130), (150, 30, 30), (30, 60, 130), (90, 110, 80), (190, 160, 60))


def contact_shadow(canvas: Canvas, x: float, z: float, width_m: float, depth_m: float) -> None:
    """The dark patch under an object."""
    center = canvas.project(x, 0, z)
    scale = canvas.scale_px(z)
    flat = scale * depth_m * 1.5 / max(z, 1.5)
    canvas.shade(canvas.ellipse_mask(center, (scale * width_m * 0.62, max(1.0, flat))), canvas.rng.uniform(0.35, 0.65))


def vehicle(canvas: Canvas, label: int, x: float, z: float) -> None:
    """A car, truck, bus or train: a body with a side, windows, wheels and lights."""
    rng = canvas.rng
    width, height, length = (rng.uniform(*bounds) for bounds in _VEHICLE_SIZES[label])
    paint = random_color(rng, _PAINTS[rng.integers(len(_PAINTS))], 20, 0.3)
    glass = random_color(rng, (45, 55, 65), 20, 0.5)
    contact_shadow(canvas, x, z, width, 1.0)
    _wheels(canvas, label, x, z, width, length)
    _side(canvas, label, x, z, (width, height, length), paint, glass)
    _rear(canvas, label, x, z, (width, height), paint, glass)


def _wheels(canvas: Canvas, label: int, x: float, z: float, width: float, length: float) -> None:
    side = -np.sign(x) or 1.0
    for dz in (0.8, length * 0.75):
        scale = canvas.scale_px(z + dz)
        center = canvas.project(x + side * width / 2, 0.32, z + dz)
        color = random_color(canvas.rng, (25, 25, 28), 8)
        canvas.paint(canvas.ellipse_mask(center, (0.2 * scale, 0.33 * scale)), color, label=label, z=z)
    for dx in (-width / 2 + 0.15, width / 2 - 0.15):
        box = [(-0.12, 0), (0.12, 0), (0.12, 0.5), (-0.12, 0.5)]
        canvas.paint_front(x + dx, z, box, random_color(canvas.rng, (20, 20, 22), 6), label=label)


def _side(
    canvas: Canvas, label: int, x: float, z: float, size: tuple[float, float, float], paint: Color, glass: Color
) -> None:
    width, height, length = size
    edge = x - np.sign(x) * width / 2
    low, far = 0.25, z + length
    waist = height * (0.55 if label == CAR else 0.45)
    body = [(z, low), (far, low), (far, waist), (z, waist)]
    canvas.paint_side(edge, z, body, paint * 0.75, label=label, grain=0.05)
    if label == CAR:
        roof = [(z + 0.2, waist), (z + 0.9, height), (z + 0.65 * length, height), (z + 0.85 * length, waist)]
    else:
        roof = [(z, waist), (z, height), (far, height), (far, waist)]
    canvas.paint_side(edge, z, roof, paint * 0.7, label=label, grain=0.05)
    if label == TRUCK:
        return
    panes = 2 if label == CAR else int(length // 1.6)
    start, stop = (z + 0.9, z + 0.65 * length) if label == CAR else (z + 0.4, far - 0.4)
    step = (stop - start) / max(panes, 1)
    for near, end in ((start + i * step, start + (i + 1) * step - 0.12) for i in range(panes)):
        corners = [(near, waist), (near, height * 0.93), (end, height * 0.93), (end, waist)]
        canvas.paint_side(edge, z, corners, glass, label=label)


def _rear(
    canvas: Canvas, label: int, x: float, z: float, size: tuple[float, float], paint: Color, glass: Color
) -> None:
    width, height = size
    half, inset = width / 2, (0.22 if label == CAR else 0.04)
    waist = height * (0.58 if label == CAR else 0.5)
    outline = [(-half, 0.25), (half, 0.25), (half, waist), (half - inset, height), (-half + inset, height)]
    outline.append((-half, waist))
    canvas.paint_front(x, z, outline, paint, label=label, grain=0.07)
    if label != TRUCK:
        pane = [(-half + 0.15, waist), (half - 0.15, waist)]
        pane += [(half - inset - 0.1, height * 0.92), (-half + inset + 0.1, height * 0.92)]
        canvas.paint_front(x, z, pane, glass, label=label)
    lamp = random_color(canvas.rng, (190, 30, 30) if canvas.rng.random() < 0.6 else (235, 230, 200), 20)
    for dx in (-half + 0.2, half - 0.2):
        center, scale = canvas.project(x + dx, 0.7, z), canvas.scale_px(z)
        canvas.paint(canvas.ellipse_mask(center, (0.13 * scale, 0.09 * scale)), lamp, label=label, z=z)


def person(canvas: Canvas, x: float, z: float, *, label: int = PERSON, seat_m: float = 0.0) -> None:
    """A walking person or, with a seat `seat_m` above the ground, the upper part of a rider."""
    rng = canvas.rng
    height = rng.uniform(1.5, 1.9) if label == RIDER or rng.random() < 0.85 else rng.uniform(1.0, 1.35)
    lean, stride = rng.uniform(-0.06, 0.06), rng.uniform(0.08, 0.3)
    skin = random_color(rng, [(225, 180, 150), (150, 105, 80), (90, 62, 48)][rng.integers(3)], 15)
    top = random_color(rng, tuple(rng.uniform(20, 220, 3)), 10)
    trousers = random_color(rng, [(45, 50, 75), (35, 35, 38), (120, 105, 85)][rng.integers(3)], 18)
    hip, shoulder = max(0.48 * height, seat_m), max(0.82 * height, seat_m + 0.6)
    scale = canvas.scale_px(z)

    def at(dx: float, y: float) -> tuple[float, float]:
        return canvas.project(x + dx, y, z)

    if not seat_m:
        contact_shadow(canvas, x, z, 0.5, 0.3)
    for direction in (-1, 1):
        foot = direction * stride if not seat_m else 0.1 * direction
        leg = [at(0.02, hip), at((foot + lean) / 2, hip / 2), at(foot, max(0.0, seat_m - 0.6))]
        canvas.paint(canvas.line_mask(leg, 0.15 * scale), trousers, label=label, z=z)
        hand = [at(lean, shoulder - 0.05), at(direction * 0.25, hip + 0.25), at(direction * 0.22, hip)]
        canvas.paint(canvas.line_mask(hand, 0.09 * scale), top * 0.9, label=label, z=z)
    torso = [(-0.17, hip), (0.17, hip), (0.21 + lean, shoulder), (-0.21 + lean, shoulder)]
    canvas.paint_front(x, z, torso, top, label=label, grain=0.15)
    head = at(lean, shoulder + 0.16)
    canvas.paint(canvas.ellipse_mask(head, (0.1 * scale, 0.13 * scale)), skin, label=label, z=z)
    hair = random_color(rng, [(40, 30, 25), (140, 110, 70), (90, 90, 90)][rng.integers(3)], 15)
    crown = (head[0], head[1] - 0.06 * scale)
    canvas.paint(canvas.ellipse_mask(crown, (0.1 * scale, 0.08 * scale)), hair, label=label, z=z)


def two_wheeler(canvas: Canvas, label: int, x: float, z: float, *, ridden: bool) -> None:
    """A bicycle or motorcycle, seen at an angle, with a rider or parked."""
    rng, scale = canvas.rng, canvas.scale_px(z)
    is_motor = label == MOTORCYCLE
    reach, radius = rng.uniform(0.25, 0.6), 0.33
    color = random_color(rng, tuple(rng.uniform(20, 200, 3)), 10)
    contact_shadow(canvas, x, z, 1.0, 0.3)
    for dx in (-reach, reach):
        axes = (radius * scale * max(0.3, reach / 0.6), radius * scale)
        wheel = canvas.ellipse_mask(canvas.project(x + dx, radius, z), axes)
        inner = canvas.ellipse_mask(canvas.project(x + dx, radius, z), (axes[0] * 0.75, axes[1] * 0.75))
        canvas.paint(wheel if is_motor else wheel & ~inner, random_color(rng, (28, 28, 30), 8), label=label, z=z)
    frame = [(-reach, radius), (-reach * 0.2, 0.8), (reach * 0.7, 0.85), (0, 0.35), (-reach * 0.2, 0.8)]
    points = [canvas.project(x + dx, y, z) for dx, y in [*frame, (0, 0.35), (-reach, radius)]]
    canvas.paint(canvas.line_mask(points, (0.3 if is_motor else 0.05) * scale), color, label=label, z=z)
    fork = [canvas.project(x + dx, y, z) for dx, y in ((reach, radius), (reach * 0.7, 1.0), (reach * 0.4, 1.02))]
    canvas.paint(canvas.line_mask(fork, 0.06 * scale), color * 0.8, label=label, z=z)
    if ridden:
        person(canvas, x - 0.05, z - 0.05, label=RIDER, seat_m=0.85)


def pole(canvas: Canvas, x: float, z: float) -> None:
    """A thin pole: a street lamp, a traffic light or a sign post."""
    rng, scale = canvas.rng, canvas.scale_px(z)
    kind = rng.choice(("lamp", "light", "sign", "bare"))
    height = {"lamp": rng.uniform(5, 9), "light": rng.uniform(2.8, 5.5), "sign": rng.uniform(2.2, 3.2)}.get(
        str(kind), rng.uniform(1.0, 4.0)
    )
    metal = random_color(rng, [(120, 122, 125), (60, 66, 60), (165, 160, 150)][rng.integers(3)], 15)
    width = rng.uniform(0.08, 0.18) * scale
    canvas.paint(
        canvas.line_mask([canvas.project(x, 0, z), canvas.project(x, height, z)], width), metal, label=POLE, z=z
    )
    inward = -np.sign(x)
    if kind == "lamp":
        arm = [canvas.project(x + dx * inward, height + dy, z) for dx, dy in ((0, 0), (0.7, 0.3), (1.6, 0.3))]
        canvas.paint(canvas.line_mask(arm, width * 0.8), metal, label=POLE, z=z)
    elif kind == "light":
        _traffic_light(canvas, x, height - 0.5, z)
    elif kind == "sign":
        _traffic_sign(canvas, x, height, z)


def _traffic_light(canvas: Canvas, x: float, y: float, z: float) -> None:
    rng, scale = canvas.rng, canvas.scale_px(z)
    box = [(-0.2, y - 0.5), (0.2, y - 0.5), (0.2, y + 0.5), (-0.2, y + 0.5)]
    canvas.paint_front(x, z, box, random_color(rng, (38, 40, 38), 15), label=TRAFFIC_LIGHT)
    lit = rng.integers(3)
    for i, color in enumerate(((230, 50, 40), (240, 180, 50), (60, 210, 120))):
        shade = random_color(rng, color, 15) * (1.0 if i == lit else 0.25)
        center = canvas.project(x, y + 0.3 - 0.3 * i, z)
        canvas.paint(canvas.ellipse_mask(center, (0.12 * scale,) * 2), shade, label=TRAFFIC_LIGHT, z=z)


def _traffic_sign(canvas: Canvas, x: float, y: float, z: float) -> None:
    rng, scale = canvas.rng, canvas.scale_px(z)
    center, size = canvas.project(x, y, z), rng.uniform(0.3, 0.5) * scale
    corners = int(rng.choice((3, 4, 8, 24)))
    turn = rng.choice((0.0, np.pi / corners)) + np.pi / 2
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    rim = random_color(rng, [(190, 35, 40), (40, 80, 170), (225, 190, 50), (210, 210, 210)][rng.integers(4)], 20)
    face = random_color(rng, [(225, 225, 220), (50, 90, 180), (235, 205, 70)][rng.integers(3)], 15)
    for radius, color in ((1.0, rim), (0.72, face), (0.25, rim * 0.5)):
        points = [(center[0] + radius * size * np.cos(a), center[1] - radius * size * np.sin(a)) for a in angles]
        canvas.paint(canvas.mask_of(points), color, label=TRAFFIC_SIGN, z=z)


def tree(canvas: Canvas, x: float, z: float) -> None:
    """A trunk and a crown of leaf clusters, with gaps at its rim."""
    rng, scale = canvas.rng, canvas.scale_px(z)
    height, radius = rng.uniform(3.5, 9.0), rng.uniform(1.2, 2.8)
    bark = random_color(rng, (85, 68, 52), 15, 0.3)
    trunk = [canvas.project(x, 0, z), canvas.project(x + rng.uniform(-0.3, 0.3), height - radius * 0.5, z)]
    canvas.paint(canvas.line_mask(trunk, rng.uniform(0.2, 0.4) * scale), bark, label=VEGETATION, z=z, grain=0.25)
    leaves = random_color(rng, [(70, 98, 45), (105, 125, 60), (140, 105, 50)][rng.integers(3)], 20, 0.3)
    foliage(canvas, canvas.project(x, height, z), radius * scale, leaves, z)


def foliage(canvas: Canvas, center: tuple[float, float], radius_px: float, color: np.ndarray, z: float) -> None:
    """Overlapping leaf clusters around a point."""
    rng = canvas.rng
    for _ in range(14):
        angle, distance = rng.uniform(0, 2 * np.pi), radius_px * np.sqrt(rng.uniform(0, 0.8))
        spot = (center[0] + distance * np.cos(angle), center[1] + 0.8 * distance * np.sin(angle))
        cluster = canvas.ellipse_mask(spot, (radius_px * rng.uniform(0.25, 0.5), radius_px * rng.uniform(0.2, 0.45)))
        cluster &= canvas.noise[3] > rng.uniform(-1.6, -0.8)
        light = 1.15 - 0.45 * (spot[1] - center[1] + radius_px) / (2 * radius_px + 1e-6)
        canvas.paint(cluster, color * light * rng.uniform(0.85, 1.15), label=VEGETATION, z=z, grain=0.22)


def clutter(canvas: Canvas, x: float, z: float) -> None:
    """A bin, box or hydrant: things of the ignored class `static`."""
    rng = canvas.rng
    width, height = rng.uniform(0.3, 0.7), rng.uniform(0.5, 1.2)
    contact_shadow(canvas, x, z, width, 0.3)
    corners = [(-width / 2, 0), (width / 2, 0), (width / 2, height), (-width / 2, height)]
    canvas.paint_front(x, z, corners, random_color(rng, tuple(rng.uniform(30, 180, 3)), 15), label=STATIC, grain=0.2)


def facade_texture(rng: np.random.Generator, length_m: float, height_m: float) -> np.ndarray:
    """A building's front, ``(h, w, 3)`` float32: plaster or brick, floors of windows, shops below."""
    px = 12  # per metre
    height, width = max(24, int(height_m * px)), max(24, int(length_m * px))
    base = [(178, 165, 145), (150, 95, 75), (120, 120, 122), (205, 198, 185), (95, 85, 80), (165, 140, 110)]
    wall = random_color(rng, base[rng.integers(len(base))], 18)
    texture = np.ones((height, width, 3), np.float32) * wall.astype(np.float32)
    if rng.random() < 0.5:  # brick courses
        texture[:: int(rng.integers(3, 6))] *= 0.88
    texture *= 1 + 0.05 * rng.standard_normal((height, width, 1)).astype(np.float32)
    pane = random_color(rng, (60, 72, 85), 20, 0.4)
    floor, bay = int(rng.uniform(2.6, 3.6) * px), int(rng.uniform(1.6, 3.2) * px)
    wide, tall = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.65)
    for bottom in range(height - floor, 0, -floor):
        for left in range(int(bay * 0.2), width - bay // 2, bay):
            glow = pane if rng.random() < 0.85 else random_color(rng, (215, 195, 140), 20)
            top, right = bottom - int(floor * tall), left + int(bay * wide)
            color = (glow * rng.uniform(0.7, 1.3)).tolist()
            cv2.rectangle(texture, (left - 1, top - 1), (right + 1, bottom + 1), (wall * 1.2).tolist(), 1)
            cv2.rectangle(texture, (left, top), (right, bottom), color, -1)
    if rng.random() < 0.5:  # shop fronts with an awning
        shop = random_color(rng, tuple(rng.uniform(40, 200, 3)), 10)
        texture[height - int(2.6 * px) : height - int(2.1 * px)] = shop
        texture[height - int(2.1 * px) : height - int(0.4 * px)] *= 0.45
    texture[: max(2, px // 3)] *= 0.7
    return texture
