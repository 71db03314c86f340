// localStorage, or memory where the browser forbids it.

const PREFIX = "deepmnn.";
const memory = new Map();

/** The value of a key, or null; damaged entries count as missing. */
export function read(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key) ?? memory.get(key) ?? "null");
  } catch {
    return null;
  }
}

/** Writes a value. Returns false where the browser has no room for it; it is kept in memory then. */
export function write(key, value) {
  const text = JSON.stringify(value);
  try {
    localStorage.setItem(PREFIX + key, text);
    memory.delete(key);
    return true;
  } catch {
    memory.set(key, text);
    return false;
  }
}

export function remove(key) {
  memory.delete(key);
  try {
    localStorage.removeItem(PREFIX + key);
  } catch {
    // Nothing was kept.
  }
}

/** Keys that start with a prefix. */
export function keys(prefix) {
  const found = new Set([...memory.keys()].filter((key) => key.startsWith(prefix)));
  try {
    for (const key of Object.keys(localStorage))
      if (key.startsWith(PREFIX + prefix)) found.add(key.slice(PREFIX.length));
  } catch {
    // Memory is all there is.
  }
  return [...found];
}

/** Calls back with the key when another tab changed it. */
export function onChange(callback) {
  addEventListener("storage", (event) => {
    if (event.key?.startsWith(PREFIX)) callback(event.key.slice(PREFIX.length));
  });
}
