"""PNG files of figures with a palette of 256 colours: a third of the size of full colour without a visible change."""

import io
import os
import pathlib

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_DPI = 150
_COLOURS = 256


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as a PNG file, whole or not at all, and makes its folder."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
    with Image.open(buffer) as picture:
        reduced = with_palette(picture)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    reduced.save(unfinished, format="PNG", optimize=True)
    unfinished.replace(path)


def with_palette(picture: Image.Image) -> Image.Image:
    """Returns a picture in its 256 most frequent colours; the others become the nearest of these.

    The frequent colours, such as those of lines and text, stay exact, which a palette of averaged colours would not
    guarantee.
    """
    picture = picture.convert("RGB")
    red, green, blue = np.moveaxis(np.asarray(picture, np.int32), -1, 0)
    colours, counts = np.unique((red << 16) + (green << 8) + blue, return_counts=True)
    frequent = colours[np.argsort(-counts, kind="stable")[:_COLOURS]]
    table = np.stack([frequent >> 16, (frequent >> 8) & 255, frequent & 255], axis=-1)
    palette = Image.new("P", (1, 1))
    palette.putpalette(table.ravel().tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)
