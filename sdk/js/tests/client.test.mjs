import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";

import * as vitascope from "../dist/index.js";
import { fromEnv, saveVideo } from "../dist/node.js";
import { failure, hangUp, ID, json, serve, silence, VIDEO } from "./server.mjs";

const { APIConnectionError, APIError, APITimeoutError, NotFoundError, Vitascope, VitascopeError } = vitascope;

test("create sends what was given and nothing else", async (t) => {
  const { asked, client } = await serve(t, [json(VIDEO, {}, 202)]);
  const params = { prompt: "a circle", seconds: 4, seed: 0, model: undefined, metadata: { a: "b" } };
  const video = await client.videos.create(params);
  assert.equal(video.id, ID);
  const [{ method, url, headers, body }] = asked;
  assert.deepEqual(JSON.parse(body.toString()), { prompt: "a circle", seconds: 4, seed: 0, metadata: { a: "b" } });
  assert.deepEqual([method, url, headers.authorization], ["POST", "/v1/videos", "Bearer vs_key"]);
  await assert.rejects(client.videos.create({ prompt: "x", seed: NaN }), /seed/);
});

test("a call is repeated under one key, another call has another", async (t) => {
  const { asked, client } = await serve(t, [failure(503), hangUp, json(VIDEO, {}, 202)]);
  await client.videos.create({ prompt: "x" });
  await client.videos.retry(ID);
  await client.videos.create({ prompt: "x" }, { idempotencyKey: "mine" });
  const keys = asked.map((one) => one.headers["idempotency-key"]);
  assert.equal(keys.length, 5);
  assert.equal(new Set(keys.slice(0, 3)).size, 1);
  assert.match(String(keys[0]), /^[0-9a-f]{32}$/);
  assert.notEqual(keys[3], keys[0]);
  assert.equal(keys[4], "mine");
});

test("files go as a form, with everything else beside them", async (t) => {
  const { asked, client } = await serve(t, [failure(503), json(VIDEO, {}, 202)]);
  const file = new Blob([Uint8Array.of(1, 2, 3)], { type: "image/png" });
  const metadata = { a: "b" };
  await client.videos.create({ prompt: "ü", seed: 7, metadata, input_reference: file, last_frame: Uint8Array.of(4) });
  for (const { headers, body } of asked) {
    const type = String(headers["content-type"]);
    const form = await new Response(Uint8Array.from(body), { headers: { "content-type": type } }).formData();
    assert.deepEqual([...form.keys()], ["prompt", "seed", "metadata", "input_reference", "last_frame"]);
    assert.deepEqual([form.get("prompt"), form.get("seed"), form.get("metadata")], ["ü", "7", '{"a":"b"}']);
    const [first, last] = [form.get("input_reference"), form.get("last_frame")];
    assert.ok(first instanceof Blob && last instanceof Blob);
    assert.deepEqual([first.type, ...Buffer.from(await first.arrayBuffer())], ["image/png", 1, 2, 3]);
    assert.deepEqual([...Buffer.from(await last.arrayBuffer())], [4]);
  }
  assert.equal(asked.length, 2);
});

test("what makes videos of videos has its own addresses", async (t) => {
  const made = json(VIDEO, {}, 202);
  const { asked, client } = await serve(t, [made, made, made, made, json({ price: 0.2 })]);
  await client.videos.remix(ID, { prompt: "x" });
  await client.videos.edit({ prompt: "x", video: { id: ID } });
  await client.videos.extend({ prompt: "x", video: new Blob(["film"]), seconds: "4" });
  await client.videos.extend({ prompt: "x", video: ID, seconds: "4" });
  assert.equal((await client.videos.estimate({ prompt: "x" })).price, 0.2);
  const paths = [`/v1/videos/${ID}/remix`, "/v1/videos/edits", "/v1/videos/extensions", "/v1/videos/extensions"];
  assert.deepEqual(asked.map((one) => one.url), [...paths, "/v1/videos/estimate"]);
  assert.deepEqual(JSON.parse(asked[1].body.toString()), { prompt: "x", video: { id: ID } });
  assert.match(String(asked[2].headers["content-type"]), /^multipart\/form-data/);
});

