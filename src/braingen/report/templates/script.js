"use strict";
(() => {
  document.documentElement.classList.add("scripted");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const cards = all(".cards .card");
  const numbers = new Map(cards.map((card) => [card, JSON.parse(card.dataset.sort)]));
  const order = (card) => Number(card.dataset.order);

  // --- gallery: order, filter, how many ---
  const form = one(".controls"), grid = one(".cards"), more = one(".more"), count = one(".count");
  const small = window.matchMedia("(max-width: 44rem)").matches;  // fewer images on a phone
  const firstLook = small ? Math.min(8, Number(form.dataset.firstLook)) : Number(form.dataset.firstLook);
  let everything = false;
  let visible = cards;

  const inOrder = (found, wanted, by) => {
    if (wanted === "all") return found.sort((a, b) => order(a) - order(b));
    const sign = wanted === "best" ? -1 : 1;
    const value = (card) => numbers.get(card)[by];
    const second = (card) => numbers.get(card).overall ?? 0;
    return found.sort((a, b) => {
      if (value(a) == null || value(b) == null) return (value(a) == null) - (value(b) == null);  // unknown ones last
      return sign * (value(a) - value(b)) || sign * (second(a) - second(b)) || order(a) - order(b);
    });
  };

  const update = () => {
    const choice = new FormData(form);
    const wanted = choice.get("order") ?? "all", show = choice.get("show") ?? "all";
    const found = cards.filter((card) => show === "all" || card.dataset.object === show);
    visible = inOrder(found, wanted, choice.get("by"));
    if (!everything) visible = visible.slice(0, firstLook);
    const shown = new Set(visible);
    for (const card of cards) card.hidden = !shown.has(card);
    grid.append(...visible, ...cards.filter((card) => !shown.has(card)));
    const by = one("[name=by]", form);
    if (by) by.closest("label").hidden = wanted === "all";
    const controls = one("[name=controls]", form);
    grid.classList.toggle("pairs-only", controls !== null && !controls.checked);
    more.hidden = visible.length === found.length;
    one("button", more).textContent = `Show all ${found.length}`;
    count.textContent = found.length === 0 ? "No image matches." : `Showing ${visible.length} of ${found.length}`
      + (found.length < cards.length ? `; ${cards.length} in total.` : ".");
  };
  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  one("button", more).addEventListener("click", () => { everything = true; update(); });
  update();

  // --- one image, large ---
  const viewer = one(".viewer"), large = one(".large", viewer);
  let current = 0;
  const look = (index) => {
    current = (index + visible.length) % visible.length;
    const copy = visible[current].cloneNode(true);
    copy.hidden = false;
    for (const details of all("details", copy)) details.open = true;
    for (const picture of all("img", copy)) for (const name of ["tabindex", "role", "aria-label"]) picture.removeAttribute(name);
    large.replaceChildren(copy);
    one(".place", viewer).textContent = `${current + 1} of ${visible.length}`;
    if (!viewer.open) viewer.showModal();
  };
  for (const picture of all(".cards .pictures img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.setAttribute("aria-label", `${picture.alt}. Enlarge.`);
    picture.addEventListener("click", () => look(visible.indexOf(picture.closest(".card"))));
    picture.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); picture.click(); }
    });
  }
  for (const button of all("[data-go]", viewer)) button.addEventListener("click", () => look(current + Number(button.dataset.go)));
  one("[data-close]", viewer).addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") look(current - 1);
    if (event.key === "ArrowRight") look(current + 1);
  });

  // --- the reader's own two-way identification ---
  const game = one(".game");
  if (game) {
    const rounds = Number(game.dataset.rounds), answers = all(".answer", game), next = one(".next", game), feedback = one(".feedback", game);
    const source = (card, column) => one(`.${column} img`, card).src;
    let played = 0, right = 0, seat = 0, deck = [];
    const ask = () => {
      if (played === rounds) { played = right = 0; }
      if (deck.length < 2) deck = [...cards].sort(() => Math.random() - 0.5);
      const asked = deck.pop();
      const others = cards.filter((card) => card !== asked);
      const other = others[Math.floor(Math.random() * others.length)];
      seat = Math.floor(Math.random() * 2);
      one(".generated", game).src = source(asked, "brain");
      answers.forEach((button, place) => {
        one("img", button).src = source(place === seat ? asked : other, "seen");
        button.disabled = false;
        button.classList.remove("was", "missed");
      });
      feedback.textContent = played === 0 ? "" : `${right} of ${played} so far.`;
      next.hidden = true;
    };
    answers.forEach((button, place) => button.addEventListener("click", () => {
      played += 1;
      right += place === seat;
      answers.forEach((each) => { each.disabled = true; });
      answers[seat].classList.add("was");
      if (place !== seat) button.classList.add("missed");
      const end = played === rounds;
      feedback.textContent = `${place === seat ? "Correct." : "Incorrect."} ${right} of ${played}${end ? ". Finished." : "."}`;
      next.textContent = end ? "Restart" : "Next";
      next.hidden = false;
      next.focus({ preventScroll: true });
    }));
    next.addEventListener("click", ask);
    game.hidden = false;
    ask();
  }
})();
