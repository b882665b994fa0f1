// The page of `taper serve` in headless Chromium. See README.md for how to run it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, afterEach, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { HOSTILE, SPLIT, startMock } from "./mock.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const SHOTS = process.env.SHOTS || mkdtempSync(join(tmpdir(), "taper-page-"));
const BASE_ANSWER = "Patient John Smith was seen on 12 March 2019 in Leeds. He should rest.";
const ADAPTER_ANSWER = "Patient [NAME] was seen on [DATE] in [CITY]. He should rest.";

let browser, mock, context, page, faults;

before(async () => {
  const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  console.log(`screenshots: ${SHOTS}`);
});
after(() => browser?.close());

/** Open the page; whatever the browser complains of is a fault (failed requests, which tests provoke, apart). */
async function open(url, options = {}) {
  context = await browser.newContext({ viewport: { width: 1280, height: 800 }, permissions: ["clipboard-read", "clipboard-write"], ...options });
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (line) => { if (line.type() === "error" && !line.text().startsWith("Failed to load resource")) faults.push(line.text()); });
  page.on("request", (request) => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) faults.push(`asked for ${request.url()}`); });
  await page.goto(url);
  await page.waitForFunction(() => document.querySelector("#models-line").textContent || document.querySelector("#banner").textContent);
}

const pane = (name) => page.locator(`section[aria-label="${name} pane"]`);
const answerOf = (name) => pane(name).locator(".turn:last-child .answer");
const problemOf = (name) => pane(name).locator(".turn:last-child .problem");
const idle = () => page.waitForSelector("body[data-state=idle]", { state: "attached" });
const shot = (name) => page.screenshot({ path: join(SHOTS, `${name}.png`) });
const toClipboard = () => page.evaluate(() => navigator.clipboard.readText());

async function ask(prompt) {
  await page.fill("#prompt", prompt);
  await page.press("#prompt", "Enter");
  await idle();
}

/** axe's rules, WCAG 2.2 AA among them. Run it as a privileged script: the page's policy lets no other in. */
async function assertAccessible() {
  const client = await context.newCDPSession(page);
  await client.send("Page.setBypassCSP", { enabled: true });
  const found = await page.evaluate(`(async () => { ${AXE}; return (await axe.run()).violations.map((v) => v.id + ": " + v.nodes.map((n) => n.html + " " + n.failureSummary).join(" | ")); })()`);
  assert.deepEqual(found, []);
  await client.detach();
}

async function assertNoSidewaysScroll() {
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(inner <= outer, `the page is ${inner} wide in a window of ${outer}`);
}

function finish() {
  assert.deepEqual(faults, []);
  return context.close();
}

