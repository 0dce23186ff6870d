/* Draws what the page's tables say, from the data that lies in it. */
(async () => {
"use strict";
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const root = document.documentElement;
/* Text alone: names are never markup. */
const el = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text != null) made.textContent = text;
  return made;
};
const bytes = (text) => {
  const of = atob(text), to = new Uint8Array(of.length);
  for (let i = 0; i < to.length; i++) to[i] = of.charCodeAt(i);
  return to;
};
const packed = new Blob([bytes($("#data").textContent)]).stream();
const D = await new Response(packed.pipeThrough(new DecompressionStream("deflate"))).json();
const T = D.T, X = Array.from({ length: T }, (_, i) => i);
/* Of the theme in which all is drawn: to ask costs a look at the whole page's style. */
let palette = {};
const css = (name) => palette[name] ??= getComputedStyle(root).getPropertyValue("--" + name).trim();
const HURT = D.vms.filter((vm) => vm.rank != null);
const COLOURS = ["harm", "blue", "amber"];
const colour = (vm) => vm.rank == null ? "grey" : COLOURS[vm.rank] || "slate";
const isGone = new Uint8Array(T);
for (const [from, to] of D.gone) isGone.fill(1, from, to);

/* ---- numbers: three digits, a unit, a no-break space ---- */
const N = "\u00a0";
const lat = (ns) => {
  if (ns == null) return "–";
  const [unit, name] = ns < 1e3 ? [1, "ns"] : ns < 999500 ? [1e3, "µs"] : ns < 999.5e6 ? [1e6, "ms"] : [1e9, "s"];
  const x = ns / unit;
  return (unit === 1 ? String(x) : x < 9.995 ? x.toFixed(2) : x < 99.95 ? x.toFixed(1) : x.toFixed(0)) + N + name;
};
const tick = (ns) => lat(ns).replace(/\.0+(?=\u00a0)/, "");
const int = (n) => Math.round(n).toLocaleString("en-US");
const pct = (x) => (x < .05 ? "0.0" : x.toFixed(1)) + N + "%";
const rate = (x) => x >= 10 ? int(x) : x >= .05 ? x.toFixed(1) : "0.0";
const clock = (t) => new Date((D.start + t * D.step) * 1e3).toISOString().slice(11, 19);

/* ---- decoding ---- */
const reader = (text) => {
  const from = bytes(text);
  let at = 0;
  return {
    ended: () => at >= from.length,
    number() {
      let sum = 0, scale = 1, byte;
      do { byte = from[at++]; sum += (byte & 127) * scale; scale *= 128; } while (byte > 127);
      return sum;
    },
  };
};
const cached = (of, key, make) => of[key] ??= make();
/* Of each column [row, count, row, count, ...], or null. */
const heat = (vm, metric) => cached(vm, "_heat" + metric, () => {
  if (!vm.heat[metric]) return null;
  const from = reader(vm.heat[metric]), columns = [];
  while (!from.ended()) {
    let rows = from.number();
    if (!rows) { for (let n = from.number(); n--;) columns.push(null); continue; }
    const cells = [];
    let row = -1;
    while (rows--) { row += from.number() + 1; cells.push(row, from.number()); }
    columns.push(cells);
  }
  return columns;
});
const series = (text) => {
  const from = reader(text), values = [];
  let value = 0;
  while (!from.ended()) {
    const step = from.number();
    if (!step) { for (let n = from.number(); n--;) values.push(value); continue; }
    value += step & 1 ? -(step + 1) / 2 : step / 2;
    values.push(value);
  }
  return values;
};
/* Tenths of a millisecond by column: swap-in, reclaim, lock, CPU queue, other; memory; CPU; the time of its
   vCPUs; for how long it was recorded. Only those that are drawn are decoded: there may be hundreds of VMs. */
const waits = (vm, of) => cached(vm, "_waits" + of, () => series(vm.series[of]));
const held = (vm) => cached(vm, "_held", () => series(vm.held).map((x) => x / 100));
/* The distribution of spans: added, never averaged. */
const hist = (vm, metric, from, to) => {
  const counts = new Map();
  let max = 0, n = 0;
  for (let span = from; span < to; span++) {
    const source = reader(vm.hist[metric][span]);
    let index = 0;
    while (!source.ended()) {
      index += source.number();
      const count = source.number();
      n += count;
      counts.set(index, (counts.get(index) || 0) + count);
    }
    max = Math.max(max, vm.max[metric][span]);
  }
  return { keys: [...counts.keys()].sort((a, b) => a - b), counts, n, max };
};
const highest = (index) => {
  if (index < 256) return index;
  const shift = Math.floor(index / 128) - 1;
  return (index % 128 + 129) * 2 ** shift - 1;
};
const quantile = (of, q) => {
  if (!of.n) return null;
  const wanted = Math.ceil(q * of.n);
  let passed = 0;
  for (const index of of.keys) {
    passed += of.counts.get(index);
    if (passed >= wanted) return Math.min(highest(index), of.max);
  }
  return of.max;
};
const isHere = (vm, t) => waits(vm, 8)[t] > 0;
const sumOf = (values, from, to) => values.slice(from, to).reduce((a, b) => a + b, 0);

