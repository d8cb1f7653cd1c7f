"""Data sets of the HF hub and of ModelScope; a script of the repository is never run."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ftlab import models
from ftlab.data.dataset_info import Entry
from ftlab.errors import LabError, fail, reason_of, say

if TYPE_CHECKING:
    from datasets import Dataset


def fetched(entry: Entry) -> "Dataset":
    """Return the rows of a hub data set unchanged; both libraries cache their downloads.

    ModelScope is asked where the entry has no `hf_hub_url`, or has both and `USE_MODELSCOPE_HUB` is on.

    Raises:
        LabError: not reachable, no such data set, or the package modelscope is missing.
    """
    scope = entry.ms_hub_url and (not entry.hf_hub_url or models.prefers_modelscope())
    url = entry.ms_hub_url if scope else entry.hf_hub_url
    print(say("data_fetching", url=url, hub="ModelScope" if scope else os.environ.get("HF_ENDPOINT", "huggingface.co")))
    try:
        return from_modelscope(entry) if scope else from_hub(entry)
    except LabError:
        raise
    # Both libraries raise whatever their HTTP client raises; for the user it is one error.
    except Exception as error:
        raise fail("data_hub", where=url, reason=reason_of(error)) from error


def from_hub(entry: Entry) -> "Dataset":
    """Return the rows of `hf_hub_url`, from the cache if the hub cannot be reached."""
    from datasets import load_dataset

    with cache_only(not models.hub_answers()):
        return load_dataset(entry.hf_hub_url, entry.subset, data_dir=entry.folder, split=entry.split)


@contextlib.contextmanager
def cache_only(enabled: bool) -> Iterator[None]:
    """Let datasets read its cache only, where it would ask an unreachable hub six times for each of several files."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants) if enabled else ()
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def from_modelscope(entry: Entry) -> "Dataset":
    """Return the rows of `ms_hub_url`.

    ModelScope fetches the files and datasets reads them: ModelScope's own reader needs a datasets older than 5.
    """
    from datasets import load_dataset

    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError as error:
        missing = (error.name or "modelscope").partition(".")[0]
        raise fail("modelscope_missing", where=entry.where, name=entry.ms_hub_url, package=missing) from None
    files = dataset_snapshot_download(entry.ms_hub_url)
    return load_dataset(files, entry.subset, data_dir=entry.folder, split=entry.split)
