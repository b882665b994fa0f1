// The loss curves: training loss as it was and smoothed, validation loss, checkpoints.

const CURVE_KEYS = ["smooth", "log"];

/** Exponential moving average, with the pull of its start at zero taken out. `weight` 0 is the curve itself. */
function smoothed(points, weight) {
  let [sum, share] = [0, 0];
  return points.map(({ step, value }) => {
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return { step, value: sum / share };
  });
}

/** At most a few points for each column of pixels: the lowest and the highest, so that no spike is lost. */
function thinned(points, columns) {
  if (points.length <= 2 * columns) return points;
  const [first, last] = [points[0].step, points.at(-1).step];
  const kept = [];
  let [column, low, high] = [-1, null, null];
  const flush = () => {
    if (low) kept.push(...(low === high ? [low] : low.step < high.step ? [low, high] : [high, low]));
  };
  for (const point of points) {
    const at = Math.floor(((point.step - first) / (last - first || 1)) * columns);
    if (at !== column) {
      flush();
      [column, low, high] = [at, point, point];
    }
    if (point.value < low.value) low = point;
    if (point.value > high.value) high = point;
  }
  flush();
  return kept;
}

/** The index of the last point at or before a step, or the first. */
function atStep(points, step) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (points[middle].step <= step) low = middle;
    else high = middle - 1;
  }
  return low;
}

function curveSection({ run }) {
  const points = (key) => (run.curve ?? []).filter((one) => isNumber(one[key])).map((one) => ({ step: one.step, value: one[key] }));
  const [train, valid] = [points("loss"), points("valid_loss")];
  if (!train.length && !valid.length) return null;
  const chart = new CurveChart(train, valid, run);
  const smooth = el("input", {
    type: "range",
    min: 0,
    max: 0.99,
    step: 0.01,
    value: state.get("smooth", "0.6"),
    oninput: () => state.set({ smooth: smooth.value }),
  });
  const weight = el("output", {});
  const positive = [...train, ...valid].every((one) => one.value > 0);
  const log = el("input", {
    type: "checkbox",
    disabled: !positive || undefined,
    onchange: () => state.set({ log: log.checked ? "1" : null }),
  });
  const show = () => {
    const asked = Number(state.get("smooth", "0.6"));
    const used = asked >= 0 && asked <= 0.99 ? asked : 0.6;
    smooth.value = used;
    weight.textContent = fixed(used, 2);
    log.checked = positive && state.get("log") === "1";
    chart.set(used, log.checked);
  };
  state.on(CURVE_KEYS, show);
  show();
  return el(
    "section",
    { id: "training" },
    el("h2", {}, "Training"),
    el(
      "div",
      { classes: "controls" },
      el("label", { classes: "field line" }, "Smoothing", smooth, weight),
      el("label", { classes: "check" }, log, "logarithmic"),
    ),
    el("figure", {}, chart.node, el("figcaption", {}, chart.legend(), chart.readout)),
    fold("Numbers of the curve", () => curveTable(run)),
  );
}

/** At most 25 rows, evenly spread, ends among them. */
function curveTable({ curve }) {
  const most = 25;
  const rows =
    curve.length <= most ? curve : Array.from({ length: most }, (_, i) => curve[Math.floor((i * (curve.length - 1)) / (most - 1))]);
  return table(
    "Loss by step",
    ["step", { cell: "training loss", classes: "number" }, { cell: "validation loss", classes: "number" }],
    rows.map((one) => [whole(one.step), num(fixed(one.loss, 4)), num(fixed(one.valid_loss, 4))]),
  );
}

