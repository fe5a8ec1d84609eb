"use strict";
// Rollouts token by token: a card with both models' candidates, by mouse, touch or keyboard; and the filters above.
// Texts of a run become text nodes, nothing else. Without this script the rollouts are coloured text all the same.
(() => {
  const told = JSON.parse(document.getElementById("candidates").textContent);
  const card = document.getElementById("card");
  let shown = null;     // the token the card is about
  let leaving = 0;      // a timer: the pointer may cross the gap between token and card

  const percents = (p) => {
    if (p === null) return "–";
    if (p > 0 && p < 0.00005) return "< 0.01 %";
    return `${(100 * p).toFixed(p > 0 && p < 0.001 ? 2 : 1)} %`;
  };
  const seen = (text) => text === "" ? "(no text)"
    : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const probability = (logp) => logp === null ? null : Math.exp(Math.min(logp, 0));

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  // --- the card ---------------------------------------------------------------------------------------------

  const box = (token) => token.closest(".tokens");
  const all = (container) => Array.from(container.querySelectorAll(".t"));
  const numbers = (token) => told.rollouts[Number(box(token).dataset.rollout)][all(box(token)).indexOf(token)];

  function ratioInWords(student, teacher) {
    if (student === null || teacher === null) return "Not known for both models.";
    const ratio = teacher - student, times = Math.exp(Math.abs(ratio));
    const size = times > 1000 ? "over 1,000" : times.toLocaleString("en", { maximumSignificantDigits: 2 });
    const sign = ratio < 0 ? "−" : "+";
    const nats = `(log-ratio ${sign}${Math.abs(ratio).toFixed(2)} nats)`;
    if (times < 1.25) return `Both give it about as much ${nats}.`;
    return `${ratio > 0 ? "The teacher" : "The student"} gives it ${size} times as much ${nats}.`;
  }

  function fill(token) {
    const [student, teacher, candidates] = numbers(token);
    const head = element("p", undefined, "taken");
    head.append(element("span", "taken ", "what"), element("code", seen(token.textContent)));
    card.replaceChildren(head, element("p", ratioInWords(student, teacher)),
      table(token.textContent, probability(student), probability(teacher), candidates));
  }

  // Both models' candidates in one table, the most probable under either first; the token taken is among them.
  function table(taken, student, teacher, candidates) {
    const rows = candidates.map(([place, p, q]) => [told.texts[place], p, q]);
    const same = (a, b) => Math.abs(a - b) < 0.002 + 0.01 * Math.abs(b);
    const at = rows.findIndex(([text, p, q]) => text === taken && same(p, student) && same(q, teacher));
    if (at < 0) rows.push([taken, student, teacher]);
    const chosen = at < 0 ? rows.length - 1 : at;
    const made = element("table");
    const top = made.createTHead().insertRow();
    for (const title of ["would say", "student", "teacher"]) {
      const cell = element("th", title);
      cell.scope = "col";
      top.append(cell);
    }
    const body = made.createTBody();
    rows.forEach(([text, p, q], i) => {
      const row = body.insertRow();
      const name = element("th");
      name.scope = "row";
      name.append(element("code", seen(text)));
      if (i === chosen) {
        row.className = "chosen";
        name.append(element("span", " taken", "what"));
      }
      row.append(name, share(p, "student"), share(q, "teacher"));
    });
    return made;
  }

  function share(p, who) {
    const cell = element("td", undefined, who);
    const bar = element("i");
    bar.style.width = `${(p ?? 0) * 100}%`;
    const track = element("span", undefined, "track");
    track.setAttribute("aria-hidden", "true");
    track.append(bar);
    cell.append(percents(p), track);
    return cell;
  }

  function show(token) {
    clearTimeout(leaving);
    if (shown && shown !== token) shown.classList.remove("on");
    shown = token;
    token.classList.add("on");
    fill(token);
    card.hidden = false;
    place(token);
  }

  // Below the token; above it where there is no room below. On a narrow page the style puts it at the bottom.
  function place(token) {
    const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const width = document.documentElement.clientWidth, { offsetWidth, offsetHeight } = card;
    const left = Math.max(8, Math.min(at.left, width - offsetWidth - 8));
    const below = at.bottom + 8 + offsetHeight < innerHeight || at.top - 8 - offsetHeight < 0;
    card.style.left = `${left + scrollX}px`;
    card.style.top = `${(below ? at.bottom + 8 : at.top - 8 - offsetHeight) + scrollY}px`;
  }

  function hide() {
    clearTimeout(leaving);
    shown?.classList.remove("on");
    shown = null;
    card.hidden = true;
  }

  // The pointer left: back to the token that has the focus, or away.
  function leave() {
    clearTimeout(leaving);
    leaving = setTimeout(() => {
      const focused = document.activeElement?.closest?.(".tokens .t");
      if (focused) show(focused); else hide();
    }, 180);
  }

  // --- mouse, touch, keyboard -------------------------------------------------------------------------------

  function reach(token, container) {
    for (const other of container.querySelectorAll(".t[tabindex='0']")) other.tabIndex = -1;
    token.tabIndex = 0;
  }

  // The token above or below: of the nearest line in that direction, the one nearest sideways.
  function onNextLine(tokens, from, direction) {
    const here = from.getBoundingClientRect(), middle = (at) => at.left + at.width / 2;
    let best = null, least = Infinity;
    for (const token of tokens) {
      const at = token.getBoundingClientRect(), down = direction * (at.top - here.top);
      if (down < 4) continue;
      const distance = down * 1000 + Math.abs(middle(at) - middle(here));
      if (distance < least) [best, least] = [token, distance];
    }
    return best;
  }

  function goal(key, tokens, token) {
    const i = tokens.indexOf(token);
    switch (key) {
      case "ArrowRight": return tokens[i + 1];
      case "ArrowLeft": return tokens[i - 1];
      case "Home": return tokens[0];
      case "End": return tokens[tokens.length - 1];
      case "ArrowDown": return onNextLine(tokens, token, 1);
      case "ArrowUp": return onNextLine(tokens, token, -1);
      default: return undefined;
    }
  }

  for (const container of document.querySelectorAll(".tokens")) {
    const tokens = all(container);
    container.setAttribute("role", "group");
    container.setAttribute("aria-label", "Response token by token. Arrow keys move, Escape closes the card.");
    for (const token of tokens) token.tabIndex = -1;
    if (tokens.length) tokens[0].tabIndex = 0;
    const target = (event) => event.target.closest(".t");
    container.addEventListener("focusin", (event) => {
      const token = target(event);
      if (!token) return;
      reach(token, container);
      token.setAttribute("role", "button");
      token.setAttribute("aria-describedby", "card");
      show(token);
    });
    container.addEventListener("focusout", leave);
    container.addEventListener("mouseover", (event) => { if (target(event)) show(target(event)); });
    container.addEventListener("mouseout", leave);
    container.addEventListener("click", (event) => target(event)?.focus());
    container.addEventListener("scroll", () => { if (shown) place(shown); });
    container.addEventListener("keydown", (event) => {
      const token = target(event);
      if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
      const next = goal(event.key, tokens, token);
      if (next === undefined && !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      next?.focus();
    });
  }

  card.addEventListener("mouseenter", () => clearTimeout(leaving));
  card.addEventListener("mouseleave", leave);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("resize", () => { if (shown) place(shown); });

  // --- filters ----------------------------------------------------------------------------------------------

  const filters = document.getElementById("filters");
  const rollouts = Array.from(document.querySelectorAll(".rollout"));
  const groups = Array.from(document.querySelectorAll(".group"));
  const off = new Set();   // runs switched off at the top of the page

  function filter() {
    const chosen = Object.fromEntries(
      Array.from(filters.querySelectorAll("input:checked"), (input) => [input.name, input.value]));
    const wanted = (name, values) => !chosen[name] || chosen[name] === "all" || values.includes(chosen[name]);
    for (const rollout of rollouts) rollout.hidden = !wanted("mark", rollout.dataset.marks.split(" "));
    for (const fold of document.querySelectorAll(".others")) {
      fold.hidden = Array.from(fold.querySelectorAll(".rollout")).every((rollout) => rollout.hidden);
    }
    for (const group of groups) {
      const any = Array.from(group.querySelectorAll(".rollout")).some((rollout) => !rollout.hidden);
      group.hidden = !any || off.has(group.dataset.run) || !wanted("step", [group.dataset.step]);
    }
    // What is asked for must not stay folded away.
    if (chosen.mark && chosen.mark !== "all") {
      for (const fold of document.querySelectorAll(".others")) fold.open = true;
    }
    const left = rollouts.filter((rollout) => !rollout.hidden && !rollout.closest(".group").hidden).length;
    document.getElementById("filtered").textContent = `${left} of ${rollouts.length} rollouts`;
    hide();
  }

  for (const button of document.querySelectorAll("button[data-run]")) {
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-pressed") === "true") off.add(button.dataset.run); else off.delete(button.dataset.run);
      filter();
    });
  }
  filters.addEventListener("change", filter);
  filters.hidden = rollouts.length < 2;
  filter();
  // A link to a token that the filter hides, or that is folded, would lead nowhere.
  addEventListener("hashchange", () => document.getElementById(location.hash.slice(1))?.closest(".t")?.focus());
})();
