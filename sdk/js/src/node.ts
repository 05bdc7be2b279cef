/** What only Node can do: the environment and files. */

import { randomBytes } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

import { type ClientOptions, type DownloadOptions, Vitascope } from "./client.js";
import { VitascopeError } from "./errors.js";

/** Return a client; address and key that are not given come from VITASCOPE_BASE_URL and VITASCOPE_API_KEY. */
export function fromEnv(options: Partial<ClientOptions> = {}): Vitascope {
  const baseUrl = options.baseUrl ?? process.env["VITASCOPE_BASE_URL"];
  const apiKey = options.apiKey ?? process.env["VITASCOPE_API_KEY"];
  if (!baseUrl) throw new VitascopeError("Set VITASCOPE_BASE_URL, for instance http://127.0.0.1:8000.");
  if (!apiKey) throw new VitascopeError("Set VITASCOPE_API_KEY.");
  return new Vitascope({ ...options, baseUrl, apiKey });
}

/** Download a file of a video to `path`, where it appears only when it is whole. Throws as `videos.download`. */
export async function saveVideo(
  client: Vitascope,
  videoId: string,
  path: string,
  options: DownloadOptions = {},
): Promise<void> {
  const part = join(dirname(path), `.${basename(path)}.${randomBytes(6).toString("hex")}.part`);
  try {
    await client.videos.downloadTo(videoId, (chunks) => write(part, chunks), options);
    await rename(part, path);
  } finally {
    await rm(part, { force: true });
  }
}

async function write(path: string, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  const file = await open(path, "w");
  try {
    for await (const chunk of chunks) await file.writeFile(chunk);
  } finally {
    await file.close();
  }
}
