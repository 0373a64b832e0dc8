"""A small drawing surface over Pillow: shapes smoothed by drawing them twice as large, text at its own size.

matplotlib takes five to ten times as long for a figure of this many parts; its fonts are used, so that pictures are
the same on every machine.
"""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Shapes are drawn this much larger and averaged down."""

Point = tuple[float, float]


@cache
def font(size: int, is_bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


class Canvas:
    """A white picture to draw on; coordinates are pixels of the finished picture.

    Args:
        width: Pixels.
        height: Pixels.
    """

    def __init__(self, width: int, height: int, background: str = "#ffffff"):
        self.size = (width, height)
        self._large = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self._draw = ImageDraw.Draw(self._large)
        self._texts: list[tuple[Point, str, str, ImageFont.FreeTypeFont, str]] = []

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill=None, outline=None, width: float = 1) -> None:
        """A rectangle; nothing where it has no area."""
        if x1 - x0 < 0.25 or y1 - y0 < 0.25:
            return
        box = [round(v * SCALE) for v in (x0, y0, x1, y1)]
        # Pillow's boxes include their last pixel
        box[2], box[3] = max(box[2] - 1, box[0]), max(box[3] - 1, box[1])
        self._draw.rectangle(box, fill, outline, round(width * SCALE))

    def line(self, points: list[Point], colour: str, width: float = 1) -> None:
        """Straight pieces between points."""
        if len(points) > 1:
            self._draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), "curve")

    def dashes(self, start: Point, end: Point, colour: str, width: float = 1, dash: float = 4) -> None:
        """A dashed straight line."""
        (x0, y0), (x1, y1) = start, end
        length = float(np.hypot(x1 - x0, y1 - y0))
        for at in np.arange(0.0, length, 2 * dash):
            a, b = at / length, min(at + dash, length) / length
            self.line(
                [(x0 + a * (x1 - x0), y0 + a * (y1 - y0)), (x0 + b * (x1 - x0), y0 + b * (y1 - y0))], colour, width
            )

    def text(
        self, x: float, y: float, text: str, colour: str = "#1a1a1a", size: int = 12, anchor="lm", is_bold=False
    ) -> None:
        """Text on top of all shapes; the anchor is Pillow's: l, m, r and a (top), m, s (baseline)."""
        self._texts.append(((x, y), text, colour, font(size, is_bold), anchor))

    def pixels(self) -> np.ndarray:
        """The finished picture, shape (height, width, 3), uint8."""
        image = self._large.reduce(SCALE)
        draw = ImageDraw.Draw(image)
        for at, text, colour, face, anchor in self._texts:
            draw.text(at, text, colour, face, anchor)
        return np.asarray(image)


def width_of(text: str, size: int = 12, is_bold: bool = False) -> float:
    """Pixels that a text is wide."""
    return font(size, is_bold).getlength(text)
