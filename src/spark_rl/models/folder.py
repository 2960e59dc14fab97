"""What is surely wrong with a local model folder, found in milliseconds: without torch and without transformers.

A wrong path, weights that an interrupted download cut short, a base model without a chat template: each would else be
answered after seconds of imports. Refused is only what loading or the trainer would refuse as well; whatever is
unusual (remote code, adapters, a Hub id) is left to them.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from spark_rl.config import ModelConfig

EMBEDDED = {"embedded": "base", "embedded-vision": "vision_base"}
"""The models that ship with the package, and their folders in it."""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""In the order in which transformers looks for them."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "tekken.json")
_NO_CAUSAL_LM = re.compile(
    r"For(MaskedLM|NextSentencePrediction|\w*Classification|QuestionAnswering|MultipleChoice|RewardModel|CTC)$"
)
"""Heads that do not predict the next token; transformers would load some of them with a random head in their place."""
_OF_IMAGES = re.compile(r"vision|image|visual|vit_")


def check_folder(config: ModelConfig) -> Path | None:
    """Look into the folder of `path`, if it is one, and at `chat_template`. Returns the folder, or None for a Hub id.

    Raises:
        ValueError: the model could not be used; the sentence names the file or folder and what to change.
    """
    _check_template_file(config.chat_template)
    folder = model_folder(config.path)
    _refuse_revision(config, folder)
    if folder is None or (folder / "adapter_config.json").exists():
        return folder
    if not (folder / "config.json").is_file():
        saved = f"name {folder / 'final'}" if (folder / "final" / "config.json").is_file() else ""
        raise ValueError(f"model.path: {folder} has no config.json; {saved or 'name the folder of a saved model'}")
    settings = _read_json(folder / "config.json")
    if "auto_map" not in settings:
        _check_architecture(folder, settings)
    if "transformers_weights" not in settings:
        _check_weights(folder)
    _check_tokenizer(folder, needs_template=config.chat_template is None)
    return folder


def resolve_path(path: str) -> str:
    """A base that ships with the package (`embedded`, `embedded-vision`); anything else is a folder or a Hub id."""
    return str(importlib.resources.files("spark_rl.embedded") / EMBEDDED[path]) if path in EMBEDDED else path


def model_folder(path: str) -> Path | None:
    """The folder that `model.path` names; None if it is a Hub id.

    Raises:
        ValueError: it can only be a local path, and there is no folder.
    """
    folder = Path(resolve_path(path))
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"model.path: {path} is a file; name the folder that holds the model")
    if path.startswith("~"):
        raise ValueError(f"model.path: ~ is not expanded in {path}; write the home folder out")
    if path.startswith("embedded") and "/" not in path:
        near = get_close_matches(path, EMBEDDED, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"those of the package are {', '.join(EMBEDDED)}"
        raise ValueError(f"model.path: there is no model {path!r}; {hint}")
    if _HUB_ID.fullmatch(path):
        return None
    known = next((parent for parent in folder.parents if parent.exists()), Path("."))
    raise ValueError(
        f"model.path: there is no folder {path} ({known.resolve()} has no {folder.relative_to(known).parts[0]!r}); "
        "give an existing folder or a Hub id such as org/name"
    )


def source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """What transformers' loaders are given: the folder or id, and what of it is to be loaded how.

    Raises:
        ValueError: as `model_folder`, or a folder is to have a revision.
    """
    _refuse_revision(config, model_folder(config.path))
    revision = {"revision": config.revision} if config.revision else {}
    return resolve_path(config.path), {"trust_remote_code": config.trust_remote_code, **revision}


def _refuse_revision(config: ModelConfig, folder: Path | None) -> None:
    if folder is not None and config.revision is not None:
        raise ValueError(
            f"model.revision is {config.revision!r}, but {config.path} is a local folder, which has none; leave it "
            "out, or name a model of the Hub"
        )


@cache
def check_hub(id: str, revision: str | None = None) -> None:
    """See whether the Hub can be asked for a model that was not downloaded before: a mistyped folder may look like an
    id, and without a network transformers would try for a minute.

    Raises:
        ValueError: it cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    names = ("config.json", "adapter_config.json")
    if any(isinstance(try_to_load_from_cache(id, name, revision=revision), str) for name in names):
        return
    try:
        get_hf_file_metadata(hf_hub_url(id, "config.json", revision=revision))
    except HfHubHTTPError:
        return  # it answers; loading says better what is missing
    except Exception as error:  # of any kind: network, proxy, offline mode
        reason = " ".join(str(error).split()) or type(error).__name__
        at = f" at the revision {revision!r}" if revision else ""
        raise ValueError(
            f"model.path: there is no folder {id}, and the Hub cannot be asked for it{at} ({reason}); give an existing "
            "folder, or connect to the network"
        ) from None


