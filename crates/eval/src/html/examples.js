// The examples of two candidates side by side, and what chooses among them.

const PAGE = 20; // examples on a page
const EXAMPLE_KEYS = ["eval", "left", "right", "metric", "show", "q", "slice", "cell", "field", "page", "diff"];
const REDACTION = {
  full: "Texts are shown as they are: handle this file like the data it was made from.",
  redacted: "Texts are redacted: parts that could identify somebody were replaced before this file was written.",
  hashed: "Texts are replaced by hashes: equal hashes stand for equal texts, and the texts themselves are not in this file.",
  aggregate: "This report holds numbers only: no text of an example was written into it.",
};

/** Go to the examples with these filters and no others. */
function showExamples({ eval: name, show = null, cell = null, field = null }) {
  const asked = (cell ?? field)?.[0];
  const changes = {
    eval: name,
    show,
    q: null,
    slice: [],
    cell: cell && JSON.stringify(cell),
    field: field && JSON.stringify(field),
    page: null,
  };
  if (asked !== undefined) {
    const view = viewOf(report);
    if (view.evaluation?.name !== name) Object.assign(changes, { left: null, right: null, metric: null });
    if (view.evaluation?.name !== name || ![view.left, view.right].includes(asked))
      changes[asked === view.evaluation?.reference ? "left" : "right"] = asked;
  }
  state.set(changes);
  const title = byId("examples").querySelector("h2");
  title.scrollIntoView();
  title.focus({ preventScroll: true });
}

/** What is chosen, each part held against the data: an address may be old, or written by hand. */
function viewOf({ evaluations = [], samples = [] }) {
  const having = evaluations.filter((one) => samples.some((sample) => sample.eval === one.name));
  const evaluation = having.find((one) => one.name === state.get("eval")) ?? having[0];
  if (!evaluation) return {};
  const names = evaluation.candidates.map((one) => one.name);
  const compared = decisive(evaluation);
  const left = names.includes(state.get("left")) ? state.get("left") : (compared?.reference ?? names[0]);
  const right = names.includes(state.get("right"))
    ? state.get("right")
    : (compared?.candidate ?? names.find((one) => one !== left) ?? left);
  const own = samples.filter((sample) => sample.eval === evaluation.name);
  const metrics = evaluation.metrics.filter((metric) =>
    own.some((sample) => names.some((name) => isNumber(scoreOf(sample, name, metric)))),
  );
  const metric = metrics.find((one) => one.metric === state.get("metric")) ?? metrics[0] ?? null;
  const slices = state.all("slice").map((one) => [one.slice(0, one.indexOf("=")), one.slice(one.indexOf("=") + 1)]);
  const labels = evaluation.candidates.find((one) => one.classes)?.classes.labels ?? [];
  return {
    having,
    evaluation,
    names,
    left,
    right,
    own,
    metrics,
    metric,
    slices,
    labels,
    search: state.get("q"),
    cell: state.list("cell", 3),
    field: state.list("field", 3),
    diff: ["expected", "other", "off"].includes(state.get("diff")) ? state.get("diff") : "expected",
  };
}

function examplesSection(data) {
  const title = el("h2", { tabIndex: -1 }, "Examples");
  const section = el("section", { id: "examples" }, title, el("p", { classes: "quiet" }, REDACTION[data.redaction] ?? ""));
  if (!data.samples?.length) {
    if (data.redaction !== "aggregate") section.append(el("p", {}, "The run kept no examples."));
    return section;
  }
  const [bar, found] = [el("div", { classes: "filters" }), el("div", {})];
  section.append(bar, found);
  const show = () => {
    const view = viewOf(data);
    keepingFocus(bar, () => {
      bar.replaceChildren(...controlsOf(view));
      showFound(view, bar, found);
    });
  };
  state.on(EXAMPLE_KEYS, show);
  show();
  return section;
}

