// One example.

const LONG = { chars: 1400, lines: 16 }; // beyond, a text is folded
const SHORT = 8; // words of an answer that is marked even where all of it differs
const MOST_CHARS = 60_000; // of a text that is put on the page

function exampleCard(sample, view) {
  const outcomes = view.metric ? toldOutcomes(sample, view) : [];
  const chips = Object.entries(sample.slices ?? {}).map(([field, value]) =>
    el("span", { classes: "chip" }, el("span", { classes: "quiet" }, legible(`${field} `)), el("bdi", {}, legible(value))),
  );
  const touched = {
    exact: "also in the training data, word for word",
    normalised: "also in the training data",
    near: "nearly in the training data",
  }[sample.touched];
  return el(
    "article",
    { classes: "example", "aria-label": `Example ${sample.id}` },
    el(
      "header",
      {},
      outcomes.map((one) => badge(...one)),
      el("code", { classes: "id" }, legible(sample.id)),
      chips,
      touched ? badge("unsure", "doubt", touched) : null,
    ),
    el(
      "div",
      { classes: "asked" },
      el("span", { classes: "label" }, "Input"),
      textBlock(sample.input ?? "", [legible(clipped(sample.input ?? ""))]),
    ),
    el(
      "div",
      { classes: "sides" },
      expectedSide(sample),
      side(sample, view, view.left, view.right, "left"),
      view.right === view.left ? null : side(sample, view, view.right, view.left, "right"),
    ),
    sample.prompt ? fold("Whole prompt", () => el("pre", { classes: "prompt", dir: "auto" }, legible(clipped(sample.prompt)))) : null,
  );
}

function clipped(text) {
  return text.length > MOST_CHARS
    ? `${text.slice(0, MOST_CHARS)} … ${whole(text.length - MOST_CHARS)} more characters are left out here`
    : text;
}

/** A text, folded where it is long. */
function textBlock(text, parts) {
  const block = el("div", { classes: "text", dir: "auto" }, parts);
  if (text.length <= LONG.chars && text.split("\n", LONG.lines + 1).length <= LONG.lines) return block;
  block.classList.add("folded");
  const more = el(
    "button",
    { type: "button", classes: "link more", "aria-expanded": "false" },
    `Show all ${whole(text.length)} characters`,
  );
  more.onclick = () => {
    const folded = block.classList.toggle("folded");
    more.setAttribute("aria-expanded", String(!folded));
    more.textContent = folded ? `Show all ${whole(text.length)} characters` : "Show less";
  };
  return el("div", {}, block, more);
}

function expectedSide(sample) {
  if (sample.expected === null || sample.expected === undefined) return null;
  return el(
    "div",
    { classes: "side" },
    el("p", { classes: "label" }, "Expected"),
    textBlock(sample.expected, [legible(clipped(sample.expected))]),
  );
}

function side(sample, view, name, other, at) {
  const given = sample.candidates?.[name];
  const index = placeOf(view.evaluation, name);
  const nodes = [el("p", { classes: "label" }, named(index, name))];
  if (!given) return el("div", { classes: `side ${at}` }, nodes, el("p", { classes: "quiet" }, "Not asked."));
  if (given.error) nodes.push(el("p", { classes: "note bad" }, badge("bad", "no", "Error"), el("span", {}, legible(given.error))));
  if (typeof given.output === "string") nodes.push(outputOf(sample, view, given, sample.candidates?.[other], at));
  else if (!given.error) nodes.push(el("p", { classes: "quiet" }, "No answer was written: the expected one was scored."));
  if (typeof given.answer === "string" && given.answer !== given.output) {
    nodes.push(
      el(
        "p",
        { classes: "extracted" },
        el("span", { classes: "label" }, "taken as the answer"),
        el("code", { dir: "auto" }, legible(clipped(given.answer))),
      ),
    );
  }
  if (given.label)
    nodes.push(el("p", { classes: "extracted" }, el("span", { classes: "label" }, "label"), el("code", {}, legible(given.label))));
  return el("div", { classes: `side ${at}` }, nodes, fieldChips(given.fields), figuresOf(given, view));
}

/** An output with the words marked that differ from what was chosen to hold it against. */
function outputOf(sample, view, given, other, at) {
  const { output } = given;
  if (output === "") return el("p", { classes: "quiet" }, "The answer is empty.");
  const plainText = () => textBlock(output, [legible(clipped(output))]);
  const against = view.diff === "expected" ? sample.expected : view.diff === "other" ? other?.output : null;
  if (typeof against !== "string" || output.length > MOST_CHARS) return plainText();
  const parts = wordDiff(against, output);
  if (!parts) return el("div", {}, plainText(), el("p", { classes: "quiet" }, "Too long to compare."));
  if (parts.every(([kind]) => kind === "same")) {
    return against === output || view.diff === "other"
      ? plainText()
      : el(
          "div",
          {},
          plainText(),
          against.trim() === output.trim() ? null : el("p", { classes: "quiet" }, "Differs from the expected answer in white space only."),
        );
  }
  if (alike(parts) < 0.2 && wordsOf(output).length > SHORT)
    return el(
      "div",
      {},
      plainText(),
      el("p", { classes: "quiet" }, `Shares hardly a word with ${view.diff === "expected" ? "the expected answer" : "the other"}.`),
    );
  const shown = view.diff === "other" ? parts.filter(([kind]) => kind !== "gone") : parts;
  return textBlock(
    output,
    shown
      .map(([kind, text]) => {
        if (kind === "same") return legible(text);
        const node = el(kind === "new" ? "ins" : "del", { classes: at }, legible(text.trimEnd()));
        return [node, text.slice(text.trimEnd().length) || (kind === "gone" ? " " : "")];
      })
      .flat(),
  );
}

function fieldChips(fields) {
  if (!fields) return null;
  const sign = { equal: "✓", wrong: "✕", missing: "∅", invented: "+" };
  return el(
    "ul",
    { classes: "field-chips", "aria-label": "Fields" },
    Object.entries(fields).map(([field, outcome]) =>
      el(
        "li",
        { classes: `field-chip ${FIELD_KINDS.includes(outcome) ? outcome : ""}` },
        el("span", { "aria-hidden": "true" }, `${sign[outcome] ?? "?"} `),
        legible(field),
        outcome === "equal" ? el("span", { classes: "only-read" }, " equal") : ` ${legible(outcome)}`,
      ),
    ),
  );
}

/** Scores and figures in a line. */
function figuresOf(given, view) {
  const scores = Object.entries(given.scores ?? {}).map(([name, score]) => {
    const metric = metricOf(view.evaluation, name);
    const correct = isRight(score, metric);
    const sign = correct === null ? "" : correct ? "✓ " : "✕ ";
    return [metric.title, `${sign}${metricValue(metric, score)}`, correct === null ? "" : correct ? "good" : "bad"];
  });
  const rows = [...scores];
  if (isNumber(given.completion_tokens)) rows.push(["tokens", whole(given.completion_tokens), ""]);
  if (isNumber(given.latency_ms)) rows.push(["latency", milliseconds(given.latency_ms), ""]);
  if (given.finish_reason)
    rows.push([
      "finish",
      given.finish_reason === "length" ? "cut off (length)" : legible(given.finish_reason),
      given.finish_reason === "length" ? "bad" : "",
    ]);
  return el(
    "dl",
    { classes: "figures" },
    rows.map(([name, value, kind]) => el("div", {}, el("dt", {}, legible(name)), el("dd", { classes: kind }, value))),
  );
}