def context_length(folder: Path) -> int | None:
    """The model's context in tokens, if the folder's config.json says so."""
    settings = _read_json(path) if (path := folder / "config.json").is_file() else {}
    inner = settings.get("text_config")
    context = (inner if isinstance(inner, dict) else settings).get("max_position_embeddings")
    return context if isinstance(context, int) and context > 0 else None


def is_surely_text_only(path: str) -> bool:
    """Whether the folder's config.json is that of a causal language model without a setting of images; False where only
    transformers knows, and for a Hub id.

    Raises:
        ValueError: as `model_folder`, or config.json cannot be read.
    """
    folder = model_folder(path)
    if folder is None or not (folder / "config.json").is_file():
        return False
    settings = _read_json(folder / "config.json")
    architectures = settings.get("architectures") or []
    text = bool(architectures) and all(str(name).endswith("ForCausalLM") for name in architectures)
    return text and not any(_OF_IMAGES.search(name) for name in settings)


def _check_template_file(path: Path | None) -> None:
    if path is None:
        return
    import jinja2
    from jinja2.ext import Extension

    class Generation(Extension):
        """The `{% generation %}` block that transformers adds to Jinja."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"model.chat_template: {path}: {error.strerror}; give the path of a Jinja file") from None
    except UnicodeDecodeError:
        raise ValueError(f"model.chat_template: {path} is not UTF-8 text; give a Jinja file") from None
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"model.chat_template: {path}, line {error.lineno}: {error.message}; correct the template"
        ) from None


def _check_architecture(folder: Path, settings: dict[str, Any]) -> None:
    names = settings.get("architectures") or []
    if settings.get("is_encoder_decoder") or (names and all(_NO_CAUSAL_LM.search(str(name)) for name in names)):
        held = ", ".join(map(str, names)) or "an encoder-decoder"
        raise ValueError(f"model.path: {folder} holds {held}, which is not a causal LM; choose a model that generates")


def _check_weights(folder: Path) -> None:
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"model.path: {folder} has no weights (model.safetensors, or shards with an index); download or save them"
        )
    files = [found]
    if found.suffix == ".json":
        shards = _read_json(found).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"model.path: {found} has no weight_map; download it again")
        files = [folder / name for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"model.path: {folder} lacks {len(missing)} of the {len(files)} files that {found.name} names, "
            f"{missing[0]} first; download or copy them"
        )
    for file in files:
        if file.suffix == ".safetensors" and (problem := _safetensors_problem(file)):
            raise ValueError(
                f"model.path: {file} {problem}; download or copy it again (`git lfs pull`, if it came by git)"
            )


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with the file's size or header: 8 bytes little-endian length, JSON header, then the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            return f"is cut short or no safetensors file ({size} bytes)"
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            return "has no readable safetensors header"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size} bytes where its header tells of {expected}"


def _check_tokenizer(folder: Path, needs_template: bool) -> None:
    if not _has_any(folder, _TOKENIZERS):
        raise ValueError(f"model.path: {folder} has no tokenizer files; copy tokenizer.json and tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        _read_json(folder / "tokenizer.json")
    settings = _read_json(path) if (path := folder / "tokenizer_config.json").is_file() else {}
    has_template = settings.get("chat_template") or "auto_map" in settings or _has_any(folder, _CHAT_TEMPLATES)
    if needs_template and not has_template:
        raise ValueError(
            f"model.path: the tokenizer in {folder} has no chat template; set model.chat_template to a Jinja file "
            "(a base model needs one to be asked questions)"
        )


def _has_any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"model.path: {path} cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model.path: {path} is not valid JSON ({error}); download or save it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"model.path: {path} does not hold a JSON object; download or save it again")
    return values
