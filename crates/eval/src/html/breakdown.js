// Where the mistakes are: the confusion matrix of a classification, the fields of an extraction.

const MOST_LABELS = 40; // beyond, the matrix becomes a list of the commonest mistakes

function breakdownSection({ evaluations = [], samples = [] }) {
  const parts = evaluations.flatMap((evaluation, at) => {
    const having = (key) => evaluation.candidates.filter((one) => one[key]);
    const clickable = samples.some((sample) => sample.eval === evaluation.name);
    return [
      having("classes").length
        ? breakdown(evaluation, `classes${at}`, having("classes"), (one) => classesOf(evaluation, one, clickable))
        : null,
      having("fields").length
        ? breakdown(evaluation, `fields${at}`, having("fields"), (one) => fieldsOf(evaluation, one, clickable))
        : null,
    ].filter(Boolean);
  });
  if (!parts.length) return null;
  return el("section", { id: "breakdown" }, el("h2", {}, "Mistakes"), parts);
}

/** One evaluation's tables with a switch between candidates; the adapter comes first, which is the last but for others' models. */
function breakdown(evaluation, key, candidates, build) {
  const holder = el("div", { classes: "stack" });
  const first = candidates.find((one) => one.name !== evaluation.reference) ?? candidates[0];
  const show = () => {
    const chosen = candidates.find((one) => one.name === state.get(key)) ?? first;
    const index = (one) => placeOf(evaluation, one.name);
    const focused = document.activeElement?.dataset?.value;
    const back = holder.contains(document.activeElement) ? focused : undefined;
    holder.replaceChildren(
      el(
        "div",
        { classes: "controls" },
        segments(
          "Candidate",
          candidates.map((one) => [one.name, named(index(one), one.name)]),
          chosen.name,
          (value) => state.set({ [key]: value }),
        ),
      ),
      ...build(chosen),
    );
    if (back !== undefined) [...holder.querySelectorAll(".segments button")].find((one) => one.dataset.value === back)?.focus();
  };
  state.on([key], show);
  show();
  return el("section", { classes: "evaluation" }, el("h3", {}, legible(evaluation.name)), holder);
}

const hint = (clickable) => clickable && el("span", { classes: "hint" }, " Choose a number to see its examples.");

/** A number that shows its examples, where there are any. */
function countButton(n, label, onclick, clickable) {
  if (!n) return el("span", { classes: "none" }, "0");
  if (!clickable) return whole(n);
  return el("button", { type: "button", classes: "cell", "aria-label": `${label}: ${n}. Show these examples.`, onclick }, whole(n));
}

// ---- Classes -----------------------------------------------------------------------------------------------------

function classesOf(evaluation, candidate, clickable) {
  const { labels, counts } = candidate.classes;
  const show = (i, j) => showExamples({ eval: evaluation.name, cell: [candidate.name, labels[i], labels[j] ?? null] });
  const large = labels.length > MOST_LABELS;
  return [
    el(
      "p",
      { classes: "quiet" },
      large
        ? `The commonest mistakes among ${labels.length} labels.`
        : `Rows are expected, columns are what the candidate said; the darker, the larger its share of the row.`,
      hint(clickable && !large),
    ),
    large ? mistakeList(evaluation, candidate, clickable, show) : matrix(evaluation, candidate, clickable, show),
    classTable(evaluation, candidate),
  ];
}

function matrix(evaluation, candidate, clickable, show) {
  const { labels, counts } = candidate.classes;
  const columns = [...labels, null];
  const name = (label) => (label === null ? "no label" : legible(label));
  const head = [
    "expected",
    ...columns.map((label) => ({
      cell: el("span", { classes: label === null ? "column-name no-label" : "column-name" }, name(label)),
      classes: "number",
    })),
    { cell: "all", classes: "number" },
  ];
  const rows = labels.map((label, i) => {
    const row = columns.map((_, j) => counts[i]?.[j] ?? 0);
    const sum = row.reduce((a, b) => a + b, 0);
    return [
      legible(label),
      ...row.map((n, j) => {
        const text = `${candidate.name}, expected ${label}, said ${name(columns[j])}`;
        const cell = el(
          "div",
          { classes: `heat ${i === j ? "hit" : "miss"}` },
          countButton(n, text, () => show(i, j), clickable),
        );
        cell.style.setProperty("--heat", sum ? n / sum : 0);
        return { cell, classes: "number heated" };
      }),
      num(whole(sum), "quiet"),
    ];
  });
  return table(`Confusion matrix of ${candidate.name} on ${evaluation.name}`, head, rows, {
    classes: `matrix ${labels.some((label) => label.length > 9) || labels.length > 8 ? "steep" : ""}`,
  });
}

