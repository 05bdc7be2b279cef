/** Against a running stack, whose address and key are in VITASCOPE_BASE_URL and VITASCOPE_API_KEY. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { text } from "node:stream/consumers";

import { InvalidRequestError, ModerationBlockedError, NotFoundError, streamFromUrl } from "../dist/index.js";
import { fromEnv, saveVideo } from "../dist/node.js";
import { startProxy } from "./proxy.mjs";

const PROMPT = "a red circle moving right on a black background";
const client = fromEnv();

test("the life of a video: made, followed, waited for, downloaded, listed, deleted", async (t) => {
  const [model] = await client.models.list();
  assert.equal(model?.id, "vita-mini-6");
  const video = await client.videos.create({ prompt: PROMPT, seed: 3, metadata: { from: "js" } });
  assert.deepEqual([video.status, video.seed, video.metadata, video.error], ["queued", 3, { from: "js" }, null]);
  await assert.rejects(client.videos.download(video.id), { code: "video_not_ready" });

  const events = [];
  for await (const event of client.videos.stream(video.id)) events.push(event);
  const types = events.map((event) => event.type);
  assert.deepEqual([types[0], types.at(-1)], ["queued", "completed"]);
  const steps = events.flatMap((event) => (event.type === "progress" && event.data.step ? [event.data.step] : []));
  assert.deepEqual(steps, Array.from({ length: steps.length }, (_, index) => index + 1));
  assert.ok(steps.length > 5);

  /** @type {import("../dist/index.js").Progress[]} */
  const seen = [];
  const done = await client.videos.wait(video.id, { onProgress: (progress) => void seen.push(progress) });
  assert.deepEqual([done.status, done.progress, done.size], ["completed", 100, "128x128"]);
  assert.deepEqual([seen.at(-1)?.status, seen.at(-1)?.percent], ["completed", 100]);

  const film = await client.videos.download(video.id);
  assert.equal(Buffer.from(await film.slice(4, 8).arrayBuffer()).toString(), "ftyp");
  assert.equal(film.type, "video/mp4");
  const picture = await client.videos.download(video.id, { variant: "thumbnail" });
  assert.equal(Buffer.from(await picture.slice(8, 12).arrayBuffer()).toString(), "WEBP");
  const folder = await mkdtemp(join(tmpdir(), "vitascope-"));
  t.after(() => rm(folder, { recursive: true }));
  await saveVideo(client, video.id, join(folder, "clip.mp4"));
  assert.ok((await readFile(join(folder, "clip.mp4"))).equals(Buffer.from(await film.arrayBuffer())));

  const late = [];
  for await (const event of client.videos.stream(video.id, { lastEventId: events.at(-1)?.id })) late.push(event);
  assert.deepEqual(late, []);

  const told = []; // as a page hears it, which has no key
  for await (const event of streamFromUrl(done.events_url)) told.push(event.id);
  const kept = [];
  for await (const event of client.videos.stream(video.id)) kept.push(event.id);
  assert.deepEqual(told, kept);
  await client.videos.delete(video.id);
  await assert.rejects(client.videos.retrieve(video.id), NotFoundError);
});

test("the same key makes one video; a list goes on over pages; what waits can be cancelled", async () => {
  const made = [];
  for (const idempotencyKey of ["js-1", "js-2", "js-1", "js-3"]) {
    const params = { prompt: PROMPT, num_inference_steps: 200, priority: 1 };
    made.push((await client.videos.create(params, { idempotencyKey })).id);
  }
  const ids = [...new Set(made)];
  assert.equal(ids.length, 3);
  for (const id of ids) {
    const { status, error } = await client.videos.cancel(id);
    assert.deepEqual([status, error?.code], ["failed", "cancelled"]);
  }
  const listed = [];
  for await (const video of client.videos.list({ limit: 1, order: "asc" })) listed.push(video.id);
  assert.deepEqual(listed.filter((id) => ids.includes(id)), ids);
  assert.equal(new Set(listed).size, listed.length);
  const page = await client.videos.page({ limit: 2 });
  assert.deepEqual([page.data.length, page.has_more], [2, true]);
});

