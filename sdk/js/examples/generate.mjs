// npm ci && npm run build && node examples/generate.mjs "a green star spinning on a black background" star.mp4
//
// Make one video and save it, with the progress on the way. Needs a running stack: `.venv/bin/vitascope up`. Its
// address and key come from VITASCOPE_BASE_URL and VITASCOPE_API_KEY; the key of a local stack is in
// ~/.local/share/vitascope/api_key.

import { readFile } from "node:fs/promises";
import { homedir } from "node:os";

import { VitascopeError } from "../dist/index.js"; // "vitascope" in a project of yours
import { fromEnv, saveVideo } from "../dist/node.js"; // "vitascope/node"

const [prompt = "a red ball bouncing on a blue background", path = "video.mp4"] = process.argv.slice(2);
process.env.VITASCOPE_BASE_URL ??= "http://127.0.0.1:8000";
process.env.VITASCOPE_API_KEY ??= (await readFile(`${homedir()}/.local/share/vitascope/api_key`, "utf8")).trim();

/** @param {import("../dist/index.js").Progress} progress */
function show({ phase, step, steps, percent, eta_s, queue_position }) {
  const bar = "█".repeat(percent / 5).padEnd(20, "░");
  const where = queue_position === null ? `${step}/${steps}` : `${queue_position} in front`;
  const left = eta_s === null ? "" : `, ${Math.ceil(eta_s)} s left`;
  const line = `${bar} ${phase} ${where}${left}`;
  process.stdout.write(process.stdout.isTTY ? `\r\x1b[K${line}` : `${line}\n`);
}

try {
  const client = fromEnv();
  const { id } = await client.videos.create({ prompt });
  const video = await client.videos.wait(id, { onProgress: show });
  if (process.stdout.isTTY) console.log();
  if (video.error !== null) throw new VitascopeError(video.error.message);
  await saveVideo(client, id, path);
  console.log(`${path}: ${video.seconds} s of ${video.size}, seed ${video.seed}`);
} catch (error) {
  if (!(error instanceof VitascopeError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
