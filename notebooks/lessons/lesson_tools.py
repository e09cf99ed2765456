"""What all lessons share: the workshop's data, checks of exercises, pictures that move.

Each lesson's checks stand beside it, ``CHECKS`` in ``checks_01.py`` to ``checks_08.py``: exercise ("2.1") to function.
"""

import base64
import html
import importlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import Animation
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import icssl_lib
from icssl_lib.catalogue import ingest
from icssl_lib.config import Study, load_config
from icssl_lib.files import locked
from icssl_lib.runs import resolved
from icssl_lib.sources.synthetic.pretrain import pretrain_text, pretrain_vision

ROOT = Path(icssl_lib.__file__).parents[1]  # the project, wherever a lesson was copied to

# --- data ---


def workshop(
    out: Path = ROOT / "runs" / "lessons", config: Path = ROOT / "config" / "lessons.yaml"
) -> tuple[Study, Path]:
    """The lessons' study and its run folder, with the catalogue ingested and the `origin` encoders pretrained.

    The first call makes them, under a minute on one core; later ones only read, so a class may share a folder that
    nobody can write to. A second notebook waits for the first. After a change of the configuration all is made anew.

    Returns:
        study, out: ``open_catalogue(out / "catalogues" / "beauty")`` is the catalogue,
        ``load_text(study.text.model)`` the encoder and its tokenizer.
    """
    study = load_config(config)
    key, stamp = study.model_dump_json(), out / "workshop"  # the stamp is written last
    if not stamp.is_file() or stamp.read_text() != key:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / ".lock"):
            if not stamp.is_file() or stamp.read_text() != key:  # nobody made it while this one waited
                for name, source in study.datasets.items():
                    ingest(name, source, study.vision.image_size, study.split_seed, out / "catalogues" / name)
                pretrain_text(study, out / "pretrained" / "text")
                pretrain_vision(study, out / "pretrained" / "vision")
                stamp.write_text(key)
    return resolved(study, out), out


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


def compare(answer: Any, right: Any, mistakes: dict[str, Any]) -> None:
    """Raise the Hint that fits a wrong number.

    Args:
        answer, right: a number, or a tensor of one.
        mistakes: hint to the number that this mistake gives.
    """

    def number(value: Any) -> float:
        return float(value.detach() if isinstance(value, Tensor) else value)

    try:
        value = number(answer)
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"one number was expected, this is {answer!r:.60}") from None
    for hint, known in {"": right, **mistakes}.items():
        if math.isclose(value, number(known), rel_tol=1e-4, abs_tol=1e-5):
            if hint:
                raise Hint(hint)
            return
    raise Hint(f"on a batch of random rows {number(right):.4f} was expected, yours gives {value:.4f}")


def check(exercise: str, answer: Any) -> bool:
    """Print "Right: <why>." or "Not yet: <hint>." for an answer, whatever it is: a lesson runs to its end.

    Args:
        exercise: its number, such as "2.1".
        answer: what the exercise asks for; None is an exercise that was not begun.
    """
    checks = importlib.import_module(f"checks_0{exercise[0]}").CHECKS
    try:
        if answer is None:
            raise Hint("nothing to check; put your answer in place of None")
        print(f"Right: {checks[exercise](answer)}")
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
OWN_KEYS = 'data-lm-suppress-shortcuts="true"'

# Frames lie on top of each other; the one whose number the slider bears is shown.
SLIDER = """<figure class="icssl-slider" style="margin: 0">
<label>{name} <input type="range" {keys} min="0" max="{last}" value="{start}"
 style="width: 22em; vertical-align: middle"
 oninput="const f = this.closest('figure'); f.querySelectorAll('img').forEach((img, i) =>
 {{ img.style.display = i == this.value ? 'block' : 'none'; if (i == this.value)
 f.querySelector('output').textContent = img.alt; }})"></label> <output>{value}</output>
{frames}
</figure>"""


def slider(draw: Callable[[float], Figure], value: float, low: float, high: float, name: str) -> Moving:
    """A picture drawn anew as a slider moves from ``low`` to ``high`` in equal ratios; all is drawn beforehand.

    Args:
        draw: the figure at a value; it is closed afterwards.
        value: where the slider stands at first, and what the still picture shows; added to the 25 steps.
        name: written beside the slider.
    """
    grid = np.unique([*np.geomspace(low, high, 25), value])
    start = int(np.searchsorted(grid, value))
    pictures, labels = [png(draw(float(at))) for at in grid], [f"{at:.3g}" for at in grid]
    frames = "\n".join(
        f'<img alt="{label}" style="display: {"block" if i == start else "none"}; max-width: 100%" '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for i, (label, picture) in enumerate(zip(labels, pictures, strict=True))
    )
    page = SLIDER.format(
        name=html.escape(name), keys=OWN_KEYS, last=len(grid) - 1, start=start, value=labels[start], frames=frames
    )
    return Moving(page, pictures[start])


# The player's icons come from a font on the network; these letters are in every font.
ICONS = {
    "minus": "-", "fast-backward": "«", "step-backward": "‹", "play fa-flip-horizontal": "◀", "pause": "❚❚",
    "play": "▶", "step-forward": "›", "fast-forward": "»", "plus": "+",
}  # fmt: skip


def animate(animation: Animation) -> Moving:
    """A matplotlib animation as a player with buttons, 8 frames a second."""
    with mpl.rc_context({"animation.embed_limit": 100, "savefig.dpi": 72}):
        page = animation.to_jshtml(fps=8, embed_frames=True, default_mode="once")
    page = re.sub(r'<link rel="stylesheet"\s+href="https?://[^>]*>', "", page)
    page = re.sub(r'<i class="fa fa-([a-z -]+)"></i>', lambda icon: ICONS[icon[1]], page)
    page = page.replace("<input ", f"<input {OWN_KEYS} ")
    return Moving(page, png(animation._fig))  # as its last frame left it


def png(fig: Figure) -> bytes:
    """The figure as a palette PNG, a third of the bytes; closes it."""
    content, small = io.BytesIO(), io.BytesIO()
    fig.savefig(content, dpi=90)
    plt.close(fig)
    Image.open(content).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
