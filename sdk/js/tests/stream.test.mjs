import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";

import { APIConnectionError, APIError, APITimeoutError, isLast, streamFromUrl } from "../dist/index.js";
import * as vitascope from "../dist/index.js";
import { events, failure, hangUp, ID, json, serve, silence, VIDEO } from "./server.mjs";

const QUEUED = /** @type {[string, string, object]} */ (["1-0", "queued", {}]);
const PLACE = /** @type {[string, string, object]} */ (["", "queued", { position: 2, eta_s: 7.5 }]);
const DONE = /** @type {[string, string, object]} */ (["9-0", "completed", { urls: {} }]);
/** @param {number} step @returns {[string, string, object]} */
const step = (step) => {
  const data = { step, steps: 4, percent: 25 * step, phase: "denoising", eta_s: 1 };
  return [`${step + 1}-0`, "progress", data];
};

/** @template T @param {AsyncIterable<T>} items */
async function collect(items) {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
}

/** @param {AsyncIterable<import("../dist/index.js").VideoEvent>} stream */
const idsOf = async (stream) => (await collect(stream)).map((event) => event.id);

test("a stream ends with the terminal event, however the connection does", async (t) => {
  const { asked, client } = await serve(t, [events([QUEUED, PLACE, step(1), DONE], "stay")]);
  const found = await collect(client.videos.stream(ID));
  assert.deepEqual(found.map((event) => [event.id, event.type]), [
    ["1-0", "queued"],
    [null, "queued"],
    ["2-0", "progress"],
    ["9-0", "completed"],
  ]);
  assert.deepEqual(found[1]?.data, { id: ID, type: "queued", position: 2, eta_s: 7.5 });
  const [{ url, headers }] = asked;
  assert.equal(url, `/v1/videos/${ID}/events`);
  assert.deepEqual([headers.accept, headers.authorization], ["text/event-stream", "Bearer vs_key"]);
  assert.equal(headers["last-event-id"], undefined);
});

test("a broken connection is resumed after the last event, over every kind of failure", async (t) => {
  const { asked, client } = await serve(t, [
    hangUp,
    events([QUEUED, step(1)], "break"),
    failure(503),
    events([step(2), PLACE], "end"),
    events([], "break"),
    events([step(3), DONE]),
  ]);
  assert.deepEqual(await idsOf(client.videos.stream(ID)), ["1-0", "2-0", "3-0", null, "4-0", "9-0"]);
  const resumed = [undefined, undefined, "2-0", "2-0", "3-0", "3-0"];
  assert.deepEqual(asked.map((one) => one.headers["last-event-id"]), resumed);
});

test("a connection that brings events breaks without making the next one wait longer", async (t) => {
  const breaks = Array.from({ length: 10 }, (_, index) => events([step(index)], "break"));
  const { client } = await serve(t, [...breaks, events([DONE])]);
  const beganMs = performance.now();
  assert.equal((await idsOf(client.videos.stream(ID))).length, 11);
  assert.ok(performance.now() - beganMs < 4000); // ten times 10 ms, and not 10 ms doubled ten times
});

test("a stream may begin after an event, and 204 says that nothing comes after it", async (t) => {
  const { asked, client } = await serve(t, [(response) => void response.writeHead(204).end()]);
  assert.deepEqual(await collect(client.videos.stream(ID, { lastEventId: "9-0" })), []);
  assert.equal(asked[0].headers["last-event-id"], "9-0");
});

test("a video that does not exist and a key that is not valid are not asked for again", async (t) => {
  for (const status of [401, 403, 404]) {
    const { asked, client } = await serve(t, [events([QUEUED], "break"), failure(status)]);
    await assert.rejects(collect(client.videos.stream(ID)), { status });
    assert.equal(asked.length, 2);
  }
  const { client } = await serve(t, [json({})]);
  await assert.rejects(collect(client.videos.stream(ID)), (error) => {
    return error instanceof APIError && !(error instanceof APIConnectionError) && /events/.test(error.message);
  });
  const { baseUrl } = await serve(t, [json({})]);
  await assert.rejects(collect(streamFromUrl(`${baseUrl}/x/events?token=secret`)), (error) => {
    return error instanceof APIError && error.message.startsWith(`${baseUrl}/x/events does`);
  });
});