class CurveChart {
  constructor(train, valid, run) {
    Object.assign(this, { train, valid, run, weight: 0.6, log: false, width: 900, chosen: null });
    this.svg = draw("svg", { class: "curve", tabindex: 0, role: "img" });
    this.node = el("div", { classes: "curve-frame" }, this.svg);
    this.readout = el("output", { classes: "readout" });
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      const width = Math.round(this.node.clientWidth);
      if (width && width !== this.width) {
        this.width = width;
        this.draw();
      }
    }).observe(this.node);
  }

  set(weight, log) {
    Object.assign(this, { weight, log });
    this.smooth = smoothed(this.train, weight);
    this.draw();
  }

  legend() {
    const entry = (kind, text) => el("span", { classes: `key ${kind}` }, text);
    return el(
      "span",
      { classes: "keys" },
      this.train.length ? [entry("raw", "training loss"), entry("smooth", "smoothed")] : null,
      this.valid.length ? entry("valid", "validation loss") : null,
      this.run.checkpoints?.length ? entry("checkpoint", "checkpoint") : null,
    );
  }

  /** The places of steps and losses in the drawing. */
  scales() {
    const height = this.width < 600 ? 240 : 320;
    const frame = { left: 46, right: this.width - 14, top: 22, bottom: height - 34 };
    const all = [...this.train, ...this.valid];
    let [first, last, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const { step, value } of all) {
      first = Math.min(first, step);
      last = Math.max(last, step);
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const air = this.log ? 1 : (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    const [from, to] = this.log
      ? [Math.log(low / 1.05), Math.log(high * 1.05)]
      : [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
    const x = (step) => frame.left + ((step - first) / (last - first || 1)) * (frame.right - frame.left);
    const y = (value) => frame.bottom - (((this.log ? Math.log(value) : value) - from) / (to - from)) * (frame.bottom - frame.top);
    const ticks = this.log ? logTicks(Math.exp(from), Math.exp(to)) : niceTicks(from, to, 5);
    return { height, frame, first, last, x, y, ticks };
  }

  draw() {
    const scales = this.scales();
    const { height, frame, first, last, x, y, ticks } = scales;
    this.now = scales;
    const columns = Math.max(50, Math.floor(frame.right - frame.left));
    const line = (points, kind) =>
      points.length
        ? draw("path", {
            class: kind,
            d: thinned(points, columns)
              .map((one, i) => `${i ? "L" : "M"}${x(one.step).toFixed(1)} ${y(one.value).toFixed(1)}`)
              .join(""),
          })
        : null;
    const marks = (points) =>
      points.length <= 60 ? points.map((one) => draw("circle", { cx: x(one.step), cy: y(one.value), r: 3, class: "valid-point" })) : [];
    this.cursor = draw("g", { class: "cursor" });
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    this.svg.setAttribute("height", height);
    this.svg.setAttribute("aria-label", this.summary());
    this.svg.replaceChildren(
      ...ticks.map((tick) =>
        draw(
          "g",
          {},
          draw("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(tick), y2: y(tick) }),
          draw("text", { class: "tick", x: frame.left - 6, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)),
        ),
      ),
      ...niceTicks(first, last, this.width < 600 ? 4 : 8).map((tick) =>
        draw(
          "text",
          { class: "tick", x: x(tick), y: frame.bottom + 26, "text-anchor": x(tick) > frame.right - 20 ? "end" : "middle" },
          whole(tick),
        ),
      ),
      draw("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }),
      ...this.checkpoints(scales),
      ...[
        line(this.train, "raw"),
        this.train.length > 1 ? line(this.smooth, "smooth") : null,
        line(this.valid, "valid"),
        ...marks(this.valid),
      ].filter(Boolean),
      this.cursor,
    );
    this.choose(this.chosen);
  }

  checkpoints({ frame, first, last, x }) {
    const inside = (step) => isNumber(step) && step >= first && step <= last;
    const marks = (this.run.checkpoints ?? [])
      .filter(inside)
      .slice(0, 500)
      .map((step) =>
        draw(
          "path",
          { class: "checkpoint", d: `M${x(step)} ${frame.bottom}l-4 8h8z` },
          draw("title", {}, `checkpoint at step ${whole(step)}`),
        ),
      );
    const best = this.run.best_step;
    if (inside(best)) {
      const end = x(best) > (frame.left + frame.right) / 2;
      marks.push(
        draw("line", { class: "best", x1: x(best), x2: x(best), y1: frame.top - 6, y2: frame.bottom }),
        draw(
          "text",
          { class: "best-text", x: x(best) + (end ? -6 : 6), y: frame.top - 8, "text-anchor": end ? "end" : "start" },
          `best, step ${whole(best)}`,
        ),
      );
    }
    return marks;
  }

  summary() {
    const told = (name, points) => (points.length ? `${name} from ${fixed(points[0].value, 3)} to ${fixed(points.at(-1).value, 3)}` : "");
    return `Loss by step: ${[told("training loss", this.train), told("validation loss", this.valid)].filter(Boolean).join(", ")}. Arrow keys read single steps.`;
  }

  point(event) {
    const { frame, first, last } = this.now;
    const box = this.svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) * (this.width / box.width) - frame.left) / (frame.right - frame.left);
    const line = this.line();
    const step = first + Math.min(1, Math.max(0, share)) * (last - first);
    const at = atStep(line, step);
    const next = line[at + 1];
    this.choose(next && next.step - step < step - line[at].step ? at + 1 : at);
  }

  line() {
    return this.train.length ? this.train : this.valid;
  }

  key(event) {
    const end = this.line().length - 1;
    const pace = Math.max(1, Math.round(end / 100));
    const at = this.chosen ?? 0;
    const to = { ArrowLeft: at - pace, ArrowRight: at + pace, Home: 0, End: end }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose(Math.min(end, Math.max(0, to)));
    announce(this.readout.textContent);
  }

  /** Tell the numbers at a point; without one, what can be done. */
  choose(at) {
    this.chosen = at;
    this.cursor.replaceChildren();
    if (at === null) {
      this.readout.textContent = "Point at the curve, or use the arrow keys, to read it.";
      return;
    }
    const { frame, x, y } = this.now;
    const { step } = this.line()[at];
    const parts = [`step ${whole(step)}`];
    const dots = [];
    if (this.train.length) {
      parts.push(`training ${fixed(this.train[at].value, 4)}`, `smoothed ${fixed(this.smooth[at].value, 4)}`);
      dots.push(this.smooth[at]);
    }
    const valid = this.valid.length && this.valid[atStep(this.valid, step)];
    if (valid && valid.step <= step)
      parts.push(`validation ${fixed(valid.value, 4)}${valid.step === step ? "" : ` (step ${whole(valid.step)})`}`);
    this.readout.textContent = parts.join(" · ");
    this.cursor.append(
      draw("line", { x1: x(step), x2: x(step), y1: frame.top, y2: frame.bottom }),
      ...dots.map((one) => draw("circle", { cx: x(one.step), cy: y(one.value), r: 4 })),
    );
  }
}

/** 1, 2 and 5 times powers of ten; where that is too few, evenly spread. */
function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const unit of [1, 2, 5]) if (unit * 10 ** power >= low && unit * 10 ** power <= high) ticks.push(unit * 10 ** power);
  }
  return ticks.length >= 3 && ticks.length <= 12
    ? ticks
    : ticks.length < 3
      ? niceTicks(low, high, 4)
      : ticks.filter((tick) => Number.isInteger(Math.log10(tick)));
}

const tickText = (tick) => (tick !== 0 && Math.abs(tick) < 0.001 ? tick.toExponential(0) : String(Number(tick.toPrecision(3))));
