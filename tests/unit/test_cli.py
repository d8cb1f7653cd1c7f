"""The command line around its verbs."""

import gc

import pytest

from ftlab.apps import cli


def test_garbage_is_collected_again_after_the_imports_even_where_one_fails():
    with pytest.raises(ImportError), cli.uncollected():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count()
    gc.unfreeze()