/* ---- state ---- */
const last = D.edges.length - 1;
const edgeName = (i) => i === 0 ? "start" : i === last ? "stop" : (D.marks.find((m) => m[1] === D.edges[i]) || ["?"])[0];
const S = { from: 0, to: last, cmp: "", metric: "fault.major", causes: 0, x: [0, Math.max(1, T - 1)] };
const spanText = (a, b) => edgeName(a) + " – " + edgeName(b);

/* ---- plots over time ---- */
let plots = [];
const gutter = () => parseInt(css("gut"));
const sync = uPlot.sync("t");
const FONT = "12px system-ui,sans-serif";
const grid = () => ({ stroke: css("rule"), width: 1 });
const timeAxis = (show) => ({
  show, scale: "x", stroke: css("ink2"), font: FONT, grid: grid(), ticks: { show: false }, size: show ? 28 : 8, gap: 8,
  incrs: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800], space: 70,
  values: (u, splits, f, s, step) => splits.map((t) => step * D.step < 60 ? clock(t) : clock(t).slice(0, 5)),
});
const valueAxis = (more) => ({
  scale: "y", stroke: css("ink2"), font: FONT, grid: grid(), ticks: { show: false }, size: gutter(), gap: 8, space: 26,
  values: (u, splits) => splits.map(String), ...more,
});
/* What lies outside the span, gaps and marks. */
const overlay = (u) => {
  const c = u.ctx, r = devicePixelRatio, { left, top, width, height } = u.bbox;
  const at = (t) => Math.max(left, Math.min(left + width, u.valToPos(t, "x", true)));
  c.save();
  c.fillStyle = css("bg");
  c.globalAlpha = .68;
  if (S.from > 0) c.fillRect(left, top, at(D.edges[S.from]) - left, height);
  if (S.to < last) { const a = at(D.edges[S.to]); c.fillRect(a, top, left + width - a, height); }
  c.globalAlpha = 1;
  for (const [from, to] of D.gone) {
    const a = at(from - .5), b = Math.max(at(to - .5), a + 2);
    c.save();
    c.beginPath();
    c.rect(a, top, b - a, height);
    c.fillStyle = css("bg");
    c.fill();
    c.clip();
    c.strokeStyle = css("rule2");
    c.lineWidth = r;
    c.beginPath();
    for (let k = -height; k < b - a + height; k += 4 * r) { c.moveTo(a + k, top + height); c.lineTo(a + k + height, top); }
    c.stroke();
    c.restore();
  }
  c.strokeStyle = css("ink2");
  c.lineWidth = r;
  c.setLineDash([2 * r, 3 * r]);
  for (const [, t] of D.marks) {
    const x = u.valToPos(t, "x", true);
    if (x < left || x > left + width) continue;
    c.beginPath();
    c.moveTo(Math.round(x) + .5, top);
    c.lineTo(Math.round(x) + .5, top + height);
    c.stroke();
  }
  c.restore();
};
function timePlot(box, height, { lines, data, y, range, bottom, read, click, draw, readEl, label }) {
  box.textContent = "";
  const say = (i) => { if (readEl) readEl.textContent = read(i); };
  const u = new uPlot({
    width: box.clientWidth, height, padding: [8, 12, bottom ? 0 : 8, 0], legend: { show: false },
    cursor: { sync: { key: "t", scales: ["x", null] }, drag: { x: true, y: false, setScale: true, dist: 4 }, points: { show: false }, y: false },
    scales: {
      x: { time: false, range: (u, a, b) => a == null ? [0, Math.max(1, T - 1)] : [Math.max(0, a), Math.min(Math.max(1, T - 1), b)] },
      y: { range: range || ((u, a, b) => [0, Math.max(1e-9, b * 1.08)]) },
    },
    axes: [timeAxis(bottom), valueAxis(y)], series: [{}, ...lines],
    hooks: {
      draw: [(u) => { if (draw) draw(u); overlay(u); }],
      setCursor: [(u) => say(u.cursor.left < 0 ? null : u.cursor.idx)],
      setScale: [(u, key) => { if (key === "x") { S.x = [u.scales.x.min, u.scales.x.max]; lanes(); } }],
    },
  }, data, box);
  sync.sub(u);
  plots.push(u);
  say(null);
  box.tabIndex = 0;
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  box.onkeydown = (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60 }[e.key];
    if (by) {
      const i = Math.max(0, Math.min(T - 1, (u.cursor.idx || 0) + by * (e.shiftKey ? 10 : 1)));
      u.setCursor({ left: u.valToPos(i, "x"), top: 10 });
      e.preventDefault();
    } else if (e.key === "Enter" && click) click(u.cursor.idx);
    else if (e.key === "Escape") showAll();
  };
  if (click) {
    let down = 0;
    u.over.addEventListener("mousedown", (e) => { down = e.clientX; });
    u.over.addEventListener("mouseup", (e) => { if (Math.abs(e.clientX - down) < 4) click(u.cursor.idx); });
    u.over.style.cursor = "pointer";
  }
  return u;
}
const showAll = () => plots.forEach((u) => u.setScale("x", { min: 0, max: Math.max(1, T - 1) }));
/* Rows upon rows, the uppermost first. */
const stacked = (rows) => {
  const sums = [];
  let below = null;
  for (const row of rows) {
    below = row.map((x, i) => x == null ? null : (below ? below[i] || 0 : 0) + x);
    sums.push(below);
  }
  return sums.reverse();
};
const area = (fill, stroke) => ({ fill: css(fill), stroke: css(stroke), width: 1, points: { show: false } });

