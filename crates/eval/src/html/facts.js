// What it costs, how it was made, how it is used.

function costSection({ cost }) {
  if (!cost) return null;
  const { currency, candidates = [] } = cost;
  const numeric = (cell) => ({ cell, classes: "number" });
  const head = ["candidate", numeric("1,000 requests"), numeric("one correct answer"), numeric("accuracy"), "remark"];
  const rows = candidates.map((one) => ({
    cells: [
      el("bdi", {}, legible(one.name)),
      num(money(one.per_1000, currency)),
      num(
        el(
          "span",
          {},
          money(one.per_correct, currency),
          el(
            "small",
            {},
            rangeText(one.per_correct_interval, (end) => money(end, currency)),
          ),
        ),
      ),
      num(share(one.accuracy)),
      one.name === cost.cheapest ? badge("good", "yes", "cheapest") : "",
    ],
  }));
  const even = isNumber(cost.break_even_per_month) ? `Break-even: ${whole(cost.break_even_per_month)} requests a month.` : "";
  const energy = isNumber(cost.energy_j_per_token) ? `Measured energy: ${plain(cost.energy_j_per_token)} J a token.` : "";
  return el(
    "section",
    { id: "cost" },
    el("h2", {}, "Cost"),
    el("p", { classes: "lead" }, legible(cost.sentence ?? "")),
    table("Cost of each candidate", head, rows),
    [even, energy].filter(Boolean).map((text) => el("p", {}, text)),
    cost.assumptions?.length ? fold("Assumptions", () => pairTable("Assumptions of the cost", cost.assumptions), { prints: true }) : null,
  );
}

/** Two columns: what, and what it is. */
function pairTable(caption, pairs, show = (text) => legible(text)) {
  return table(
    caption,
    ["what", "value"],
    pairs.map(([name, value]) => [legible(name), show(value)]),
    { classes: "pairs" },
  );
}

function setupSection({ run }) {
  const groups = [
    ["Setup", run.setup],
    ["Data", run.data],
    ["Lineage", run.lineage, (text) => el("code", {}, legible(text))],
    ["Files", run.files],
  ];
  const nodes = groups
    .filter(([, pairs]) => pairs?.length)
    .map(([title, pairs, show]) => el("div", { classes: "group" }, el("h3", {}, title), pairTable(title, pairs, show)));
  if (run.usage?.length) {
    nodes.push(
      el(
        "div",
        { classes: "group wide" },
        el("h3", {}, "Use it"),
        el(
          "ul",
          { classes: "commands" },
          run.usage.map((command) => el("li", {}, el("code", {}, legible(command)), copyButton(command))),
        ),
      ),
    );
  }
  if (run.notes?.length)
    nodes.push(
      el(
        "div",
        { classes: "group wide" },
        el("h3", {}, "Notes"),
        el(
          "ul",
          {},
          run.notes.map((note) => el("li", {}, legible(note))),
        ),
      ),
    );
  return nodes.length ? el("section", { id: "setup" }, el("h2", {}, "How it was made"), el("div", { classes: "groups" }, nodes)) : null;
}