/** Draw anew without losing the place of the keyboard, or the end of what is being written. */
function keepingFocus(holder, redraw) {
  const active = holder.contains(document.activeElement) ? document.activeElement : null;
  const key = active?.dataset.value ?? active?.closest("[data-control]")?.dataset.control;
  const selection = active?.tagName === "INPUT" ? [active.selectionStart, active.selectionEnd] : null;
  redraw();
  if (!active || key === undefined) return;
  const again = [...holder.querySelectorAll("button, select, input")].find(
    (one) => (one.dataset.value ?? one.closest("[data-control]")?.dataset.control) === key,
  );
  again?.focus({ preventScroll: true });
  if (selection && again?.tagName === "INPUT") again.setSelectionRange(...selection);
}

function controlsOf(view) {
  const control = (name, node) => {
    node.dataset.control = name;
    return node;
  };
  const pick = (key) => (value) => state.set({ [key]: value, page: null });
  const candidates = view.names.map((name) => [name, name]);
  const chosen = [];
  if (view.having.length > 1)
    chosen.push(
      control(
        "eval",
        choice(
          "Evaluation",
          view.having.map((one) => [one.name, one.name]),
          view.evaluation.name,
          (value) =>
            state.set({ eval: value, left: null, right: null, metric: null, q: null, slice: [], cell: null, field: null, page: null }),
        ),
      ),
    );
  if (candidates.length > 1)
    chosen.push(
      control("left", choice("Left", candidates, view.left, pick("left"))),
      control("right", choice("Right", candidates, view.right, pick("right"))),
    );
  if (view.metrics.length)
    chosen.push(
      control(
        "metric",
        choice(
          "Right or wrong by",
          view.metrics.map((one) => [one.metric, one.title]),
          view.metric.metric,
          pick("metric"),
        ),
      ),
    );
  for (const [field, values] of sliceValues(view.own)) {
    const now = view.slices.find(([name]) => name === field)?.[1];
    const options = [["", "all"], ...values.map(([value, n]) => [`=${value}`, `${value} (${n})`])];
    const list = choice(field, options, now === undefined ? "" : `=${now}`, (value) =>
      state.set({
        slice: [...view.slices.filter(([name]) => name !== field).map((pair) => pair.join("=")), ...(value ? [field + value] : [])],
        page: null,
      }),
    );
    chosen.push(control(`slice ${field}`, list));
  }
  const search = el("input", { type: "search", value: view.search, placeholder: "in inputs and answers" });
  let wait = 0;
  search.oninput = () => {
    clearTimeout(wait);
    wait = setTimeout(() => state.set({ q: search.value, page: null }), 150);
  };
  chosen.push(control("search", el("label", { classes: "field" }, "Search", search)));
  chosen.push(
    el(
      "div",
      { classes: "field" },
      el("span", { "aria-hidden": "true" }, "Mark what differs from"),
      segments(
        "Mark what differs from",
        [
          ["expected", "expected"],
          ["other", "each other"],
          ["off", "nothing"],
        ].filter(([of]) => of !== "other" || candidates.length > 1),
        view.diff,
        (value) => state.set({ diff: value === "expected" ? null : value }),
      ),
    ),
  );
  return [
    el("div", { classes: "controls" }, chosen),
    el("div", { classes: "tabs", role: "group", "aria-label": "Outcome" }),
    el("div", { classes: "active" }, activeFilters(view)),
  ];
}

/** The fields by which examples can be chosen, each with its values and how many have them. */
function sliceValues(samples) {
  const fields = new Map();
  for (const { slices } of samples) {
    for (const [field, value] of Object.entries(slices ?? {})) {
      if (!fields.has(field)) fields.set(field, new Map());
      const values = fields.get(field);
      values.set(String(value), (values.get(String(value)) ?? 0) + 1);
    }
  }
  return [...fields].map(([field, values]) => [field, [...values].sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1)).slice(0, 300)]);
}

