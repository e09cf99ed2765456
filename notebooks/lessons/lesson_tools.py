"""What all lessons share: the workshop's data, checks of exercises, pictures that move.

Each lesson's checks stand beside it, ``CHECKS`` in ``checks_01.py`` to ``checks_08.py``: exercise ("2.1") to function.
"""

import base64
import html
import importlib
import io
import math
from pathlib import Path
from typing import Any

import altair as alt
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
    """A Vega-Altair chart with a slider. It answers in JupyterLab and on a page made of the executed notebook, where
    neither a kernel nor a network is needed; a picture (PNG) stands for it where a notebook is not trusted."""

    def __init__(self, chart: alt.TopLevelMixin, height: int) -> None:
        """height: of chart and slider, in pixels."""
        self.chart, self.height = chart, height

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        still = io.BytesIO()
        self.chart.save(still, format="png")
        page = html.escape(self.chart.to_html(inline=True, embed_options={"actions": False}))
        frame = f'<iframe srcdoc="{page}" width="100%" height="{self.height}" style="border: 0"></iframe>'
        picture = base64.b64encode(still.getvalue()).decode()
        return {"text/html": frame, "image/png": picture, "text/plain": "a chart with a slider"}
