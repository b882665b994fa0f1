// Scores: what was measured, how it compares, and whether it holds in parts of the data.

const FEW = 30; // items below which a slice says little
const MANY_USES = 10; // looks at the same test data after which gains found on it are doubtful

const measuredOf = (list, metric) => (list ?? []).find((one) => one.metric === metric) ?? null;
const metricOf = (evaluation, name) =>
  evaluation.metrics.find((one) => one.metric === name) ?? { metric: name, title: name, scale: "plain", higher_is_better: true };
const placeOf = (evaluation, name) => evaluation.candidates.findIndex((one) => one.name === name);

function scoresSection({ evaluations = [] }) {
  const nodes = evaluations.map((evaluation, at) =>
    el(
      "section",
      { classes: "evaluation" },
      el("h3", {}, legible(evaluation.name), el("span", { classes: "quiet" }, ` ${count(evaluation.n, "item")}`)),
      scoreTable(evaluation),
      problemsOf(evaluation),
      evaluation.comparisons?.length
        ? [el("h4", {}, "Compared, item by item"), comparisonTable(evaluation, evaluation.comparisons, "Comparisons")]
        : null,
      evaluation.overlap ? overlapOf(evaluation) : null,
      evaluation.slices?.length ? slicesOf(evaluation, at) : null,
      el(
        "div",
        { classes: "folds" },
        fold("How it was measured", () => signatures(evaluation), { prints: true }),
        evaluation.candidates.some((one) => one.usage) ? fold("Tokens and latency", () => usageTable(evaluation), { prints: true }) : null,
      ),
    ),
  );
  return el(
    "section",
    { id: "scores" },
    el("h2", {}, "Scores"),
    el("p", { classes: "quiet" }, "Whiskers and the numbers in small print are 95 % intervals. Where better lies is tinted."),
    nodes,
  );
}

const valueCell = (metric, measured) =>
  num(
    measured
      ? el(
          "span",
          {},
          el("b", {}, metricValue(metric, measured.value)),
          el(
            "small",
            {},
            rangeText(measured.interval, (end) => metricValue(metric, end)),
          ),
        )
      : "–",
    measured ? "" : "quiet",
  );

function scoreTable(evaluation) {
  const { candidates } = evaluation;
  const head = ["metric", ...candidates.map((one, i) => ({ cell: named(i, one.name), classes: "number" })), "95 % intervals"];
  const rows = evaluation.metrics.map((metric) => {
    const measured = candidates.map((one) => measuredOf(one.measured, metric.metric));
    const direction = metric.higher_is_better === false ? "lower is better" : "higher is better";
    return [
      el("span", {}, legible(metric.title), el("small", {}, direction)),
      ...measured.map((one) => valueCell(metric, one)),
      {
        cell: scorePlot(
          metric,
          candidates.map((one, index) => ({ index, name: one.name, measured: measured[index] })),
        ),
        classes: "drawn",
      },
    ];
  });
  return table(`Scores on ${evaluation.name}`, head, rows);
}

/** Warnings that belong beside the scores. */
function problemsOf(evaluation) {
  const notes = [];
  const failed = evaluation.candidates.filter((one) => one.errors > 0);
  for (const one of failed) notes.push(`${one.name}: ${count(one.errors, "item")} could not be answered. They are not counted as wrong.`);
  if (evaluation.uses > MANY_USES)
    notes.push(
      `This test data has been evaluated ${evaluation.uses} times on this machine. Each look makes a gain by chance more likely: confirm the result on fresh data.`,
    );
  const uses =
    isNumber(evaluation.uses) && evaluation.uses <= MANY_USES
      ? `This test data has been evaluated ${count(evaluation.uses, "time")} on this machine.`
      : "";
  return [
    notes.map((note) => el("p", { classes: "note warn" }, badge("unsure", "doubt", "Caution"), el("span", {}, legible(note)))),
    uses ? el("p", { classes: "quiet" }, uses) : null,
  ];
}

