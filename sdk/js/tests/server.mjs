/** A real server on loopback that answers in turn with what it was given; the last answer stays. */

import { once } from "node:events";
import { createServer } from "node:http";

import { Vitascope } from "../dist/index.js";

export const ID = `video_${"0".repeat(32)}`;
export const VIDEO = {
  id: ID,
  object: "video",
  status: "queued",
  phase: "queued",
  progress: 0,
  queue_position: 2,
  eta_seconds: 7.5,
  steps_done: 0,
  steps_total: 24,
  created_at: 1,
  error: null,
};

/**
 * @typedef {import("node:http").IncomingHttpHeaders} Headers
 * @typedef {{ method: string, url: string, headers: Headers, body: Buffer, atMs: number }} Asked
 * @typedef {(response: import("node:http").ServerResponse, asked: Asked) => void} Answer
 */

/**
 * Start a server that ends with the test.
 *
 * @param {import("node:test").TestContext} test
 * @param {Answer[]} answers
 * @param {Partial<import("../dist/index.js").ClientOptions>} [options]
 */
export async function serve(test, answers, options = {}) {
  /** @type {Asked[]} */
  const asked = [];
  const left = [...answers];
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method = "", url = "", headers } = request;
    const one = { method, url, headers, body: Buffer.concat(chunks), atMs: performance.now() };
    asked.push(one);
    const answer = left.length > 1 ? left.shift() : left[0];
    answer?.(response, one);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  test.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("it does not listen");
  const baseUrl = `http://127.0.0.1:${address.port}`;
  return { asked, baseUrl, client: new Vitascope({ baseUrl, apiKey: "vs_key", ...options }) };
}

/** @param {unknown} value @param {Record<string, string>} [headers] @param {number} [status] @returns {Answer} */
export function json(value, headers = {}, status = 200) {
  return (response) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(value));
  };
}

/** @param {number} status @param {string} code @param {Record<string, string>} [headers] @returns {Answer} */
export function failure(status, code = "x", headers = {}) {
  const error = { message: "No.", type: "t", param: "seconds", code };
  return json({ error }, { "x-request-id": "req_1", ...headers }, status);
}

/** Break the connection before anything is answered. @type {Answer} */
export const hangUp = (response) => void response.destroy();

/** Never answer. @type {Answer} */
export const silence = () => {};

/**
 * Answer with events. `ending`: what follows the last of them.
 *
 * @param {[string, string, object][]} events
 * @param {"end" | "break" | "stay"} [ending]
 * @returns {Answer}
 */
export function events(events, ending = "end") {
  return async (response) => {
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    response.write("retry: 10\n\n: heartbeat\n\n");
    for (const [id, type, data] of events) {
      response.write(`${id && `id: ${id}\n`}event: ${type}\ndata: ${JSON.stringify({ id: ID, type, ...data })}\n\n`);
    }
    if (ending === "end") response.end();
    if (ending === "break") response.write('id: 99-0\nevent: progress\ndata: {"step"', () => response.destroy());
  };
}
