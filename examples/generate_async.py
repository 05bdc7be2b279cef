# .venv/bin/python examples/generate_async.py "a red ball bouncing on white" "a blue ring orbiting on black"

"""Make several videos at once and save them, with a bar for each.

Needs a running stack, and its address and key as in generate.py.
"""

import asyncio
import os
import sys
from pathlib import Path

from vitascope_client import AsyncVitascope, VitascopeError

BAR_CHARS = 30
PROMPTS = ("a red ball bouncing on a white background", "a green star spinning on a black background")


class Bars:
    """One line per video on a terminal, drawn over itself; elsewhere a line whenever a phase begins."""

    def __init__(self, prompts: list[str]) -> None:
        self._prompts = prompts
        self._lines = ["…"] * len(prompts)
        self._is_terminal = sys.stdout.isatty()
        if self._is_terminal:
            print("\n" * (len(prompts) - 1))

    def show(self, number: int, phase: str, percent: float = 0.0) -> None:
        """Draw the bar of one video."""
        if self._is_terminal:
            done = round(BAR_CHARS * percent / 100)
            self._lines[number] = f"{'█' * done}{'░' * (BAR_CHARS - done)} {phase}: {self._prompts[number]}"
            print(f"\033[{len(self._lines)}A" + "\n".join(f"\033[K{line}" for line in self._lines), flush=True)
        elif self._lines[number] != phase:
            self._lines[number] = phase
            print(f"{self._prompts[number]}: {phase}")


async def make(client: AsyncVitascope, number: int, prompt: str, bars: Bars) -> None:
    """Make one video and save it; what goes wrong with it stops no other."""
    try:
        video = await client.videos.create(prompt=prompt)
        video = await client.videos.wait(video.id, on_progress=lambda now: bars.show(number, now.phase, now.percent))
        if video.error is not None:
            bars.show(number, video.error.message)
            return
        path = await client.videos.download(video.id, f"video-{number + 1}.mp4")
        bars.show(number, f"saved {path}", 100.0)
    except VitascopeError as error:
        bars.show(number, str(error))


async def main(prompts: list[str], base_url: str, api_key: str) -> None:
    """Make them all."""
    bars = Bars(prompts)
    async with AsyncVitascope(base_url=base_url, api_key=api_key) as client, asyncio.TaskGroup() as group:
        for number, prompt in enumerate(prompts):
            group.create_task(make(client, number, prompt, bars))


if __name__ == "__main__":
    address = os.environ.get("VITASCOPE_BASE_URL", "http://127.0.0.1:8000")
    key_file = Path.home() / ".local/share/vitascope/api_key"
    key = os.environ.get("VITASCOPE_API_KEY") or key_file.read_text().strip()
    asyncio.run(main(sys.argv[1:] or list(PROMPTS), address, key))
