"""Tiny random models and a tiny tokenizer, for tests that need the real classes and no download."""

from __future__ import annotations

import gc
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import warm
from hypothesis import settings

VOCAB_SIZE = 64
PAD_ID, EOS_ID = 0, 1

settings.register_profile("no-deadline", deadline=None)  # a busy machine is no reason for a test to fail
settings.load_profile("no-deadline")


def pytest_configure(config: pytest.Config) -> None:
    """Commands that tests interrupt inherit what this process ignores, and a shell's background job ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist are given the folder of their parent
        folder = tempfile.TemporaryDirectory(prefix="spark-rl-warm-")
        warm.open_folder(folder.name)
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish() -> None:
    """Modules stay; to look among them for garbage again and again takes a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """One token a character, 64 of them: `<pad>`, `<eos>`, then letters, digits and signs. Decoding adds nothing."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[: VOCAB_SIZE - 3] + " "
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *signs])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny_model(family, **config)`: a random float32 model of two layers, initialised wide (std 0.2) so that
    attention matters, the same one for the same arguments."""
    import torch
    import transformers

    def make(family: str = "Qwen3", **config: Any) -> Any:
        torch.manual_seed(0)
        values = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "pad_token_id": PAD_ID,
            "eos_token_id": EOS_ID,
            "bos_token_id": None,
            **config,
        }
        model_class = getattr(transformers, f"{family}ForCausalLM")
        return model_class(model_class.config_class(**values)).float().eval()

    return make


@pytest.fixture
def every_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever prompts begin with in common is taken for worth computing once."""
    from spark_rl.models import prefixes

    monkeypatch.setattr(prefixes, "_FREE", 0)
    monkeypatch.setattr(prefixes, "_FIXED", 0)