/* ---- lanes of states ---- */
function lanes() {
  const box = $("#lanes"), [x0, x1] = S.x, at = (t) => 100 * (t - x0) / (x1 - x0), clip = (p) => Math.max(0, Math.min(100, p));
  box.textContent = "";
  const lane = (name) => {
    const made = el("div", "lane"), label = el("b", "", name);
    label.title = name;
    made.append(label);
    box.append(made);
    return made;
  };
  if (D.marks.length) {
    const marks = lane("marks");
    marks.classList.add("fl");
    for (const [text, t] of D.marks) {
      const p = at(t);
      if (p < 0 || p > 100) continue;
      const flag = el("span", "flag", text);
      flag.style.left = p + "%";
      flag.title = text + " " + clock(t);
      marks.append(flag);
    }
  }
  for (const [name, bands] of D.states) {
    const made = lane(name);
    for (const [from, to, level, word] of bands) {
      const a = at(from), b = at(to);
      if (b < 0 || a > 100) continue;
      if (level === 3) {
        const end = el("span", "kill", "✕ " + word + " " + clock(from));
        if (a > 72) end.style.right = (100 - a) + "%"; else end.style.left = "calc(" + a + "% + 5px)";
        made.append(end);
        continue;
      }
      const band = el("span", "band l" + level, word);
      band.style.left = clip(a) + "%";
      band.style.width = (clip(b) - clip(a)) + "%";
      band.title = name + ": " + word + ", " + clock(from) + " – " + clock(to);
      made.append(band);
    }
  }
}

/* ---- host ---- */
function host() {
  const named = HURT.slice(0, 3), others = D.vms.filter((vm) => !named.includes(vm));
  const sum = (vms) => {
    const all = X.map((t) => isGone[t] ? null : 0);
    for (const vm of vms) {
      const here = waits(vm, 8), values = held(vm);
      for (let t = 0; t < T; t++) if (!isGone[t] && here[t] > 0) all[t] += values[t];
    }
    return all;
  };
  const rows = [sum(others), ...named.slice().reverse().map((vm) => sum([vm]))];
  const colours = ["grey", ...named.slice().reverse().map(colour)];
  const names = [others.length + (others.length === 1 ? " other" : " others"), ...named.slice().reverse().map((vm) => vm.name)];
  const key = $("#k-mem");
  key.textContent = "";
  names.forEach((name, i) => {
    const item = el("span"), sign = el("i");
    sign.style.background = "var(--" + colours[i] + ")";
    item.append(sign, name);
    key.prepend(item);
  });
  const least = Math.min(...D.host.avail.filter((x) => x != null));
  timePlot($("#p-mem"), 150, {
    lines: colours.slice().reverse().map((c) => area(c, "bg")), data: [X, ...stacked(rows)],
    range: (u, a, b) => [0, Math.max(.1, b * 1.05)], readEl: $("#r-mem"), label: "Memory held by VMs over time",
    read: (i) => i == null ? (isFinite(least) ? "least available " + least.toFixed(1) + N + "GiB" : "")
      : isGone[i] ? clock(i) + "  not recorded"
      : clock(i) + "  " + (D.host.avail[i] == null ? "" : "available " + D.host.avail[i].toFixed(1) + ", ") + names.map((name, k) => name + " " + rows[k][i].toFixed(1)).reverse().join(", ") + N + "GiB",
  });
  const most = (values) => Math.max(0, ...values.filter((x) => x != null));
  timePlot($("#p-swap"), 96, {
    lines: [area("blue", "blue"), area("grey", "grey")], data: [X, D.host.in, D.host.out.map((x) => x == null ? null : -x)],
    range: (u, a, b) => [Math.min(-1, a * 1.12), Math.max(1, b * 1.25)], y: { values: (u, s) => s.map((v) => String(Math.abs(v))) },
    readEl: $("#r-swap"), label: "Swap in and out over time",
    read: (i) => i == null ? "most: in " + most(D.host.in).toFixed(0) + ", out " + most(D.host.out).toFixed(0) + N + "MiB/s"
      : D.host.in[i] == null ? clock(i) + "  not known" : clock(i) + "  in " + D.host.in[i].toFixed(1) + ", out " + D.host.out[i].toFixed(1) + N + "MiB/s",
  });
  timePlot($("#p-psi"), 84, {
    lines: [area("grey2", "grey"), { stroke: css("harm"), width: 1.25, points: { show: false } }], data: [X, D.host.some, D.host.full],
    range: (u, a, b) => [0, Math.max(1, b * 1.08)], readEl: $("#r-psi"), label: "Memory pressure of the host over time", bottom: true,
    read: (i) => i == null ? "most: some " + pct(most(D.host.some)) + ", all " + pct(most(D.host.full))
      : D.host.some[i] == null ? clock(i) + "  not known" : clock(i) + "  some " + pct(D.host.some[i]) + ", all " + (D.host.full[i] == null ? "not known" : pct(D.host.full[i])),
  });
}

