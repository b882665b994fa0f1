// report.html in headless Chromium. See README.md for how to run it.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { after, afterEach, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { fixture, HOSTILE } from "./fixture.mjs";
import { render, scriptNames } from "./render.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const SHOTS = process.env.SHOTS || mkdtempSync(join(tmpdir(), "taper-report-"));
const RUST_PAGE = process.env.TAPER_REPORT_PAGE; // the fixture's page as Rust wrote it
const data = fixture();

let browser, context, page, faults;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  console.log(`screenshots: ${SHOTS}`);
});
after(() => browser?.close());

/** The address of the page of some data, as a file. */
function fileOf(of, name = "report") {
  const path = join(SHOTS, `${name}.html`);
  if (of === data && RUST_PAGE) return pathToFileURL(RUST_PAGE).href;
  writeFileSync(path, render(of));
  return pathToFileURL(path).href;
}

/** Open a page; whatever the browser complains of or asks for is a fault. */
async function open(of = data, { hash = "", name, ...options } = {}) {
  const url = fileOf(of, name);
  context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: "reduce", ...options });
  page = await context.newPage();
  page.setDefaultTimeout(10_000);
  faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (line) => { if (["error", "warning"].includes(line.type())) faults.push(line.text()); });
  page.on("request", (request) => { if (request.url().split("#")[0] !== url && !request.url().startsWith("data:")) faults.push(`asked for ${request.url()}`); });
  await page.goto(url + hash);
  if (options.javaScriptEnabled !== false) await page.waitForSelector("body[data-ready]", { state: "attached" });
}
afterEach(async () => {
  await context?.close();
  context = null;
  assert.deepEqual(faults, []);
});

const shot = (name) => page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
const tab = (filter) => page.locator(`.tabs button[data-value="${filter}"]`);
const countOf = async (filter) => Number((await tab(filter).locator(".n").textContent()).replaceAll(",", ""));
const where = () => page.locator(".pager.top .where").textContent();
const ids = () => page.locator(".example .id").allTextContents();
const control = (name) => page.locator(`[data-control="${name}"] :is(select, input)`);
const hash = () => page.evaluate(() => location.hash);
/** Call a function of the page's scripts, which see no imports and no exports. */
const within = (text) => page.evaluate(text);

async function assertNoSidewaysScroll() {
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert.ok(inner <= outer, `the page is ${inner} wide in a window of ${outer}`);
}

/** axe's rules, WCAG 2.2 AA among them; as a privileged script, since the page's policy lets no other in. */
async function assertAccessible() {
  const client = await context.newCDPSession(page);
  await client.send("Page.setBypassCSP", { enabled: true });
  const found = await page.evaluate(`(async () => { ${AXE}; return (await axe.run()).violations.map((v) => v.id + ": " + v.nodes.slice(0, 4).map((n) => n.html.slice(0, 200) + " " + n.failureSummary).join(" | ")); })()`);
  assert.deepEqual(found, []);
  await client.detach();
}

const tickets = data.samples.filter((one) => one.eval === "held-out tickets");
const routing = data.samples.filter((one) => one.eval === "routing");
const isRight = (one, name, metric = "exact_match") => one.candidates[name].scores[metric] === 1;

