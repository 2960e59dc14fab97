import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from spark_rl.config import ModelConfig
from spark_rl.models.folder import check_hub, is_surely_text_only, resolve_path
from spark_rl.models.load import load_for_inference, load_model, load_tokenizer


@pytest.mark.parametrize(("base", "kind"), [("embedded", "causal LM"), ("embedded-vision", "vision-language model")])
def test_a_model_without_weights_is_named_as_what_it_was_tried_as(tmp_path, base, kind):
    shutil.copy(Path(resolve_path(base)) / "config.json", tmp_path)
    with pytest.raises(ValueError, match=f"^model.path: no {kind} could be loaded from '{tmp_path}'"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_without_a_network_only_what_was_downloaded_before_is_had(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused = "there is no folder me/solver, and the Hub cannot be asked for it"
    with pytest.raises(ValueError, match=refused):
        load_tokenizer(ModelConfig(path="me/solver"))
    cached = tmp_path / "models--me--solver"
    for path, content in (("refs/main", "0" * 40), (f"snapshots/{'0' * 40}/config.json", "{}")):
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(content)
    check_hub("me/solver")


def test_a_hub_that_answers_is_asked_by_what_loads(tmp_path, monkeypatch):
    """Whatever it answers, here that there is nothing: what is wrong is found, and said, there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/config.json"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: url)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check_hub("me/other")
        server.shutdown()


def test_bfloat16_leaves_the_frequencies_of_positions_as_they_are():
    config = ModelConfig(dtype="bfloat16")
    model = load_for_inference(config)
    exact = load_model(config).model.rotary_emb
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, frequencies in model.model.rotary_emb.named_buffers():
        assert torch.equal(frequencies.cpu(), dict(exact.named_buffers())[name]), name


def test_only_models_without_eyes_are_surely_text_only(tmp_path):
    def is_text(settings):
        (tmp_path / "config.json").write_text(json.dumps(settings, default=str))
        return is_surely_text_only(str(tmp_path))

    assert is_surely_text_only("embedded") and not is_surely_text_only("embedded-vision")
    assert not is_surely_text_only("someone/a-model-of-the-hub") and not is_text({"model_type": "qwen3"})
    seeing = 0
    for kind, architectures in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        if kind in ("mistral4", "vision-encoder-decoder"):  # a language model in spite of the list; no default config
            continue
        settings = CONFIG_MAPPING[kind]().to_dict()
        names = [architectures] if isinstance(architectures, str) else architectures
        assert not is_text({**settings, "architectures": names}), kind
        seeing += any(word in str(settings) for word in ("vision", "image"))
    assert seeing > 50


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_and_named(tmp_path, value):
    """One of them makes every log-probability NaN: all rollouts would be noise, and every update left out."""
    folder = shutil.copytree(resolve_path("embedded"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for load in (load_model, load_for_inference):
        with pytest.raises(ValueError, match=r"model\.path: .*not finite .*in model\.layers\.1\.mlp\.up_proj\.weight"):
            load(ModelConfig(path=str(folder)))