test("videos of videos: priced, made, drawn over, continued", async () => {
  const [model] = await client.videos.models();
  const price = await client.videos.estimate({ prompt: PROMPT, seconds: 1 });
  assert.deepEqual([price.model, price.seconds, price.currency], [model?.id, "1", "USD"]);
  assert.equal(price.price, model?.price.per_second);
  assert.ok(price.run_seconds > 0);
  const first = await client.videos.create({ prompt: PROMPT, seconds: 1, num_inference_steps: 8 });
  await assert.rejects(client.videos.remix(first.id, { prompt: "a blue circle" }), { code: "video_not_ready" });
  assert.equal((await client.videos.wait(first.id)).status, "completed");
  const short = { num_inference_steps: 8, seconds: 1 };
  const remix = await client.videos.remix(first.id, { prompt: "a blue circle moving right", strength: 0.5, ...short });
  const longer = await client.videos.extend({ prompt: PROMPT, video: { id: first.id }, ...short });
  for (const { id, remixed_from_video_id } of [remix, longer]) {
    assert.equal(remixed_from_video_id, first.id);
    assert.equal((await client.videos.wait(id)).status, "completed");
  }
  assert.ok(longer.num_frames > first.num_frames);
  await assert.rejects(client.videos.edit({ prompt: "x", video: new Blob(["film"]) }), { param: "video" });
});

test("what is refused says why", async () => {
  await assert.rejects(client.videos.create({ prompt: "a naked child" }), (error) => {
    assert.ok(error instanceof ModerationBlockedError);
    assert.deepEqual([error.status, error.code], [400, "moderation_blocked"]);
    return /^req_/.test(error.requestId ?? "");
  });
  await assert.rejects(client.videos.create({ prompt: "x", seconds: 7 }), (error) => {
    return error instanceof InvalidRequestError && error.param === "seconds" && /"4"/.test(error.message);
  });
  await assert.rejects(client.videos.stream(`video_${"f".repeat(32)}`).next(), NotFoundError);
});

test("a stream whose connection is cut again and again has no gap and no duplicate", async (t) => {
  const proxy = await startProxy(client.baseUrl);
  t.after(() => proxy.close());
  const shaky = fromEnv({ baseUrl: proxy.url });
  const picture = await readFile(new URL("./frame.png", import.meta.url));
  const video = await shaky.videos.create({ prompt: PROMPT, input_reference: new Blob([picture]) });
  const seen = [];
  let numCuts = 0;
  let cutAt = 0; // connections so far; what is read after a cut may have been on its way before it
  for await (const event of shaky.videos.stream(video.id)) {
    if (event.id !== null) seen.push(event.id);
    if (event.id !== null && seen.length % 4 === 0 && proxy.numConnections() > cutAt) {
      cutAt = proxy.numConnections();
      proxy.cut();
      numCuts++;
    }
  }
  assert.ok(numCuts >= 2, `${numCuts} cuts`);
  assert.ok(proxy.numConnections() > numCuts);
  const all = [];
  for await (const event of client.videos.stream(video.id, { lastEventId: "0" })) all.push(event.id);
  assert.deepEqual(seen, all.filter((id) => id !== null));
  assert.equal((await shaky.videos.wait(video.id)).status, "completed");
});

test("the example makes a video and saves it", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "vitascope-"));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, "star.mp4");
  const example = new URL("../examples/generate.mjs", import.meta.url).pathname;
  const child = spawn(process.execPath, [example, "a green star", path], { stdio: ["ignore", "pipe", "inherit"] });
  const shown = await text(child.stdout);
  assert.match(shown, /denoising/);
  assert.match(shown, /star\.mp4/);
  assert.equal((await readFile(path)).subarray(4, 8).toString(), "ftyp");
});
