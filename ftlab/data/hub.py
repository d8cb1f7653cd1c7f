"""Data sets of the HF hub and of ModelScope; a script of the repository is never run."""

import os
from typing import TYPE_CHECKING

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
    """Return the rows of `hf_hub_url`."""
    from datasets import load_dataset

    return load_dataset(entry.hf_hub_url, entry.subset, data_dir=entry.folder, split=entry.split)


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
