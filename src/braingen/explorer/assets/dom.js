// Small helpers for the page.

export const one = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function fill(select, options, chosen) {
  const before = chosen ?? select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (options.some(([value]) => value === before)) select.value = before;
  return select.value;
}

export function show(image, source, words) {
  image.src = source;
  image.alt = words;
}

export const number = (value, digits = 3) => (value === null || value === undefined ? "unknown" : value.toFixed(digits));

export const levelName = (level, experts) => `level ${level} (${experts} expert${experts === 1 ? "" : "s"})`;

export function complain(error) {
  const place = one("error");
  place.textContent = error ? error.message : "";
  place.hidden = !error;
}

// A function that is called when changes have paused.
export function settled(work, milliseconds = 250) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}
