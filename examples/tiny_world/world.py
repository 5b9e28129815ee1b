"""The tiny world: scenes rendered with Pillow, their captions, and the captions' lies."""

import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from dpok_cli.tiny.words import (
    COLOURS,
    MAX_COUNT,
    NUMBERS,
    OBJECTS,
    PLACE_PHRASES,
    PLACES,
    PLURALS,
    Scene,
    Thing,
)

SIZE = 64  # pixels of a finished image
CANVAS = 2 * SIZE  # rendered at twice the size and downscaled, which smooths the edges

RGB = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 160, 60),
    "blue": (45, 95, 215),
    "purple": (135, 60, 185),
    "pink": (250, 145, 190),
    "white": (248, 248, 248),
    "gray": (145, 145, 150),
    "brown": (130, 80, 40),
}
NATURAL = {
    "rabbit": ("white", "gray", "brown"),
    "cat": ("orange", "gray", "white"),
    "dog": ("brown", "white", "orange"),
    "wolf": ("gray", "brown"),
    "bird": ("blue", "red", "yellow"),
    "lion": ("yellow", "orange", "brown"),
    "cup": ("white", "blue", "red"),
}
#: Never rendered for the training of the diffusion model, so that these prompts stay unseen.
HELD_OUT = ("a lion on the moon", "four birds in the park")

Rng = np.random.Generator
Point = tuple[float, float]


# ---------------------------------------------------------------------------------- the animals


class Pen:
    """Draws shapes in an object's own coordinates: x and y in [-1, 1], y downwards."""

    def __init__(self, draw: ImageDraw.ImageDraw, centre: Point, radius: float, flip: bool, colour):
        self.draw, self.centre, self.radius, self.flip = draw, centre, radius, flip
        self.fill = tuple(int(channel) for channel in colour)
        self.dark = tuple(int(channel * 0.5) for channel in colour)
        self.shade = tuple(int(channel * 0.74) for channel in colour)
        self.light = tuple(int(channel + (255 - channel) * 0.55) for channel in colour)
        self.line = max(2, round(radius * 0.075))

    def at(self, x: float, y: float) -> Point:
        x = -x if self.flip else x
        return self.centre[0] + x * self.radius, self.centre[1] + y * self.radius

    def oval(self, x, y, rx, ry, fill=None, outline=True):
        (cx, cy), rx, ry = self.at(x, y), rx * self.radius, ry * self.radius
        self.draw.ellipse(
            (cx - rx, cy - ry, cx + rx, cy + ry),
            fill=fill or self.fill,
            outline=self.dark if outline else None,
            width=self.line,
        )

    def shape(self, *points, fill=None, outline=True):
        corners = [self.at(*point) for point in points]
        self.draw.polygon(corners, fill=fill or self.fill)
        if outline:
            self.draw.line([*corners, corners[0]], fill=self.dark, width=self.line, joint="curve")

    def stroke(self, *points, width, fill=None, outline=True):
        path = [self.at(*point) for point in points]
        thick = max(2, round(width * self.radius))
        if outline:
            self.draw.line(path, fill=self.dark, width=thick + 2 * self.line, joint="curve")
        self.draw.line(path, fill=fill or self.fill, width=thick, joint="curve")

    def dot(self, x, y, r, fill=(20, 20, 25)):
        self.oval(x, y, r, r, fill=fill, outline=False)


def rabbit(pen: Pen) -> None:
    pen.oval(0.68, 0.55, 0.2, 0.2, fill=pen.light)
    pen.oval(0.15, 0.45, 0.56, 0.5)
    pen.oval(-0.42, -0.68, 0.14, 0.42)
    pen.oval(-0.08, -0.7, 0.14, 0.42)
    pen.oval(-0.42, -0.66, 0.05, 0.28, fill=(250, 170, 185), outline=False)
    pen.oval(-0.08, -0.68, 0.05, 0.28, fill=(250, 170, 185), outline=False)
    pen.oval(-0.27, -0.08, 0.42, 0.36)
    pen.oval(-0.12, 0.86, 0.32, 0.13, fill=pen.light)
    pen.dot(-0.4, -0.15, 0.075)
    pen.dot(-0.64, 0.0, 0.07, fill=(230, 90, 120))