describe("against a mock", () => {
  beforeEach(async () => { mock = await startMock(); });
  afterEach(async () => { await finish(); mock.close(); });

  test("base and adapter answer side by side, in several turns, with figures", async () => {
    await open(mock.url);
    assert.equal(await page.textContent("#models-line"), "1 base, 1 adapter");
    assert.equal(await pane("Left").locator("h2").textContent(), "Base");
    assert.equal(await pane("Right").locator("h2").textContent(), "Adapter");
    await shot("light-empty");
    await ask("De-identify this note.");
    assert.equal(await answerOf("Left").textContent(), `${BASE_ANSWER}<|im_end|>`);
    assert.equal(await answerOf("Left").innerText(), BASE_ANSWER);
    assert.equal(await answerOf("Right").innerText(), ADAPTER_ANSWER);
    assert.equal(mock.mostAtOnce, 2);
    assert.deepEqual([...mock.origins], [new URL(mock.url).origin]); // a server may refuse other Origins, `null` too
    const figures = await pane("Right").locator(".figures").innerText();
    for (const part of [/first token\s+\d+ ms/, /tokens\/s\s+[\d.e+]+/, /tokens\s+\d+/, /prompt\s+21 \(8 cached\)/, /perplexity\s+\d/, /finish\s+stop/, /by\s+notes-lora/]) assert.match(figures, part);
    await page.locator("section[aria-label='Right pane'] [type=range]").fill("0.5");
    await ask("And shorter.");
    const [toBase, toAdapter] = [mock.requests.find((r) => r.model === "base" && r.messages.length === 3), mock.requests.find((r) => r.model === "notes-lora" && r.messages.length === 3)];
    assert.deepEqual(toBase.messages, [{ role: "user", content: "De-identify this note." }, { role: "assistant", content: BASE_ANSWER }, { role: "user", content: "And shorter." }]);
    assert.equal(toAdapter.adapter_scale, 0.5);
    assert.equal(toBase.adapter_scale, undefined);
    assert.deepEqual([toBase.temperature, toBase.stream, toBase.logprobs, toBase.top_logprobs, toBase.stream_options], [0, true, true, 5, { include_usage: true }]);
    assert.match(await page.textContent("#announcer"), /notes-lora answered: Patient/);
    await assertAccessible();
    await shot("light");
  });

  test("settings reach the server, and faulty ones are shown instead of sent", async () => {
    await open(mock.url);
    await page.click("#settings summary");
    for (const [name, value] of Object.entries({ temperature: "0.7", top_p: "0.9", top_k: "40", min_p: "0.05", max_tokens: "64", seed: "7", repetition_penalty: "1.1", system: "Be brief." })) await page.fill(`[name=${name}]`, value);
    await page.fill("[name=stop]", "###\n\\n\\nUser:");
    await page.selectOption("[name=format]", "json_schema");
    await page.fill("[name=schema]", "{oops");
    await ask("hello");
    assert.equal(mock.requests.length, 0);
    assert.equal(await page.evaluate(() => document.activeElement.name), "schema");
    await page.fill("[name=schema]", '{"type":"object"}');
    await page.check("[name=in_turn]");
    await assertAccessible();
    await shot("light-settings");
    await ask("hello");
    const { messages, ...request } = mock.requests[0];
    assert.deepEqual(messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "hello" }]);
    const { temperature, top_p, top_k, min_p, max_tokens, seed, repetition_penalty, stop, response_format } = request;
    assert.deepEqual({ temperature, top_p, top_k, min_p, max_tokens, seed, repetition_penalty }, { temperature: 0.7, top_p: 0.9, top_k: 40, min_p: 0.05, max_tokens: 64, seed: 7, repetition_penalty: 1.1 });
    assert.deepEqual(stop, ["###", "\n\nUser:"]);
    assert.deepEqual(response_format, { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" }, strict: true } });
    assert.deepEqual(mock.requests.map((r) => r.model), ["base", "notes-lora"]);
    assert.equal(mock.mostAtOnce, 1);
    await page.fill("[name=temperature]", "9");
    await ask("hello again");
    assert.equal(mock.requests.length, 2);
    await page.fill("[name=temperature]", "");
    await page.selectOption("[name=format]", "json_object");
    await ask("hello again");
    assert.equal(mock.requests.at(-1).temperature, undefined);
    assert.deepEqual(mock.requests.at(-1).response_format, { type: "json_object" });
  });

  test("a stream may be cut anywhere, and every token finds its place", async () => {
    await open(mock.url);
    await ask("split");
    assert.equal(await answerOf("Left").innerText(), SPLIT);
    await page.check("#show-probabilities");
    const inText = answerOf("Left").locator(".token:not(.chip)");
    assert.equal((await inText.allTextContents()).join(""), SPLIT);
    assert.ok(await answerOf("Left").locator(".chip").count() > 1, "parts of characters and the end token are chips");
  });

  test("text is shown while it streams; stop ends it here and at the server", async () => {
    await open(mock.url);
    await page.fill("#prompt", "slow");
    await page.press("#prompt", "Enter");
    await page.waitForFunction(() => document.querySelector("section[aria-label='Left pane'] .answer").textContent.length > 30);
    assert.ok(await page.isHidden("#send"));
    assert.match(await pane("Left").locator(".figures").innerText(), /tokens\/s\s+\d/);
    await shot("light-streaming");
    await page.click("#stop");
    await idle();
    const text = await answerOf("Left").innerText();
    assert.ok(text.startsWith("word word") && text.length < 1900);
    assert.match(await pane("Left").locator(".figures").innerText(), /finish\s+stopped/);
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await page.waitForTimeout(100);
    assert.equal(mock.cancelled, 2);
    await page.fill("#prompt", "slow");
    await page.press("#prompt", "Enter");
    await page.waitForSelector("body[data-state=busy]");
    await page.keyboard.press("Escape");
    await idle();
  });

  test("regenerate asks again, clear forgets", async () => {
    await open(mock.url);
    await ask("one");
    await page.click("#again");
    await idle();
    assert.equal(mock.requests.length, 4);
    await pane("Right").getByRole("button", { name: "Regenerate" }).click();
    await idle();
    assert.equal(mock.requests.length, 5);
    assert.deepEqual(mock.requests[4].messages, [{ role: "user", content: "one" }]);
    assert.equal(await page.locator(".turn").count(), 2);
    await pane("Left").getByRole("button", { name: "Clear" }).click();
    assert.equal(await page.locator(".turn").count(), 1);
    await ask("two");
    assert.equal(mock.requests.find((r) => r.model === "base" && r.messages.at(-1).content === "two").messages.length, 1);
    await page.click("#clear");
    assert.equal(await page.locator(".turn").count(), 0);
  });

  test("errors are told in words, with what can be done", async () => {
    await open(mock.url);
    await ask("busy");
    assert.match(await problemOf("Left").innerText(), /The server is busy\. 8 requests are waiting/);
    const again = problemOf("Left").getByRole("button");
    assert.match(await again.textContent(), /Ask again in [12] s/);
    assert.ok(await again.isDisabled());
    await page.waitForFunction(() => document.querySelector(".again").textContent === "Ask again", null, { timeout: 4000 });
    for (const [prompt, told] of [
      ["gone", /does not have this\. no model `base`/], ["bad", /refused the request\. <b>must<\/b> be at most 2 \(temperature\)/],
      ["proxy", /did not stream\. It answered with text\/html/], ["crash", /cannot be reached/],
      ["midway", /broke off\. out of memory/], ["cut", /broke off\. The connection ended before the answer did/],
    ]) {
      await ask(prompt);
      assert.match(await problemOf("Left").innerText(), told);
    }
    assert.match(await answerOf("Left").innerText(), /^Patient John/, "what came before the break stays");
    await shot("light-errors");
    await assertAccessible();
    await ask("nothing");
    assert.match(await answerOf("Left").evaluate((answer) => getComputedStyle(answer, "::before").content), /no text/);
    await ask("long");
    assert.match(await pane("Left").locator(".turn:last-child .warn").innerText(), /length/);
    const sent = mock.requests.at(-1).messages.map((message) => message.content);
    for (const prompt of ["busy", "gone", "bad", "nothing"]) assert.ok(!sent.includes(prompt), `${prompt} had no answer and is no history`);
  });

  test("a key is asked for, kept in the tab alone, and what was refused is asked again", async () => {
    mock.key = "s3cret";
    await open(mock.url);
    await page.waitForSelector("#key-dialog[open]");
    await assertAccessible();
    await shot("light-key");
    await page.fill("#key", "wrong");
    await page.press("#key", "Enter");
    await page.waitForFunction(() => /does not accept/.test(document.querySelector("#banner").textContent));
    await page.fill("#key", "s3cret");
    await page.press("#key", "Enter");
    await page.waitForFunction(() => /1 base/.test(document.querySelector("#models-line").textContent));
    assert.equal(await page.textContent("#banner"), "");
    mock.key = "rotated";
    await ask("hello");
    await page.waitForSelector("#key-dialog[open]");
    await page.fill("#key", "rotated");
    await page.press("#key", "Enter");
    await page.waitForFunction(() => document.body.dataset.state === "idle" && !document.querySelector(".turn .problem"));
    assert.equal(await answerOf("Right").innerText(), ADAPTER_ANSWER);
    assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
    await pane("Right").getByRole("button", { name: "Copy as curl" }).click();
    const curl = await toClipboard();
    assert.ok(curl.includes('-H "Authorization: Bearer $TAPER_API_KEY"') && !curl.includes("rotated"));
    await page.reload();
    await page.waitForFunction(() => /1 base/.test(document.querySelector("#models-line").textContent));
  });

  test("a server that still loads its model is asked again", async () => {
    mock.loading = 1;
    await open(mock.url);
    assert.match(await page.textContent("#banner"), /not ready/);
    await page.waitForFunction(() => /1 base/.test(document.querySelector("#models-line").textContent));
  });

  test("with a base only there is one pane; adapters that come later are offered", async () => {
    mock.models = [{ id: "base", parent: null }];
    await open(mock.url);
    assert.ok(await pane("Left").isHidden() && await page.isHidden("#layout") && await page.isHidden("#differences-choice"));
    await ask("hello");
    assert.equal(mock.requests.length, 1);
    await shot("light-single");
    mock.models.push({ id: "a", parent: "base" }, { id: "b", parent: "base" });
    await page.click("#reload-models");
    await page.waitForFunction(() => /2 adapters/.test(document.querySelector("#models-line").textContent));
    await pane("Right").locator("select").selectOption("b");
    await ask("hello");
    assert.deepEqual(mock.requests.slice(1).map((r) => r.model).sort(), ["b", "base"]);
    await page.check("[name=layout][value=single]");
    await ask("hello");
    assert.equal(mock.requests.length, 4);
  });

  test("what the model writes is inert", async () => {
    mock.models[1].id = '"><img src=x onerror=window.pwned=1>';
    await open(mock.url);
    await page.check("#show-differences");
    await page.check("#show-probabilities");
    await ask("hostile");
    const text = await answerOf("Left").textContent();
    assert.ok(text.startsWith(HOSTILE.slice(0, 40)));
    assert.ok(HOSTILE.includes("\u202E") && !text.includes("\u202E"), "nothing turns the text round");
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator(".answer :is(img, script, a), select img").count(), 0);
    for (const width of [1280, 360]) {
      await page.setViewportSize({ width, height: 740 });
      await assertNoSidewaysScroll();
    }
    await shot("phone-hostile");
  });

  test("the curl command is one that a shell and curl understand", async () => {
    await open(mock.url);
    const prompt = `it's "quoted"\n$(touch /nowhere) \`id\` \\ ! \u202E\u0085 👩‍🚀 --`;
    const run = async () => {
      await pane("Right").getByRole("button", { name: "Copy as curl" }).click();
      await page.waitForFunction(() => [...document.querySelectorAll("[data-act=curl]")].some((b) => b.textContent === "Copied"));
      const command = await toClipboard();
      assert.match(command, /^[\t\n -~]*$|👩/u);
      assert.ok(!/[\u0080-\u009f\u202e]/.test(command));
      execFileSync("bash", ["-n"], { input: command });
      const args = execFileSync("bash", ["-c", `curl() { printf '%s\\0' "$@"; }; ${command}`]).toString().split("\0");
      assert.ok(args.includes(`${mock.url}v1/chat/completions`));
      return JSON.parse(args[args.indexOf("-d") + 1]);
    };
    await page.fill("#prompt", prompt);
    assert.deepEqual((await run()).messages, [{ role: "user", content: prompt }]);
    await page.press("#prompt", "Enter");
    await idle();
    assert.deepEqual(await run(), mock.requests.find((request) => request.model === "notes-lora"));
    assert.ok(!(await toClipboard()).includes("Authorization"));
  });

  test("the conversation is copied as a row of training data", async () => {
    await open(mock.url);
    await page.click("#settings summary");
    await page.fill("[name=system]", "Be\nbrief.");
    await ask("one");
    await ask("busy");
    await pane("Right").getByRole("button", { name: "Copy as JSONL" }).click();
    await page.waitForFunction(() => document.querySelector("section[aria-label='Right pane'] [data-act=jsonl]").textContent === "Copied");
    const text = await toClipboard();
    assert.equal(text.split("\n").length, 2);
    assert.deepEqual(JSON.parse(text), { messages: [{ role: "system", content: "Be\nbrief." }, { role: "user", content: "one" }, { role: "assistant", content: ADAPTER_ANSWER }] });
  });

  test("where the browser has no clipboard, the text is shown", async () => {
    await open(mock.url);
    await page.evaluate(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
    await ask("one");
    await pane("Left").getByRole("button", { name: "Copy as JSONL" }).click();
    await page.waitForSelector("#copy-dialog[open]");
    assert.match(await page.inputValue("#copy-text"), /^\{"messages"/);
    await page.keyboard.press("Escape");
  });

  test("probabilities: shades, alternatives by pointer and by keyboard", async () => {
    await open(mock.url);
    await ask("hello");
    assert.equal(await page.locator(".answer [tabindex]").count(), 0);
    await page.check("#show-probabilities");
    const tokens = answerOf("Left").locator(".token");
    assert.equal(await answerOf("Left").locator("[tabindex='0']").count(), 1);
    const lines = await tokens.evaluateAll((all) => all.slice(1, 6).map((token) => getComputedStyle(token).textDecorationStyle));
    assert.deepEqual(lines, ["solid", "dotted", "dashed", "solid", "double"]);
    await tokens.nth(2).hover();
    await page.waitForSelector("#tooltip:not([hidden])");
    await shot("light-probabilities");
    assert.match(await page.textContent("#tooltip"), /\(written\)80\.0 %/);
    await page.mouse.move(5, 795);
    await page.waitForSelector("#tooltip[hidden]", { state: "attached" });
    // By keyboard: one stop for each answer, arrows inside it, Escape hides.
    await answerOf("Left").locator("[tabindex='0']").focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowDown");
    const focused = () => page.evaluate(() => [...document.activeElement.parentElement.querySelectorAll(".token")].indexOf(document.activeElement));
    assert.equal(await focused(), 2);
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-describedby")), "tooltip");
    assert.match(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), /80\.0 %$/);
    assert.match(await page.textContent("#tooltip"), /U\+202E/, "what would turn the text round is spelled out");
    await assertAccessible();
    await page.keyboard.press("Escape");
    assert.ok(await page.isHidden("#tooltip"));
    await page.keyboard.press("Enter");
    assert.ok(await page.isVisible("#tooltip"));
    await page.keyboard.press("End");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "<|im_end|>");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Shift+Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "<|im_end|>");
    await page.uncheck("#show-probabilities");
    assert.equal(await page.locator(".answer [role=button]").count(), 0);
  });

  test("differences: the words that the other answer lacks", async () => {
    await open(mock.url);
    await page.check("#show-differences");
    await ask("hello");
    assert.deepEqual(await marked("Left"), ["John Smith", "12 March 2019", "Leeds"]);
    assert.deepEqual(await marked("Right"), ["[NAME]", "[DATE]", "[CITY]"]);
    assert.match(await pane("Left").locator(".figures").innerText(), /differs in\s+3 places/);
    await shot("light-differences");
    await assertAccessible();
    await page.check("#show-probabilities");
    assert.deepEqual(await marked("Right"), ["[NAME]", "[DATE]", "[CITY]"]);
    await shot("light-differences-probabilities");
    await ask("split");
    assert.match(await pane("Right").locator(".turn:last-child .figures").innerText(), /differs in\s+0 places/);
    await page.uncheck("#show-differences");
    assert.equal(await page.locator("mark").count(), 0);
  });

  test("the page is used by keyboard alone", async () => {
    await open(mock.url);
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await page.keyboard.type("first line");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("second");
    await page.keyboard.press("Enter");
    await idle();
    assert.equal(mock.requests[0].messages[0].content, "first line\nsecond");
    await page.keyboard.press("ArrowUp");
    assert.equal(await page.inputValue("#prompt"), "first line\nsecond");
    const seen = new Set();
    for (let i = 0; i < 40; i += 1) {
      await page.keyboard.press("Tab");
      const [name, outline] = await page.evaluate(() => {
        const at = document.activeElement;
        return [`${at.tagName} ${at.id || at.name || at.dataset.act || at.getAttribute("aria-label") || at.type || at.textContent}`, at.matches("body") || getComputedStyle(at).outlineStyle];
      });
      assert.notEqual(outline, "none", `${name} shows no focus`);
      seen.add(name);
    }
    for (const name of ["INPUT show-probabilities", "INPUT show-differences", "BUTTON reload-models", "BUTTON send", "BUTTON curl", "BUTTON jsonl", "SELECT Model of the left pane", "OL Conversation of the right pane"]) {
      assert.ok(seen.has(name), `${name} is not reached by Tab: ${[...seen].join(", ")}`);
    }
  });

  test("it works on a phone", async () => {
    await open(mock.url, { viewport: { width: 360, height: 740 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 });
    await assertNoSidewaysScroll();
    await shot("phone-empty");
    await ask("hello");
    await assertNoSidewaysScroll();
    const [left, right] = [await pane("Left").boundingBox(), await pane("Right").boundingBox()];
    assert.ok(right.y >= left.y + left.height, "the panes are stacked");
    await page.tap("#show-probabilities");
    await answerOf("Right").locator(".token").nth(3).tap();
    await page.waitForSelector("#tooltip:not([hidden])");
    const box = await page.locator("#tooltip").boundingBox();
    assert.ok(box.x >= 0 && box.x + box.width <= 360);
    await assertNoSidewaysScroll();
    await shot("phone-probabilities");
    await assertAccessible();
    await page.tap("h1");
    assert.ok(await page.isHidden("#tooltip"));
    await page.tap("#settings summary");
    await assertNoSidewaysScroll();
    await page.screenshot({ path: join(SHOTS, "phone-settings.png"), fullPage: true });
  });

  test("dark, and without motion", async () => {
    await open(mock.url, { colorScheme: "dark", reducedMotion: "reduce" });
    await page.check("#show-differences");
    await ask("hello");
    await shot("dark");
    await assertAccessible();
    await page.check("#show-probabilities");
    await answerOf("Left").locator(".token").nth(4).hover();
    await shot("dark-probabilities");
    await assertAccessible();
    await page.click("#settings summary");
    await assertAccessible();
    await page.fill("#prompt", "slow");
    await page.press("#prompt", "Enter");
    const moving = await page.evaluate(() => document.getAnimations().length);
    assert.equal(moving, 0);
    await page.click("#stop");
    await idle();
  });
});

