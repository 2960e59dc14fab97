"""Uploading `final/` to the Hugging Face Hub: checked before the run, and never able to lose it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id

from spark_rl.config import Config


def is_hub_id(path: str) -> bool:
    """Whether this has the form of `namespace/name` and is no local path."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return "/" in path and not Path(path).exists()


def check_hub_id(config: Config) -> None:
    """Refuse what cannot be an id before a long run, not after it.

    Raises:
        ValueError: `train.push_to_hub` has not the form of a Hub id.
    """
    hub_id = config.train.push_to_hub
    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        raise ValueError(f"train.push_to_hub: {hub_id!r} cannot be a Hub id; give one such as me/my-solver") from None


def warn_without_token(config: Config, warn: Callable[[str], None]) -> None:
    """Say before a long run that its upload will be refused."""
    if config.train.push_to_hub is not None and not get_token():
        warn("train.push_to_hub: no Hugging Face token was found, so the upload will fail; run `hf auth login`")


def push(folder: Path, config: Config, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Upload a model folder, if the config asks for it. Whatever goes wrong is one warning: the folder stays."""
    hub_id = config.train.push_to_hub
    if hub_id is None:
        return
    disable_progress_bars()  # they would tear the live table
    say(f"uploading {folder} to {hub_id}")
    try:
        api = HfApi()
        made = api.create_repo(hub_id, private=config.train.hub_private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Trained with spark-rl")
    except Exception as error:  # of any kind: network, token, quota, the Hub's own
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        warn(f"train.push_to_hub: the upload failed ({reason}); upload by hand with `hf upload {hub_id} {folder}`")
    else:
        say(f"uploaded to {made}")
