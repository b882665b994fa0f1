// Which words differ.

const MOST_CELLS = 1_500_000; // of the table of a comparison; beyond, the whole middle counts as different
const MOST_WORDS = 20_000; // of a text that is compared at all

/** Words and signs, each with the white space after it, which is shown and not compared. */
function wordsOf(text) {
  return text.match(/(?:[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_])\s*|\s+/gu) ?? [];
}

/**
 * What to do with `before` to get `after`, by their longest common subsequence: [kind, text] with kind "same", "gone" or
 * "new"; words of `same` are as in `after`. `null` where the texts are too long.
 */
function wordDiff(before, after) {
  const [a, b] = [wordsOf(before), wordsOf(after)];
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return null;
  const [keysA, keysB] = [a.map((word) => word.trim()), b.map((word) => word.trim())];
  let head = 0;
  while (head < a.length && head < b.length && keysA[head] === keysB[head]) head += 1;
  let tail = 0;
  while (tail < Math.min(a.length, b.length) - head && keysA[a.length - 1 - tail] === keysB[b.length - 1 - tail]) tail += 1;
  const parts = [];
  const push = (kind, text) => {
    if (!text) return;
    if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += text;
    else parts.push([kind, text]);
  };
  push("same", b.slice(0, head).join(""));
  const [middleA, middleB] = [a.slice(head, a.length - tail), b.slice(head, b.length - tail)];
  for (const [kind, at] of steps(keysA.slice(head, a.length - tail), keysB.slice(head, b.length - tail)))
    push(kind, kind === "gone" ? middleA[at] : middleB[at]);
  push("same", b.slice(b.length - tail).join(""));
  return gathered(parts);
}

/** The way through the table of common subsequences: [kind, index]. */
function steps(a, b) {
  const [rows, columns] = [a.length, b.length];
  if (rows * columns > MOST_CELLS) return [...a.map((_, i) => ["gone", i]), ...b.map((_, j) => ["new", j])];
  const width = columns + 1;
  const table = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      table[at] = a[i] === b[j] ? table[at + width + 1] + 1 : Math.max(table[at + width], table[at + 1]);
    }
  }
  const way = [];
  for (let i = 0, j = 0; i < rows || j < columns;) {
    const at = i * width + j;
    if (i < rows && j < columns && a[i] === b[j]) {
      way.push(["same", j]);
      i += 1;
      j += 1;
    } else if (j >= columns || (i < rows && table[at + width] >= table[at + 1])) {
      way.push(["gone", i]);
      i += 1;
    } else {
      way.push(["new", j]);
      j += 1;
    }
  }
  return way;
}

/** Between two words that stayed, first all that went and then all that came: easier to read than taking turns. */
function gathered(parts) {
  const out = [];
  let [gone, fresh] = ["", ""];
  const flush = () => {
    if (gone) out.push(["gone", gone]);
    if (fresh) out.push(["new", fresh]);
    [gone, fresh] = ["", ""];
  };
  for (const [kind, text] of parts) {
    if (kind === "gone") gone += text;
    else if (kind === "new") fresh += text;
    else {
      flush();
      out.push([kind, text]);
    }
  }
  flush();
  return out;
}

/** The share of the words of both texts that stayed. */
function alike(parts) {
  const [same, other] = ["same", "other"].map((kind) =>
    parts.filter((part) => (part[0] === "same") === (kind === "same")).reduce((sum, part) => sum + wordsOf(part[1]).length, 0),
  );
  return (2 * same) / (2 * same + other || 1);
}