/* ---- causes ---- */
const PARTS = ["swap-in", "reclaim", "lock", "CPU queue", "other"], PART_COLOURS = ["blue", "blue2", "grey", "amber", "grey2"];
function causes() {
  const vm = D.vms[S.causes];
  if (!vm) return;
  if (!vm.stall) { $("#p-cause").textContent = "Its vCPU threads are not known, so that its waits are not seen."; $("#r-cause").textContent = ""; return; }
  const whole = waits(vm, 7);
  const rows = [0, 1, 2, 3, 4].map((k) => waits(vm, k)).map((row) => X.map((t) => isHere(vm, t) && whole[t] ? 100 * row[t] / whole[t] : null));
  const order = [0, 1, 3, 2, 4];
  timePlot($("#p-cause"), 140, {
    lines: order.slice().reverse().map((k) => area(PART_COLOURS[k], PART_COLOURS[k])), data: [X, ...stacked(order.map((k) => rows[k]))],
    bottom: true, range: (u, a, b) => [0, Math.max(1, b * 1.1)], readEl: $("#r-cause"), label: "What " + vm.name + " waited for over time",
    read: (i) => {
      if (i != null && rows[0][i] == null) return clock(i) + "  not recorded";
      const value = (k) => i == null ? rows[k].slice(D.edges[S.from], D.edges[S.to]).reduce((a, b) => a + (b || 0), 0) : rows[k][i];
      const values = order.map(value), sum = values.reduce((a, b) => a + b, 0);
      if (i == null) return spanText(S.from, S.to) + ": " + order.map((k, j) => PARTS[k] + " " + (sum ? 100 * values[j] / sum : 0).toFixed(0) + N + "%").join(", ");
      return clock(i) + "  " + pct(sum) + " of its vCPU time: " + order.map((k, j) => PARTS[k] + " " + values[j].toFixed(1)).join(", ");
    },
  });
}

