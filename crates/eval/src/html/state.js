// What is chosen on the page lives in the address after `#`, so that a link or a reload brings it back.

const state = {
  values: new URLSearchParams(),
  listeners: [],

  get(key, otherwise = "") {
    return this.values.get(key) ?? otherwise;
  },

  all(key) {
    return this.values.getAll(key);
  },

  /** Lists that stand under a key as JSON; what is no such list is taken as not there. */
  list(key, length) {
    try {
      const value = JSON.parse(this.values.get(key) ?? "null");
      return Array.isArray(value) && value.length === length ? value : null;
    } catch {
      return null;
    }
  },

  /** Change some keys (`null`, "" and [] take one away), write the address, tell those who listen to any of them. */
  set(changes) {
    for (const [key, value] of Object.entries(changes)) {
      this.values.delete(key);
      if (Array.isArray(value)) for (const one of value) this.values.append(key, one);
      else if (value !== null && value !== "") this.values.set(key, value);
    }
    this.write();
    this.tell(Object.keys(changes));
  },

  write() {
    const address = `#${this.values}`;
    try {
      history.replaceState(null, "", address);
    } catch {
      location.replace(address); // some browsers keep a file from changing its history
    }
  },

  /** Call `draw` whenever one of `keys` changes. */
  on(keys, draw) {
    this.listeners.push({ keys, draw });
  },

  tell(changed) {
    for (const { keys, draw } of this.listeners) if (keys.some((key) => changed.includes(key))) draw();
  },

  /** Read the address. One without `=` names a place of the page and leaves what is chosen. */
  read() {
    const given = location.hash.slice(1);
    if (given && !given.includes("=")) return;
    const before = [...this.values.keys()];
    this.values = new URLSearchParams(given);
    this.tell([...before, ...this.values.keys()]);
  },
};
window.addEventListener("hashchange", () => state.read());