describe("what stands on the page", () => {
  test("the verdicts, the gates and the exit code, in words and shapes", async () => {
    await open();
    assert.equal(await page.title(), "tickets to JSON - taper report");
    const verdicts = page.locator(".verdict-card");
    assert.deepEqual(await verdicts.locator(".badge").allTextContents(), ["Better", "Better", "Not enough data"]);
    assert.equal(await verdicts.locator(".badge svg").count(), 3);
    for (const [i, evaluation] of data.evaluations.entries()) assert.equal(await verdicts.nth(i).locator("p").first().textContent(), evaluation.headline);
    assert.deepEqual(await page.locator(".gates .badge").allTextContents(), ["Failed", "Passed", "Not decided", "Nothing evaluated"]);
    assert.match(await page.locator(".outcome").textContent(), /^A gate failedexit code 100$/);
    await shot("light");
  });

  test("scores, comparisons, slices, overlap and the warning on many uses", async () => {
    await open();
    const rate = tickets.filter((one) => isRight(one, "adapter")).length / tickets.length;
    const first = page.locator("#scores .evaluation").first();
    const row = first.locator("table").first().locator("tbody tr").first();
    assert.equal((await row.locator("td b").nth(1).textContent()).replace("\u00a0", " "), `${(100 * rate).toFixed(1)} %`);
    assert.match(await row.locator("svg").getAttribute("aria-label"), /base \d.*; adapter \d.*interval/);
    assert.equal(await row.locator("svg .shape").count(), 3);
    const text = (await first.innerText()).replaceAll("\u00a0", " ");
    for (const part of [/evaluated 14 times/, /gpt: 3 items could not be answered/, /4 of 200 items are also in the training data \(1 word for word/, /p < 0\.001/, /Cohen's h/]) assert.match(text, part);
    assert.match(await page.locator("#scores .evaluation").nth(2).innerText(), /about 480 items would be needed/);
    const slices = page.locator("table", { hasText: "Slices of held-out tickets" });
    assert.equal(await slices.locator("tbody tr").count(), 7);
    assert.match(await slices.locator("tr.few").innerText(), /Quillbox\s+\d+\s+few/);
    assert.match(text, /One slice has fewer than 30 items/);
    await page.locator("#scores select").selectOption("field_f1");
    assert.match(await slices.locator("caption").textContent(), /micro F1/);
    assert.match(await hash(), /slices0=field_f1/);
  });

  test("the curve: smoothing, logarithm, readout by pointer and by key", async () => {
    await open();
    const d = () => page.locator(".curve .smooth").getAttribute("d");
    const before = await d();
    await page.locator("#training input[type=range]").fill("0.95");
    assert.notEqual(await d(), before);
    await page.locator("#training input[type=range]").fill("0");
    assert.equal(await d(), await page.locator(".curve .raw").getAttribute("d"));
    await page.locator("#training input[type=checkbox]").check();
    assert.match(await hash(), /smooth=0&log=1/);
    assert.equal(await page.locator(".curve .checkpoint").count(), 4);
    assert.match(await page.locator(".curve .best-text").textContent(), /best, step 900/);
    await page.locator(".curve").focus();
    await page.keyboard.press("End");
    assert.match(await page.locator(".readout").textContent(), /^step 1,200 · training 0\.\d{4} · smoothed 0\.\d{4} · validation/);
    const box = await page.locator(".curve").boundingBox();
    await page.mouse.move(box.x + 50, box.y + 50);
    assert.match(await page.locator(".readout").textContent(), /^step 10 · training/);
  });

  test("smoothing is an average without the pull of its start, and thinning keeps spikes", async () => {
    await open();
    assert.deepEqual(await within("smoothed([1, 1, 1].map((value, step) => ({ step, value })), 0.9).map((p) => Math.round(p.value * 1e9) / 1e9)"), [1, 1, 1]);
    assert.deepEqual(await within("smoothed([4, 8].map((value, step) => ({ step, value })), 0.5).map((p) => Math.round(p.value * 1e6) / 1e6)"), [4, 6.666667]);
    const kept = await within("thinned(Array.from({ length: 100000 }, (_, step) => ({ step, value: step === 54321 ? 99 : 1 })), 800)");
    assert.ok(kept.length <= 1700 && kept.some((one) => one.value === 99), `${kept.length} points`);
    assert.ok(kept.every((one, i) => !i || one.step > kept[i - 1].step));
  });

  test("tokens: what is supervised is told by class, count and to readers of the screen", async () => {
    await open();
    const samples = page.locator(".token-sample");
    assert.match(await samples.first().locator("summary").textContent(), /8 of 26 tokens supervised/);
    assert.equal(await samples.first().locator(".token.supervised").count(), 8);
    assert.equal(await samples.first().locator(".token.special").count(), 4);
    assert.match(await samples.first().textContent(), /supervised from here: \{"/);
    assert.match(await samples.nth(2).locator("summary").textContent(), /nothing is learnt/);
    await samples.nth(1).locator("summary").click();
    assert.equal(await samples.nth(1).locator(".token").count(), 2);
  });

  test("commands are copied; cost and lineage are told", async () => {
    await open(data, { permissions: ["clipboard-read", "clipboard-write"] });
    await page.locator(".commands .copy").first().click();
    await page.waitForFunction(() => document.querySelector(".copy").textContent !== "Copy");
    assert.equal(await page.locator(".copy").first().textContent(), "Copied");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), data.run.usage[0]);
    assert.match(await page.locator("#cost").innerText(), /0\.00015.USD[\s\S]*Break-even: 38,400 requests/);
    assert.match(await page.locator("#setup").innerText(), /recipe sha256\s+a41c07e0/);
  });

  test("numbers are written as people read them", async () => {
    await open();
    const calls = {
      "share(0.635)": "63.5 %", "share(null)": "–", "signed(-0.00001, 1)": "+0.0", "signed(-2.25, 1)": "−2.3", "pText(0.0004)": "p < 0.001", "pText(0.0312)": "p = 0.031", "pText(1)": "p = 1.00",
      "metricValue({ scale: 'percent' }, 34.21)": "34.2", "metricValue({ scale: 'plain' }, 12.3456)": "12.346", "metricValue({ scale: 'plain' }, 1e12)": "1.00e+12", "milliseconds(12345)": "12.3 s", "milliseconds(9.54)": "9.5 ms",
      "effectText({ effect_kind: 'difference', effect: 0.705 }, { scale: 'share' })": "+70.5 points", "effectText({ effect_kind: 'difference', effect: -3.21 }, { scale: 'percent' })": "−3.2 points",
      "effectText({ effect_kind: 'ratio', effect: 0.873 }, { scale: 'plain' })": "ratio 0.873", "money(0.00015, 'USD')": "0.00015 USD", "money(12, 'EUR')": "12.00 EUR", "count(1, 'item')": "1 item", "count(12000, 'item')": "12,000 items",
    };
    for (const [call, text] of Object.entries(calls)) assert.equal((await within(call)).replaceAll("\u00a0", " "), text, call);
    assert.deepEqual(await within("[niceTicks(0, 1, 5), niceTicks(0.2, 0.2), niceTicks(10, 1200, 8)].map((ticks) => ticks.map((tick) => Number(tick.toPrecision(12))))"), [[0, 0.2, 0.4, 0.6, 0.8, 1], [0.2], [200, 400, 600, 800, 1000, 1200]]);
  });

  test("many labels become a list of the commonest mistakes", async () => {
    const labels = Array.from({ length: 60 }, (_, i) => `label ${i}`);
    const counts = labels.map((_, i) => [...labels, null].map((_, j) => (i === j ? 9 : i === 7 && j === 8 ? 5 : i === 3 && j === 60 ? 2 : 0)));
    const of = structuredClone(data);
    for (const candidate of of.evaluations[1].candidates) candidate.classes = { labels, counts, by_class: labels.map(() => ({ precision: 1, recall: 1, f1: 1, support: 9 })) };
    await open(of, { name: "labels" });
    const rows = page.locator("table", { hasText: "Commonest mistakes of adapter" }).locator("tbody tr");
    assert.deepEqual(await rows.allInnerTexts().then((lines) => lines.map((line) => line.split(/\t/).map((cell) => cell.trim()))), [["label 7", "label 8", "5"], ["label 3", "no label", "2"]]);
    assert.equal(await page.locator(".heat").count(), 0);
  });

  test("one candidate alone is right or wrong", async () => {
    const of = structuredClone(data);
    of.evaluations = [{ ...of.evaluations[1], reference: null, comparisons: [], candidates: [of.evaluations[1].candidates[1]], headline: "exact match 91.9 %" }];
    await open(of, { name: "alone" });
    assert.equal(await page.locator(".verdict-card .badge").textContent(), "Measured");
    assert.deepEqual(await page.locator(".tabs button").evaluateAll((all) => all.map((one) => one.firstChild.textContent)), ["All", "Wrong", "Right", "Cut off", "Errors", "In training data"]);
    assert.equal(await countOf("both-right"), routing.filter((one) => isRight(one, "adapter", "accuracy")).length);
    assert.equal(await page.locator(".example").first().locator(".side").count(), 2);
    assert.equal(await control("left").count(), 0);
  });

  test("without samples the page says why", async () => {
    for (const [redaction, told] of [["aggregate", /numbers only/], ["hashed", /replaced by hashes/], ["redacted", /redacted/]]) {
      await open({ ...data, redaction, samples: redaction === "aggregate" ? [] : data.samples, training_samples: [] }, { name: redaction });
      assert.match(await page.locator("#examples").innerText(), told);
      assert.equal(await page.locator("#tokens").count(), 0);
      assert.equal(await page.locator("button.cell").count() > 0, redaction !== "aggregate");
      await context.close();
    }
  });

  test("the least that a report can hold is drawn", async () => {
    const run = { title: "", description: null, setup: [], data: [], files: [], usage: [], notes: [], curve: [], checkpoints: [], best_step: null, lineage: [] };
    await open({ schema: 2, redaction: "full", run, verdict: null, exit_code: 4, evaluations: [], gates: [], cost: null, samples: [], training_samples: [] }, { name: "least" });
    assert.match(await page.locator("#verdict").innerText(), /Nothing was evaluated[\s\S]*made no evaluation/);
    await context.close();
    const metric = { metric: "perplexity", title: "perplexity", higher_is_better: false, scale: "plain", signature: "" };
    const alone = { name: "adapter", about: "", measured: [{ metric: "perplexity", value: null, n: 0, interval: null }], errors: 0, usage: null, classes: null, fields: null };
    await open({ schema: 2, redaction: "full", run: { ...run, curve: [{ step: 1, loss: 2, valid_loss: null }] }, verdict: null, exit_code: 0, evaluations: [{ name: "e", n: 0, reference: null, metrics: [metric], headline: "h", candidates: [alone], comparisons: [], slices: [], overlap: null, uses: null }],
      gates: [], cost: null, samples: [{ eval: "e", id: "1", input: "", prompt: "", expected: null, slices: {}, touched: null, candidates: {} }], training_samples: [{ id: "1", tokens: [] }] }, { name: "small" });
    assert.equal(await page.locator(".note.bad").count(), 0);
    assert.equal(await where(), "1 to 1 of 1 example");
  });
});

describe("examples", () => {
  test("filters give what an independent count gives", async () => {
    await open();
    const expected = {
      all: tickets.length,
      fixed: tickets.filter((one) => !isRight(one, "base") && isRight(one, "adapter")).length,
      broken: tickets.filter((one) => isRight(one, "base") && !isRight(one, "adapter")).length,
      "both-wrong": tickets.filter((one) => !isRight(one, "base") && !isRight(one, "adapter")).length,
      "both-right": tickets.filter((one) => isRight(one, "base") && isRight(one, "adapter")).length,
      different: tickets.filter((one) => (one.candidates.base.answer ?? one.candidates.base.output).trim() !== one.candidates.adapter.output.trim()).length,
      cut: tickets.filter((one) => one.candidates.base.finish_reason === "length").length, errors: 0, touched: 4,
    };
    for (const [filter, n] of Object.entries(expected)) {
      assert.equal(await countOf(filter), n, filter);
      await tab(filter).click();
      assert.match(await where(), n ? new RegExp(`of ${n} examples?$`) : /^No example/);
    }
    assert.equal(expected.fixed + expected.broken + expected["both-wrong"] + expected["both-right"], expected.all);
    assert.equal(await tab("better").count(), 0, "a metric of yes and no has no grades");
  });

  test("other candidates, other metrics, slices and a search narrow what is shown", async () => {
    await open();
    await control("right").selectOption("gpt");
    assert.equal(await countOf("errors"), 3);
    await control("metric").selectOption("field_f1");
    const known = tickets.filter((one) => !one.candidates.gpt.error);
    const better = known.filter((one) => one.candidates.gpt.scores.field_f1 > one.candidates.base.scores.field_f1 + 1e-9);
    assert.equal(await countOf("better"), better.length);
    await control("slice product").selectOption("=Payfern");
    const payfern = tickets.filter((one) => one.slices.product === "Payfern");
    assert.equal(await countOf("all"), payfern.length);
    await control("search").fill("CHARGES twice");
    await page.waitForFunction((n) => document.querySelector(".tabs .n").textContent === String(n), payfern.filter((one) => JSON.stringify([one.input, one.expected, one.candidates]).includes("charges twice")).length);
    assert.equal(await page.evaluate(() => document.activeElement.type), "search", "who writes keeps the keyboard");
    await control("eval").selectOption("general text");
    assert.equal(await countOf("all"), 40);
    assert.deepEqual([await tab("fixed").count(), await tab("better").count()], [0, 1]);
    const lower = data.samples.filter((one) => one.eval === "general text" && one.candidates.adapter.scores.perplexity < one.candidates.base.scores.perplexity);
    assert.equal(await countOf("better"), lower.length);
    assert.match(await page.locator(".example").first().innerText(), /No answer was written/);
  });

  test("a cell of the confusion matrix shows its examples, by pointer and by key", async () => {
    await open();
    const matrix = page.locator("table", { hasText: "Confusion matrix of adapter" });
    const { labels, counts } = data.evaluations[1].candidates[1].classes;
    for (const [i, row] of counts.entries()) {
      for (const [j, n] of row.entries()) assert.match(await matrix.locator("tbody tr").nth(i).locator("td").nth(j).innerText(), new RegExp(`^${n}$`));
    }
    const [i, j] = [labels.indexOf("technical"), labels.indexOf("shipping")];
    const wanted = routing.filter((one) => one.expected === "technical" && one.candidates.adapter.label === "shipping").map((one) => one.id);
    assert.ok(wanted.length > 0);
    await matrix.locator("tbody tr").nth(i).locator("td").nth(j).locator("button").click();
    assert.deepEqual(await ids(), wanted);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Examples");
    await page.locator(".chip-button").click();
    assert.equal(await countOf("all"), routing.length);
    await page.locator("#breakdown .evaluation").nth(1).locator(".segments button").first().click();
    const ofBase = page.locator("table", { hasText: "Confusion matrix of base" });
    const none = ofBase.locator("tbody tr button[aria-label*='no label']").first();
    const label = (await none.getAttribute("aria-label")).match(/expected (.+), said/)[1];
    await none.focus();
    await page.keyboard.press(" ");
    assert.deepEqual(await ids(), routing.filter((one) => one.expected === label && one.candidates.base.label === null).map((one) => one.id).slice(0, 20));
  });

  test("a count of a field shows its examples", async () => {
    await open();
    const table = page.locator("table", { hasText: "Fields of adapter" });
    const of = data.evaluations[0].candidates[1].fields.fields.version;
    const row = table.locator("tbody tr", { hasText: "version" });
    assert.deepEqual(await row.locator("td").allInnerTexts().then((cells) => cells.slice(0, 4).map(Number)), [of.equal, of.wrong, of.missing, of.invented]);
    await row.locator("button").nth(1).focus();
    await page.keyboard.press("Enter");
    assert.equal(await countOf("all"), tickets.filter((one) => one.candidates.adapter.fields.version === "wrong").length);
    assert.equal(await page.locator(".side.right .field-chip.wrong", { hasText: "version" }).count(), Math.min(20, of.wrong));
  });

  test("the address brings back what was chosen, and an odd one harms nothing", async () => {
    await open();
    await control("right").selectOption("gpt");
    await tab("both-wrong").click();
    await control("slice urgent").selectOption("=false");
    await page.locator(".segments [data-value=other]").click();
    const [address, shown, told] = [await hash(), await ids(), await where()];
    await context.close();
    await open(data, { hash: address });
    assert.deepEqual([await ids(), await where(), await control("right").inputValue()], [shown, told, "gpt"]);
    assert.equal(await tab("both-wrong").getAttribute("aria-pressed"), "true");
    assert.equal(await page.locator(".segments [data-value=other]").getAttribute("aria-pressed"), "true");
    await page.reload();
    assert.deepEqual(await ids(), shown);
    await page.locator("nav a").first().click();
    assert.equal(await hash(), address, "going to a section leaves the filters");
    await context.close();
    await open(data, { hash: "#eval=none&left=%3Cimg%3E&show=xx&page=-7&cell=%7B%22a%22&field=[1,2]&metric=0&smooth=NaN&slice=a" });
    assert.match(await where(), /^No example/); // the slice that there is not
    await page.evaluate(() => { location.hash = "#page=99&show=all"; });
    await page.waitForFunction(() => /^181 to 200 of 200/.test(document.querySelector(".where").textContent));
  });

  test("words that differ are marked, against the expected answer or each other", async () => {
    await open();
    assert.deepEqual(await within(`wordDiff("the quick brown fox", "the slow brown  fox!")`), [["same", "the "], ["gone", "quick "], ["new", "slow "], ["same", "brown  fox"], ["new", "!"]]);
    assert.deepEqual(await within(`wordDiff("a b c", "a b c")`), [["same", "a b c"]]);
    assert.deepEqual(await within(`wordDiff("", "x y")`), [["new", "x y"]]);
    assert.deepEqual(await within(`wordDiff("naïve 12.5 mg", "naïve 12,5 mg")`), [["same", "naïve 12"], ["gone", "."], ["new", ","], ["same", "5 mg"]]);
    const rebuilt = await within(`(() => { const bad = []; let s = 5; const r = () => (s = (s * 48271) % 2147483647) / 2147483647; for (let k = 0; k < 300; k += 1) { const t = () => Array.from({ length: r() * 12 }, () => "abc "[Math.floor(r() * 4)]).join(r() < 0.5 ? " " : ""); const [a, b] = [t(), t()]; const d = wordDiff(a, b); const bare = (x) => x.replace(/\\s/g, ""); if (d.filter((p) => p[0] !== "gone").map((p) => p[1]).join("") !== b || bare(d.filter((p) => p[0] !== "new").map((p) => p[1]).join("")) !== bare(a)) bad.push([a, b]); } return bad; })()`);
    assert.deepEqual(rebuilt, []);
    const slow = await within(`(() => { const t = (x) => Array.from({ length: 9000 }, (_, i) => x + i).join(" "); const from = performance.now(); wordDiff(t("a"), t("b")); return performance.now() - from; })()`);
    assert.ok(slow < 1500, `${slow} ms`);
    const sample = tickets.find((one, i) => i > 2 && Object.values(one.candidates.adapter.fields).includes("wrong")
      && Object.values(one.candidates.base.fields).filter((kind) => kind === "equal").length >= 2 && one.candidates.base.finish_reason === "stop");
    await control("search").fill(sample.id);
    await page.waitForFunction((id) => document.querySelector(".example .id").textContent === id, sample.id);
    const card = page.locator(".example").first();
    assert.ok(await card.locator(".side.right ins").count() > 0);
    assert.ok(await card.locator(".side.left ins").filter({ hasText: "Sure! Here is the JSON" }).count() === 1);
    await page.locator(".segments [data-value=other]").click();
    assert.equal(await card.locator("del").count(), 0);
    await page.locator(".segments [data-value=off]").click();
    assert.equal(await card.locator("ins").count(), 0);
    assert.equal(await card.locator(".side.right .text").innerText(), sample.candidates.adapter.output);
  });

  test("long texts are folded and open; the whole prompt is there", async () => {
    await open();
    const card = page.locator(".example").nth(2);
    assert.equal(await card.locator(".id").textContent(), "test.jsonl:3");
    const more = card.getByRole("button", { name: /Show all 3,960 characters/ });
    await more.click();
    assert.equal(await card.locator(".folded").count(), 0);
    await card.locator("summary").click();
    assert.equal(await card.locator(".prompt").innerText(), tickets[2].prompt);
  });

  test("10,000 examples and 100,000 points of a curve stay fluent and few on the page", async () => {
    const many = fixture({ tickets: 10_000, points: 100_000 });
    await open(many, { name: "many" });
    assert.equal(await countOf("all"), 10_000);
    const elements = await page.evaluate(() => document.querySelectorAll("*").length);
    assert.ok(elements < 6000, `${elements} elements`);
    const took = await page.evaluate(async () => {
      const from = performance.now();
      document.querySelector(".tabs [data-value=fixed]").click();
      await new Promise((done) => requestAnimationFrame(done));
      return performance.now() - from;
    });
    assert.ok(took < 1500, `a filter took ${took} ms`);
    await page.getByRole("button", { name: "Next" }).first().click();
    assert.match(await where(), /^21 to 40 of/);
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Next");
    assert.ok(await page.locator(".example").count() === 20);
  });
});

describe("safety", () => {
  test("hostile text is text, and nothing is asked for", async () => {
    await open();
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator("main :is(script, img, iframe, object, a[href^='javascript'])").count(), 0);
    assert.equal(await page.locator(".example").first().locator(".side.left .text").textContent(), HOSTILE.replace(/[\u202a-\u202e]/g, "\ufffd"));
    assert.match(await page.locator(".example").nth(1).locator(".asked .text").textContent(), /half \ufffd of a pair|half \ud83d of a pair/);
    assert.equal(await page.evaluate(() => /[\u202a-\u202e]/.test(document.body.innerText)), false);
    await shot("hostile");
  });

  test("hostile names of everything are text too", async () => {
    const name = HOSTILE;
    const of = JSON.parse(JSON.stringify(data).replaceAll("\"adapter\"", JSON.stringify(name)).replaceAll("\"held-out tickets\"", JSON.stringify(`${name} `)).replaceAll("\"product\"", JSON.stringify(`${name}  `)).replaceAll("\"billing\"", JSON.stringify(`${name}   `)));
    await open(of, { name: "names" });
    assert.equal(await page.evaluate(() => window.pwned), undefined);
    assert.equal(await page.locator("main :is(script, img)").count(), 0);
    assert.equal(await page.locator(".note.bad", { hasText: "Fault" }).count(), 0);
    for (const width of [1280, 380]) {
      await page.setViewportSize({ width, height: 800 });
      await assertNoSidewaysScroll();
    }
  });

  test("the policy lets no script in but ours, and no request out", async () => {
    await open();
    assert.doesNotMatch(await page.locator("meta[http-equiv]").getAttribute("content"), /unsafe/);
    const told = await page.evaluate(async () => {
      const blocked = [];
      document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.pwned = 3";
      document.body.append(script, Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/x" }));
      await fetch("http://127.0.0.1:9/y").catch(() => {});
      await new Promise((done) => setTimeout(done, 200));
      return [blocked.sort(), window.pwned];
    });
    assert.deepEqual(told, [["connect-src", "img-src", "script-src-elem"], undefined]);
    faults = faults.filter((fault) => !/Content Security Policy|Refused to|127\.0\.0\.1:9/.test(fault));
  });

  test("no script of the page is left out", () => {
    assert.ok(scriptNames.length > 10 && scriptNames.at(-1) === "main.js");
  });

  test("without scripts the verdict is read", { skip: !RUST_PAGE && "needs TAPER_REPORT_PAGE" }, async () => {
    await open(data, { javaScriptEnabled: false });
    const text = await page.locator("main").innerText();
    for (const evaluation of data.evaluations) assert.ok(text.includes(evaluation.headline));
    assert.match(text, /adapter\.exact_match >= 0\.9: failed/);
    assert.equal(await page.locator("main table").count(), 3);
  });
});

describe("for everybody", () => {
  for (const colorScheme of ["light", "dark"]) {
    test(`axe finds nothing in ${colorScheme}`, async () => {
      await open(data, { colorScheme });
      await assertAccessible();
      await page.locator("details:not([open]) > summary").first().click();
      await tab("fixed").click();
      await assertAccessible();
      await shot(`axe-${colorScheme}`);
    });
  }

  test("dark is dark, by the system and by choice, and the choice stays", async () => {
    await open(data, { colorScheme: "dark" });
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await ground();
    await page.selectOption("#theme", "light");
    const light = await ground();
    assert.notEqual(dark, light);
    await page.reload();
    assert.equal(await ground(), light);
    await page.selectOption("#theme", "");
    assert.equal(await ground(), dark);
  });

  test("all is reached by the keyboard, and headings are in order", async () => {
    await open();
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Scores");
    await tab("fixed").focus();
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.dataset.value), "fixed");
    await control("left").focus();
    await page.keyboard.press("ArrowDown");
    assert.equal(await control("left").inputValue(), "adapter");
    assert.equal(await page.evaluate(() => document.activeElement.closest("[data-control]").dataset.control), "left");
    const levels = await page.evaluate(() => [...document.querySelectorAll("h1, h2, h3, h4")].map((one) => Number(one.tagName[1])));
    levels.forEach((level, i) => assert.ok(i === 0 ? level === 1 : level <= levels[i - 1] + 1, `heading ${i}`));
  });

  test("a phone's width has no sideways scroll", async () => {
    await open(data, { viewport: { width: 380, height: 800 }, hasTouch: true, isMobile: true });
    await assertNoSidewaysScroll();
    await control("eval").selectOption("routing");
    await assertNoSidewaysScroll();
    await shot("phone");
  });

  test("on paper it is light, without controls, and opened where it matters", async () => {
    await open(data, { colorScheme: "dark" });
    const pdf = await page.pdf({ path: join(SHOTS, "print.pdf"), format: "A4" });
    assert.equal(pdf.subarray(0, 5).toString(), "%PDF-");
    const pages = pdf.toString("latin1").match(/\/Type\s*\/Page\b/g).length;
    assert.ok(pages >= 4 && pages <= 30, `${pages} pages`);
    await page.emulateMedia({ media: "print", colorScheme: "dark" });
    await page.evaluate(() => window.dispatchEvent(new Event("beforeprint")));
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(255, 255, 255)");
    assert.equal(await page.locator(".controls:visible, .tabs:visible, .masthead:visible").count(), 0);
    assert.ok(await page.getByText("exact_match|normalize:whitespace").first().isVisible());
    assert.equal(await page.locator(".example:visible").count(), 20);
    await page.evaluate(() => window.dispatchEvent(new Event("afterprint")));
    assert.equal(await page.locator("details[data-prints][open]").count(), 1);
  });
});
