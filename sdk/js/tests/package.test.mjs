import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

import * as vitascope from "../dist/index.js";
import { events, json, serve, VIDEO } from "./server.mjs";

/** Return what a built module and all that it imports say, without comments. @param {string} name */
async function codeOf(name, seen = new Map()) {
  const source = await readFile(new URL(`../dist/${name}`, import.meta.url), "utf8");
  const code = source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  seen.set(name, code);
  for (const [, imported] of code.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)) {
    const inner = String(imported).replace("./", "");
    if (!seen.has(inner)) await codeOf(inner, seen);
  }
  return seen;
}

test("what a browser loads is this package alone, without anything of Node", async () => {
  const modules = await codeOf("index.js");
  assert.ok(modules.size >= 8);
  for (const [name, code] of modules) {
    assert.doesNotMatch(code, /\bnode:|\bprocess\b|\bBuffer\b|\brequire\b|\bglobal\b|\b__dirname\b/, name);
  }
});

test("the package needs nothing at run time, and its entries are there", async () => {
  const file = await readFile(new URL("../package.json", import.meta.url), "utf8");
  const { dependencies, exports, files, type } = JSON.parse(file);
  assert.deepEqual([dependencies, type], [undefined, "module"]);
  for (const entry of Object.values(exports)) {
    for (const path of Object.values(entry)) await readFile(new URL(`../${path}`, import.meta.url));
  }
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const linked = [...readme.matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, path = ""]) => path);
  assert.ok(linked.length >= 3);
  for (const path of ["LICENSE", ...linked]) {
    await readFile(new URL(`../${path}`, import.meta.url));
    assert.ok(files.includes(path.split("/")[0]), path);
  }
  const licence = await readFile(new URL("../../../LICENSE", import.meta.url), "utf8");
  assert.equal(await readFile(new URL("../LICENSE", import.meta.url), "utf8"), licence);
});

test("the tree at the top of the errors is true", async () => {
  const source = await readFile(new URL("../src/errors.ts", import.meta.url), "utf8");
  const drawn = [...source.slice(0, source.indexOf("A wrong")).matchAll(/^ \* [ │├└─]*(\w+Error)\b/gm)];
  /** @type {string[]} */
  const path = [];
  for (const [line, name = ""] of drawn) {
    const depth = (line.indexOf(name) - " *     ".length) / 4;
    path.splice(depth, path.length, name);
    const parent = path[depth - 1] ?? "Error";
    const kind = /** @type {any} */ (vitascope)[name];
    assert.equal(Object.getPrototypeOf(kind).name, parent, name);
  }
  const exported = Object.keys(vitascope).filter((name) => name.endsWith("Error"));
  assert.deepEqual(drawn.map(([, name]) => name).sort(), exported.sort());
});

/**
 * Run a sample in a folder of its own, which ends with the test.
 *
 * @param {import("node:test").TestContext} t
 * @param {string} sample
 * @param {Record<string, string>} [environ]
 */
async function run(t, sample, environ = {}) {
  const folder = await mkdtemp(join(tmpdir(), "vitascope-"));
  t.after(() => rm(folder, { recursive: true }));
  const dist = new URL("../dist/", import.meta.url);
  const code = sample
    .replace('"vitascope"', JSON.stringify(new URL("index.js", dist)))
    .replace('"vitascope/node"', JSON.stringify(new URL("node.js", dist)));
  await writeFile(join(folder, "sample.mjs"), code);
  const options = { cwd: folder, env: { ...process.env, ...environ } };
  const { stdout } = await promisify(execFile)(process.execPath, ["sample.mjs"], options);
  return { folder, stdout };
}

test("the sample of the readme runs", async (t) => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const [, sample = ""] = /```js\n([\s\S]*?)```/.exec(readme) ?? [];
  const progress = { step: 0, steps: 24, percent: 0, phase: "loading", eta_s: null };
  const { baseUrl } = await serve(t, [
    json(VIDEO, {}, 202),
    events([
      ["1-0", "queued", {}],
      ["2-0", "progress", progress],
      ["3-0", "progress", { ...progress, step: 6, percent: 25, phase: "denoising", eta_s: 3.21 }],
      ["4-0", "completed", {}],
    ]),
    json({ ...VIDEO, status: "completed" }),
    (response) => void response.end("film"),
    (response) => void response.end("picture"),
  ]);
  const code = sample.replace("http://127.0.0.1:8000", baseUrl).replace("vs_…", "vs_key");
  const { folder, stdout } = await run(t, code);
  assert.deepEqual(stdout.trim().split("\n"), ["loading 0/24", "denoising 6/24, 4 s left"]);
  assert.equal(await readFile(join(folder, "video.mp4"), "utf8"), "film");
  assert.equal(await readFile(join(folder, "video.webp"), "utf8"), "picture");
});

test("the sample of the page about the API runs", async (t) => {
  const page = await readFile(new URL("../../../docs/api.md", import.meta.url), "utf8");
  const samples = [...page.matchAll(/```js\n([\s\S]*?)```/g)].map(([, code = ""]) => code);
  const sample = samples.find((code) => code.includes('"vitascope/node"')) ?? "";
  const { asked, baseUrl } = await serve(t, [
    json(VIDEO, {}, 202),
    events([["1-0", "queued", {}], ["2-0", "completed", {}]]),
    json({ ...VIDEO, status: "completed" }),
    (response) => void response.end("film"),
  ]);
  const { folder, stdout } = await run(t, sample, { VITASCOPE_BASE_URL: baseUrl, VITASCOPE_API_KEY: "vs_key" });
  assert.deepEqual(stdout.trim().split("\n"), ["queued 0", "completed 100"]);
  assert.equal(await readFile(join(folder, "ball.mp4"), "utf8"), "film");
  assert.equal(asked[0].headers.authorization, "Bearer vs_key");
});

test("every name that the readme has in code is there", async () => {
  const readme = await readFile(new URL("../README.md", import.meta.url), "utf8");
  const client = new vitascope.Vitascope({ baseUrl: "http://a.test", apiKey: "k" });
  const methods = [...readme.matchAll(/\b(videos|models)\.(\w+)(?=[(`])/g)];
  assert.ok(methods.length >= 8);
  for (const [, group = "", name = ""] of methods) {
    assert.equal(typeof (/** @type {any} */ (client)[group][name]), "function", `${group}.${name}`);
  }
});