/** Filters that came from a table, each with a way to drop it. */
function activeFilters({ cell, field }) {
  const chip = (key, text) =>
    el(
      "button",
      {
        type: "button",
        classes: "chip-button",
        "data-value": `drop ${key}`,
        "aria-label": `Drop the filter: ${text}`,
        onclick: () => state.set({ [key]: null, page: null }),
      },
      legible(text),
      el("span", { "aria-hidden": "true" }, " ×"),
    );
  return [
    cell && chip("cell", `${cell[0]}: expected ${cell[1]}, said ${cell[2] ?? "no label"}`),
    field && chip("field", `${field[0]}: field ${field[1]} ${field[2]}`),
  ].filter(Boolean);
}

/** The tabs with their counts, and a page of what passes. */
function showFound(view, bar, found) {
  const rest = narrowed(view.own, view);
  const filters = filtersFor(view.metric, view.own, view);
  const show = filters.some(([filter]) => filter === state.get("show")) ? state.get("show") : "all";
  const counts = new Map(filters.map(([filter]) => [filter, rest.filter((sample) => passes(filter, sample, view)).length]));
  const tabs = bar.querySelector(".tabs");
  tabs.replaceChildren(
    ...filters.map(([filter, text]) =>
      el(
        "button",
        {
          type: "button",
          "data-value": filter,
          "aria-pressed": String(filter === show),
          classes: counts.get(filter) ? "" : "empty",
          onclick: () => state.set({ show: filter === "all" ? null : filter, page: null }),
        },
        text,
        el("span", { classes: "n" }, whole(counts.get(filter))),
      ),
    ),
  );
  const hits = rest.filter((sample) => passes(show, sample, view));
  const pages = Math.max(1, Math.ceil(hits.length / PAGE));
  const page = Math.min(pages, Math.max(1, Math.floor(Number(state.get("page", "1"))) || 1));
  const from = (page - 1) * PAGE;
  const shown = hits.slice(from, from + PAGE);
  const where = hits.length
    ? `${whole(from + 1)} to ${whole(from + shown.length)} of ${count(hits.length, "example")}`
    : "No example passes these filters.";
  const pager = (place) => pagerOf(page, pages, where, place, found);
  found.replaceChildren(
    pager("top"),
    el(
      "ol",
      { classes: "example-list" },
      shown.map((sample) => el("li", {}, exampleCard(sample, view))),
    ),
    hits.length > PAGE ? pager("bottom") : "",
  );
  if (bar.dataset.told !== undefined && bar.dataset.told !== where) announce(where);
  bar.dataset.told = where;
}

function pagerOf(page, pages, where, place, found) {
  const go = (to) => {
    state.set({ page: to === 1 ? null : String(to) });
    const again = [...found.querySelectorAll(`.pager.${place} button`)];
    if (place === "bottom") byId("examples").querySelector(".tabs").scrollIntoView();
    (
      again.find((one) => one.dataset.to === String(to > page ? "next" : "previous") && !one.disabled) ?? again.find((one) => !one.disabled)
    )?.focus({ preventScroll: true });
  };
  const button = (text, to, name) =>
    el("button", { type: "button", "data-to": name, disabled: to < 1 || to > pages || undefined, onclick: () => go(to) }, text);
  const number = el("input", {
    type: "number",
    min: 1,
    max: pages,
    value: page,
    "aria-label": `Page, of ${pages}`,
    onchange: () => go(Math.min(pages, Math.max(1, Math.round(Number(number.value)) || 1))),
  });
  return el(
    "div",
    { classes: `pager ${place}` },
    el("span", { classes: "where" }, where),
    pages > 1
      ? el(
          "span",
          { classes: "turn" },
          button("Previous", page - 1, "previous"),
          el("span", {}, "page ", number, ` of ${whole(pages)}`),
          button("Next", page + 1, "next"),
        )
      : null,
  );
}
