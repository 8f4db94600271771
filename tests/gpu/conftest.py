"""The device that these tests run on: a GPU where there is one, else the CPU, unless --device says."""

import pytest
from gpu_place import Place


@pytest.fixture(scope="session")
def device(request):
    """The one of --device."""
    place = Place(request.config.getoption("--device"))
    yield place
    place.must_not_wait(False)
