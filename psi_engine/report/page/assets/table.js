"use strict";
// Every channel in one table. Only the rows in sight exist, so that 50,000 scroll like 50.
PSI.views.channels = (() => {
  const { el } = PSI;
  const { share, p, count } = PSI.numbers;
  const ROW = 40, SPARE = 12, ON_PAPER = 300;
  const state = { key: "log_psi", down: true, text: "", layer: null, verdict: null, chosen: null, top: 0 };
  let order = null;
  let table = null;

  const number = (key, name, title, format = share, wide = "") => ({
    key, name, title, number: true, wide,
    sort: (row) => PSI.channels.value(key, row), cell: (row) => format(PSI.channels.value(key, row)),
  });

  function columns() {
    const held = PSI.core.columns;
    const all = [
      { key: "channel", name: "Channel", cell: address, sort: (row) => held.layer[row] * 1e9 + held.channel[row] },
      { key: "verdict", name: "Verdict", cell: (row) => PSI.verdicts.badge(PSI.verdicts.of(row)), sort: verdict_rank },
      { ...number("log_psi", "PSI", "Polysemanticity Index: the product of the calibrated scores"), cell: (row) => share(held.psi[row]) },
      ...PSI.core.components.map((c) => number(c.key, c.name, `${c.question} Observed value; hover for the calibrated one`, (x) => PSI.numbers.fixed(x, 3), "wide")),
      number("psi_p_adj", "adj. p", "PSI’s p, adjusted over the channels of the layer", p),
      number("n_clusters", "Groups", "Number of groups the patches fall into", (x) => (x === null ? "–" : String(x)), "wide"),
      { key: "concepts", name: "Closest concept of each group", cell: concepts, sort: first_concept, text: true },
    ];
    return all.filter((c) => c.key !== "log_psi" || held.log_psi);
  }

  const longest = () => Math.max(7, ...PSI.core.layers.map((name) => name.length)) + 5;

  const first_concept = (row) => (PSI.channels.concepts(row)[0] || "").toLowerCase() || null;

  const verdict_rank = (row) => PSI.core.verdicts.findIndex((v) => v.name === PSI.verdicts.of(row));

  // The layer may be cut short, the number never.
  const address = (row) => el("a", { href: PSI.channels.link(row), tabindex: -1, title: PSI.channels.address(row) },
    el("span", {}, PSI.channels.layer(row)), `:${PSI.core.columns.channel[row]}`);

  function concepts(row) {
    const tiles = PSI.thumbnails.medoids(row);
    const names = PSI.channels.concepts(row);
    if (!names.length) return el("span", { class: "faint" }, PSI.channels.value("reason", row) || "–");
    return el("span", { class: "groups" }, names.map((name, i) =>
      el("span", {}, tiles[i] || null, el("span", {}, name || `group ${i + 1}`))));
  }

  // Rows that pass the filters, sorted; missing values come last, equal ones by channel.
  function sorted() {
    if (order) return order;
    const wanted = state.text.trim().toLowerCase();
    const held = PSI.core.columns;
    const rows = [];
    for (let row = 0; row < PSI.channels.count; row++) {
      if (state.layer !== null && held.layer[row] !== state.layer) continue;
      if (state.verdict !== null && PSI.verdicts.of(row) !== state.verdict) continue;
      if (wanted && !matches(row, wanted)) continue;
      rows.push(row);
    }
    const column = columns().find((c) => c.key === state.key) || columns()[0];
    const values = new Map(rows.map((row) => [row, column.sort(row)]));
    const sign = state.down ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [values.get(a), values.get(b)];
      if (x === y) return a - b;
      if (x === null) return 1;
      if (y === null) return -1;
      return (x < y ? -1 : 1) * sign;
    });
    order = rows;
    return rows;
  }

  function matches(row, wanted) {
    return PSI.channels.address(row).toLowerCase().includes(wanted)
      || PSI.channels.concepts(row).some((name) => name && name.toLowerCase().includes(wanted));
  }

  function filter(changes) {
    Object.assign(state, changes, { top: 0, chosen: null });
    order = null;
  }

  function show(main) {
    main.classList.add("filling");
    const shown = columns();
    const search = el("input", { type: "search", id: "search", value: state.text, placeholder: "concept or channel  ( / )", "aria-label": "Search a concept or a channel", oninput: () => { filter({ text: search.value }); draw(); } });
    const pick = (label, options, value, changed) => el("label", {}, el("span", {}, label),
      el("select", { onchange: (event) => { changed(event.target.value); draw(); } },
        options.map(([key, name]) => el("option", { value: key, selected: String(key) === String(value) }, name))));
    const found = el("output", { class: "found-count" });
    const head = el("tr", {}, shown.map((c) => el("th", { scope: "col", class: [c.key, c.number ? "number" : "", c.wide || ""].join(" "), title: c.title },
      el("button", { type: "button", onclick: () => sort_by(c) }, c.name, el("i", { "aria-hidden": "true" })))));
    const body = el("tbody");
    const scroller = el("div", { class: "rows", tabindex: 0, role: "region", "aria-label": "Channels: arrow keys or j and k choose, Enter opens" },
      el("table", { class: "channels", "aria-rowcount": -1, style: { "--letters": longest() } }, el("thead", {}, head), body));
    main.append(
      el("h1", { tabindex: -1, class: "compact" }, "Channels"),
      el("div", { class: "filters" }, search,
        pick("Layer", [["", "all"], ...PSI.core.layers.map((name, i) => [i, name])], state.layer ?? "", (x) => filter({ layer: x === "" ? null : Number(x) })),
        pick("Verdict", [["", "all"], ...PSI.core.verdicts.map((v) => [v.name, v.name])], state.verdict ?? "", (x) => filter({ verdict: x || null })),
        el("span", { class: "choose" }, el("label", { for: "fdr" }, "FDR"), PSI.verdicts.control()), found),
      scroller);
    table = { scroller, body, head, shown, found };
    scroller.addEventListener("scroll", () => requestAnimationFrame(rows_in_sight), { passive: true });
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-row]");
      if (row && !event.target.closest("a")) location.hash = PSI.channels.link(Number(row.dataset.row)).slice(1);
    });
    draw(true);
    return { refresh: () => { order = null; draw(); }, resize: rows_in_sight, print: (on) => rows_in_sight(on), key };
  }

  function draw(again = false) {
    const rows = sorted();
    table.found.textContent = rows.length === PSI.channels.count ? `${count(rows.length)} channels` : `${count(rows.length)} of ${count(PSI.channels.count)} channels`;
    [...table.head.children].forEach((th, i) => {
      const on = table.shown[i].key === state.key;
      if (on) th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    table.scroller.firstElementChild.setAttribute("aria-rowcount", rows.length + 1);
    if (again) table.scroller.scrollTop = state.top;
    else table.scroller.scrollTop = 0;
    rows_in_sight();
  }

  function rows_in_sight(all = false) {
    if (!table || !table.scroller.isConnected) return;
    const rows = sorted();
    state.top = table.scroller.scrollTop;
    const whole = all === true;
    const first = whole ? 0 : Math.max(0, Math.floor(state.top / ROW) - SPARE);
    const last = whole ? Math.min(rows.length, ON_PAPER) : Math.min(rows.length, Math.ceil((state.top + table.scroller.clientHeight) / ROW) + SPARE);
    const space = (n) => el("tr", { class: "space", "aria-hidden": "true", style: { height: `${n * ROW}px` } }, el("td"));
    table.body.replaceChildren(
      space(first),
      ...rows.slice(first, last).map((row, i) => line(row, first + i)),
      whole ? cut(rows.length) : space(rows.length - last));
    if (!rows.length) table.body.replaceChildren(el("tr", {}, el("td", { colspan: [...table.head.children].filter((th) => th.offsetWidth).length, class: "none" }, "No channel matches. Esc clears the filters.")));
  }

  const cut = (length) => (length <= ON_PAPER ? "" : el("tr", {},
    el("td", { colspan: 3, class: "none" }, `The first ${ON_PAPER} of ${count(length)} channels in this order.`)));

  const line = (row, place) => el("tr", { "data-row": row, "aria-rowindex": place + 2, class: `is-${PSI.verdicts.of(row).replace(" ", "-")}${row === state.chosen ? " chosen" : ""}` },
    table.shown.map((c) => el("td", { class: [c.key, c.number ? "number" : "", c.wide || ""].join(" "), title: title_of(c, row) }, c.cell(row))));

  function title_of(c, row) {
    if (c.wide === "wide" && PSI.core.columns[`${c.key}_hat`]) return `${c.name} calibrated: ${share(PSI.channels.value(`${c.key}_hat`, row))}`;
    return c.text ? PSI.channels.concepts(row).filter(Boolean).join(" | ") : null;
  }

  function sort_by(column) {
    state.down = state.key === column.key ? !state.down : Boolean(column.number) && column.key !== "psi_p_adj";
    state.key = column.key;
    order = null;
    draw();
  }

  function choose(step) {
    const rows = sorted();
    if (!rows.length) return;
    const at = rows.indexOf(state.chosen);
    const place = at < 0 ? (step > 0 ? Math.floor(state.top / ROW) : 0) : Math.min(rows.length - 1, Math.max(0, at + step));
    state.chosen = rows[place];
    const { scroller } = table;
    const room = scroller.clientHeight - 2 * ROW;
    if (place * ROW < scroller.scrollTop) scroller.scrollTop = place * ROW;
    if (place * ROW > scroller.scrollTop + room - ROW) scroller.scrollTop = place * ROW - room + ROW;
    rows_in_sight();
    PSI.say(`${PSI.channels.address(state.chosen)}, ${PSI.verdicts.of(state.chosen)}, PSI ${share(PSI.channels.value("psi", state.chosen))}`);
  }

  function key(event) {
    const steps = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) { choose(steps[event.key]); return true; }
    if (event.key === "Enter" && state.chosen !== null && !event.target.closest("a, button")) {
      location.hash = PSI.channels.link(state.chosen).slice(1);
      return true;
    }
    if (event.key === "Escape") { filter({ text: "", layer: null, verdict: null }); PSI.route(); return true; }
    return false;
  }

  // The channels before and after one, in the order of the table.
  function neighbours(row) {
    let rows = sorted();
    if (!rows.includes(row)) rows = [...Array(PSI.channels.count).keys()];
    const at = rows.indexOf(row);
    return { before: at > 0 ? rows[at - 1] : null, after: at < rows.length - 1 ? rows[at + 1] : null, place: at + 1, of: rows.length };
  }

  PSI.verdicts.listen(() => { if (state.verdict !== null || state.key === "verdict") order = null; });

  return { show, filter, neighbours, sorted, chosen: (row) => { state.chosen = row; }, title: () => "Channels" };
})();