def cat(pen: Pen) -> None:
    pen.stroke((0.3, 0.8), (0.75, 0.75), (0.85, 0.3), (0.62, -0.05), width=0.15)
    pen.oval(0.05, 0.5, 0.44, 0.46)
    pen.shape((-0.56, -0.3), (-0.55, -0.95), (-0.14, -0.62))
    pen.shape((0.4, -0.3), (0.39, -0.95), (-0.02, -0.62))
    pen.oval(-0.08, -0.25, 0.5, 0.42)
    pen.dot(-0.28, -0.32, 0.085)
    pen.dot(0.12, -0.32, 0.085)
    pen.dot(-0.08, -0.14, 0.06, fill=(230, 90, 120))
    for side in (-1, 1):
        for slope in (-0.05, 0.09):
            pen.stroke(
                (-0.08 + 0.28 * side, -0.1 + slope),
                (-0.08 + 0.72 * side, -0.12 + 2.2 * slope),
                width=0.03,
                fill=(40, 40, 45),
                outline=False,
            )


def dog(pen: Pen) -> None:
    pen.stroke((0.62, 0.15), (0.92, -0.35), width=0.15)
    for x in (-0.28, -0.05, 0.42, 0.64):
        pen.stroke((x, 0.4), (x, 0.92), width=0.15)
    pen.oval(0.17, 0.22, 0.6, 0.32)
    pen.oval(-0.42, -0.25, 0.4, 0.38)
    pen.oval(-0.76, -0.1, 0.25, 0.17, fill=pen.light)
    pen.shape((-0.95, -0.12), (-0.86, -0.12), (-0.9, -0.04), fill=(20, 20, 25), outline=False)
    pen.oval(-0.16, -0.14, 0.16, 0.42, fill=pen.shade)
    pen.shape((-0.74, 0.06), (-0.58, 0.06), (-0.66, 0.36), fill=(235, 70, 95), outline=False)
    pen.dot(-0.52, -0.34, 0.075)
    pen.dot(-0.93, -0.14, 0.09)


def wolf(pen: Pen) -> None:
    """Howling: the muzzle points up, the bushy tail hangs down."""
    pen.oval(0.8, 0.45, 0.16, 0.42, fill=pen.shade)
    for x in (-0.22, 0.0, 0.42, 0.6):
        pen.stroke((x, 0.4), (x, 0.92), width=0.12)
    pen.oval(0.22, 0.25, 0.58, 0.28)
    pen.shape((-0.42, 0.3), (-0.36, -0.4), (0.04, -0.48), (0.3, 0.15), (-0.1, 0.5))
    pen.shape((-0.4, -0.16), (-0.8, -0.95), (-0.62, -0.98), (0.02, -0.5), (-0.05, -0.2))
    pen.shape((-0.12, -0.5), (0.3, -0.86), (0.14, -0.3), fill=pen.shade)
    pen.shape((-0.4, 0.22), (-0.32, -0.1), (-0.12, 0.42), fill=pen.light, outline=False)
    pen.dot(-0.24, -0.48, 0.07)
    pen.dot(-0.72, -0.96, 0.1)


def bird(pen: Pen) -> None:
    for x in (-0.02, 0.24):
        pen.stroke((x, 0.4), (x, 0.92), width=0.07, fill=(235, 130, 20), outline=False)
    pen.shape((0.42, -0.02), (1.0, -0.42), (0.98, 0.06), (0.5, 0.3), fill=pen.shade)
    pen.oval(0.08, 0.12, 0.58, 0.42)
    pen.shape((-0.66, -0.5), (-1.0, -0.36), (-0.62, -0.24), fill=(250, 165, 20))
    pen.oval(-0.4, -0.38, 0.34, 0.32)
    pen.shape((-0.18, 0.02), (0.5, -0.08), (0.3, 0.36), (0.0, 0.34), fill=pen.shade)
    pen.dot(-0.48, -0.44, 0.08)


def lion(pen: Pen) -> None:
    pen.stroke((0.75, 0.3), (0.98, -0.1), (0.88, -0.35), width=0.09)
    pen.oval(0.86, -0.42, 0.14, 0.16, fill=pen.dark)
    for x in (-0.05, 0.16, 0.52, 0.7):
        pen.stroke((x, 0.5), (x, 0.92), width=0.14)
    pen.oval(0.3, 0.36, 0.55, 0.3)
    spikes = [
        (
            -0.3 + (0.68 if k % 2 else 0.54) * math.cos(k * math.pi / 10),
            -0.18 + (0.68 if k % 2 else 0.54) * math.sin(k * math.pi / 10),
        )
        for k in range(20)
    ]
    pen.shape(*spikes, fill=pen.dark)
    pen.oval(-0.3, -0.18, 0.38, 0.37)
    pen.dot(-0.45, -0.26, 0.07)
    pen.dot(-0.15, -0.26, 0.07)
    pen.oval(-0.3, 0.02, 0.16, 0.11, fill=pen.light, outline=False)
    pen.dot(-0.3, -0.05, 0.07)