function mistakeList(evaluation, candidate, clickable, show) {
  const { labels, counts } = candidate.classes;
  const mistakes = labels.flatMap((_, i) => (counts[i] ?? []).flatMap((n, j) => (n && i !== j ? [{ i, j, n }] : [])));
  mistakes.sort((a, b) => b.n - a.n || a.i - b.i || a.j - b.j);
  const said = (j) => (j < labels.length ? labels[j] : "no label");
  return table(
    `Commonest mistakes of ${candidate.name} on ${evaluation.name}`,
    ["expected", "said", { cell: "items", classes: "number" }],
    mistakes
      .slice(0, 100)
      .map(({ i, j, n }) => [
        legible(labels[i]),
        legible(said(j)),
        num(countButton(n, `${candidate.name}, expected ${labels[i]}, said ${said(j)}`, () => show(i, j), clickable)),
      ]),
  );
}

function classTable(evaluation, candidate) {
  const { labels, by_class: classes = [] } = candidate.classes;
  const head = ["class", ...["precision", "recall", "F1", "items"].map((cell) => ({ cell, classes: "number" }))];
  const rows = labels.map((label, i) => [
    legible(label),
    num(share(classes[i]?.precision)),
    num(share(classes[i]?.recall)),
    barCell(classes[i]?.f1),
    num(whole(classes[i]?.support)),
  ]);
  return fold("Precision, recall and F1 by class", () => table(`Classes of ${candidate.name} on ${evaluation.name}`, head, rows), {
    open: labels.length <= 12,
    prints: true,
  });
}

/** A share with a bar behind it. */
function barCell(value) {
  const bar = el("span", { classes: "bar" }, share(value));
  bar.style.setProperty("--share", isNumber(value) ? value : 0);
  return num(bar);
}

// ---- Fields ------------------------------------------------------------------------------------------------------

const FIELD_KINDS = ["equal", "wrong", "missing", "invented"];

function fieldsOf(evaluation, candidate, clickable) {
  const { documents, json, valid, correct, fields } = candidate.fields;
  const head = ["field", ...[...FIELD_KINDS, "precision", "recall", "F1"].map((cell) => ({ cell, classes: "number" }))];
  const rows = Object.entries(fields).map(([field, of]) => {
    const given = of.equal + of.wrong + of.invented;
    const expected = of.equal + of.wrong + of.missing;
    const counts = FIELD_KINDS.map((kind) =>
      num(
        countButton(
          of[kind],
          `${candidate.name}, field ${field} ${kind}`,
          () => showExamples({ eval: evaluation.name, field: [candidate.name, field, kind] }),
          clickable,
        ),
        kind,
      ),
    );
    const ratio = (part, all) => (all ? part / all : null);
    return [
      el("code", {}, legible(field)),
      ...counts,
      num(share(ratio(of.equal, given))),
      num(share(ratio(of.equal, expected))),
      barCell(ratio(2 * of.equal, given + expected)),
    ];
  });
  const told = `Of ${count(documents, "document")}, ${whole(json)} are JSON, ${whole(valid)} keep the schema, and ${whole(correct)} (${share(documents ? correct / documents : null)}) are right in every field.`;
  return [
    el("p", {}, told),
    table(`Fields of ${candidate.name} on ${evaluation.name}`, head, rows, { classes: "fields" }),
    el(
      "p",
      { classes: "quiet" },
      `Wrong: another value was expected. Missing: expected and not given. Invented: given and not expected.`,
      hint(clickable),
    ),
  ];
}