test("the server says whether and when to ask again", async (t) => {
  const soon = await serve(t, [failure(503, "x", { "retry-after": "1" }), json(VIDEO)]);
  await soon.client.videos.retrieve(ID);
  assert.ok(soon.asked[1].atMs - soon.asked[0].atMs > 950);
  const exactly = await serve(t, [failure(429, "x", { "retry-after-ms": "600", "retry-after": "50" }), json(VIDEO)]);
  await exactly.client.videos.retrieve(ID);
  const waitedMs = exactly.asked[1].atMs - exactly.asked[0].atMs;
  assert.ok(waitedMs > 550 && waitedMs < 5000, `${waitedMs}`);
  const never = await serve(t, [failure(503, "x", { "x-should-retry": "false" })]);
  await assert.rejects(never.client.videos.retrieve(ID), { shouldRetry: false });
  assert.equal(never.asked.length, 1);
  const indeed = await serve(t, [failure(409, "x", { "x-should-retry": "true" }), json(VIDEO)]);
  await indeed.client.videos.retrieve(ID);
  const late = await serve(t, [failure(429, "x", { "retry-after": "3600" })]);
  await assert.rejects(late.client.videos.retrieve(ID), { retryAfterMs: 3_600_000 });
  assert.equal(late.asked.length, 1);
  const date = new Date(Date.now() + 7_200_000).toUTCString();
  const dated = await serve(t, [failure(503, "x", { "retry-after": date })]);
  await assert.rejects(dated.client.videos.retrieve(ID), (error) => {
    assert.ok(error instanceof vitascope.ServerError);
    return Math.abs(Number(error.retryAfterMs) - 7_200_000) < 10_000;
  });
});

test("it is not asked for ever, and what is wrong is not asked again", async (t) => {
  const away = await serve(t, [failure(503)], { maxRetries: 1 });
  await assert.rejects(away.client.videos.retrieve(ID), vitascope.ServerError);
  assert.equal(away.asked.length, 2);
  const wrong = await serve(t, [failure(409)]);
  await assert.rejects(wrong.client.videos.retry(ID), vitascope.InvalidRequestError);
  assert.equal(wrong.asked.length, 1);
});

test("an error carries what the server said", async (t) => {
  /** @type {[number, string, typeof vitascope.APIStatusError][]} */
  const table = [
    [400, "invalid_request", vitascope.InvalidRequestError],
    [400, "moderation_blocked", vitascope.ModerationBlockedError],
    [401, "invalid_api_key", vitascope.AuthenticationError],
    [403, "permission_denied", vitascope.PermissionDeniedError],
    [404, "video_not_ready", NotFoundError],
    [410, "video_expired", NotFoundError],
    [413, "body_too_large", vitascope.InvalidRequestError],
    [422, "idempotency_key_reuse", vitascope.InvalidRequestError],
    [429, "quota_exceeded", vitascope.RateLimitError],
    [451, "output_blocked", vitascope.ModerationBlockedError],
    [503, "unavailable", vitascope.ServerError],
  ];
  for (const [status, code, kind] of table) {
    const { client } = await serve(t, [failure(status, code)], { maxRetries: 0 });
    await assert.rejects(client.videos.create({ prompt: "x" }), (error) => {
      assert.ok(error instanceof kind);
      const { name, message, param, requestId } = error;
      assert.deepEqual([name, message, param, requestId], [kind.name, "No.", "seconds", "req_1"]);
      assert.deepEqual([error.status, error.code, error.retryAfterMs], [status, code, null]);
      return true;
    });
  }
});

test("an answer that is not the server's own is still an error", async (t) => {
  for (const body of ["<html>", "[]", '{"error": "text"}', "{}", "null", ""]) {
    const { client } = await serve(t, [(response) => response.writeHead(502).end(body)], { maxRetries: 0 });
    await assert.rejects(client.videos.retrieve(ID), (error) => {
      return error instanceof vitascope.ServerError && /502/.test(error.message) && error.code === null;
    });
  }
  const { client } = await serve(t, [(response) => response.end("<html>")]);
  await assert.rejects(client.videos.retrieve(ID), (error) => {
    return error instanceof APIError && /baseUrl/.test(error.message);
  });
});

