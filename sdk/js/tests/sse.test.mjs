import assert from "node:assert/strict";
import { test } from "node:test";

import { SseParser } from "../dist/index.js";

const STREAM = [
  "\uFEFFretry: 1000\n\n",
  ": a comment\n\n",
  'id: 1-0\nevent: queued\ndata: {"a":1}\n\n',
  'id:2-0\r\nevent:progress\r\ndata:{"grüße":\r\ndata: "🎬 日本"}\r\n\r\n',
  "data: by carriage returns\rdata\rdata:  two spaces\r\r",
  "id: 3-0\n: within an event\nunknown: field\ndata: x\nretry: never\n\n",
  "event: without data\nid: 4-0\n\n",
  "id: nul\0\ndata: its id is no id\n\n",
  "data:\n\n",
  "id\ndata: an empty id is one\n\n",
  "id: 9-0\ndata: cut off",
].join("");

const EXPECTED = [
  { id: "1-0", type: "queued", data: '{"a":1}' },
  { id: "2-0", type: "progress", data: '{"grüße":\n"🎬 日本"}' },
  { id: null, type: "message", data: "by carriage returns\n\n two spaces" },
  { id: "3-0", type: "message", data: "x" },
  { id: null, type: "message", data: "its id is no id" },
  { id: null, type: "message", data: "" },
  { id: "", type: "message", data: "an empty id is one" },
];

/** @param {Uint8Array[]} chunks */
function parse(...chunks) {
  const parser = new SseParser();
  const found = chunks.flatMap((chunk) => parser.push(chunk));
  return { found, retryMs: parser.retryMs, lastEventId: parser.lastEventId };
}

const BYTES = new TextEncoder().encode(STREAM);
const WHOLE = { found: EXPECTED, retryMs: 1000, lastEventId: "" };

test("a whole stream", () => {
  assert.deepEqual(parse(BYTES), WHOLE);
});

test("every split into two and every split into three within a few bytes mean the same", () => {
  for (let at = 0; at <= BYTES.length; at++) {
    assert.deepEqual(parse(BYTES.subarray(0, at), BYTES.subarray(at)), WHOLE, `split at ${at}`);
    for (let length = 1; length <= 4; length++) {
      const [a, b, c] = [BYTES.subarray(0, at), BYTES.subarray(at, at + length), BYTES.subarray(at + length)];
      assert.deepEqual(parse(a, b, c), WHOLE, `${length} bytes from ${at}`);
    }
  }
});

test("byte by byte, with empty chunks between them", () => {
  const chunks = [...BYTES].flatMap((byte) => [Uint8Array.of(byte), Uint8Array.of()]);
  assert.deepEqual(parse(...chunks), WHOLE);
});

test("the id of an event without data is where the stream goes on", () => {
  assert.equal(parse(new TextEncoder().encode("id: 7-0\n\n")).lastEventId, "7-0");
});

test("every line end makes the same events", () => {
  const text = "id: 1\ndata: a\ndata: b\n\ndata: c\n\n";
  for (const end of ["\n", "\r", "\r\n"]) {
    const { found } = parse(new TextEncoder().encode(text.replaceAll("\n", end)));
    assert.deepEqual(found.map((one) => [one.id, one.data]), [["1", "a\nb"], [null, "c"]]);
  }
});
