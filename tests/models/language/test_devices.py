"""Devices and numbers by their names; what is not there is refused before a model is loaded."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from models.errors import SidstreamError  # noqa: E402
from models.language.devices import device_named, dtype_named  # noqa: E402


def test_auto_is_a_device_that_works_and_names_are_torchs() -> None:
    assert torch.ones(2, device=device_named("auto")).sum() == 2
    assert device_named("cpu").type == "cpu"
    assert tuple(map(dtype_named, ("auto", "float32", "bfloat16", "int8"))) == (
        None,
        torch.float32,
        torch.bfloat16,
        torch.int8,
    )


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "xla", "", "meta", "hpu", "privateuseone", "mtia"])
def test_device_that_is_not_there_is_refused_with_what_to_set(name: str) -> None:
    with pytest.raises(SidstreamError, match="set it to auto, cpu or a device that this machine has"):
        device_named(name)


def test_refused_device_is_told_by_the_name_of_the_option_that_gave_it() -> None:
    with pytest.raises(SidstreamError, match="--device is 'nonsense', which cannot be used here"):
        device_named("nonsense", option="--device")
