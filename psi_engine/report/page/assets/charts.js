"use strict";
// Small plots as inline SVG; sizes are fixed by their view boxes, so nothing moves while loading.
PSI.charts = (() => {
  const { svg } = PSI;
  const text = (x, y, content, attributes = {}) => svg("text", { x, y, ...attributes }, content);
  const line = (x1, y1, x2, y2, name) => svg("line", { x1, y1, x2, y2, class: name });

  function plot(width, height, label, ...children) {
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, children);
  }

  // Round places between two values, about `count` of them.
  function ticks(low, high, count = 4) {
    const raw = (high - low) / count || 1;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * [1, 2, 5, 10].find((x) => raw <= x * unit * 1.0001);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return { at: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  function axis(scale, low, high, y, count) {
    const { at, digits } = ticks(low, high, count);
    return at.map((x) => [
      line(scale(x), y, scale(x), y + 3, "tick"),
      text(scale(x), y + 13, PSI.numbers.fixed(x, digits), { "text-anchor": "middle" }),
    ]);
  }

  // Share of a null below x, from its evenly spaced quantiles.
  function below(quantiles, x) {
    const last = quantiles.length - 1;
    if (x < quantiles[0]) return 0;
    if (x >= quantiles[last]) return 1;
    let i = 0;
    while (quantiles[i + 1] <= x) i += 1;
    return (i + (x - quantiles[i]) / (quantiles[i + 1] - quantiles[i])) / last;
  }

  // What chance gives, as a hill of draws, and the observed value as a line.
  function against_chance({ name, observed, mean, std, quantiles }) {
    const [width, height, base, top] = [270, 96, 76, 22];
    const spread = std > 1e-6 ? std : 0.01;
    let low = Math.min(observed, quantiles ? quantiles[0] : mean - 3 * spread);
    let high = Math.max(observed, quantiles ? quantiles[quantiles.length - 1] : mean + 3 * spread);
    if (high - low < 1e-6) { low -= 0.05; high += 0.05; }
    const room = 0.06 * (high - low);
    low -= room; high += room;
    const scale = (x) => 8 + ((x - low) / (high - low)) * (width - 16);
    const hill = std <= 1e-6 ? line(scale(mean), top, scale(mean), base, "spike")
      : quantiles ? bars_of(quantiles, low, high, scale, base, top) : normal(mean, std, low, high, scale, base, top);
    const x = scale(observed);
    const side = x > width / 2 ? "end" : "start";
    return plot(width, height, `${name} observed ${PSI.numbers.fixed(observed)}; chance ${PSI.numbers.fixed(mean)} ± ${PSI.numbers.spread(std, 3)}`,
      hill, line(8, base, width - 8, base, "base"), axis(scale, low, high, base, 5),
      line(x, 6, x, base, "observed"),
      text(x + (side === "end" ? -5 : 5), 14, PSI.numbers.fixed(observed), { class: "observed", "text-anchor": side }));
  }

  function bars_of(quantiles, low, high, scale, base, top) {
    const count = 54;
    const step = (high - low) / count;
    const shares = Array.from({ length: count }, (_, i) =>
      below(quantiles, low + (i + 1) * step) - below(quantiles, low + i * step));
    const most = Math.max(...shares);
    return shares.map((x, i) => (x <= 0 ? null : svg("rect", {
      class: "null", x: scale(low + i * step), width: Math.max(0.5, scale(step) - scale(0) - 0.6),
      y: base - ((base - top) * x) / most, height: ((base - top) * x) / most,
    })));
  }

  function normal(mean, std, low, high, scale, base, top) {
    const points = Array.from({ length: 121 }, (_, i) => {
      const x = low + ((high - low) * i) / 120;
      return `${scale(x).toFixed(1)},${(base - (base - top) * Math.exp(-0.5 * ((x - mean) / std) ** 2)).toFixed(1)}`;
    });
    return svg("polyline", { class: "guess", points: points.join(" ") });
  }

  // How values in [0, 1] are distributed, with their median.
  function distribution(values, label) {
    const [width, height, base, bins] = [180, 46, 32, 30];
    const found = new Array(bins).fill(0);
    let total = 0;
    for (const x of values) {
      if (PSI.numbers.missing(x)) continue;
      found[Math.min(bins - 1, Math.floor(x * bins))] += 1;
      total += 1;
    }
    const most = Math.max(...found, 1);
    const scale = (x) => 4 + x * (width - 8);
    const median = PSI.numbers.median(values);
    const marks = median === null ? [] : [
      line(scale(median), 2, scale(median), base, "observed"),
      text(scale(median) + (median > 0.5 ? -4 : 4), 9, PSI.numbers.fixed(median, 2), { class: "observed", "text-anchor": median > 0.5 ? "end" : "start" }),
    ];
    return plot(width, height, `${label}: ${total} channels, median ${PSI.numbers.fixed(median, 3)}`,
      found.map((n, i) => (n ? svg("rect", {
        class: "null", x: scale(i / bins) + 0.3, width: (width - 8) / bins - 0.6,
        y: base - Math.max(1, (22 * n) / most), height: Math.max(1, (22 * n) / most),
      }) : null)),
      line(4, base, width - 4, base, "base"),
      [0, 0.5, 1].map((x) => text(scale(x), base + 11, x === 0.5 ? "0.5" : String(x), { "text-anchor": x === 0 ? "start" : x === 1 ? "end" : "middle" })),
      marks);
  }

  // One bar per patch, group after group, the best separated first; below the line: misplaced.
  function silhouettes(groups) {
    const all = groups.flatMap((g) => g.values);
    const [width, height, top, bottom] = [720, 128, 8, 104];
    const low = Math.min(0, ...all), high = Math.max(0.1, ...all);
    const y = (x) => bottom - ((x - low) / (high - low)) * (bottom - top);
    const gap = 14;
    const each = (width - 40 - gap * (groups.length - 1)) / Math.max(1, all.length);
    const parts = [];
    let x = 36;
    groups.forEach((group, number) => {
      const start = x;
      for (const value of [...group.values].sort((a, b) => b - a)) {
        parts.push(svg("rect", {
          class: value < 0 ? "misplaced" : "null", x, width: Math.max(0.6, each - 0.7),
          y: Math.min(y(value), y(0)), height: Math.max(0.5, Math.abs(y(value) - y(0))),
        }));
        x += each;
      }
      parts.push(line(start, y(group.mean), x, y(group.mean), "mean"));
      parts.push(text((start + x) / 2, height - 6, `group ${number + 1}`, { "text-anchor": "middle" }));
      x += gap;
    });
    const { at, digits } = ticks(low, high, 3);
    return plot(width, height, `Silhouette of every patch: ${groups.map((g, i) => `group ${i + 1} mean ${PSI.numbers.fixed(g.mean, 2)}`).join(", ")}`,
      at.map((v) => [line(32, y(v), width, y(v), "grid"), text(28, y(v) + 3, PSI.numbers.fixed(v, digits), { "text-anchor": "end" })]),
      parts, line(32, y(0), width, y(0), "base"));
  }

  // Means with their intervals, one row each.
  function intervals(rows, label) {
    const [width, left, step, top] = [560, 200, 22, 8];
    const height = top + step * rows.length + 22;
    let low = Math.min(0, ...rows.map((r) => r.low)), high = Math.max(0, ...rows.map((r) => r.high));
    const room = 0.05 * (high - low) || 0.1;
    low -= room; high += room;
    const scale = (x) => left + ((x - low) / (high - low)) * (width - left - 70);
    const base = top + step * rows.length;
    return plot(width, height, `${label}: ${rows.map((r) => `${r.name} ${PSI.numbers.signed(r.mean)}`).join(", ")}`,
      line(scale(0), top, scale(0), base, "grid"),
      rows.map((r, i) => {
        const y = top + step * i + step / 2;
        return svg("g", { class: r.main ? "main" : "control" },
          text(left - 10, y + 4, r.name, { "text-anchor": "end" }),
          line(scale(r.low), y, scale(r.high), y, "range"),
          svg("circle", { cx: scale(r.mean), cy: y, r: 3.5 }),
          text(width - 4, y + 4, PSI.numbers.signed(r.mean), { "text-anchor": "end", class: "value" }));
      }),
      line(left, base, width - 70, base, "base"), axis(scale, low, high, base, 4));
  }

  return { against_chance, distribution, silhouettes, intervals, below, ticks };
})();
