import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets` without a network and with a cache of its own. A folder `owner/name` below the current one opens as
    the data set of that name on the Hub would: `datasets.load_dataset` looks for the folder first."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path