function comparisonTable(evaluation, comparisons, caption) {
  const reaches = new Map();
  const kindOf = (one) => (one.effect_kind === "ratio" ? "ratio" : metricOf(evaluation, one.metric).scale);
  for (const kind of new Set(comparisons.map(kindOf))) reaches.set(kind, effectReach(comparisons.filter((one) => kindOf(one) === kind)));
  const adjusted = comparisons.some((one) => isNumber(one.adjusted_p_value));
  const sized = comparisons.some((one) => one.effect_size);
  const numeric = (cell) => ({ cell, classes: "number" });
  const head = [
    "metric",
    "candidate",
    numeric("effect"),
    "against no effect",
    numeric("won / lost"),
    numeric("p"),
    adjusted ? numeric("p adjusted") : null,
    sized ? numeric("effect size") : null,
    "verdict",
  ].filter((one) => one !== null);
  const rows = comparisons.map((one) => {
    const metric = metricOf(evaluation, one.metric);
    const at = Math.max(0, placeOf(evaluation, one.candidate));
    const between = rangeText(one.interval, (end) => effectNumber(one, metric, end));
    return [
      legible(metric.title),
      el("span", {}, named(at, one.candidate), el("small", {}, legible(`against ${one.reference}, n = ${whole(one.n)}`))),
      num(el("span", {}, el("b", {}, effectText(one, metric)), el("small", {}, between))),
      { cell: effectPlot(one, metric, reaches.get(kindOf(one)), at), classes: "drawn" },
      num(`${whole(one.won)} / ${whole(one.lost)}`),
      num(el("span", {}, pText(one.p_value), el("small", {}, legible(one.test ?? "")))),
      adjusted ? num(pText(one.adjusted_p_value)) : null,
      sized
        ? num(one.effect_size ? el("span", {}, fixed(one.effect_size.value, 2), el("small", {}, legible(one.effect_size.name))) : "–")
        : null,
      verdictCell(one),
    ].filter((cell) => cell !== null);
  });
  return table(`${caption} on ${evaluation.name}`, head, rows);
}

function verdictCell(comparison) {
  const needed =
    comparison.verdict === "inconclusive" && isNumber(comparison.needed) && comparison.needed > comparison.n
      ? el("small", {}, `about ${whole(comparison.needed)} items would be needed`)
      : null;
  return el("span", {}, verdictBadge(comparison.verdict), needed);
}

function signatures(evaluation) {
  const rows = evaluation.metrics.map((metric) => [legible(metric.title), el("code", {}, legible(metric.signature ?? ""))]);
  const about = evaluation.candidates.map((one, i) => [named(i, one.name), legible(one.about ?? "")]);
  return [
    table(`Signatures of the metrics on ${evaluation.name}`, ["metric", "signature"], rows),
    table(`Candidates on ${evaluation.name}`, ["candidate", "what it is"], about),
  ];
}

function usageTable(evaluation) {
  const head = [
    "candidate",
    ...["prompt tokens", "completion tokens", "answers from the cache", "median latency", "95 % within"].map((cell) => ({
      cell,
      classes: "number",
    })),
  ];
  const rows = evaluation.candidates.flatMap(({ name, usage }, i) =>
    usage
      ? [
          [
            named(i, name),
            num(whole(usage.prompt_tokens)),
            num(whole(usage.completion_tokens)),
            num(whole(usage.cached)),
            num(milliseconds(usage.latency_p50_ms)),
            num(milliseconds(usage.latency_p95_ms)),
          ],
        ]
      : [],
  );
  return table(`Tokens and latency on ${evaluation.name}`, head, rows);
}

// ---- Overlap with the training data ------------------------------------------------------------------------------

