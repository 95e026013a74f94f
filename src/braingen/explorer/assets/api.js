// Requests to the server: one after another, and dropped when the page has moved on.

let waiting = Promise.resolve();

export class Moved extends Error {}

async function answer(response) {
  if (response.ok) return response.json();
  let sentence = `The server answered ${response.status}.`;
  try {
    sentence = (await response.clone().json()).error ?? sentence;
  } catch {
    sentence = (await response.text()) || sentence;
  }
  throw new Error(sentence);
}

// `current` says whether the answer is still wanted; asked again before the request is sent.
export function ask(path, body, current = () => true) {
  const sent = waiting.then(async () => {
    if (!current()) throw new Moved();
    const options = body === undefined ? {} : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    };
    const found = await answer(await fetch(path, options));
    if (!current()) throw new Moved();
    return found;
  });
  waiting = sent.catch(() => {});
  return sent;
}

export const query = (values) => new URLSearchParams(
  Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== ""),
).toString();
