"""What the lessons in notebooks/lessons share: the workshop's data, checks of exercises, pictures that move.

Each lesson's checks stand in a module of their own, ``checks_01`` to ``checks_07``, as a dict ``CHECKS`` from the
exercise ("2.1") to a function of the student's answer.
"""

import base64
import contextlib
import html
import importlib
import io
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import Animation
from matplotlib.figure import Figure

from icssl_lib.config import Study, load_config
from icssl_lib.runs import ROOT, RunError, digest, locked

# --- data ---


def workshop(out: Path = ROOT / "runs" / "lessons") -> tuple[Study, Path]:
    """The lessons' study and its run folder, with the catalogue ingested and the `origin` encoders pretrained.

    The first call makes them, under a minute on one core; later ones only read, so a class may share a folder that
    nobody can write to. A second notebook waits for the first. After a change of config/lessons.yaml all is made anew.

    Returns:
        study, out: ``open_catalogue(out / "catalogues" / "beauty")`` is the catalogue,
        ``load_text(text_model(study, out))`` the encoder and its tokenizer.
    """
    study = load_config(ROOT / "config" / "lessons.yaml")
    key = digest(study)
    stamp = out / "workshop"  # written last
    if not _bears(stamp, key):
        with _waiting(out):
            if not _bears(stamp, key):
                _make(study, out)
                stamp.write_text(key)
    return study, out


def _bears(stamp: Path, key: str) -> bool:
    return stamp.is_file() and stamp.read_text() == key