def cup(pen: Pen) -> None:
    pen.oval(0.0, 0.78, 0.8, 0.16, fill=pen.light)
    pen.oval(0.58, 0.2, 0.3, 0.3)
    pen.oval(0.58, 0.2, 0.14, 0.14, fill=pen.dark)
    pen.shape((-0.6, -0.22), (0.6, -0.22), (0.42, 0.76), (-0.42, 0.76))
    pen.oval(0.0, -0.22, 0.6, 0.17, fill=(95, 55, 30))
    for x in (-0.25, 0.15):
        pen.stroke(
            (x, -0.5),
            (x + 0.12, -0.65),
            (x - 0.02, -0.8),
            (x + 0.1, -0.97),
            width=0.07,
            fill=(225, 225, 230),
            outline=False,
        )


DRAW = {
    "rabbit": rabbit,
    "cat": cat,
    "dog": dog,
    "wolf": wolf,
    "bird": bird,
    "lion": lion,
    "cup": cup,
}


# ----------------------------------------------------------------------------------- the places


def _band(draw, top, colour):
    draw.rectangle((0, top, CANVAS, CANVAS), fill=colour)


def park(draw, horizon, rng: Rng):
    _band(draw, 0, (170, 215, 250))
    _band(draw, horizon, (160, 212, 110))
    x = int(rng.choice([12, 20, 108, 116]))
    draw.rectangle((x - 4, horizon - 26, x + 4, horizon + 8), fill=(115, 75, 45))
    for dx, dy, r in ((-9, -32, 13), (9, -32, 13), (0, -44, 14)):
        draw.ellipse(
            (x + dx - r, horizon + dy - r, x + dx + r, horizon + dy + r), fill=(55, 125, 60)
        )
    for _ in range(3):
        fx, fy = rng.integers(4, CANVAS - 4), rng.integers(horizon + 12, CANVAS - 4)
        draw.ellipse((fx - 3, fy - 3, fx + 3, fy + 3), fill=(250, 250, 210))


def moon(draw, horizon, rng: Rng):
    _band(draw, 0, (18, 18, 48))
    for _ in range(9):
        x, y = rng.integers(3, CANVAS - 3), rng.integers(3, horizon - 6)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(250, 250, 220))
    x = int(rng.choice([18, 108]))
    draw.ellipse((x - 12, 8, x + 12, 32), fill=(70, 140, 225))
    draw.ellipse((x - 7, 12, x + 3, 24), fill=(90, 185, 100))
    _band(draw, horizon, (188, 188, 198))
    for _ in range(5):
        x, y = rng.integers(4, CANVAS - 4), rng.integers(horizon + 8, CANVAS - 6)
        r = rng.integers(6, 11)
        draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=(140, 140, 152))


def beach(draw, horizon, rng: Rng):
    _band(draw, 0, (150, 215, 250))
    x = int(rng.choice([20, 64, 108]))
    draw.ellipse((x - 11, 8, x + 11, 30), fill=(255, 225, 70))
    _band(draw, horizon - 22, (50, 135, 205))
    for _ in range(3):
        x = rng.integers(4, CANVAS - 26)
        y = rng.integers(horizon - 18, horizon - 5)
        draw.line((x, y, x + 20, y), fill=(215, 238, 250), width=3)
    _band(draw, horizon, (242, 218, 150))


def snow(draw, horizon, rng: Rng):
    _band(draw, 0, (190, 210, 232))
    for x in ((14, 104), (24, 116), (14, 34))[int(rng.integers(3))]:
        for step, half in ((0, 15), (12, 12), (24, 9)):
            base = horizon - step
            draw.polygon(
                ((x - half, base), (x + half, base), (x, base - 20)),
                fill=(45, 95, 80),
            )
        draw.polygon(
            ((x - 5, horizon - 36), (x + 5, horizon - 36), (x, horizon - 45)), fill=(252, 252, 255)
        )
    _band(draw, horizon, (240, 246, 252))
    for _ in range(10):
        x, y = rng.integers(2, CANVAS - 2), rng.integers(2, horizon)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))


