// Which examples are shown: what is right and wrong, and all filters. No elements here.

const FILTERS = [
  ["all", "All"],
  ["fixed", "Fixed"],
  ["broken", "Broken"],
  ["both-wrong", "Both wrong"],
  ["both-right", "Both right"],
  ["better", "Better"],
  ["worse", "Worse"],
  ["different", "Different"],
  ["cut", "Cut off"],
  ["errors", "Errors"],
  ["touched", "In training data"],
];

/** What they are called where there is one candidate only. */
const ALONE = { "both-wrong": "Wrong", "both-right": "Right" };

/** How two candidates did on an example, in a word. */
const OUTCOMES = {
  fixed: { word: "Fixed", kind: "good", icon: "up" },
  broken: { word: "Broken", kind: "bad", icon: "down" },
  "both-right": { word: "Both right", kind: "neutral", icon: "yes" },
  "both-wrong": { word: "Both wrong", kind: "neutral", icon: "no" },
  better: { word: "Better", kind: "good", icon: "up" },
  worse: { word: "Worse", kind: "bad", icon: "down" },
  same: { word: "Same score", kind: "neutral", icon: "flat" },
};

const scoreOf = (sample, name, metric) => sample.candidates?.[name]?.scores?.[metric.metric];

/** Whether a score is that of a right answer; metrics without a best score know better and worse only. */
function isRight(score, metric) {
  if (metric.scale !== "share" || !isNumber(score)) return null;
  return metric.higher_is_better === false ? score <= 1e-9 : score >= 1 - 1e-9;
}

/** Which of fixed, broken, both-right, both-wrong, better, worse, same hold for an example. */
function outcomesOf(sample, { left, right, metric }) {
  const [before, after] = [scoreOf(sample, left, metric), scoreOf(sample, right, metric)];
  if (!isNumber(before) || !isNumber(after)) return [];
  const gain = (after - before) * (metric.higher_is_better === false ? -1 : 1);
  const change = gain > 1e-9 ? "better" : gain < -1e-9 ? "worse" : "same";
  const [was, is] = [isRight(before, metric), isRight(after, metric)];
  if (was === null) return [change];
  const kind = was ? (is ? "both-right" : "broken") : is ? "fixed" : "both-wrong";
  return [kind, change];
}

/** What is told beside an example, as [kind, icon, word]: of two wrong answers one can still be better. */
function toldOutcomes(sample, view) {
  const outcomes = outcomesOf(sample, view);
  const shown = outcomes[0] === "both-wrong" && outcomes[1] !== "same" ? outcomes : outcomes.slice(0, 1);
  const alone = view.left === view.right;
  return shown
    .filter((one) => !alone || one in ALONE)
    .map((one) => [
      alone && one === "both-right" ? "good" : alone ? "bad" : OUTCOMES[one].kind,
      OUTCOMES[one].icon,
      alone ? ALONE[one] : OUTCOMES[one].word,
    ]);
}

const answerOf = (given) => given?.answer ?? given?.output ?? null;

function passes(filter, sample, view) {
  const both = [sample.candidates?.[view.left], sample.candidates?.[view.right]];
  switch (filter) {
    case "all":
      return true;
    case "different": {
      const [a, b] = both.map(answerOf);
      return a !== null && b !== null && a.trim() !== b.trim();
    }
    case "cut":
      return both.some((given) => given?.finish_reason === "length");
    case "errors":
      return both.some((given) => given?.error);
    case "touched":
      return Boolean(sample.touched);
    default:
      return outcomesOf(sample, view).includes(filter);
  }
}

/** The filters that say something for a metric: grades know better and worse, yes and no know right and wrong. */
function filtersFor(metric, samples, view) {
  const graded =
    metric &&
    (metric.scale !== "share" ||
      samples.some((sample) =>
        [view.left, view.right].some((name) => {
          const score = scoreOf(sample, name, metric);
          return isNumber(score) && score > 1e-9 && score < 1 - 1e-9;
        }),
      ));
  const sharp = metric?.scale === "share";
  if (view.left === view.right)
    return FILTERS.filter(([filter]) => (filter in ALONE ? sharp : ["all", "cut", "errors", "touched"].includes(filter))).map(
      ([filter, text]) => [filter, ALONE[filter] ?? text],
    );
  return FILTERS.filter(([filter]) => {
    if (["fixed", "broken", "both-wrong", "both-right"].includes(filter)) return sharp;
    if (["better", "worse"].includes(filter)) return graded;
    return true;
  });
}

/** Which of the labels a text names: as it is, else but for space at the ends, else but for case. */
function labelOf(text, labels) {
  if (text === null || text === undefined) return null;
  if (labels.includes(text)) return text;
  const bare = String(text).trim();
  if (labels.includes(bare)) return bare;
  const low = bare.toLowerCase();
  return labels.find((label) => label.toLowerCase() === low) ?? null;
}

/** Whether an example stands in a cell of a confusion matrix: [candidate, expected, predicted or null]. */
function inCell(sample, [name, expected, predicted], labels) {
  const given = sample.candidates?.[name];
  if (!given || given.error || labelOf(sample.expected, labels) !== expected) return false;
  return (given.label ?? null) === predicted;
}

const hasField = (sample, [name, field, outcome]) => sample.candidates?.[name]?.fields?.[field] === outcome;

/** All the text of an example that a search looks at; made once. */
const haystacks = new WeakMap();
function haystackOf(sample) {
  let text = haystacks.get(sample);
  if (text === undefined) {
    const given = Object.values(sample.candidates ?? {}).flatMap((one) => [one.output, one.answer, one.error, one.label]);
    text = [sample.id, sample.input, sample.expected, ...given]
      .filter((one) => typeof one === "string")
      .join("\n")
      .toLowerCase();
    haystacks.set(sample, text);
  }
  return text;
}

/** The examples that pass everything but the filter by outcome. */
function narrowed(samples, { search, slices, cell, field, labels }) {
  const words = search.toLowerCase();
  return samples.filter(
    (sample) =>
      (!words || haystackOf(sample).includes(words)) &&
      slices.every(([name, value]) => String(sample.slices?.[name] ?? "") === value) &&
      (!cell || inCell(sample, cell, labels)) &&
      (!field || hasField(sample, field)),
  );
}
