"use strict";
// All channels in two dimensions, on a canvas; keys walk from point to point.
PSI.views.map = (() => {
  const { el } = PSI;
  const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
  const state = { by: "psi", layer: null, chosen: null };

  function show(main) {
    main.append(el("h1", { tabindex: -1, class: "compact" }, "Neuron map"), el("p", { class: "aside" }, PSI.core.map.x ? sentence() : `There is ${PSI.core.map.how}.`));
    if (!PSI.core.map.x) return { refresh() {} };
    const card = el("a", { class: "tip", hidden: true });
    const canvas = el("canvas", { tabindex: 0, role: "application", "aria-label": `Map of ${PSI.channels.count} channels: arrow keys go to the nearest one, Enter opens it. The table lists the same channels.` });
    const frame = el("div", { class: "map-frame" }, canvas, card);
    const key = el("div", { class: "map-key" });
    const choice = (name, label) => el("label", {}, el("input", { type: "radio", name: "by", checked: state.by === name, onchange: () => { state.by = name; draw(); } }), label);
    main.append(el("div", { class: "filters" },
      el("fieldset", {}, el("legend", {}, "Colour"), choice("psi", "PSI"), choice("verdict", "verdict"), choice("layer", "layer")),
      el("label", {}, el("span", {}, "Layer"), el("select", { onchange: (e) => { state.layer = e.target.value === "" ? null : Number(e.target.value); draw(); } },
        el("option", { value: "" }, "all"), PSI.core.layers.map((name, i) => el("option", { value: i, selected: state.layer === i }, name)))), key), frame);
    let points = [];

    function draw() {
      const [width, height] = [frame.clientWidth, frame.clientHeight];
      const dense = window.devicePixelRatio || 1;
      canvas.width = width * dense; canvas.height = height * dense;
      const context = canvas.getContext("2d");
      context.scale(dense, dense);
      const style = getComputedStyle(document.documentElement);
      points = placed(width, height);
      const radius = points.length > 8000 ? 2 : points.length > 1500 ? 3 : 4.5;
      for (const point of points) {
        context.beginPath();
        context.arc(point.x, point.y, radius, 0, 7);
        Object.assign(context, paint(point.row, style));
        context.fill();
        context.globalAlpha = 1;
      }
      const chosen = points.find((point) => point.row === state.chosen);
      if (chosen) ring(context, chosen, radius, style);
      key.replaceChildren(...legend());
    }

    function placed(width, height) {
      const { x, y } = PSI.core.map;
      const edge = 16;
      const found = [];
      for (let row = 0; row < x.length; row++) {
        if (x[row] === null || (state.layer !== null && PSI.core.columns.layer[row] !== state.layer)) continue;
        found.push({ row, x: edge + x[row] * (width - 2 * edge), y: edge + y[row] * (height - 2 * edge) });
      }
      // What matters most comes last, on top.
      return found.sort((a, b) => (PSI.channels.value("psi", a.row) || 0) - (PSI.channels.value("psi", b.row) || 0) || a.row - b.row);
    }

    function nearest(x, y, reach) {
      let best = null, distance = reach * reach;
      for (const point of points) {
        const d = (point.x - x) ** 2 + (point.y - y) ** 2;
        if (d <= distance) { best = point; distance = d; }
      }
      return best;
    }

    function choose(point) {
      if ((point && point.row) === state.chosen) return;
      state.chosen = point ? point.row : null;
      draw();
      card.hidden = !point;
      if (!point) return;
      fill_card(card, point.row);
      const left = Math.min(Math.max(8, point.x - 110), Math.max(8, frame.clientWidth - 238));
      const above = point.y > frame.clientHeight / 2;
      Object.assign(card.style, { left: `${left}px`, top: above ? "auto" : `${point.y + 14}px`, bottom: above ? `${frame.clientHeight - point.y + 14}px` : "auto" });
    }

    const at = (event) => { const r = canvas.getBoundingClientRect(); return nearest(event.clientX - r.left, event.clientY - r.top, event.pointerType === "touch" ? 24 : 12); };
    canvas.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") { const p = at(event); choose(p); canvas.style.cursor = p ? "pointer" : "default"; } });
    canvas.addEventListener("click", (event) => {
      const point = at(event);
      if (point && (event.pointerType !== "touch" || point.row === state.chosen)) location.hash = PSI.channels.link(point.row).slice(1);
      else choose(point);
    });

    function walk(dx, dy) {
      const from = points.find((point) => point.row === state.chosen);
      if (!from) { choose(points[points.length - 1]); return; }
      let best = null, least = Infinity;
      for (const point of points) {
        const [x, y] = [point.x - from.x, point.y - from.y];
        const ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
        if (ahead > 0.5 && aside <= ahead && ahead + aside < least) { best = point; least = ahead + aside; }
      }
      if (best) choose(best);
      if (state.chosen !== null) PSI.say(spoken(state.chosen));
    }

    draw();
    return {
      refresh: draw, resize: draw,
      key(event) {
        const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
        if (way && event.target === canvas) { walk(...way); return true; }
        if (event.key === "Enter" && event.target === canvas && state.chosen !== null) { location.hash = PSI.channels.link(state.chosen).slice(1); return true; }
        if (event.key === "Escape" && state.chosen !== null) { choose(null); return true; }
        return false;
      },
    };
  }

  const sentence = () => `Channels whose patches are alike lie near each other: ${PSI.core.map.how}.`;

  const spoken = (row) => `${PSI.channels.address(row)}, ${PSI.verdicts.of(row)}, ${PSI.channels.concepts(row).filter(Boolean).join(", ")}`;

  // Grey to accent by PSI; by verdict the same colours as everywhere; layers need hues of their own.
  function paint(row, style) {
    const css = (name) => style.getPropertyValue(name).trim();
    if (state.by === "layer") return { fillStyle: HUES[PSI.core.columns.layer[row] % HUES.length], globalAlpha: 0.75 };
    if (state.by === "verdict") return { fillStyle: css(`--${PSI.verdicts.of(row).replace(" ", "-")}`), globalAlpha: 0.9 };
    const psi = PSI.channels.value("psi", row);
    if (psi === null) return { fillStyle: css("--not-scorable"), globalAlpha: 0.6 };
    return { fillStyle: mix(css("--low"), css("--accent"), psi ** 1.5), globalAlpha: 0.85 };
  }

  function mix(from, to, share) {
    const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const [a, b] = [parts(from), parts(to)];
    return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * share)).join(",")})`;
  }

  function ring(context, point, radius, style) {
    context.lineWidth = 2;
    context.strokeStyle = style.getPropertyValue("--ink");
    context.beginPath();
    context.arc(point.x, point.y, radius + 3, 0, 7);
    context.stroke();
  }

  function legend() {
    const spot = (background, name) => el("span", { class: "spot" }, el("i", { style: { background } }), name);
    if (state.by === "layer") return PSI.core.layers.map((name, i) => spot(HUES[i % HUES.length], name));
    if (state.by === "verdict") return PSI.core.verdicts.map((v) => spot(`var(--${v.name.replace(" ", "-")})`, v.name));
    return [el("span", { class: "ramp" }, "PSI 0", el("i"), "1")];
  }

  function fill_card(card, row) {
    card.setAttribute("href", PSI.channels.link(row));
    card.replaceChildren(
      el("b", {}, PSI.channels.address(row)), " ", PSI.verdicts.badge(PSI.verdicts.of(row)),
      el("span", { class: "tip-line" }, `PSI ${PSI.numbers.share(PSI.channels.value("psi", row))}`),
      el("span", { class: "tip-tiles" }, PSI.thumbnails.medoids(row)),
      el("span", { class: "tip-line" }, PSI.channels.concepts(row).filter(Boolean).join(" | ")));
  }

  return { show, title: () => "Map" };
})();