/* ---- heat maps ---- */
const ROW = (ns) => (Math.log2(ns) - 8) * 2, EDGE = (row) => 2 ** (8 + row / 2), LEVELS = [1, 3, 10, 30, 100, 300];
/* All maps of a metric have the same axis. */
const rangeOf = (metric) => cached(rangeOf, metric, () => {
  let low = Infinity, high = -Infinity;
  for (const vm of D.vms) for (const cells of heat(vm, metric) || []) for (let k = 0; cells && k < cells.length; k += 2) {
    low = Math.min(low, cells[k]);
    high = Math.max(high, cells[k] + 1);
  }
  return low < high ? [low - 1, Math.max(high + 1, low + 8)] : [ROW(1e3), ROW(1e7)];
});
const DECADES = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10];
function heatPlot(vm, box, readEl, height, bottom, click) {
  const columns = heat(vm, S.metric), range = rangeOf(S.metric);
  if (!columns) { box.textContent = "This map was left out so that the file stays small."; return; }
  const limits = D.limits.filter((limit) => limit.metric === S.metric && limit.vms.includes(D.vms.indexOf(vm)));
  timePlot(box, height, {
    lines: [{ stroke: "transparent", points: { show: false } }], data: [X, X.map(() => null)], range: () => range, bottom, click, readEl,
    label: "Latencies of " + vm.name + " over time; arrow keys move, Enter opens a moment",
    y: { splits: () => DECADES.map(ROW).filter((row) => row >= range[0] && row <= range[1]), values: (u, s) => s.map((row) => tick(Math.round(EDGE(row)))), space: 14 },
    read: (i) => {
      if (i != null && i >= D.mapsEnd) return clock(i) + "  not drawn";
      if (i != null && !isHere(vm, i)) return clock(i) + (i >= vm.died ? "  " + vm.end : "  not recorded");
      let n = 0, top = 0;
      for (let t = i ?? D.edges[S.from]; t < (i == null ? D.edges[S.to] : i + 1); t++) for (let k = 0; columns[t] && k < columns[t].length; k += 2) { n += columns[t][k + 1]; top = Math.max(top, columns[t][k]); }
      if (i == null) return int(n) + " faults in " + spanText(S.from, S.to);
      return clock(i) + "  " + int(n) + " faults" + (n ? ", slowest " + lat(Math.round(EDGE(top))) + " – " + lat(Math.round(EDGE(top + 1))) : "");
    },
    draw: (u) => drawHeat(u, vm, columns, limits, height),
  });
}
function drawHeat(u, vm, columns, limits, height) {
  const c = u.ctx, r = devicePixelRatio, ramp = LEVELS.map((_, i) => css("h" + (i + 1))), { left, top, width } = u.bbox;
  const x0 = Math.floor(u.scales.x.min), x1 = Math.ceil(u.scales.x.max);
  const bin = Math.max(1, Math.ceil(1.2 * r / (width / (x1 - x0 + 1))));
  const x = (t) => Math.round(u.valToPos(t, "x", true)), y = (row) => Math.round(u.valToPos(row, "y", true));
  c.save();
  c.beginPath();
  c.rect(left, top, width, u.bbox.height);
  c.clip();
  for (let t = x0 - x0 % bin; t <= x1; t += bin) {
    /* The highest count under a pixel: zooming in changes no colour. */
    const most = new Map();
    for (let k = t; k < t + bin && k < T; k++) for (let q = 0; columns[k] && q < columns[k].length; q += 2) most.set(columns[k][q], Math.max(most.get(columns[k][q]) || 0, columns[k][q + 1]));
    const a = x(t - .5), w = Math.max(1, x(t + bin - .5) - a);
    for (const [row, n] of most) {
      let level = 0;
      while (level < 5 && n >= LEVELS[level + 1]) level++;
      c.fillStyle = ramp[level];
      c.fillRect(a, y(row + 1), w, y(row) - y(row + 1));
    }
  }
  c.fillStyle = css("sf");
  if (vm.born > 0) c.fillRect(left, top, x(vm.born - .5) - left, u.bbox.height);
  if (D.mapsEnd < T) { const a = x(D.mapsEnd - .5); c.fillRect(a, top, left + width - a, u.bbox.height); }
  if (vm.died < T) { const a = x(vm.died - .5); c.fillRect(a, top, left + width - a, u.bbox.height); }
  c.font = 12 * r + "px system-ui,sans-serif";
  c.textAlign = "left";
  c.textBaseline = "alphabetic";
  if (vm.died < T) { c.fillStyle = css("ink2"); c.fillText(" " + vm.end + " " + clock(vm.died), x(vm.died - .5) + 4 * r, top + u.bbox.height / 2); }
  for (const limit of limits) {
    const at = y(ROW(limit.ns)) + .5;
    c.strokeStyle = c.fillStyle = css("harm");
    c.lineWidth = r;
    c.setLineDash([5 * r, 4 * r]);
    c.beginPath();
    c.moveTo(left, at);
    c.lineTo(left + width, at);
    c.stroke();
    c.setLineDash([]);
    if (height > 90) halo(c, limit.text, left + 6 * r, at - 5 * r);
  }
  c.restore();
}
const halo = (c, text, x, y) => {
  c.save();
  c.lineJoin = "round";
  c.lineWidth = 4 * devicePixelRatio;
  c.strokeStyle = css("bg");
  c.strokeText(text, x, y);
  c.restore();
  c.fillText(text, x, y);
};
function heats() {
  const all = $("#heats");
  const long = HURT.length ? HURT : D.vms.slice(0, 1);
  if (!all.children.length) for (const [i, vm] of long.entries()) {
    const box = el("div"), head = el("div", "ph");
    box.id = "h" + i;
    head.append(el("h3", "", vm.name), el("span", "read"));
    box.append(head, el("div", "plot"), el("div", "secbox"));
    all.append(box);
  }
  $$("#heats>div").forEach((box, i) => heatPlot(long[i], $(".plot", box), $(".read", box), i < 2 ? 150 : 112, i === long.length - 1, (t) => moment(long[i], t, $(".secbox", box))));
  const quiet = D.vms.filter((vm) => !long.includes(vm) && heat(vm, S.metric));
  $("#quiet").hidden = !quiet.length;
  if ($("#quiet").open) quiets(quiet);
}
function quiets(vms) {
  const all = $("#quiets");
  all.textContent = "";
  vms.forEach((vm, i) => {
    const head = el("div", "ph"), read = el("span", "read"), box = el("div", "plot");
    head.append(el("h3", "", vm.name), read);
    all.append(head, box);
    heatPlot(vm, box, read, i === vms.length - 1 ? 76 : 60, i === vms.length - 1);
  });
}
/* The slow faults of a column. */
function moment(vm, t, box) {
  if (t == null) return;
  box.textContent = "";
  const all = D.slow[D.vms.indexOf(vm)] || [], here = all.find((row) => row[0] === t);
  const made = el("div", "sec"), head = el("div", "ph");
  made.setAttribute("aria-live", "polite");
  head.append(el("h3", "", clock(t) + " UTC"), el("span", "dim", here ? here[1] + " slow faults; the slowest " + here[2].length : "no slow fault"));
  const nav = el("span", "noprint");
  nav.style.marginLeft = "auto";
  const go = (text, act) => { const button = el("button", "", text); button.onclick = act; nav.append(button, " "); };
  go("◂ earlier", () => moment(vm, (all.filter((row) => row[0] < t).pop() || [t])[0], box));
  go("later ▸", () => moment(vm, (all.find((row) => row[0] > t) || [t])[0], box));
  go("close", () => { box.textContent = ""; });
  head.append(nav);
  made.append(head);
  if (here) made.append(slowTable(here[2]));
  else made.append(el("p", "dim", D.withoutSlow ? "Slow faults were left out so that this file stays small; slow-faults.csv has them." : all.length ? "None of this moment was as slow as --slow-faults asks for." : "Slow faults were not recorded, or there were none; record with --slow-faults 1ms."));
  box.append(made);
}
function slowTable(faults) {
  const scroll = el("div", "scroll"), table = el("table"), head = el("tr");
  for (const text of ["latency", "cause", "thread", "page", "had been evicted by", "where it slept longest (kernel, folded)"]) {
    const cell = el("th", "", text);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(head);
  for (const [us, thread, what, by, address, stack, parts] of faults) {
    const row = el("tr"), latency = el("td", "num"), cause = el("td"), bar = el("div", "pb"), frames = el("div", "st mono");
    latency.append(el("b", "", lat(us * 1e3)));
    const rest = Math.max(0, 100 - parts.reduce((a, b) => a + b, 0));
    [...parts, rest].forEach((share, k) => {
      const part = el("span");
      part.style.width = share + "%";
      part.style.background = "var(--" + PART_COLOURS[k] + ")";
      part.title = PARTS[k] + " " + share + " %";
      bar.append(part);
    });
    cause.append(el("span", "", D.words[what]), bar);
    D.words[stack].split(";").forEach((frame, i) => { if (i) frames.append(";", el("wbr")); frames.append(frame); });
    const where = el("td");
    where.append(frames);
    row.append(latency, cause, el("td", "", D.words[thread]), el("td", "mono", address), el("td", "", D.words[by] || "–"), where);
    table.append(row);
  }
  scroll.append(table);
  return scroll;
}

/* ---- percentiles ---- */
const PX = Array.from({ length: 265 }, (_, i) => i * .02);
const NINES = [[0, "0"], [Math.log10(2), "50"], [1, "90"], [2, "99"], [3, "99.9"], [4, "99.99"], [5, "99.999"]];
let percentiles;
const curve = (of) => {
  let k = 0, passed = of.n ? of.counts.get(of.keys[0]) : 0;
  return PX.map((x) => {
    if (10 ** x > of.n * 1.0001) return null;
    const wanted = Math.ceil((1 - 10 ** -x) * of.n);
    while (passed < wanted && k < of.keys.length - 1) passed += of.counts.get(of.keys[++k]);
    return Math.max(1, Math.min(highest(of.keys[k]), of.max));
  });
};
function perc() {
  const vms = D.vms.slice().sort((a, b) => (b.rank ?? 99) - (a.rank ?? 99)), box = $("#p-perc"), wide = innerWidth > 620;
  const of = vms.map((vm) => hist(vm, S.metric, S.from, S.to));
  const compared = S.cmp === "" ? [] : vms.filter((vm) => vm.rank != null);
  const ofCompared = compared.map((vm) => hist(vm, S.metric, +S.cmp, +S.cmp + 1));
  const any = of.filter((h) => h.n), lows = any.map((h) => Math.max(1, quantile(h, 0.000001))), tops = any.map((h) => h.max);
  const range = any.length ? [Math.max(1, Math.min(...lows) / 1.5), Math.max(...tops) * 1.5] : [1e3, 1e7];
  box.textContent = "";
  if (percentiles) percentiles.destroy();
  percentiles = null;
  if (!any.length) { box.textContent = "No " + S.metric + " was counted in this span."; listPercentiles(vms, of, compared, ofCompared, null); return; }
  const line = (vm, dash) => ({ label: vm.name, stroke: css(colour(vm)), width: vm.rank != null && !dash ? 2 : 1, dash, points: { show: false } });
  const nines = wide ? NINES : NINES.slice(1, 6);
  percentiles = new uPlot({
    width: box.clientWidth, height: wide ? 400 : 300, padding: [14, wide ? 76 : 58, 0, 0], legend: { show: false }, focus: { alpha: .25 },
    cursor: { drag: { x: false, y: false }, points: { size: 6 }, y: false },
    scales: { x: { time: false, range: () => [0, 5.25] }, y: { distr: 3, range: () => range } },
    axes: [
      { stroke: css("ink2"), font: FONT, grid: grid(), ticks: { show: false }, size: 26, space: 10, splits: () => nines.map((p) => p[0]), values: (u, s) => s.map((x, i) => nines[i][1] + N + "%") },
      valueAxis({ splits: () => DECADES.filter((y) => y > range[0] && y < range[1]), values: (u, s) => s.map(tick), size: wide ? 56 : 48 }),
    ],
    series: [{}, ...vms.map((vm) => line(vm)), ...compared.map((vm) => line(vm, [4, 4]))],
    hooks: { setCursor: [(u) => listPercentiles(vms, of, compared, ofCompared, u.cursor.left < 0 ? null : u.cursor.idx)], draw: [(u) => drawEnds(u, vms, of)] },
  }, [PX, ...of.map(curve), ...ofCompared.map(curve)], box);
  listPercentiles(vms, of, compared, ofCompared, null);
  box.tabIndex = 0;
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", "Latency by percentile of all VMs; arrow keys move along the percentiles");
  box.onkeydown = (e) => {
    const by = { ArrowLeft: -5, ArrowRight: 5 }[e.key];
    if (!by) return;
    const i = Math.max(0, Math.min(PX.length - 1, (percentiles.cursor.idx ?? 100) + by));
    percentiles.setCursor({ left: percentiles.valToPos(PX[i], "x"), top: 10 });
    e.preventDefault();
  };
}
function listPercentiles(vms, of, compared, ofCompared, i) {
  const x = i == null ? 2 : PX[i], p = 1 - 10 ** -x, body = $("#pl tbody");
  const at = (h) => h.n >= 10 ** x * .9999 ? quantile(h, p) : null, word = (h, q) => q == null ? (h.n ? "too few" : "none") : lat(q);
  body.textContent = "";
  $("#pl-at").textContent = i == null ? "p99" : "p" + (p * 100).toFixed(x < 1 ? 0 : x < 2 ? 1 : x < 3 ? 2 : 3);
  $("#pl-cmp").hidden = S.cmp === "";
  const rows = vms.map((vm, k) => ({ vm, h: of[k], q: at(of[k]) })).sort((a, b) => (b.q ?? -1) - (a.q ?? -1));
  for (const { vm, h, q } of rows) {
    const row = el("tr"), name = el("td"), sign = el("i", vm.rank == null ? "th" : "");
    sign.style.borderColor = css(colour(vm));
    name.append(sign, vm.name);
    name.title = vm.name;
    row.append(name, el("td", "num", word(h, q)));
    if (S.cmp !== "") { const k = compared.indexOf(vm); row.append(el("td", "num dim", k < 0 ? "" : word(ofCompared[k], at(ofCompared[k])))); }
    row.append(el("td", "num dim", int(h.n)));
    row.onmouseenter = () => percentiles && percentiles.setSeries(vms.indexOf(vm) + 1, { focus: true });
    row.onmouseleave = () => percentiles && percentiles.setSeries(null, { focus: true });
    body.append(row);
  }
}
/* The last fault of each curve, with its name, and objectives. */
function drawEnds(u, vms, of) {
  const c = u.ctx, r = devicePixelRatio, X = (x) => u.valToPos(x, "x", true), Y = (y) => u.valToPos(y, "y", true), used = [];
  c.save();
  c.textAlign = "left";
  c.textBaseline = "alphabetic";
  vms.forEach((vm, k) => {
    if (vm.rank == null || !of[k].n) return;
    const end = Math.min(5.2, Math.log10(of[k].n)), y = Y(Math.max(1, quantile(of[k], 1 - 10 ** -end)));
    c.fillStyle = css(colour(vm));
    c.beginPath();
    c.arc(X(end), y, 2.5 * r, 0, 7);
    c.fill();
    let at = y;
    while (used.some((other) => Math.abs(other - at) < 14 * r)) at += 3 * r;
    used.push(at);
    c.font = "600 " + 12 * r + "px system-ui,sans-serif";
    halo(c, vm.name.length > 12 ? vm.name.slice(0, 11) + "…" : vm.name, X(end) + 6 * r, at + 4 * r);
  });
  c.font = 12 * r + "px system-ui,sans-serif";
  for (const limit of D.limits.filter((limit) => limit.metric === S.metric)) {
    const x = X(Math.min(5.25, -Math.log10(Math.max(1e-6, 1 - limit.q)))), y = Y(limit.ns);
    c.strokeStyle = c.fillStyle = css("harm");
    c.lineWidth = 1.25 * r;
    c.setLineDash([5 * r, 4 * r]);
    c.beginPath();
    c.moveTo(u.bbox.left, y);
    c.lineTo(x, y);
    c.stroke();
    c.setLineDash([]);
    c.beginPath();
    c.moveTo(x - 5 * r, y - 8 * r);
    c.lineTo(x + 5 * r, y - 8 * r);
    c.lineTo(x, y);
    c.fill();
    halo(c, limit.text, u.bbox.left + 6 * r, y - 6 * r);
  }
  c.restore();
}

/* ---- matrix: with one span it stays as it was printed ---- */
function matrix() {
  if (last < 2) return;
  const add = (spans) => spans.slice(S.from, S.to).reduce((a, b) => a.map((pages, i) => pages + b[i]));
  const rows = D.taken.map(add), sums = rows.map((row) => row.reduce((a, b) => a + b, 0)), most = Math.max(1, ...sums);
  const mib = (pages) => int(Math.ceil(pages * D.pageMib));
  $$(".mx tbody tr").forEach((row, i) => {
    $$(".c", row).forEach((cell, k) => {
      const pages = rows[i][k];
      cell.textContent = pages ? mib(pages) : "·";
      cell.style.setProperty("--a", pages ? 6 + Math.floor(74 * Math.sqrt(pages / most)) : 0);
    });
    $(".tot", row).textContent = mib(sums[i]);
  });
}

/* ---- table: of the whole recording as its summary has it ---- */
const byId = new Map(D.vms.map((vm) => [vm.id, vm]));
function table() {
  const from = D.edges[S.from], to = D.edges[S.to], isWhole = S.from === 0 && S.to === last;
  for (const row of $$("#vmt tbody tr")) {
    const vm = byId.get(row.dataset.vm);
    if (!vm) continue;
    if (isWhole) {
      for (const cell of row.cells) if (cell.first) [cell.dataset.v, cell.textContent] = cell.first;
      continue;
    }
    const [memory, cpu, vcpus, recorded] = [5, 6, 7, 8].map((k) => sumOf(waits(vm, k), from, to));
    const h = hist(vm, "fault.major", S.from, S.to), seconds = recorded / 1e4;
    const set = (key, value, text) => {
      const cell = $("[data-k=" + key + "]", row);
      cell.first ??= [cell.dataset.v, cell.textContent];
      [cell.dataset.v, cell.textContent] = [value ?? -1, text];
    };
    const share = (seen, part) => !seen ? [null, "not seen"] : vcpus ? [part / vcpus, pct(100 * part / vcpus)] : [null, "–"];
    set("stall", ...share(vm.stall, memory));
    set("cpu", ...share(vm.cpu, cpu));
    set("rate", seconds ? h.n / seconds : null, seconds ? rate(h.n / seconds) : "–");
    for (const [key, q, least] of [["p50", .5, 2], ["p99", .99, 100], ["p999", .999, 1000]]) {
      const value = h.n >= least ? quantile(h, q) : null;
      set(key, value, value == null && h.n ? "too few" : lat(value));
    }
    set("max", h.n ? h.max : null, h.n ? lat(h.max) : "–");
  }
  sort();
}
let sorted = null;
function sort() {
  if (!sorted) return;
  const [key, way] = sorted, body = $("#vmt tbody");
  const value = (row) => { const cell = $("[data-k=" + key + "]", row); return cell.dataset.v !== undefined ? +cell.dataset.v : cell.textContent; };
  body.append(...$$("tr", body).sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * way; }));
  $$("#vmt thead th").forEach((head) => head.removeAttribute("aria-sort"));
  $("#vmt thead th[data-k=" + key + "]").setAttribute("aria-sort", way < 0 ? "descending" : "ascending");
}
$$("#vmt thead th[data-k] button").forEach((button) => { button.onclick = () => {
  const key = button.parentNode.dataset.k;
  sorted = [key, sorted && sorted[0] === key ? -sorted[1] : key === "vm" || key === "state" ? 1 : -1];
  sort();
}; });
const filter = () => {
  const wanted = $("#filter").value.toLowerCase(), rows = $$("#vmt tbody tr");
  let shown = 0;
  for (const row of rows) { row.hidden = !row.textContent.toLowerCase().includes(wanted); shown += !row.hidden; }
  $("#fn").textContent = shown + " of " + rows.length;
};
$("#filter").oninput = filter;

