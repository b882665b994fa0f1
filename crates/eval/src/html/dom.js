"use strict";
// Elements. What a model wrote is hostile: text of the data reaches the page through text nodes and attributes that hold no code.

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element: properties, or attributes where the name has a dash or stands below; strings among the children become text. */
function el(name, { classes, ...rest } = {}, ...children) {
  const element = document.createElement(name);
  if (classes) element.className = classes;
  for (const [key, value] of Object.entries(rest)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.includes("-") || ["role", "scope", "for", "list"].includes(key)) element.setAttribute(key, String(value));
    else element[key] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element of a drawing. */
function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, String(value));
  element.append(...children.flat(Infinity).filter(Boolean));
  return element;
}

/** Marks that turn the direction of text would let an output rewrite the page around it. */
const legible = (text) => String(text).replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

/** Say something to readers of the screen. */
function announce(text) {
  byId("announcer").textContent = text;
}

/** Shapes that stand for candidates: with the colour, and without it. */
const SHAPES = [
  "M5 1a4 4 0 1 0 .01 0z", // circle
  "M5 0l5 5-5 5-5-5z", // diamond
  "M1 1h8v8H1z", // square
  "M5 .5l4.8 8.8H.2z", // triangle
  "M3.5 0h3v3.5H10v3H6.5V10h-3V6.5H0v-3h3.5z", // cross
];

/** The mark of a candidate, 10 by 10, for drawings. */
function shapeOf(index, attributes = {}) {
  return draw("path", { d: SHAPES[index % SHAPES.length], class: `shape hue-${index % SHAPES.length}`, ...attributes });
}

/** The mark of a candidate in running text. */
function markOf(index) {
  return draw("svg", { viewBox: "0 0 10 10", class: "mark-icon", "aria-hidden": "true" }, shapeOf(index));
}

/** A candidate's name with its mark. */
function named(index, name) {
  return el("span", { classes: "named", title: legible(name) }, markOf(index), el("bdi", {}, legible(name)));
}

const ICONS = {
  up: "M8 2l6.5 12h-13z",
  down: "M8 14L1.5 2h13z",
  doubt: "M8 1.5A6.5 6.5 0 1 0 8.01 1.5zM8 4a4 4 0 1 1-.01 0z",
  flat: "M2 6h12v4H2z",
  yes: "M6.4 13.6L1 8.2l2-2 3.4 3.4L13 3l2 2z",
  no: "M3.4 1.6L8 6.2l4.6-4.6 1.8 1.8L9.8 8l4.6 4.6-1.8 1.8L8 9.8l-4.6 4.6-1.8-1.8L6.2 8 1.6 3.4z",
};

/** A word with a shape before it, in the colour of its kind. */
function badge(kind, icon, word, classes = "") {
  const shape = draw("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, draw("path", { d: ICONS[icon], "fill-rule": "evenodd" }));
  return el("span", { classes: `badge ${kind} ${classes}` }, shape, word);
}

const overflowing = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    // Only what can be scrolled needs a place in the order of the Tab key.
    if (target.scrollWidth > target.clientWidth + 1) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

/** A table in a frame that scrolls sideways. `head` and cells: text, an element, or `{ cell, classes }`; the first of a row is its header. */
function table(caption, head, rows, { classes = "", showCaption = false } = {}) {
  const cellOf = (tag, one, more = {}) => {
    const given = one !== null && typeof one === "object" && "cell" in one ? one : { cell: one };
    return el(tag, { classes: given.classes, colSpan: given.span, ...more }, given.cell ?? "");
  };
  const lines = rows.map((row) => {
    const { cells, classes: of } = Array.isArray(row) ? { cells: row } : row;
    return el(
      "tr",
      { classes: of },
      cells.map((one, i) => (i ? cellOf("td", one) : cellOf("th", one, { scope: "row" }))),
    );
  });
  const node = el(
    "table",
    { classes },
    el("caption", { classes: showCaption ? "" : "only-read" }, caption),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        head.map((one) => cellOf("th", one, { scope: "col" })),
      ),
    ),
    el("tbody", {}, lines),
  );
  const frame = el("div", { classes: "scroll", role: "group", "aria-label": caption }, node);
  overflowing.observe(frame);
  return frame;
}

/** A number of a table: aligned at the right. */
const num = (cell, classes = "") => ({ cell, classes: `number ${classes}` });

/** Something to open. `build` runs when it is first opened, so that what is never looked at costs nothing. */
function fold(title, build, { open = false, prints = false, classes = "" } = {}) {
  const node = el("details", { classes, open: open || undefined }, el("summary", {}, title));
  const fill = () => {
    if (node.childElementCount === 1) node.append(...[build()].flat(Infinity));
  };
  if (open) fill();
  node.addEventListener("toggle", () => {
    if (node.open) fill();
  });
  if (prints)
    node.addEventListener("print", () => {
      fill();
    });
  if (prints) node.dataset.prints = "";
  return node;
}

/** A list to choose from. `options`: [value, text]. */
function choice(label, options, value, onchange, classes = "") {
  const list = el(
    "select",
    { onchange: () => onchange(list.value) },
    options.map(([of, text]) => el("option", { value: of, selected: of === value || undefined }, legible(text))),
  );
  return el("label", { classes: `field ${classes}` }, label, list);
}

/** One of few: buttons of which one is pressed. */
function segments(label, options, value, onchange) {
  return el(
    "div",
    { classes: "segments", role: "group", "aria-label": label },
    options.map(([of, text]) =>
      el("button", { type: "button", "aria-pressed": String(of === value), "data-value": of, onclick: () => onchange(of) }, text),
    ),
  );
}

/** Put text into the clipboard; where the browser does not let us, say so on the button. */
function copyButton(text) {
  const button = el("button", { type: "button", classes: "copy", "aria-label": `Copy: ${text}` }, "Copy");
  button.onclick = async () => {
    const done = await navigator.clipboard?.writeText(text).then(
      () => true,
      () => false,
    );
    button.textContent = done ? "Copied" : "Select it and copy";
    announce(button.textContent);
    setTimeout(() => {
      button.textContent = "Copy";
    }, 2500);
  };
  return button;
}
