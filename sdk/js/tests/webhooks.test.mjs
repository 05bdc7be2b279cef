import assert from "node:assert/strict";
import { createHmac, randomBytes } from "node:crypto";
import { test } from "node:test";

import { verifyWebhook, VitascopeError, WebhookVerificationError } from "../dist/index.js";

const KEY = randomBytes(32);
const SECRET = `whsec_${KEY.toString("base64")}`;
const DATA = { id: "video_1", name: "é🎬" };
const EVENT = { id: "evt_1", object: "event", created_at: 1, type: "video.completed", data: DATA };
const BODY = JSON.stringify(EVENT);
const NOW_S = () => Math.floor(Date.now() / 1000);

/** @param {{ body?: string, key?: Buffer, id?: string, atS?: number }} [what] */
function sign({ body = BODY, key = KEY, id = "evt_1", atS = NOW_S() } = {}) {
  const signature = `v1,${createHmac("sha256", key).update(`${id}.${atS}.${body}`).digest("base64")}`;
  return { "webhook-id": id, "webhook-timestamp": String(atS), "webhook-signature": signature };
}

test("what the server signed is returned, from text, bytes, and every kind of headers", async () => {
  const headers = sign();
  const capitals = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toUpperCase(), value]));
  const foreign = { get: (/** @type {string} */ name) => new Headers(headers).get(name) }; // of another fetch
  for (const given of [headers, new Headers(headers), foreign, capitals, { ...headers, get: "a header" }]) {
    assert.deepEqual(await verifyWebhook(BODY, given, SECRET), EVENT);
    assert.deepEqual(await verifyWebhook(Buffer.from(BODY), given, SECRET), EVENT);
  }
  assert.deepEqual(await verifyWebhook(BODY, headers, KEY.toString("base64")), EVENT);
});

test("any one of several signatures will do: a secret that is being changed", async () => {
  const other = sign({ key: randomBytes(32) })["webhook-signature"];
  const headers = sign();
  const both = { ...headers, "webhook-signature": `v1a,AAAA ${other} ${headers["webhook-signature"]}` };
  assert.deepEqual(await verifyWebhook(BODY, both, SECRET), EVENT);
});

test("the time may differ by five minutes either way", async () => {
  for (const offBy of [-290, 290]) await verifyWebhook(BODY, sign({ atS: NOW_S() + offBy }), SECRET);
  for (const offBy of [-310, 310]) {
    await assert.rejects(verifyWebhook(BODY, sign({ atS: NOW_S() + offBy }), SECRET), WebhookVerificationError);
  }
});

test("anything else is refused", async () => {
  const good = sign();
  const bad = {
    "another secret": sign({ key: randomBytes(32) }),
    "another id": { ...good, "webhook-id": "evt_2" },
    "another time": { ...good, "webhook-timestamp": String(NOW_S() - 1) },
    "another version": { ...good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,") },
    "no version": { ...good, "webhook-signature": good["webhook-signature"].slice(3) },
    "a short signature": { ...good, "webhook-signature": "v1,AAAA" },
    "an empty one": { ...good, "webhook-signature": "v1," },
    "no base64": { ...good, "webhook-signature": "v1,*" },
    "no time": { ...good, "webhook-timestamp": "soon" },
    "no headers": {},
  };
  for (const [what, headers] of Object.entries(bad)) {
    await assert.rejects(verifyWebhook(BODY, headers, SECRET), WebhookVerificationError, what);
  }
  await assert.rejects(verifyWebhook(BODY.replace("video_1", "video_2"), good, SECRET), WebhookVerificationError);
  await assert.rejects(verifyWebhook("{", sign({ body: "{" }), SECRET), WebhookVerificationError);
  await assert.rejects(verifyWebhook(BODY, good, "whsec_*"), VitascopeError);
  await assert.rejects(verifyWebhook(BODY, good, "whsec_"), VitascopeError);
});
