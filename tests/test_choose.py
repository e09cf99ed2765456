"""benchmarks/choose.py replaces settings and refuses those that do not exist."""

import choose
import pytest
from pydantic import ValidationError


def test_settings_replace_the_file_s(root):
    study = choose.changed(root / "config/smoke.yaml", "adapt.epochs=7 finetune.lr=1e-5 vision.frozen=true")
    assert (study.adapt.epochs, study.finetune.lr, study.vision.frozen) == (7, 1e-5, True)
    assert study.adapt.projection_dim == 32
    with pytest.raises(ValidationError, match="epohcs"):
        choose.changed(root / "config/smoke.yaml", "adapt.epohcs=7")
