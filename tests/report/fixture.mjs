// Data of a rich report, the same on every run: an extraction with three candidates, a classification, a perplexity. Scores, counts and
// intervals follow from the samples, so that a table and its examples agree as they do in a true report.

import { writeFileSync } from "node:fs";

export const HOSTILE =
  '</script><script>window.pwned=1</script><!-- <img src=x onerror="window.pwned=2"> {{script}} \u202etxet\u202c \u2028\u2029 &amp; \0';
export const LONE_SURROGATE = "half \ud83d of a pair";

/** Numbers between 0 and 1 by a counter. */
function randomBy(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const pick = (random, list) => list[Math.floor(random() * list.length)];
const mean = (list) => list.reduce((sum, one) => sum + one, 0) / (list.length || 1);

function wilson(p, n, z = 1.96) {
  const middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}

const PRODUCTS = ["Dropoxara", "Brightmail", "Notelake", "Payfern"];
const VERSIONS = ["1.4", "2.0.1", "3.7", "11.2"];
const ISSUES = ["cannot sign in", "loses attachments", "shows a blank screen", "is slow after the update", "charges twice"];
const FIELDS = ["product", "version", "issue", "urgent"];

/** A support ticket, its right answer, and what three candidates make of it. */
function ticket(random, i) {
  const truth = {
    product: random() < 0.06 ? "Quillbox" : pick(random, PRODUCTS),
    version: pick(random, VERSIONS),
    issue: pick(random, ISSUES),
    urgent: random() < 0.3,
  };
  const input = `Hello, since Monday ${truth.product} ${truth.version} ${truth.issue}. I have tried twice to restart it and to clear the cache. ${truth.urgent ? "Our clinic stands still, please call back today!" : "No hurry, but it would be good to know more."} Ticket ${1000 + i}.`;
  const skills = { base: 0.42, adapter: 0.94, gpt: 0.9 };
  const candidates = {};
  for (const [name, skill] of Object.entries(skills)) candidates[name] = ticketAnswer(random, truth, name, skill);
  return {
    eval: "held-out tickets",
    id: `test.jsonl:${i + 1}`,
    input,
    prompt: `<|im_start|>system\nExtract the fields as JSON.<|im_end|>\n<|im_start|>user\n${input}<|im_end|>\n<|im_start|>assistant\n`,
    expected: JSON.stringify(truth),
    slices: { product: truth.product, urgent: String(truth.urgent) },
    touched: null,
    candidates,
  };
}

function ticketAnswer(random, truth, name, skill) {
  const given = {};
  const fields = {};
  for (const field of FIELDS) {
    if (random() < skill) {
      given[field] = truth[field];
      fields[field] = "equal";
      continue;
    }
    if (random() < 0.4) {
      fields[field] = "missing";
      continue;
    }
    fields[field] = "wrong";
    given[field] = field === "urgent" ? !truth.urgent : `${truth[field]} or so`;
  }
  if (name === "base" && random() < 0.15) {
    given.customer = "unknown";
    fields.customer = "invented";
  }
  const kinds = Object.values(fields);
  const equal = kinds.filter((kind) => kind === "equal").length;
  const total =
    2 * equal +
    2 * kinds.filter((kind) => kind === "wrong").length +
    kinds.filter((kind) => kind === "missing" || kind === "invented").length;
  const answer = JSON.stringify(given);
  const wrapped = name === "base" ? `Sure! Here is the JSON you asked for:\n\n${answer}` : answer;
  const cut = name === "base" && random() < 0.08;
  return {
    output: cut ? wrapped.slice(0, 40) : wrapped,
    answer: name === "base" && !cut ? answer : null,
    finish_reason: cut ? "length" : "stop",
    completion_tokens: 12 + Math.floor(answer.length / 4),
    latency_ms: (name === "gpt" ? 600 : 40) + Math.round(random() * 400) / 10,
    scores: { exact_match: kinds.every((kind) => kind === "equal") && !cut ? 1 : 0, field_f1: cut ? 0 : (2 * equal) / total },
    label: null,
    fields: cut ? Object.fromEntries(FIELDS.map((field) => [field, "missing"])) : fields,
    error: null,
  };
}

const LABELS = ["billing", "shipping", "technical", "cancel my account"];

function message(random, i) {
  const truth = pick(random, LABELS);
  const candidates = {};
  for (const [name, skill] of [
    ["base", 0.6],
    ["adapter", 0.85],
  ]) {
    const label = random() < skill ? truth : random() < 0.1 ? null : pick(random, LABELS);
    candidates[name] = {
      output: label ?? "I am not sure what this is about.",
      answer: null,
      finish_reason: "stop",
      completion_tokens: 3,
      latency_ms: 9.5,
      scores: { accuracy: label === truth ? 1 : 0 },
      label,
      fields: null,
      error: null,
    };
  }
  return {
    eval: "routing",
    id: `routing.jsonl:${i + 1}`,
    input: `Message ${i + 1} about ${truth}`,
    prompt: `Message ${i + 1} about ${truth}`,
    expected: truth,
    slices: {},
    touched: null,
    candidates,
  };
}

function scored(random, i) {
  const easy = random();
  const given = (loss) => ({
    output: null,
    answer: null,
    finish_reason: null,
    completion_tokens: 0,
    latency_ms: null,
    scores: { perplexity: Math.exp(loss) },
    label: null,
    fields: null,
    error: null,
  });
  return {
    eval: "general text",
    id: `general.jsonl:${i + 1}`,
    input: `A paragraph, number ${i + 1}`,
    prompt: "",
    expected: `What follows paragraph ${i + 1}`,
    slices: {},
    touched: null,
    candidates: { base: given(2 + easy), adapter: given(2.02 + easy + (random() - 0.5) * 0.1) },
  };
}

/** What a metric comes to for some samples; those with errors do not count. */
function measure(samples, name, metric) {
  const values = samples
    .filter((one) => one.candidates[name] && !one.candidates[name].error)
    .map((one) => one.candidates[name].scores[metric.metric]);
  if (metric.scale === "plain") {
    const value = Math.exp(mean(values.map(Math.log)));
    return { metric: metric.metric, value, n: values.length, interval: { low: value * 0.93, high: value * 1.07 } };
  }
  const value = mean(values);
  return { metric: metric.metric, value, n: values.length, interval: values.length >= 5 ? wilson(value, values.length) : null };
}

function compareOn(samples, reference, candidate, metric) {
  const pairs = samples
    .filter((one) => !one.candidates[reference].error && !one.candidates[candidate].error)
    .map((one) => [one.candidates[reference].scores[metric.metric], one.candidates[candidate].scores[metric.metric]]);
  const sign = metric.higher_is_better ? 1 : -1;
  const [won, lost] = [1, -1].map((way) => pairs.filter(([a, b]) => (b - a) * sign * way > 1e-9).length);
  const [base, value] = [reference, candidate].map((name) => measure(samples, name, metric).value);
  const ratio = metric.scale === "plain";
  const effect = ratio ? value / base : value - base;
  const half = ratio ? 0.03 : 1.96 * Math.sqrt((won + lost) / pairs.length / pairs.length);
  const interval =
    pairs.length >= 10
      ? { low: ratio ? effect - half : Math.max(-1, effect - half), high: ratio ? effect + half : Math.min(1, effect + half) }
      : null;
  const none = ratio ? 1 : 0;
  const clear = interval && (interval.low > none || interval.high < none);
  const p = clear ? 0.00002 : 0.21;
  return {
    reference,
    candidate,
    metric: metric.metric,
    base,
    value,
    n: pairs.length,
    effect_kind: ratio ? "ratio" : "difference",
    effect,
    interval,
    won,
    lost,
    test: metric.metric === "exact_match" || metric.metric === "accuracy" ? "exact McNemar" : "permutation",
    p_value: p,
    adjusted_p_value: Math.min(1, 3 * p),
    verdict: !clear ? "inconclusive" : (effect - none) * sign > 0 ? "better" : "worse",
    needed: clear ? null : 480,
    effect_size: ratio
      ? null
      : { name: "Cohen's h", value: 2 * Math.asin(Math.sqrt(Math.min(1, value))) - 2 * Math.asin(Math.sqrt(Math.min(1, base))) },
  };
}

function fieldsOf(samples, name) {
  const fields = Object.fromEntries([...FIELDS, "customer"].map((field) => [field, { equal: 0, wrong: 0, missing: 0, invented: 0 }]));
  for (const one of samples) for (const [field, kind] of Object.entries(one.candidates[name].fields ?? {})) fields[field][kind] += 1;
  const answered = samples.filter((one) => one.candidates[name].fields);
  const json = answered.filter((one) => one.candidates[name].finish_reason !== "length").length;
  return {
    documents: answered.length,
    json,
    valid: json - 1,
    correct: answered.filter((one) => one.candidates[name].scores.exact_match === 1).length,
    fields,
  };
}

function classesOf(samples, name) {
  const counts = LABELS.map(() => [...LABELS, null].map(() => 0));
  for (const one of samples) {
    const { label } = one.candidates[name];
    counts[LABELS.indexOf(one.expected)][label === null ? LABELS.length : LABELS.indexOf(label)] += 1;
  }
  const by_class = LABELS.map((_, i) => {
    const [hit, said, support] = [counts[i][i], counts.reduce((sum, row) => sum + row[i], 0), counts[i].reduce((sum, n) => sum + n, 0)];
    return {
      precision: said ? hit / said : 0,
      recall: support ? hit / support : 0,
      f1: said + support ? (2 * hit) / (said + support) : 0,
      support,
    };
  });
  return { labels: LABELS, counts, by_class };
}

function evaluationOf(name, samples, metrics, names, more) {
  const measured = (list) => Object.fromEntries(names.map((one) => [one, metrics.map((metric) => measure(list, one, metric))]));
  const compare = (list) => metrics.flatMap((metric) => names.slice(1).map((one) => compareOn(list, names[0], one, metric)));
  const slices = more.sliceFields.flatMap((field) =>
    [...new Set(samples.map((one) => one.slices[field]))].sort().map((value) => {
      const own = samples.filter((one) => one.slices[field] === value);
      return { field, value, n: own.length, comparisons: compare(own), measured: measured(own) };
    }),
  );
  const touched = samples.filter((one) => one.touched);
  const rest = samples.filter((one) => !one.touched);
  return {
    name,
    n: samples.length,
    reference: names[0],
    metrics,
    headline: more.headline,
    candidates: names.map((one) => ({
      name: one,
      about: `models/${one}`,
      measured: measured(samples)[one],
      errors: samples.filter((sample) => sample.candidates[one].error).length,
      usage: {
        prompt_tokens: 98 * samples.length,
        completion_tokens: 31 * samples.length,
        cached: one === "base" ? 200 : 0,
        latency_p50_ms: one === "gpt" ? 640 : 42.1,
        latency_p95_ms: one === "gpt" ? 1810.4 : 77,
      },
      classes: more.classes ? classesOf(samples, one) : null,
      fields: more.fields ? fieldsOf(samples, one) : null,
    })),
    comparisons: compare(samples),
    slices,
    overlap: more.overlap
      ? {
          touched: touched.length,
          exact: 1,
          normalised: 1,
          near: touched.length - 2,
          without: { n: rest.length, comparisons: compare(rest), measured: measured(rest) },
        }
      : null,
    uses: more.uses,
  };
}

const METRIC = (metric, title, scale = "share", higher_is_better = true) => ({
  metric,
  title,
  higher_is_better,
  scale,
  signature: `${metric}|normalize:whitespace|n:200|greedy|taper:0.1.0`,
});

function curveOf(random, points) {
  const curve = [];
  for (let i = 1; i <= points; i += 1) {
    const step = i * 10;
    const fall = 0.35 + 2.4 * Math.exp((-4 * i) / points);
    curve.push({
      step,
      loss: i === 7 ? null : fall + (random() - 0.5) * 0.5 * fall,
      valid_loss: i % Math.max(1, Math.floor(points / 12)) === 0 ? fall * 1.04 + (0.12 * i) / points : null,
    });
  }
  return curve;
}

function trainingSamples() {
  const context = [
    "<|im_start|>",
    "user",
    "\n",
    "Ex",
    "tract",
    " the",
    " fields",
    ".",
    " My",
    "\tNotelake",
    " is",
    "  slow",
    "<|im_end|>",
    "\n",
    "<|im_start|>",
    "assistant",
    "\n",
  ];
  const answer = ['{"', "product", '":', ' "', "Note", "lake", '"}', "<|im_end|>"];
  const tokens = [
    ...context.map((text) => ({ text, supervised: false })),
    ...answer.map((text) => ({ text, supervised: true })),
    { text: "\n", supervised: false },
  ];
  return [
    { id: "train.jsonl:17", tokens },
    {
      id: "train.jsonl:18",
      tokens: [
        { text: HOSTILE, supervised: true },
        { text: LONE_SURROGATE, supervised: false },
      ],
    },
    { id: "train.jsonl:19", tokens: tokens.map(({ text }) => ({ text, supervised: false })) },
  ];
}

function runOf(random, points) {
  return {
    title: "tickets to JSON",
    description: "Reads the fields of a support ticket, on a small model that runs on the clinic's own machine.",
    setup: [
      ["base", "models/tiny-base (28 M parameters)"],
      ["method", "LoRA, rank 16, on all linear layers"],
      ["batch", "16 examples, 4 micro-batches"],
      ["learning rate", "2e-4, cosine, 20 steps of warm-up"],
    ],
    data: [
      ["train", "2,000 examples, 214,310 tokens, 61,204 of them supervised"],
      ["validation", "100 examples"],
      ["test", "200 examples, 4 also in train"],
    ],
    files: [
      ["adapter/", "the adapter, in PEFT's format"],
      ["report.json", "all numbers of this page"],
      ["samples.jsonl", "all answers"],
    ],
    usage: [
      'taper generate --model models/tiny-base --adapter runs/tickets/adapter "Hello, since Monday ..."',
      "taper serve --model models/tiny-base --adapter tickets=runs/tickets/adapter",
    ],
    notes: ["Greedy decoding; the same models and data give the same report.", HOSTILE],
    curve: curveOf(random, points),
    checkpoints: [300, 600, 900, 1200].filter((step) => step <= 10 * points),
    best_step: Math.min(900, 10 * points),
    lineage: [
      ["base sha256", "5e0c4f7d2b1a9c3e8f6d7a0b4c2e1f9d8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d"],
      ["recipe sha256", "a41c07e0d2f3b4c5968778695a4b3c2d1e0f102132435465768798a9bacbdced"],
      ["taper", "0.1.0"],
      ["device", "CPU, 2 cores"],
    ],
  };
}

/** The data of a report. `tickets`: examples of the extraction; `points`: of the curve. */
export function fixture({ tickets = 200, points = 120 } = {}) {
  const random = randomBy(7);
  const extraction = Array.from({ length: tickets }, (_, i) => ticket(random, i));
  extraction[3].touched = "exact";
  extraction[8].touched = "normalised";
  extraction[21].touched = "near";
  extraction[40].touched = "near";
  for (const i of [5, 6, 90])
    extraction[i].candidates.gpt = {
      ...extraction[i].candidates.gpt,
      output: null,
      fields: null,
      scores: {},
      finish_reason: null,
      error: "HTTP 529: the service is overloaded",
    };
  extraction[0].candidates.base.output = HOSTILE;
  extraction[0].candidates.base.answer = HOSTILE;
  extraction[1].input = `${HOSTILE} ${LONE_SURROGATE}`;
  extraction[2].candidates.base.output = "A long answer without any field. ".repeat(120);
  const routing = Array.from({ length: 160 }, (_, i) => message(random, i));
  const general = Array.from({ length: 40 }, (_, i) => scored(random, i));
  const data = {
    schema: 2,
    redaction: "full",
    run: runOf(random, points),
    verdict: "better",
    exit_code: 100,
    evaluations: [
      evaluationOf(
        "held-out tickets",
        extraction,
        [METRIC("exact_match", "exact match"), METRIC("field_f1", "JSON fields (micro F1)")],
        ["base", "adapter", "gpt"],
        { headline: "", sliceFields: ["product", "urgent"], fields: true, overlap: true, uses: 14 },
      ),
      evaluationOf("routing", routing, [METRIC("accuracy", "accuracy")], ["base", "adapter"], {
        headline: "",
        sliceFields: [],
        classes: true,
        uses: 3,
      }),
      evaluationOf("general text", general, [METRIC("perplexity", "perplexity", "plain", false)], ["base", "adapter"], {
        headline: "",
        sliceFields: [],
        uses: null,
      }),
    ],
    gates: [
      {
        text: "adapter.exact_match >= 0.9",
        eval: "held-out tickets",
        status: "failed",
        value: 0.79,
        limit: 0.9,
        detail: "0.79, limit 0.9",
      },
      {
        text: "adapter.accuracy - base.accuracy >= 0.05",
        eval: "routing",
        status: "passed",
        value: 0.2,
        limit: 0.05,
        detail: "+0.2, limit +0.05",
      },
      {
        text: "adapter.perplexity / base.perplexity <= 1.02",
        eval: "general text",
        status: "inconclusive",
        value: 1.02,
        limit: 1.02,
        detail: "1.02, limit 1.02; the interval holds the limit",
      },
      {
        text: "adapter.chrf >= 40",
        eval: null,
        status: "nothing_evaluated",
        value: null,
        limit: 40,
        detail: "no evaluation measures chrf",
      },
    ],
    cost: {
      currency: "USD",
      cheapest: "adapter",
      sentence: "The adapter is the cheapest candidate that is not worse: one correct answer costs 0.00015 USD, with gpt 0.0016 USD.",
      break_even_per_month: 38_400,
      energy_j_per_token: 0.031,
      candidates: [
        { name: "adapter", per_1000: 0.12, per_correct: 0.00015, per_correct_interval: { low: 0.00014, high: 0.00017 }, accuracy: 0.79 },
        { name: "gpt", per_1000: 1.1, per_correct: 0.0016, per_correct_interval: { low: 0.0015, high: 0.0018 }, accuracy: 0.68 },
      ],
      assumptions: [
        ["machine", "60 USD a month"],
        ["care", "4 h at 60 USD a month"],
      ],
    },
    samples: [...extraction, ...routing, ...general],
    training_samples: trainingSamples(),
  };
  const words = { better: "is better than the base", worse: "is worse than the base", inconclusive: "cannot be told from the base" };
  for (const evaluation of data.evaluations) {
    const [one, metric] = [evaluation.comparisons[0], evaluation.metrics[0]];
    const show = (value) => (metric.scale === "share" ? `${(100 * value).toFixed(1)} %` : value.toFixed(3));
    evaluation.headline = `The adapter ${words[one.verdict]}: ${metric.title} went from ${show(one.base)} to ${show(one.value)} (n = ${one.n}, ${one.test} p ${one.p_value < 0.001 ? "< 0.001" : `= ${one.p_value}`}).`;
  }
  return data;
}

if (process.argv[1] === new URL(import.meta.url).pathname)
  writeFileSync(process.argv[2], JSON.stringify(fixture()).replaceAll("\\ud83d", "\\ufffd")); // Rust's text holds no half of a pair
