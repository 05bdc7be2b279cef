import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import * as vitascope from "../dist/index.js";

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
  assert.deepEqual([dependencies, type, files], [undefined, "module", ["dist", "README.md"]]);
  for (const entry of Object.values(exports)) {
    for (const path of Object.values(entry)) await readFile(new URL(`../${path}`, import.meta.url));
  }
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