test("a server that stays away is given up in the end", async (t) => {
  const { asked, client } = await serve(t, [events([QUEUED], "break"), hangUp]);
  await assert.rejects(collect(client.videos.stream(ID, { giveUpMs: 500 })), APIConnectionError);
  assert.ok(asked.length >= 2);
});

test("a server is away from its first failure on, however quiet it was before", async (t) => {
  let cut = () => {};
  const { asked, client } = await serve(t, [
    (response, asked) => {
      cut = () => void response.destroy();
      events([QUEUED], "stay")(response, asked);
    },
    hangUp,
    events([DONE]),
  ]);
  const stream = client.videos.stream(ID, { giveUpMs: 30_000 });
  assert.equal((await stream.next()).value?.id, "1-0");
  const beganMs = Date.now();
  let quietMs = 0;
  t.mock.method(Date, "now", () => beganMs + quietMs);
  const next = stream.next();
  quietMs = 40_000;
  cut();
  assert.deepEqual([(await next).value?.id, asked.length], ["9-0", 3]);
});

test("a connection without a heartbeat for 45 s is dead", async (t) => {
  const { asked, client } = await serve(t, [
    events([QUEUED], "stay"),
    silence,
    (response, asked) => void setImmediate(() => events([step(1), DONE])(response, asked)),
  ]);
  const stream = client.videos.stream(ID);
  assert.equal((await stream.next()).value?.id, "1-0");
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const rest = collect(stream);
  /**
   * Let time pass until there are so many connections; return how long.
   *
   * @param {number} number
   * @param {number} mostMs
   */
  const passUntil = async (number, mostMs) => {
    let passedMs = 0;
    for (; asked.length < number && passedMs < mostMs; passedMs++) {
      await new Promise(setImmediate);
      t.mock.timers.tick(1);
    }
    return passedMs;
  };
  for (let beat = 0; beat < 10; beat++) await new Promise(setImmediate); // it waits for the next chunk now
  for (const number of [1, 2]) {
    t.mock.timers.tick(44_000);
    assert.equal(await passUntil(number + 1, 500), 500);
    await passUntil(number + 1, 4000);
    assert.equal(asked.length, number + 1);
  }
  assert.deepEqual((await rest).map((event) => event.id), ["2-0", "9-0"]);
  assert.deepEqual(asked.map((one) => one.headers["last-event-id"]), [undefined, "1-0", "1-0"]);
});

test("who leaves the loop closes the connection", async (t) => {
  /** @type {Promise<unknown>} */
  let closed = Promise.resolve("nobody has asked");
  const { client } = await serve(t, [
    (response, asked) => {
      closed = once(response, "close");
      events([QUEUED], "stay")(response, asked);
    },
  ]);
  for await (const event of client.videos.stream(ID)) if (event.type === "queued") break;
  assert.deepEqual(await closed, []);
});

test("a page follows by events_url alone: no key, no header that needs leave", async (t) => {
  const { asked, baseUrl } = await serve(t, [events([QUEUED], "break"), events([DONE])]);
  const seen = await idsOf(streamFromUrl(`${baseUrl}/v1/videos/${ID}/events?token=a%2Bb`));
  assert.deepEqual(seen, ["1-0", "9-0"]);
  const url = `/v1/videos/${ID}/events?token=a%2Bb`;
  assert.deepEqual(asked.map((one) => one.url), [url, `${url}&last_event_id=1-0`]);
  for (const { headers } of asked) {
    assert.deepEqual([headers.authorization, headers["last-event-id"]], [undefined, undefined]);
  }
  const { baseUrl: expired } = await serve(t, [failure(403, "link_expired")]);
  await assert.rejects(collect(streamFromUrl(`${expired}/events`)), vitascope.PermissionDeniedError);
  assert.throws(() => streamFromUrl("/v1/videos/x/events"), vitascope.VitascopeError);
});

