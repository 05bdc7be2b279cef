// openai for JavaScript: `node openai_js.mjs` beside node_modules/openai, with OPENAI_BASE_URL and OPENAI_API_KEY.

import { readFileSync, writeFileSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "package.json"));
const { default: OpenAI, toFile } = await import(pathToFileURL(require.resolve("openai")).href);

const RED = "a small red circle moving right on a white background";
const GREEN = RED.replace("red", "green");

function check(what, isSo) {
  if (!isSo) throw new Error(`${what}: NO`);
  console.log(`ok  ${what}`);
}

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    if (error instanceof OpenAI.APIError) return error;
    throw error;
  }
  throw new Error("it was not refused");
}

const client = new OpenAI();

async function finished({ id }) {
  for (;;) {
    const video = await client.videos.retrieve(id); // this client has no poll
    if (!["queued", "in_progress"].includes(video.status)) return video;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

async function download(id, variant) {
  const answer = await client.videos.downloadContent(id, { variant });
  return Buffer.from(await answer.arrayBuffer());
}

/** Run the sample of docs/webhooks.md on a free port: gives its URL, and what it prints. */
async function receiver(secret) {
  const page = readFileSync(new URL("../../docs/webhooks.md", import.meta.url), "utf8");
  const sample = /```js\n([^]*?)```/.exec(page)[1];
  const path = join(process.cwd(), "webhook-sample.mjs");
  const printed = [];
  const told = new Promise((resolve) => {
    globalThis.webhookSample = { console: { log: (...words) => printed.push(words.join(" ")) }, listening: resolve };
  });
  const here = sample.replace("whsec_…", secret).replace("console.log", "webhookSample.console.log");
  writeFileSync(path, here.replace("listen(8080)", 'listen(0, "127.0.0.1", function () { webhookSample.listening(this.unref()); })'));
  await import(pathToFileURL(path).href);
  return [`http://127.0.0.1:${(await told).address().port}/hook`, printed];
}

const [hook, printed] = await receiver((await client.get("/webhooks/default/secret")).signing_secret);
const wanted = { prompt: RED, model: "sora-2", seconds: "1", size: "64x64", seed: 7 };
const made = await client.videos.create({ ...wanted, webhook_url: hook });
const video = await finished(made);
check("create, poll", video.status === "completed" && video.seconds === "1" && video.size === "64x64" && video.seed === 7);
while (printed.length === 0) await new Promise((resolve) => setTimeout(resolve, 100));
check("a webhook, by the sample of its page", printed.join() === `video.completed ${video.id}`);
const forged = { "webhook-id": "evt_1", "webhook-timestamp": `${Math.floor(Date.now() / 1000)}`, "webhook-signature": "v1,AAAA" };
check("a forged one is refused", (await fetch(hook, { method: "POST", headers: forged, body: "{}" })).status === 400);
const clip = await download(video.id, "video");
check("download video", clip.subarray(4, 8).toString() === "ftyp");
check("download thumbnail", (await download(video.id, "thumbnail")).subarray(8, 12).toString() === "WEBP");
check("download spritesheet", (await download(video.id, "spritesheet"))[0] === 0xff);

const file = await toFile(clip, "clip.mp4", { type: "video/mp4" });
const from = {
  remix: await client.videos.remix(video.id, { prompt: GREEN }),
  "edit by id": await client.videos.edit({ prompt: GREEN, video: { id: video.id } }),
  "extend by id": await client.videos.extend({ prompt: RED, seconds: "1", video: { id: video.id } }),
};
for (const [name, one] of Object.entries(from)) {
  const done = await finished(one);
  check(name, done.status === "completed" && done.remixed_from_video_id === video.id);
}
const edit = await finished(await client.videos.edit({ prompt: GREEN, video: file, seconds: "1" }));
check("edit a file", edit.status === "completed");
const character = await refusal(client.videos.createCharacter({ name: "x", video: file }));
check("characters are unsupported", character.code === "unsupported");

const listed = [];
for await (const one of client.videos.list({ limit: 2 })) listed.push(one.id);
check("list, page by page", listed.includes(video.id) && listed.includes(edit.id) && new Set(listed).size === listed.length);
const models = [];
for await (const one of client.models.list()) models.push(one.id);
check("models", models.includes(video.model));

const error = await refusal(client.videos.create({ prompt: RED, seconds: "7" }));
check("an error names its field", error.status === 400 && error.param === "seconds" && error.code === "invalid_request");
check("an error has a request id", Boolean(error.requestID));
const deleted = await client.videos.delete(video.id);
check("delete", deleted.id === video.id && deleted.deleted === true && deleted.object === "video.deleted");
check("a deleted video is gone", (await refusal(client.videos.retrieve(video.id))).code === "not_found");

const page = await readFile(new URL("../../docs/api.md", import.meta.url), "utf8");
const sample = [...page.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code]) => code).find((code) => code.includes('"openai"'));
const path = join(process.cwd(), "ring.mjs");
await writeFile(path, sample);
await import(pathToFileURL(path).href);
check("the sample of docs/api.md", (await readFile("ring.mp4")).subarray(4, 8).toString() === "ftyp");