const marked = (name) => answerOf(name).evaluate((answer) => {
  // Marks that touch (a word in several tokens) are one.
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT);
  const runs = [];
  let inside = false;
  while (walker.nextNode()) {
    const is = Boolean(walker.currentNode.parentElement.closest("mark"));
    if (is && inside) runs[runs.length - 1] += walker.currentNode.data;
    else if (is) runs.push(walker.currentNode.data);
    inside = is || (inside && walker.currentNode.data === "");
  }
  return runs;
});

describe("against a real server", { skip: process.env.TAPER_URL ? false : "TAPER_URL is not set" }, () => {
  afterEach(finish);

  test("models are listed, both panes answer with figures and probabilities, and the copied command works", async () => {
    const url = new URL("/", process.env.TAPER_URL).href;
    await open(url);
    if (process.env.TAPER_API_KEY) {
      await page.waitForSelector("#key-dialog[open]");
      await page.fill("#key", process.env.TAPER_API_KEY);
      await page.press("#key", "Enter");
    }
    await page.waitForFunction(() => /base/.test(document.querySelector("#models-line").textContent), null, { timeout: 120_000 });
    page.setDefaultTimeout(120_000);
    await page.check("#show-probabilities");
    await page.click("#settings summary");
    await page.fill("[name=max_tokens]", "24");
    await page.click("#settings summary");
    await ask("Patient John Smith was seen on 12 March 2019 in Leeds.");
    const names = await pane("Left").isVisible() ? ["Left", "Right"] : ["Right"];
    for (const name of names) {
      assert.equal(await problemOf(name).count(), 0, await pane(name).innerText());
      const figures = await pane(name).locator(".figures").innerText();
      for (const part of [/first token\s+[\d.]+ m?s/, /tokens\s+\d+/, /prompt\s+\d+/, /perplexity\s+[\d.]+/, /finish\s+(stop|length)/]) assert.match(figures, part);
      const body = await page.evaluate((at) => panes[at].turns[0].answer.text, name === "Left" ? 0 : 1);
      const tokens = answerOf(name).locator(".token:not(.chip)");
      assert.equal((await tokens.allTextContents()).join(""), body, "every part of the text belongs to a token");
      const likeliest = await page.evaluate((at) => panes[at].turns[0].answer.tokens.map((token) => token.likeliest.length), name === "Left" ? 0 : 1);
      assert.ok(likeliest.every((count) => count === 5), `top_logprobs: ${likeliest}`);
    }
    await answerOf("Right").locator(".token").first().hover();
    await shot("real-probabilities");
    await page.check("#show-differences").catch(() => {});
    await page.uncheck("#show-probabilities");
    await shot("real");
    await assertAccessible();
    await pane("Right").getByRole("button", { name: "Copy as curl" }).click();
    const output = execFileSync("bash", ["-c", await toClipboard()]).toString();
    assert.match(output, /^data: \{/m);
    assert.match(output, /^data: \[DONE\]$/m);
  });
});
