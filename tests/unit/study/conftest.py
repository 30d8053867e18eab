"""The tiny models that the tests of the study share."""

import pytest
import torch

from benchmarks.accuracy.study.model import Model
from study_models import make_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def model(folder):
    return Model(folder / "qwen2", "cpu", torch.float32)
