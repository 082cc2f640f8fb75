"""Tests marked ``races`` run their kernel a second time with every load and store watched."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "watched" in metafunc.fixturenames:
        again = metafunc.definition.get_closest_marker("races") is not None
        values = [False, True] if again else [False]
        names = ["once", "watched"][: len(values)]
        metafunc.parametrize("watched", values, ids=names, scope="module")