test("a server that is silent or away is an error of its own", async (t) => {
  const silent = await serve(t, [silence], { timeoutMs: 50, maxRetries: 1 });
  await assert.rejects(silent.client.videos.retrieve(ID), APITimeoutError);
  assert.equal(silent.asked.length, 2);
  const halfway = await serve(t, [(response) => void response.write("{")], { timeoutMs: 50, maxRetries: 0 });
  await assert.rejects(halfway.client.videos.retrieve(ID), APITimeoutError);
  const away = new Vitascope({ baseUrl: "http://127.0.0.1:9", apiKey: "k", maxRetries: 0 });
  await assert.rejects(away.videos.retrieve(ID), (error) => {
    return error instanceof APIConnectionError && !(error instanceof APITimeoutError) && error.cause !== undefined;
  });
});

test("a signal ends a call at any time, with its reason", async (t) => {
  const { client } = await serve(t, [silence]);
  const reason = new Error("enough");
  const signal = AbortSignal.abort(reason);
  await assert.rejects(client.videos.retrieve(ID, { signal }), reason);
  await assert.rejects(client.videos.wait(ID, { signal }), reason);
  await assert.rejects(client.videos.stream(ID, { signal }).next(), reason);
  const later = new AbortController();
  const waiting = client.videos.retrieve(ID, { signal: later.signal });
  setImmediate(() => later.abort(reason));
  await assert.rejects(waiting, reason);
  const pausing = new AbortController();
  const { client: refused } = await serve(t, [
    (response, asked) => {
      failure(503, "x", { "retry-after": "50" })(response, asked);
      response.on("close", () => pausing.abort(reason));
    },
  ]);
  await assert.rejects(refused.videos.retrieve(ID, { signal: pausing.signal }), reason);
});

test("a delete that was done at the first attempt has succeeded at the second", async (t) => {
  const { client } = await serve(t, [hangUp, failure(404)]);
  await client.videos.delete(ID);
  const { client: other } = await serve(t, [failure(404)]);
  await assert.rejects(other.videos.delete(ID), NotFoundError);
});

for (const host of ["127.0.0.1", "localhost"]) {
  test(`a delete that never left has not been done, at ${host}`, async (t) => {
    const server = createServer((_, response) => {
      asked += 1;
      failure(404)(response, /** @type {any} */ (null));
    });
    let asked = 0;
    const listen = async (port = 0) => {
      await once(server.listen(port, "127.0.0.1"), "listening");
      return /** @type {import("node:net").AddressInfo} */ (server.address()).port;
    };
    const port = await listen();
    await new Promise((resolve) => server.close(resolve));
    t.after(() => server.close());
    const startsLate = async (/** @type {string} */ url, /** @type {RequestInit} */ init) => {
      try {
        return await fetch(url, init);
      } catch (error) {
        await listen(port);
        throw error;
      }
    };
    const client = new Vitascope({ baseUrl: `http://${host}:${port}`, apiKey: "k", fetch: startsLate });
    await assert.rejects(client.videos.delete(ID), NotFoundError);
    assert.equal(asked, 1);
  });
}

test("a list goes on from page to page, and no further than it is read", async (t) => {
  const page = (/** @type {string[]} */ ids, /** @type {boolean} */ has_more) =>
    json({ object: "list", data: ids.map((id) => ({ ...VIDEO, id })), last_id: ids.at(-1) ?? null, has_more });
  const pages = [page(["a", "b"], true), page(["c"], true), page([], false)];
  const { asked, client } = await serve(t, pages);
  const seen = [];
  for await (const video of client.videos.list({ limit: 2, order: "asc" })) seen.push(video.id);
  assert.deepEqual(seen, ["a", "b", "c"]);
  const query = "/v1/videos?limit=2&order=asc";
  const next = (/** @type {string} */ id) => `/v1/videos?after=${id}&limit=2&order=asc`;
  assert.deepEqual(asked.map((one) => one.url), [query, next("b"), next("c")]);
  const { asked: askedOnce, client: other } = await serve(t, pages);
  for await (const video of other.videos.list()) if (video.id === "b") break;
  assert.equal(askedOnce.length, 1);
});

