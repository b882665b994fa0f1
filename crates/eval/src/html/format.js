// Numbers as people write them.

const THIN = "\u00a0"; // between a number and its unit, which no line end should part
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Fixed digits with a true minus, and none before a zero. */
function fixed(value, digits) {
  if (!isNumber(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

function signed(value, digits) {
  const text = fixed(value, digits);
  return isNumber(value) && !text.startsWith("−") ? `+${text}` : text;
}

const whole = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : "–");
const share = (value) => (isNumber(value) ? `${fixed(100 * value, 1)}${THIN}%` : "–");
const count = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;

/** A number of no known size: four digits that say something. */
function plain(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2).replace("-", "−");
  return fixed(value, size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 3 : 4);
}

/** A value of a metric. */
function metricValue(metric, value) {
  if (metric?.scale === "share") return share(value);
  if (metric?.scale === "percent") return fixed(value, 1);
  return plain(value);
}

/** An effect, or an end of its interval, without the unit. */
function effectNumber(comparison, metric, value) {
  if (comparison.effect_kind === "ratio") return fixed(value, 3);
  if (metric?.scale === "share") return signed(100 * value, 1);
  return signed(value, metric?.scale === "percent" ? 1 : 3);
}

function effectText(comparison, metric) {
  const number = effectNumber(comparison, metric, comparison.effect);
  if (comparison.effect_kind === "ratio") return `ratio${THIN}${number}`;
  return metric?.scale === "plain" ? number : `${number}${THIN}points`;
}

const rangeText = (interval, show) => (interval ? `${show(interval.low)} to ${show(interval.high)}` : "");

function pText(p) {
  if (!isNumber(p)) return "–";
  if (p < 0.001) return `p${THIN}<${THIN}0.001`;
  return `p${THIN}=${THIN}${p.toFixed(p < 0.1 ? 3 : 2)}`;
}

function milliseconds(value) {
  if (!isNumber(value)) return "–";
  return value >= 10_000 ? `${fixed(value / 1000, 1)}${THIN}s` : `${fixed(value, value < 10 ? 1 : 0)}${THIN}ms`;
}

/** A sum of money with as many digits as it needs. */
function money(value, currency) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  const digits = size === 0 || size >= 1 ? 2 : Math.min(9, 1 - Math.floor(Math.log10(size)));
  return `${fixed(value, digits)}${THIN}${legible(currency ?? "")}`;
}

/** What a verdict is called, its colour and its shape. */
const VERDICTS = {
  better: { word: "Better", kind: "good", icon: "up" },
  worse: { word: "Worse", kind: "bad", icon: "down" },
  inconclusive: { word: "Not enough data", kind: "unsure", icon: "doubt" },
  none: { word: "Measured", kind: "neutral", icon: "flat" },
};
const verdictBadge = (verdict, classes) => {
  const { word, kind, icon } = VERDICTS[verdict] ?? VERDICTS.none;
  return badge(kind, icon, word, classes);
};

const GATES = {
  passed: { word: "Passed", kind: "good", icon: "yes" },
  failed: { word: "Failed", kind: "bad", icon: "no" },
  inconclusive: { word: "Not decided", kind: "unsure", icon: "doubt" },
  nothing_evaluated: { word: "Nothing evaluated", kind: "bad", icon: "flat" },
};

const EXIT_CODES = {
  0: "The run passed",
  1: "The run ended with a fault of taper itself",
  2: "What the run was given is wrong",
  4: "Nothing was evaluated",
  5: "There is not enough data to decide",
  100: "A gate failed",
  130: "The run was interrupted; a checkpoint was written",
};

/** Round places for the marks of an axis between two values, at most about `most` of them. */
function niceTicks(low, high, most = 5) {
  const raw = (high - low) / Math.max(1, most);
  if (!(raw > 0) || !Number.isFinite(raw)) return [low];
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * ([1, 2, 2.5, 5].find((of) => of * unit >= raw * (1 - 1e-9)) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(i * step + 0); // without a minus before a zero
  return ticks;
}
