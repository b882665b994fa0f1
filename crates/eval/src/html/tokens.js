// What the model was trained on, token by token, as the collator made it.

const MOST_TOKENS = 4000; // of a sample that are put on the page
const SPECIAL = /^(?:<[^\s<>]{1,40}>|\[\/?[A-Z_]{2,20}\])$/;

function tokensSection({ training_samples: samples = [] }) {
  if (!samples.length) return null;
  return el(
    "section",
    { id: "tokens" },
    el("h2", {}, "Training samples, token by token"),
    el("p", { classes: "quiet" }, "The loss is taken over supervised tokens only; all others are context."),
    el(
      "p",
      { classes: "token-key" },
      chipOf({ text: "supervised", supervised: true }),
      chipOf({ text: "context", supervised: false }),
      chipOf({ text: "<|special|>", supervised: false }),
      el("span", { classes: "quiet" }, "· is a space, ⇥ a tab, ⏎ a line end"),
    ),
    samples.map((sample, at) => fold(titleOf(sample), () => tokenRun(sample), { open: at === 0, classes: "token-sample" })),
  );
}

function titleOf({ id, tokens }) {
  const supervised = tokens.filter((token) => token.supervised).length;
  return el(
    "span",
    {},
    el("code", {}, legible(id)),
    el(
      "span",
      { classes: supervised ? "quiet" : "warn-text" },
      ` ${whole(supervised)} of ${count(tokens.length, "token")} supervised${supervised ? ` (${share(supervised / tokens.length)})` : ": nothing is learnt from this sample"}`,
    ),
  );
}

/** White space that can be seen. */
const visible = (text) =>
  legible(text)
    .replaceAll(" ", "·")
    .replaceAll("\t", "⇥")
    .replaceAll("\r", "␍")
    .replaceAll("\n", "⏎")
    .replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "\ufffd");

function chipOf({ text, supervised }) {
  const special = SPECIAL.test(text.trim());
  return el("span", { classes: `token${supervised ? " supervised" : ""}${special ? " special" : ""}` }, visible(text) || "∅");
}

function tokenRun({ tokens }) {
  const shown = tokens.slice(0, MOST_TOKENS);
  const nodes = shown.flatMap((token, i) => {
    const turns = Boolean(token.supervised) !== Boolean(shown[i - 1]?.supervised) && (i || token.supervised);
    const mark = turns ? [el("span", { classes: "only-read" }, token.supervised ? " supervised from here: " : " context from here: ")] : [];
    return [...mark, chipOf(token), ...(token.text.includes("\n") ? [el("br")] : [el("wbr")])];
  });
  const left = tokens.length - shown.length;
  return el(
    "div",
    { classes: "tokens", dir: "ltr" },
    nodes,
    left > 0 ? el("p", { classes: "quiet" }, `${whole(left)} more tokens are left out here.`) : null,
  );
}