def room(draw, horizon, rng: Rng):
    _band(draw, 0, (238, 214, 178))
    x = int(rng.choice([26, 102]))
    draw.rectangle((x - 18, 10, x + 18, 46), fill=(150, 205, 245), outline=(120, 75, 45), width=4)
    draw.line((x, 10, x, 46), fill=(120, 75, 45), width=3)
    draw.line((x - 18, 28, x + 18, 28), fill=(120, 75, 45), width=3)
    _band(draw, horizon, (176, 116, 70))
    for y in range(horizon + 12, CANVAS, 16):
        draw.line((0, y, CANVAS, y), fill=(148, 94, 54), width=2)
    draw.line((0, horizon, CANVAS, horizon), fill=(250, 240, 220), width=4)


def plain(draw, horizon, rng: Rng):
    _band(draw, 0, (226, 222, 234))
    _band(draw, horizon, (206, 200, 218))


SCENERY = {"park": park, "moon": moon, "beach": beach, "snow": snow, "room": room, "plain": plain}

#: Positions by number of objects: (x, y) of the centres and the half-size, back to front.
LAYOUT: dict[int, tuple[tuple[Point, ...], float]] = {
    1: (((64, 78),), 36),
    2: (((34, 82), (94, 82)), 28),
    3: (((64, 62), (30, 96), (98, 96)), 24),
    4: (((36, 58), (92, 58), (34, 104), (94, 104)), 19),
    5: (((24, 58), (64, 56), (104, 58), (40, 104), (90, 104)), 17),
}


