// Intervals, drawn: a mark with whiskers for each candidate, and an effect against the line of no effect.

const PLOT = { width: 224, row: 17, top: 3, bottom: 17, side: 12 };

/** The values between which an axis runs, with some air; shares keep 0 to 1. */
function axisOf(metric, measured) {
  if (metric.scale === "share") return { low: 0, high: 1 };
  const ends = measured.flatMap((one) => [one.value, one.interval?.low, one.interval?.high]).filter(isNumber);
  if (!ends.length) return { low: 0, high: 1 };
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const air = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  const axis = { low: low - air, high: high + air };
  if (low >= 0 && axis.low < 0) axis.low = 0;
  if (metric.scale === "percent" && axis.high > 100) axis.high = 100;
  return axis;
}

const placer =
  ({ low, high }) =>
  (value) =>
    PLOT.side + (PLOT.width - 2 * PLOT.side) * Math.min(1, Math.max(0, (value - low) / (high - low)));

/** Marks below a drawing, each with its text. */
function axisMarks(ticks, place, height, text) {
  return ticks.map((tick) =>
    draw(
      "g",
      {},
      draw("line", { x1: place(tick), x2: place(tick), y1: 0, y2: height - PLOT.bottom + 3, class: "grid" }),
      draw("text", { x: place(tick), y: height - 4, class: "tick", "text-anchor": "middle" }, text(tick)),
    ),
  );
}

function whisker(place, y, one, index) {
  const parts = [];
  if (one.interval) {
    const [from, to] = [place(one.interval.low), place(one.interval.high)];
    parts.push(
      draw("path", { d: `M${from} ${y}H${to}M${from} ${y - 4}v8M${to} ${y - 4}v8`, class: `whisker hue-${index % SHAPES.length}` }),
    );
  }
  parts.push(shapeOf(index, { transform: `translate(${place(one.value) - 5} ${y - 5})` }));
  return draw("g", {}, parts);
}

/** A metric of all candidates on one axis. `rows`: { index, name, measured }. */
function scorePlot(metric, rows) {
  const known = rows.filter((row) => isNumber(row.measured?.value));
  const height = PLOT.top + PLOT.row * rows.length + PLOT.bottom;
  const axis = axisOf(
    metric,
    known.map((row) => row.measured),
  );
  const place = placer(axis);
  const ticks = metric.scale === "share" ? [0, 0.25, 0.5, 0.75, 1] : niceTicks(axis.low, axis.high, 3);
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10((axis.high - axis.low) / 3 || 1)) + 1));
  const text = (tick) =>
    metric.scale === "share"
      ? `${Math.round(100 * tick)}%`
      : axis.high - axis.low > 5
        ? String(Math.round(tick * 10) / 10)
        : fixed(tick, digits);
  const label = known
    .map((row) => {
      const between = rangeText(row.measured.interval, (end) => metricValue(metric, end));
      return `${row.name} ${metricValue(metric, row.measured.value)}${between && `, interval ${between}`}`;
    })
    .join("; ");
  return draw(
    "svg",
    {
      viewBox: `0 0 ${PLOT.width} ${height}`,
      width: PLOT.width,
      height,
      class: "plot",
      role: "img",
      "aria-label": `${metric.title}: ${label || "not measured"}`,
    },
    axisMarks(ticks, place, height, text),
    rows.map((row, at) =>
      isNumber(row.measured?.value) ? whisker(place, PLOT.top + PLOT.row * (at + 0.5), row.measured, row.index) : null,
    ),
  );
}

/** One width to both sides of no effect for all comparisons of a kind, so that their drawings can be held against each other. */
function effectReach(comparisons) {
  const away = (comparison, value) => (comparison.effect_kind === "ratio" ? Math.abs(Math.log(value)) : Math.abs(value));
  const ends = comparisons.flatMap((one) =>
    [one.effect, one.interval?.low, one.interval?.high].filter(isNumber).map((value) => away(one, value)),
  );
  return Math.max(1e-6, ...ends.filter(Number.isFinite)) * 1.12;
}

/** The largest round effect that still has a place on the axis. */
function roundBelow(reach, ratio) {
  const most = 0.9 * reach;
  const near = [1.001, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5].map(Math.log);
  if (ratio && most < Math.log(2)) return near.findLast((one) => one <= most) ?? most;
  const units = ratio ? Math.exp(most) : most;
  const power = 10 ** Math.floor(Math.log10(units));
  const round = ([5, 2, 1].find((of) => of * power <= units * (1 + 1e-9)) ?? 1) * power;
  return ratio ? Math.log(round) : round;
}

const tickOf = (value) => `${value < 0 ? "−" : "+"}${Number(Math.abs(value).toPrecision(2))}`;

/** An effect with its interval; the side on which better lies is tinted. */
function effectPlot(comparison, metric, reach, index) {
  const ratio = comparison.effect_kind === "ratio";
  const at = (value) => (ratio ? Math.log(Math.max(value, 1e-9)) : value);
  const axis = placer({ low: -reach, high: reach });
  const place = (value) => axis(at(value));
  const height = PLOT.row + PLOT.bottom + PLOT.top;
  const none = axis(0);
  const rightIsBetter = metric.higher_is_better !== false;
  const tick = (value, text) => draw("text", { x: axis(value), y: height - 4, class: "tick", "text-anchor": "middle" }, text);
  const end = roundBelow(reach, ratio);
  const endText = (value) =>
    ratio ? String(Number(Math.exp(value).toPrecision(3))) : tickOf(metric.scale === "share" ? 100 * value : value);
  const known = isNumber(comparison.effect);
  return draw(
    "svg",
    {
      viewBox: `0 0 ${PLOT.width} ${height}`,
      width: PLOT.width,
      height,
      class: "plot",
      role: "img",
      "aria-label": `${effectText(comparison, metric)}${comparison.interval ? `, interval ${rangeText(comparison.interval, (value) => effectNumber(comparison, metric, value))}` : ""}; better lies to the ${rightIsBetter ? "right" : "left"}`,
    },
    draw("rect", {
      x: rightIsBetter ? none : PLOT.side,
      y: 0,
      width: PLOT.width / 2 - PLOT.side,
      height: height - PLOT.bottom + 3,
      class: "better-side",
    }),
    draw("line", { x1: none, x2: none, y1: 0, y2: height - PLOT.bottom + 3, class: "no-effect" }),
    tick(-end, endText(-end)),
    tick(0, ratio ? "1" : "0"),
    tick(end, endText(end)),
    known ? whisker(place, PLOT.top + PLOT.row / 2, { value: comparison.effect, interval: comparison.interval }, index) : null,
  );
}