test("a download whose connection breaks begins again, and a file appears only when it is whole", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "vitascope-"));
  t.after(() => rm(folder, { recursive: true }));
  const film = Buffer.alloc(300_000, "film");
  const whole = (/** @type {import("node:http").ServerResponse} */ response) =>
    void response.writeHead(200, { "content-type": "video/mp4", "content-length": film.length }).end(film);
  const broken = (/** @type {import("node:http").ServerResponse} */ response) => {
    response.writeHead(200, { "content-length": film.length });
    response.write(film.subarray(0, 1000), () => response.destroy());
  };
  const { asked, client } = await serve(t, [broken, whole]);
  const blob = await client.videos.download(ID, { variant: "thumbnail" });
  assert.deepEqual([blob.type, Buffer.from(await blob.arrayBuffer()).equals(film)], ["video/mp4", true]);
  assert.deepEqual(asked.map((one) => one.url), Array(2).fill(`/v1/videos/${ID}/content?variant=thumbnail`));

  const path = join(folder, "clip.mp4");
  const { client: again } = await serve(t, [broken, whole]);
  await saveVideo(again, ID, path);
  assert.ok((await readFile(path)).equals(film));
  await writeFile(path, "the old one");
  const { client: never } = await serve(t, [broken], { maxRetries: 1 });
  await assert.rejects(saveVideo(never, ID, path), APIConnectionError);
  assert.deepEqual([await readdir(folder), await readFile(path, "utf8")], [["clip.mp4"], "the old one"]);
});

test("JSON of another server asks for the address", async (t) => {
  for (const body of [{ ok: true }, [], "no", 5, null]) {
    const { asked, client } = await serve(t, [json(body)]);
    const calls = [
      () => client.videos.create({ prompt: "x" }),
      () => client.videos.estimate({ prompt: "x" }),
      () => client.videos.retrieve(ID),
      () => client.videos.wait(ID),
      () => client.videos.delete(ID),
      () => client.videos.list().next(),
      () => client.videos.models(),
      () => client.models.list(),
    ];
    for (const call of calls) {
      await assert.rejects(call, (error) => {
        return error instanceof APIError && !(error instanceof APIConnectionError) && /baseUrl/.test(error.message);
      });
    }
    assert.equal(asked.length, calls.length + 1); // `wait` asks for events first
  }
});

test("nothing but reading is redirected", async (t) => {
  for (const status of [301, 302, 303, 307, 308]) {
    /** @type {[string, (baseUrl: string) => string][]} */
    const locations = [
      ["https://user:secret@moved.test:8443/secret?token=secret", () => " to https://moved.test:8443"],
      ["/secret", (baseUrl) => ` to ${baseUrl}`],
      ["http://[secret", () => ""],
    ];
    for (const [location, where] of locations) {
      /** @type {import("./server.mjs").Answer} */
      const redirect = (response) => void response.writeHead(status, { location }).end();
      const { asked, baseUrl, client } = await serve(t, [redirect]);
      const calls = [
        () => client.videos.create({ prompt: "x" }),
        () => client.videos.edit({ prompt: "x", video: new Blob(["film"]) }),
        () => client.videos.cancel(ID),
      ];
      for (const call of calls) {
        const message = `The server redirects this POST${where(baseUrl)}; is baseUrl right?`;
        await assert.rejects(call, { name: "APIError", message });
      }
      const message = `The server redirects this DELETE${where(baseUrl)}; is baseUrl right?`;
      await assert.rejects(client.videos.delete(ID), { name: "APIError", message });
      assert.equal(asked.length, calls.length + 1);
    }
    const location = `/v1/videos/${ID}/there`;
    /** @type {import("./server.mjs").Answer} */
    const redirect = (response) => void response.writeHead(status, { location }).end();
    const { asked, client } = await serve(t, [redirect, json(VIDEO)]);
    assert.equal((await client.videos.retrieve(ID)).id, ID);
    assert.equal(asked[1].headers.authorization, "Bearer vs_key");
  }
});