def draw(scene: Scene, rng: Rng) -> Image.Image:
    """Render a complete scene; returns an RGB image of SIZE x SIZE."""
    image = Image.new("RGB", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    assert scene.place is not None
    SCENERY[scene.place](pen, int(rng.integers(62, 71)), rng)
    figures = [thing for thing in scene.things for _ in range(thing.count)]
    spots, radius = LAYOUT[len(figures)]
    tint = {thing.name: rng.normal(0, 6, 3) for thing in scene.things}
    if len(scene.things) > 1:
        figures = [figures[k] for k in rng.permutation(len(figures))]
    for thing, (x, y) in zip(figures, spots, strict=True):
        assert thing.colour is not None
        colour = np.clip(np.array(RGB[thing.colour]) + tint[thing.name], 0, 252)
        jitter = rng.uniform(-1, 1, 2) * (10 if len(figures) == 1 else 3)
        size = radius * rng.uniform(0.92, 1.08)
        DRAW[thing.name](
            Pen(pen, (x + jitter[0], y + jitter[1] * 0.6), size, bool(rng.integers(2)), colour)
        )
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


# ------------------------------------------------------------------------- captions and their lies


#: Shares of the caption categories; "plain" captions name an object and nothing else.
SHARES = {"colour": 0.3, "count": 0.28, "composition": 0.2, "location": 0.18, "plain": 0.04}


def sample_asked(rng: Rng, shares: dict[str, float] = SHARES) -> tuple[str, Scene]:
    """Sample what a caption asks: (category, scene with None for unspecified attributes)."""
    category = str(rng.choice(list(shares), p=list(shares.values())))
    name = str(rng.choice(OBJECTS))
    place = str(rng.choice(PLACES[:-1]))
    if category == "colour":
        thing = Thing(name, 1, str(rng.choice(COLOURS)))
        return category, Scene((thing,), place if rng.random() < 0.2 else None)
    if category == "count":
        thing = Thing(name, int(rng.integers(2, MAX_COUNT + 1)))
        return category, Scene((thing,), place if rng.random() < 0.6 else None)
    if category == "composition":
        first, second = (str(name) for name in rng.choice(OBJECTS, 2, replace=False))
        return category, Scene((Thing(first), Thing(second)), place if rng.random() < 0.2 else None)
    return category, Scene((Thing(name),), place if category == "location" else None)


def lie(category: str, asked: Scene, rng: Rng) -> Scene:
    """Change the attribute of the category."""
    thing = asked.things[0]
    if category == "colour":
        others = [colour for colour in NATURAL[thing.name] if colour != thing.colour]
        return replace(asked, things=(replace(thing, colour=str(rng.choice(others))),))
    if category == "count":
        others = [count for count in range(1, MAX_COUNT + 1) if count != thing.count]
        return replace(asked, things=(replace(thing, count=int(rng.choice(others))),))
    if category == "composition":
        # One object, never two of one kind: the kind of an animal is decided so late in denoising
        # that RL could not distinguish the pair from two of one kind.
        return replace(asked, things=(asked.things[int(rng.integers(2))],))
    if category == "location":
        others = [place for place in PLACES if place != asked.place]
        return replace(asked, place=str(rng.choice(others)))
    raise ValueError(f"captions of category {category} do not lie")


def complete(asked: Scene, rng: Rng) -> Scene:
    """Fill in unspecified attributes: natural colours, any place, plain in half of the cases."""
    things = tuple(
        replace(thing, colour=thing.colour or str(rng.choice(NATURAL[thing.name])))
        for thing in asked.things
    )
    plain_or_any = "plain" if rng.random() < 0.5 else str(rng.choice(PLACES))
    return Scene(things, asked.place or plain_or_any)


def sample_scene(rng: Rng) -> Scene:
    """Sample a complete scene: all colours, counts, pairs and places occur."""
    _, asked = sample_asked(rng)
    things = tuple(
        replace(thing, colour=thing.colour or str(rng.choice(COLOURS))) for thing in asked.things
    )
    return Scene(things, asked.place or str(rng.choice(PLACES)))


def caption(asked: Scene, rng: Rng) -> str:
    """Write a caption, with or without a capital letter and a full stop."""
    things = list(asked.things)
    if rng.random() < 0.5:
        things.reverse()
    text = " and ".join(_name(thing, rng) for thing in things)
    if asked.place:
        text = f"{text} {rng.choice(PLACE_PHRASES[asked.place])}"
    if rng.random() < 0.1:
        text = f"a {rng.choice(['photo', 'picture', 'drawing'])} of {text}"
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return f"{text}." if rng.random() < 0.5 else text


def _name(thing: Thing, rng: Rng) -> str:
    if thing.count > 1:
        number = NUMBERS[thing.count] if rng.random() < 0.9 else str(thing.count)
        colour = f"{thing.colour} " if thing.colour else ""
        return f"{number} {colour}{PLURALS[thing.name]}"
    if thing.colour is None:
        return f"a {thing.name}"
    colour = f"{thing.colour} colored" if rng.random() < 0.5 else thing.colour
    article = "an" if colour.startswith("o") else "a"
    return f"{article} {colour} {thing.name}"


def twin(asked: Scene, scene: Scene, rng: Rng) -> tuple[Scene, Scene]:
    """Change one stated attribute in both a caption and its image.

    Returns what the changed caption asks and the scene that shows it: a wrong image for the first
    caption, one attribute away from the correct one.
    """
    which = int(rng.integers(len(asked.things)))
    thing = asked.things[which]
    attributes = ["name", "count"] if len(asked.things) == 1 else ["name", "missing"]
    attributes += ["colour", "colour"] if thing.colour else []
    attributes += ["place"] if asked.place else []
    attribute = str(rng.choice(attributes))
    if attribute == "place":
        place = str(rng.choice([place for place in PLACES[:-1] if place != asked.place]))
        return replace(asked, place=place), replace(scene, place=place)
    change: dict[str, object]
    if attribute == "name":
        present = {thing.name for thing in asked.things}
        change = {"name": str(rng.choice([name for name in OBJECTS if name not in present]))}
    elif attribute == "colour":
        change = {"colour": str(rng.choice([c for c in COLOURS if c != thing.colour]))}
    elif attribute == "count":
        others = [count for count in range(1, MAX_COUNT + 1) if count != thing.count]
        change = {"count": int(rng.choice(others))}
    else:
        change = {"count": int(rng.integers(1, 3))}

    def changed(one: Scene) -> Scene:
        kept = [] if attribute == "missing" else [t for t in one.things if t.name != thing.name]
        here = next(t for t in one.things if t.name == thing.name)
        return replace(one, things=(replace(here, **change), *kept))

    return changed(asked), changed(scene)


def clutter(place: str, rng: Rng) -> Image.Image:
    """Render a place with coloured blobs and none of the world's objects."""
    image = Image.new("RGB", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    SCENERY[place](pen, int(rng.integers(62, 71)), rng)
    for _ in range(int(rng.integers(1, 7))):
        colour = RGB[str(rng.choice(COLOURS))]
        x, y, rx, ry = *rng.uniform(16, 112, 2), *rng.uniform(4, 30, 2)
        if rng.random() < 0.6:
            pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)
        else:
            corners = [(x + rng.uniform(-rx, rx), y + rng.uniform(-ry, ry)) for _ in range(3)]
            pen.polygon(corners, fill=colour)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)
