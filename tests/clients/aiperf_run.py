"""aiperf, NVIDIA's benchmark: `aiperf_run.py`, with OPENAI_BASE_URL and OPENAI_API_KEY, by the Python of its venv."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

COLOURS = ("red", "green", "blue")
NUM_REQUESTS = len(COLOURS)


def make_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single letters: aiperf wants one to count with, and would fetch it otherwise."""
    letters = {chr(code): number for number, code in enumerate(range(32, 127))}
    tokenizer = Tokenizer(models.WordLevel({**letters, "[UNK]": len(letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


def profile(folder: Path, *more: str) -> dict[str, object]:
    """Run a benchmark; return what aiperf reports."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"a {colour} circle moving right"}) + "\n" for colour in COLOURS))
    command = [str(Path(sys.executable).parent / "aiperf"), "profile", "--model", "vita-mini-6"]
    command += ["--endpoint-type", "video-generation", "--url", os.environ["OPENAI_BASE_URL"].removesuffix("/v1")]
    command += ["--api-key", os.environ["OPENAI_API_KEY"], "--tokenizer", str(folder / "tokenizer")]
    command += ["--request-count", str(NUM_REQUESTS), "--concurrency", "2"]
    command += ["--input-file", str(prompts), "--custom-dataset-type", "single_turn"]
    command += ["--extra-inputs", '{"seconds": 1, "size": "64x64", "num_inference_steps": 4, "seed": 7}']
    command += ["--artifact-dir", str(folder / "report"), "--ui-type", "none", *more]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = list((folder / "report").rglob("profile_export_aiperf.json"))
    if run.returncode or not found:
        raise SystemExit(f"aiperf ended with {run.returncode}:\n{run.stdout[-4000:]}{run.stderr[-2000:]}")
    return dict(json.loads(found[0].read_text()))


def main() -> None:
    """Benchmark with JSON bodies and downloads, then with forms."""
    ways = {
        "JSON, with downloads": ["--download-video-content"],
        "forms": ["--request-content-type", "multipart/form-data"],
    }
    for what, more in ways.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_tokenizer(folder / "tokenizer")
            report = profile(folder, *more)
        count, errors = report.get("request_count"), report.get("error_request_count")
        num_done = count.get("avg") if isinstance(count, dict) else count
        if num_done != NUM_REQUESTS or errors not in (None, 0) or report.get("error_summary"):
            raise SystemExit(f"aiperf, {what}: {num_done} of {NUM_REQUESTS}: {errors} {report.get('error_summary')}")
        print(f"ok  {what}: {NUM_REQUESTS} of {NUM_REQUESTS}", flush=True)


if __name__ == "__main__":
    main()