test("a browser does not say where a redirect leads, and it is the same error", async () => {
  let numAsked = 0;
  const answer = Object.defineProperties(new Response(null), {
    type: { value: "opaqueredirect" },
    status: { value: 0 },
    ok: { value: false },
  });
  const browser = async () => {
    numAsked++;
    return answer;
  };
  const client = new Vitascope({ baseUrl: "http://a.test", apiKey: "k", fetch: browser });
  const message = "The server redirects this POST; is baseUrl right?";
  await assert.rejects(client.videos.create({ prompt: "x" }), { name: "APIError", message });
  assert.equal(numAsked, 1);
});

test("the key does not follow a redirect to another server", async (t) => {
  const storage = await serve(t, [(response) => void response.end("film")]);
  const location = `${storage.baseUrl}/signed?token=x`;
  const { client } = await serve(t, [(response) => void response.writeHead(302, { location }).end()]);
  assert.equal(await (await client.videos.download(ID)).text(), "film");
  assert.equal(storage.asked[0].headers.authorization, undefined);
});

test("address and key are checked at once", async () => {
  for (const baseUrl of ["", "127.0.0.1:8000", "ftp://a.test", "http://", "/v1"]) {
    assert.throws(() => new Vitascope({ baseUrl, apiKey: "k" }), VitascopeError, baseUrl);
  }
  assert.equal(new Vitascope({ baseUrl: "http://a.test/v1/", apiKey: "k" }).baseUrl, "http://a.test");
  const client = new Vitascope({ baseUrl: "http://a.test", apiKey: "k" });
  for (const id of ["", ".", ".."]) {
    await assert.rejects(client.videos.retrieve(id), VitascopeError);
    await assert.rejects(client.videos.retry(id), VitascopeError);
    await assert.rejects(client.videos.download(id), VitascopeError);
  }
});

test("a key is read as files end, and never shown", async (t) => {
  for (const apiKey of ["", " ", "\n"]) {
    assert.throws(() => new Vitascope({ baseUrl: "http://a.test", apiKey }), /missing/);
  }
  for (const apiKey of ["sec ret", "sec\nret", "sec\rret", "sec\x7fret", "sec\x1bret", "secrét", "sec€ret"]) {
    assert.throws(() => new Vitascope({ baseUrl: "http://a.test", apiKey }), (error) => {
      return error instanceof VitascopeError && /printable ASCII/.test(error.message) && !/sec/.test(inspect(error));
    });
  }
  const { asked, client } = await serve(t, [json(VIDEO)], { apiKey: "\t vs_key\r\n" });
  await client.videos.retrieve(ID);
  assert.equal(asked[0].headers.authorization, "Bearer vs_key");
});

test("what no header can hold is not sent, and not tried again", async (t) => {
  const { asked, client } = await serve(t, [json(VIDEO)]);
  for (const value of ["a\nb", "a\0b", "a\x01b", "a\x7fb", "aéb", "a€b"]) {
    const calls = [
      () => client.videos.create({ prompt: "x" }, { idempotencyKey: value }),
      () => client.videos.stream(ID, { lastEventId: value }).next(),
    ];
    for (const call of calls) {
      await assert.rejects(call, (error) => {
        return error instanceof VitascopeError && !(error instanceof APIError) && !inspect(error).includes(value);
      });
    }
  }
  assert.equal(asked.length, 0);
});

test("an id is one part of an address, whatever it says", async (t) => {
  const { asked, client } = await serve(t, [json(VIDEO)]);
  await client.videos.retrieve("../models?a=b#c");
  assert.equal(asked[0].url, "/v1/videos/..%2Fmodels%3Fa%3Db%23c");
});

test("in Node, address and key come from the environment", () => {
  delete process.env.VITASCOPE_BASE_URL;
  delete process.env.VITASCOPE_API_KEY;
  assert.throws(() => fromEnv(), /VITASCOPE_BASE_URL/);
  process.env.VITASCOPE_BASE_URL = "http://here.test/v1";
  assert.throws(() => fromEnv(), /VITASCOPE_API_KEY/);
  process.env.VITASCOPE_API_KEY = "k";
  assert.equal(fromEnv().baseUrl, "http://here.test");
  assert.equal(fromEnv({ baseUrl: "http://there.test" }).baseUrl, "http://there.test");
});