test("every event that ends a video is known", () => {
  const event = (/** @type {string} */ type, data = {}) => /** @type {any} */ ({ id: null, type, data });
  for (const type of ["completed", "failed", "cancelled"]) assert.ok(isLast(event(type)));
  for (const type of ["queued", "progress", "from a newer server"]) assert.ok(!isLast(event(type)));
  assert.ok(isLast(event("snapshot", { status: "failed" })));
  assert.ok(!isLast(event("snapshot", { status: "in_progress" })));
});

test("wait tells how far it is and returns the video", async (t) => {
  /** @type {[string, string, object][]} */
  const ends = [["3-0", "decoding", {}], ["4-0", "postprocessing", {}], DONE];
  const { asked, client } = await serve(t, [
    events([QUEUED, PLACE, ["2-0", "started", {}], step(1), ...ends]),
    json({ ...VIDEO, status: "completed", progress: 100 }),
  ]);
  /** @type {import("../dist/index.js").Progress[]} */
  const seen = [];
  const onProgress = (/** @type {import("../dist/index.js").Progress} */ progress) => void seen.push(progress);
  const video = await client.videos.wait(ID, { onProgress, timeoutMs: Infinity });
  assert.equal(video.status, "completed");
  assert.deepEqual(seen.map((one) => [one.status, one.phase, one.percent, one.queue_position, one.eta_s]), [
    ["queued", "queued", 0, null, null],
    ["queued", "queued", 0, 2, 7.5],
    ["in_progress", "started", 0, null, 7.5],
    ["in_progress", "denoising", 25, null, 1],
    ["in_progress", "decoding", 25, null, null],
    ["in_progress", "postprocessing", 25, null, null],
    ["completed", "completed", 100, null, 0],
  ]);
  assert.equal(asked.length, 2);
});

test("wait asks as often as the server wants where events do not come through", async (t) => {
  const running = { ...VIDEO, status: "in_progress", phase: "denoising", progress: 50, steps_done: 12 };
  const { asked, client } = await serve(t, [
    (response) => void response.writeHead(200, { "content-type": "text/html" }).end("<html>"), // a proxy
    json(VIDEO, { "openai-poll-after-ms": "300" }),
    json(running, { "openai-poll-after-ms": "10" }),
    json({ ...running, status: "failed", phase: "cancelled", error: { code: "cancelled", message: "It was." } }),
  ]);
  /** @type {string[]} */
  const seen = [];
  const video = await client.videos.wait(ID, { onProgress: (one) => void seen.push(`${one.phase} ${one.step}`) });
  assert.deepEqual([video.status, video.error?.code], ["failed", "cancelled"]);
  assert.deepEqual(seen, ["queued 0", "denoising 12", "cancelled 12"]);
  const [, first, second] = asked;
  const waitedMs = second.atMs - first.atMs;
  assert.ok(waitedMs > 280 && waitedMs < 990, `${waitedMs}`);
});

test("wait ends in time, with what its callback throws, and for a video that is not there", async (t) => {
  const { client } = await serve(t, [events([QUEUED], "stay")]);
  await assert.rejects(client.videos.wait(ID, { timeoutMs: 100 }), APITimeoutError);
  const mine = new Error("mine");
  const onProgress = () => {
    throw mine;
  };
  await assert.rejects(client.videos.wait(ID, { onProgress }), mine);
  const { client: other } = await serve(t, [failure(404)]);
  await assert.rejects(other.videos.wait(ID), vitascope.NotFoundError);
  const patience = { "retry-after": "100" };
  const away = [silence, failure(503, "x", patience), failure(429, "x", patience), hangUp, events([], "stay")];
  for (const answers of [...away.map((one) => [one]), ...away.map((one) => [json({}), one])]) {
    const { client: late } = await serve(t, answers);
    const beganMs = performance.now();
    await assert.rejects(late.videos.wait(ID, { timeoutMs: 100 }), /not finished after 0.1 s/);
    const tookMs = performance.now() - beganMs;
    assert.ok(tookMs > 90 && tookMs < 1000, `${tookMs}`);
  }
  const { client: polling } = await serve(t, [json({}), json(VIDEO, { "openai-poll-after-ms": "5000" })]);
  await assert.rejects(polling.videos.wait(ID, { timeoutMs: 100 }), APITimeoutError);
});