function overlapOf(evaluation) {
  const { overlap, candidates } = evaluation;
  const kinds = [
    [overlap.exact, "word for word"],
    [overlap.normalised, "but for case, spaces and signs"],
    [overlap.near, "nearly"],
  ];
  const told = kinds
    .filter(([n]) => n > 0)
    .map(([n, how]) => `${whole(n)} ${how}`)
    .join(", ");
  const title = el("h4", {}, "Overlap with the training data");
  if (!overlap.touched) return [title, el("p", {}, `None of the ${whole(evaluation.n)} items was found in the training data.`)];
  const text = `${whole(overlap.touched)} of ${count(evaluation.n, "item")} ${overlap.touched === 1 ? "is" : "are"} also in the training data${told && ` (${told})`}. If the scores fall without them, part of the result is memory.`;
  const head = [
    "metric",
    ...candidates.flatMap((one, i) => [
      { cell: el("span", {}, named(i, one.name), el("small", {}, "all")), classes: "number" },
      { cell: el("span", {}, named(i, one.name), el("small", {}, `without, n = ${whole(overlap.without?.n)}`)), classes: "number" },
    ]),
  ];
  const rows = evaluation.metrics.map((metric) => [
    legible(metric.title),
    ...candidates.flatMap((one) => [
      valueCell(metric, measuredOf(one.measured, metric.metric)),
      valueCell(metric, measuredOf(overlap.without?.measured?.[one.name], metric.metric)),
    ]),
  ]);
  const link =
    (report.samples ?? []).some((one) => one.eval === evaluation.name) &&
    el(
      "button",
      { type: "button", classes: "link", onclick: () => showExamples({ eval: evaluation.name, show: "touched" }) },
      "Show these examples",
    );
  const nodes = [title, el("p", {}, text, " ", link)];
  if (overlap.without) nodes.push(table(`Scores with and without the overlap on ${evaluation.name}`, head, rows));
  if (overlap.without?.comparisons?.length)
    nodes.push(
      fold(
        "Comparisons without the overlap",
        () => comparisonTable(evaluation, overlap.without.comparisons, "Comparisons without the overlap"),
        { prints: true },
      ),
    );
  return nodes;
}

// ---- Slices ------------------------------------------------------------------------------------------------------

/** Parts of the data by the value of a field, for one metric at a time. */
function slicesOf(evaluation, at) {
  const key = `slices${at}`;
  const holder = el("div", { classes: "stack" });
  const show = () => {
    const chosen = evaluation.metrics.find((one) => one.metric === state.get(key)) ?? evaluation.metrics[0];
    holder.replaceChildren(
      el(
        "div",
        { classes: "controls" },
        choice(
          "Metric",
          evaluation.metrics.map((one) => [one.metric, one.title]),
          chosen.metric,
          (value) => state.set({ [key]: value }),
        ),
      ),
      sliceTable(evaluation, chosen),
      fewNote(evaluation),
    );
  };
  state.on([key], show);
  show();
  return [el("h4", {}, "Slices"), holder];
}

function fewNote(evaluation) {
  const few = evaluation.slices.filter((slice) => slice.n < FEW).length;
  return few
    ? el(
        "p",
        { classes: "quiet" },
        `${few === 1 ? "One slice has" : `${few} slices have`} fewer than ${FEW} items, told in grey: too few to say much.`,
      )
    : "";
}

function sliceTable(evaluation, metric) {
  const { candidates, slices } = evaluation;
  const of = (slice) => (slice.comparisons ?? []).filter((one) => one.metric === metric.metric);
  const reach = effectReach(slices.flatMap(of));
  const compared = slices.some((slice) => of(slice).length);
  const head = [
    "slice",
    { cell: "n", classes: "number" },
    ...candidates.map((one, i) => ({ cell: named(i, one.name), classes: "number" })),
    "95 % intervals",
    compared ? { cell: "effect", classes: "number" } : null,
    compared ? "against no effect" : null,
    compared ? "verdict" : null,
  ].filter((one) => one !== null);
  const rows = slices.map((slice) => {
    const measured = candidates.map((one) => measuredOf(slice.measured?.[one.name], metric.metric));
    const first = of(slice)[0];
    const few = slice.n < FEW;
    const cells = [
      el("span", {}, el("span", { classes: "quiet" }, legible(`${slice.field} `)), el("bdi", {}, legible(slice.value))),
      num(few ? el("span", {}, whole(slice.n), el("small", {}, "few")) : whole(slice.n)),
      ...measured.map((one) => valueCell(metric, one)),
      {
        cell: scorePlot(
          metric,
          candidates.map((one, index) => ({ index, name: one.name, measured: measured[index] })),
        ),
        classes: "drawn",
      },
    ];
    if (compared) cells.push(...(first ? effectCells(evaluation, metric, first, reach) : ["–", "–", "–"]));
    return { cells, classes: few ? "few" : "" };
  });
  return table(`Slices of ${evaluation.name}: ${metric.title}`, head, rows);
}

function effectCells(evaluation, metric, comparison, reach) {
  const between = rangeText(comparison.interval, (end) => effectNumber(comparison, metric, end));
  return [
    num(el("span", {}, el("b", {}, effectText(comparison, metric)), el("small", {}, between))),
    { cell: effectPlot(comparison, metric, reach, Math.max(0, placeOf(evaluation, comparison.candidate))), classes: "drawn" },
    verdictCell(comparison),
  ];
}
