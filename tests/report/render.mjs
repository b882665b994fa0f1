// The page for some data, as `crates/eval/src/html/mod.rs` makes it: the places `{{name}}` of `page.html` filled in one pass. The scripts
// and their order are read from there. What is read without scripts is Rust's alone: here a sentence stands for it.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";

const folder = new URL("../../crates/eval/src/html/", import.meta.url);
const read = (name) => readFileSync(new URL(name, folder), "utf8");
const sourceOf = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

/** JSON in which no element ends and no comment begins. */
const inert = (json) => json.replace(/[<>&\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const scriptNames = [...read("mod.rs").matchAll(/include_str!\("([^"]+\.js)"\)/g)].map((match) => match[1]);

export function render(data) {
  const [style, script] = [read("page.css"), scriptNames.map(read).join("")];
  const values = {
    policy: `default-src 'none'; script-src ${sourceOf(script)}; style-src ${sourceOf(style)}; img-src data:; base-uri 'none'; form-action 'none'`,
    title: escaped(`${data.run.title} - taper report`),
    style,
    noscript: "<p>Scripts are off.</p>",
    data: inert(JSON.stringify(data)),
    script,
  };
  return read("page.html").replace(/\{\{(\w+)\}\}/g, (_, name) => values[name]);
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const [, , from, to] = process.argv;
  writeFileSync(to, render(JSON.parse(readFileSync(from, "utf8"))));
}