/* ---- wiring ---- */
function time() {
  plots.forEach((u) => { sync.unsub(u); u.destroy(); });
  plots = [];
  const [from, to] = S.x;
  lanes();
  host();
  causes();
  heats();
  if (from > 0 || to < T - 1) plots.forEach((u) => u.setScale("x", { min: from, max: to }));
}
const all = () => {
  palette = {};
  time();
  perc();
  matrix();
  table();
  const text = spanText(S.from, S.to) + ", " + clock(D.edges[S.from]) + " – " + clock(D.edges[S.to]) + ".";
  $$(".spant").forEach((span) => { span.textContent = text; });
};
const option = (select, value, text) => { const made = el("option", "", text); made.value = value; select.append(made); };
const from = $("#from"), to = $("#to"), cmp = $("#cmp");
D.edges.forEach((_, i) => { if (i < last) option(from, i, edgeName(i)); if (i > 0) option(to, i, edgeName(i)); });
option(cmp, "", "nothing");
for (let i = 0; i < last; i++) option(cmp, i, spanText(i, i + 1));
from.value = 0;
to.value = last;
from.onchange = () => { S.from = +from.value; if (S.to <= S.from) { S.to = S.from + 1; to.value = S.to; } all(); };
to.onchange = () => { S.to = +to.value; if (S.to <= S.from) { S.from = S.to - 1; from.value = S.from; } all(); };
cmp.onchange = () => { S.cmp = cmp.value; perc(); };
$("#metric").onchange = (e) => { S.metric = e.target.value; time(); perc(); };
D.vms.forEach((vm, i) => option($("#cvm"), i, vm.name));
$("#cvm").onchange = (e) => { S.causes = +e.target.value; time(); };
$("#theme").onclick = () => {
  const now = root.dataset.theme || (matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  all();
};
matchMedia("(prefers-color-scheme:dark)").addEventListener("change", all);
$("#zoom").onclick = showAll;
$("#quiet").addEventListener("toggle", time);
let opened = [], theme;
addEventListener("beforeprint", () => {
  opened = $$("details:not([open])");
  opened.forEach((details) => { details.open = true; });
  theme = root.dataset.theme;
  root.dataset.theme = "light";
  all();
});
addEventListener("afterprint", () => {
  opened.forEach((details) => { details.open = false; });
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  all();
});
let width = innerWidth, waiting;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; clearTimeout(waiting); waiting = setTimeout(all, 80); } });
root.classList.add("js");
filter();
all();
/* The worst moment of the worst VM is open at first: that teaches the click. */
const slowest = (row) => row[2].length ? row[2][0][0] : 0;
const worst = (D.slow[0] || []).reduce((a, b) => a && slowest(a) >= slowest(b) ? a : b, null);
if (worst && HURT.length) moment(D.vms[0], worst[0], $("#heats .secbox"));
root.dataset.ready = "1";
})().catch((error) => {
  document.documentElement.dataset.error = error.message;
  console.error(error);
  const notice = document.querySelector("#noplots");
  notice.hidden = false;
  notice.textContent = "The plots could not be drawn (" + error.message + "). Every figure is in the tables.";
});
