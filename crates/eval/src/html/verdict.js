// The verdict: what a manager reads.

/** The comparison that decides an evaluation: of its first metric, the adapter's before others'. */
function decisive(evaluation) {
  const first = evaluation.metrics?.[0]?.metric;
  const all = (evaluation.comparisons ?? []).filter((one) => one.metric === first);
  return all.find((one) => one.candidate === "adapter") ?? all[0] ?? null;
}

function verdictSection(data) {
  const { run, evaluations = [], gates = [] } = data;
  const nodes = [el("h1", {}, legible(run.title || "Report"))];
  if (run.description) nodes.push(el("p", { classes: "lead" }, legible(run.description)));
  nodes.push(outcomeLine(data));
  if (!evaluations.length)
    nodes.push(el("p", { classes: "note" }, "The run made no evaluation: whether the adapter is better than its base is not known."));
  nodes.push(el("div", { classes: "verdicts" }, evaluations.map(verdictOf)));
  if (gates.length)
    nodes.push(
      el("h2", { classes: "minor", id: "gates" }, "Gates"),
      el(
        "ul",
        { classes: "gates" },
        gates.map((gate) => gateLine(gate, evaluations)),
      ),
    );
  return el("section", { id: "verdict", "aria-label": "Verdict" }, nodes);
}

/** The exit code in words. */
function outcomeLine({ exit_code: code, gates = [] }) {
  const kind = code === 0 ? "good" : code === 5 || code === 130 ? "unsure" : "bad";
  const icon = { good: "yes", unsure: "doubt", bad: "no" }[kind];
  let words = EXIT_CODES[code] ?? "The run ended";
  if (code === 0) words += gates.length ? `: ${gates.length === 1 ? "its gate" : `all ${gates.length} gates`} passed` : ": it has no gates";
  return el("p", { classes: "outcome" }, badge(kind, icon, words), el("span", { classes: "quiet" }, `exit code ${code}`));
}

function verdictOf(evaluation) {
  const comparison = decisive(evaluation);
  const verdict = comparison?.verdict ?? "none";
  const { kind } = VERDICTS[verdict] ?? VERDICTS.none;
  return el(
    "article",
    { classes: `verdict-card ${kind}` },
    el(
      "div",
      { classes: "verdict-words" },
      el("h2", {}, verdictBadge(verdict, "large"), el("span", { classes: "quiet" }, legible(evaluation.name))),
      el("p", {}, legible(evaluation.headline ?? "")),
    ),
    comparison ? bigFigure(evaluation, comparison) : null,
  );
}

/** From what to what, large. */
function bigFigure(evaluation, comparison) {
  const metric = evaluation.metrics[0];
  return el(
    "p",
    { classes: "big" },
    el("span", { classes: "big-title" }, legible(metric.title)),
    el("span", { classes: "big-value" }, metricValue(metric, comparison.value)),
    el("span", { classes: "quiet" }, `from ${metricValue(metric, comparison.base)}`),
  );
}

function gateLine(gate, evaluations) {
  const { word, kind, icon } = GATES[gate.status] ?? { word: String(gate.status), kind: "neutral", icon: "flat" };
  const where = gate.eval && evaluations.length > 1 ? ` on ${gate.eval}` : "";
  return el(
    "li",
    {},
    badge(kind, icon, word),
    el("span", { classes: "gate-text" }, el("code", {}, legible(gate.text)), legible(where)),
    el("span", { classes: "quiet" }, legible(gate.detail ?? "")),
  );
}
