"use strict";
// Numbers as they are read: tabular, with a true minus, and a dash where there is none.
PSI.numbers = (() => {
  const DASH = "–";
  const missing = (x) => x === null || x === undefined || !Number.isFinite(x);
  const minus = (text) => text.replace("-", "−");

  const fixed = (x, digits = 3) => (missing(x) ? DASH : minus(x.toFixed(digits)));

  // A score that is never shown as 1.000 or 0.000 unless it is.
  function share(x) {
    if (missing(x)) return DASH;
    if (x > 0.9995 && x < 1) return ">0.999";
    if (x > 0 && x < 0.0005) return "<0.001";
    return minus(x.toFixed(3));
  }

  function p(x) {
    if (missing(x)) return DASH;
    if (x >= 0.995) return "1";
    if (x >= 0.0995) return x.toFixed(2);
    if (x >= 0.00095) return x.toFixed(x < 0.00995 ? 4 : 3).replace(/0+$/, "");
    return x.toExponential(1).replace("e-", "·10⁻").replace(/⁻(\d+)$/, (_, n) => "⁻" + superscript(n));
  }

  const superscript = (digits) => [...digits].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[+d]).join("");

  const p_is = (x, name = "p") => (missing(x) ? `${name} unknown` : `${name}\u00a0=\u00a0${p(x)}`);

  function spread(x, digits) {
    if (missing(x)) return DASH;
    return x !== 0 && Math.abs(x) < 0.5 * 10 ** -digits ? minus(x.toPrecision(1)) : fixed(x, digits);
  }

  const count = (x) => x.toLocaleString("en-US");

  const percent = (x) => `${+(100 * x).toPrecision(3)}\u00a0%`;

  const signed = (x, digits = 3) => (missing(x) ? DASH : (x > 0 ? "+" : "") + fixed(x, digits));

  const bytes = (x) => (x < 1e6 ? `${Math.max(1, Math.round(x / 1e3))} kB` : `${(x / 1e6).toFixed(x < 1e7 ? 1 : 0)} MB`);

  const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

  function listed(words) {
    if (words.length < 2) return words.join("");
    return `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`;
  }

  function median(values) {
    const sorted = values.filter((x) => !missing(x)).sort((a, b) => a - b);
    if (!sorted.length) return null;
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  return { missing, fixed, share, p, p_is, spread, count, percent, signed, bytes, plural, listed, median };
})();