@contextlib.contextmanager
def _waiting(out: Path) -> Iterator[None]:
    """`locked`, once whoever holds the folder has finished."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(out))
                break
            except RunError:
                time.sleep(0.5)
        yield


def _make(study: Study, out: Path) -> None:
    from icssl_lib.catalogue import ingest
    from icssl_lib.pretrain import pretrain_text, pretrain_vision

    for name, source in study.datasets.items():
        ingest(name, source, study.vision.image_size, study.split_seed, out / "catalogues" / name)
    pretrain_text(study, out / "pretrained" / "text")
    pretrain_vision(study, out / "pretrained" / "vision")


# --- exercises ---


class Hint(ValueError):
    """Raised by a check whose answer is wrong: a sentence that helps, and does not give the answer away."""


def call(answer: Any, *args: Any, **options: Any) -> Any:
    """What the student's function returns.

    Raises: Hint: it is no function, or returns nothing.
    """
    if not callable(answer):
        raise Hint(f"a function was expected, this is a {type(answer).__name__}; give its name without brackets")
    result = answer(*args, **options)
    if result is None:
        raise Hint("the function returns None; write its body in place of `return None`")
    return result


def check(exercise: str, answer: Any) -> bool:
    """Print "Right: <why>." or "Not yet: <hint>." for an answer; never raises, so that a lesson runs to its end.

    Args:
        exercise: its number, such as "2.1".
        answer: what the exercise asks for; None is an exercise that was not begun.
    """
    try:
        if exercise not in CHECKS:
            raise Hint(f"there is no exercise {exercise!r}; there are {', '.join(sorted(CHECKS))}")
        if answer is None:
            raise Hint("nothing to check; put your answer in place of None")
        print(f"Right: {CHECKS[exercise](answer)}")
        return True
    except Hint as hint:
        print(f"Not yet: {hint}")
    except Exception as error:  # of the student's code, whatever it is
        print(f"Not yet: your code stopped with {type(error).__name__}: {error}")
    return False


# --- pictures that move ---


class Moving:
    """A picture that moves in JupyterLab and on a page made of the executed notebook, where neither a kernel nor a
    network is needed; ``still`` (PNG) stands for it where a notebook is not trusted."""

    def __init__(self, page: str, still: bytes) -> None:
        self.page, self.still = page, still

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.page, "image/png": base64.b64encode(self.still).decode(), "text/plain": "picture"}


# JupyterLab, in command mode, takes arrow keys from all that has the focus but elements with this attribute.
_OWN_KEYS = 'data-lm-suppress-shortcuts="true"'

# Frames lie on top of each other; the one whose number the slider bears is shown.
_SLIDER = """<figure class="icssl-slider" style="margin: 0">
<label>{name} <input type="range" {keys} min="0" max="{last}" value="{start}"
 style="width: 22em; vertical-align: middle"
 oninput="const f = this.closest('figure'); f.querySelectorAll('img').forEach((img, i) =>
 {{ img.style.display = i == this.value ? 'block' : 'none'; if (i == this.value)
 f.querySelector('output').textContent = img.alt; }})"></label> <output>{value}</output>
{frames}
</figure>"""


def slider(
    draw: Callable[[float], Figure],
    value: float,
    low: float,
    high: float,
    *,
    name: str = "",
    steps: int = 25,
    log: bool = False,
    digits: int = 3,
) -> Moving:
    """A picture drawn anew as a slider moves: all positions are drawn beforehand, in ``steps`` steps.

    Args:
        draw: the figure at a value; it is closed afterwards.
        value: where the slider stands at first, and what the still picture shows; added to the steps.
        low, high: the slider's range; with ``log`` in equal ratios, both above 0.
        name: written beside the slider.
        digits: significant digits of the value that is shown.
    """
    if not low <= value <= high or (log and low <= 0):
        raise ValueError(f"low <= value <= high expected, above 0 with log; got {low}, {value}, {high}")
    grid = np.unique([*(np.geomspace if log else np.linspace)(low, high, steps), value])
    start = int(np.searchsorted(grid, value))
    pictures = [_png(draw(float(at))) for at in grid]
    labels = [f"{at:.{digits}g}" for at in grid]
    frames = "\n".join(
        f'<img alt="{label}" style="display: {"block" if i == start else "none"}; max-width: 100%" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for i, (label, picture) in enumerate(zip(labels, pictures, strict=True))
    )
    page = _SLIDER.format(
        name=html.escape(name), keys=_OWN_KEYS, last=len(grid) - 1, start=start, value=labels[start], frames=frames
    )
    return Moving(page, pictures[start])


# The player's icons come from a font on the network; these letters are in every font.
_ICONS = {
    "minus": "-",
    "fast-backward": "«",
    "step-backward": "‹",
    "play fa-flip-horizontal": "◀",
    "pause": "❚❚",
    "play": "▶",
    "step-forward": "›",
    "fast-forward": "»",
    "plus": "+",
}


def animate(animation: Animation, fps: float = 8, most: int = 10**6) -> Moving:
    """A matplotlib animation (FuncAnimation, ArtistAnimation) as a player with buttons.

    Args:
        fps: frames a second.
        most: bytes that the page may take.

    Raises: ValueError: it takes more; fewer or smaller frames are needed.
    """
    with mpl.rc_context({"animation.embed_limit": 100, "savefig.dpi": 72}):
        page = animation.to_jshtml(fps=fps, embed_frames=True, default_mode="once")
    page = re.sub(r'<link rel="stylesheet"\s+href="https?://[^>]*>', "", page)
    page = re.sub(r'<i class="fa fa-([a-z -]+)"></i>', lambda icon: _ICONS[icon[1]], page)
    page = page.replace("<input ", f"<input {_OWN_KEYS} ")
    if len(page) > most:
        raise ValueError(
            f"the animation takes {len(page) / 1e6:.1f} MB of {most / 1e6:.1f}: draw fewer or smaller frames"
        )
    return Moving(page, _png(animation._fig))  # as its last frame left it


def _png(fig: Figure) -> bytes:
    """The figure as a palette PNG, a third of the bytes; closes it."""
    from PIL import Image

    content, small = io.BytesIO(), io.BytesIO()
    fig.savefig(content, dpi=90)
    plt.close(fig)
    Image.open(content).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


CHECKS: dict[str, Callable[[Any], str]] = {}
for _module in pkgutil.iter_modules(__path__, f"{__name__}."):  # last: they import Hint and call from here
    CHECKS |= importlib.import_module(_module.name).CHECKS
