"""Small ceilings, so that a whole run of the command takes a fraction of a second."""

import pytest

from ldadam.bench import clock


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    monkeypatch.setattr(clock, "_COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(clock, "_PRODUCT_SIDE", {"cpu": 32})
