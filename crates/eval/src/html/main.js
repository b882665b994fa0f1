// The page, put together.

const THEME = "taper-report-theme";

/** A section; where one cannot be drawn, it says so and the others stay. */
function guarded(build, data) {
  try {
    return build(data);
  } catch (error) {
    console.error(error);
    return el(
      "p",
      { classes: "note bad" },
      badge("bad", "no", "Fault"),
      el("span", {}, `A part of this report could not be drawn: ${error.message}`),
    );
  }
}

function contentsOf(sections) {
  const names = {
    scores: "Scores",
    training: "Training",
    breakdown: "Mistakes",
    examples: "Examples",
    tokens: "Tokens",
    cost: "Cost",
    setup: "Setup",
  };
  return sections
    .filter((section) => names[section.id])
    .map((section) => {
      // An ordinary link would put its own address where the filters stand.
      const go = (event) => {
        event.preventDefault();
        const title = section.querySelector("h2");
        title.tabIndex = -1;
        section.scrollIntoView();
        title.focus({ preventScroll: true });
      };
      return el("a", { href: `#${section.id}`, onclick: go }, names[section.id]);
    });
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** The choice of colours is this reader's and not the link's: it is kept in the browser, where that is allowed. */
function prepareTheme() {
  const list = byId("theme");
  try {
    list.value = localStorage.getItem(THEME) ?? "";
  } catch {
    /* it lasts until the page is left */
  }
  if (list.selectedIndex < 0) list.value = "";
  setTheme(list.value);
  list.onchange = () => {
    setTheme(list.value);
    try {
      localStorage.setItem(THEME, list.value);
    } catch {
      /* as above */
    }
  };
  byId("theme-choice").hidden = false;
}

/** On paper nothing can be opened: what matters is open while it is printed. */
function preparePrint() {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details[data-prints]:not([open])")];
    for (const one of opened) {
      one.dispatchEvent(new Event("print"));
      one.open = true;
    }
  });
  window.addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
}

const report = JSON.parse(byId("data").textContent);
state.read();
prepareTheme();
preparePrint();
const sections = [verdictSection, scoresSection, curveSection, breakdownSection, examplesSection, tokensSection, costSection, setupSection]
  .map((build) => guarded(build, report))
  .filter(Boolean);
byId("main").replaceChildren(...sections);
byId("contents").replaceChildren(...contentsOf(sections));
document.body.dataset.ready = "";
