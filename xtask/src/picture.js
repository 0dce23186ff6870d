/* Makes an SVG of a page that draws itself: what its canvases were told, boxes, lines, and words where
   they stand. It takes the place of the page, down to the end of END. */
(() => {
"use strict";
const END = "#heats .plot";
const n = (x) => String(+x.toFixed(1));
const pieces = new Map();

class Path {
  constructor(from) { Object.assign(this, from || { d: "", ends: [] }); }
  /* From where the last point is, as far as one can see. */
  step(x, y) {
    const [lastX, lastY] = this.ends[this.ends.length - 1];
    return n(n(x) - lastX) + " " + n(n(y) - lastY);
  }
  moveTo(x, y) {
    this.d += "M" + n(x) + " " + n(y);
    this.ends = [[n(x), n(y), this.d]];
  }
  lineTo(x, y) {
    if (!this.ends.length) { this.moveTo(x, y); return; }
    /* What lies on one level needs two points. */
    const [a, b] = this.ends.slice(-2);
    if (b && a[1] === n(y) && b[1] === n(y)) { this.ends.pop(); this.d = a[2]; }
    this.d += "l" + this.step(x, y);
    this.ends = [this.ends[this.ends.length - 1], [n(x), n(y), this.d]];
  }
  rect(x, y, w, h) { this.d += "M" + n(x) + " " + n(y) + "h" + n(w) + "v" + n(h) + "h" + n(-w) + "z"; }
  closePath() { this.d += "z"; }
  /* A dot, as the page draws them. */
  arc(x, y, r) { this.d += "M" + n(x - r) + " " + n(y) + "a" + [n(r), n(r), 0, 1, 0, n(2 * r), 0].join(" ") + "a" + [n(r), n(r), 0, 1, 0, n(-2 * r), 0].join(" ") + "z"; }
  bezierCurveTo(...at) { this.d += "C" + at.map(n).join(" "); }
}
window.Path2D = Path;

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
const element = (name, of, content) => {
  const attributes = Object.entries(of).filter(([, value]) => value != null && value !== "");
  return "<" + name + attributes.map(([key, value]) => " " + key + "=\"" + escaped(String(value)) + "\"").join("") + (content == null ? "/>" : ">" + content + "</" + name + ">");
};

/* What stands in for a canvas's context. */
class Pen {
  state = { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1, font: "10px sans-serif", textAlign: "start", textBaseline: "alphabetic", dash: [], x: 0, y: 0, within: "" };
  saved = [];
  path = new Path();
  constructor(canvas, real) {
    this.canvas = canvas;
    this.real = real;
    for (const key of Object.keys(this.state)) Object.defineProperty(this, key, { get: () => this.state[key], set: (value) => { this.state[key] = value; } });
  }
  save() { this.saved.push({ ...this.state }); }
  restore() { this.state = this.saved.pop() || this.state; }
  translate(x, y) { this.x += x; this.y += y; }
  setTransform() { this.x = this.y = 0; }
  rotate() {}
  setLineDash(dash) { this.dash = dash; }
  measureText(text) { this.real.font = this.font; return this.real.measureText(text); }
  clearRect() { pieces.set(this.canvas, []); }
  beginPath() { this.path = new Path(); }
  clip(path = this.path) { this.within = path.d; }
  put(kind, of) {
    const { x, y, globalAlpha, within } = this;
    const all = pieces.get(this.canvas) || [];
    const move = x || y ? "translate(" + n(x) + " " + n(y) + ")" : null;
    const opacity = globalAlpha === 1 ? null : globalAlpha;
    const key = JSON.stringify([kind, of.fill, of.stroke, move, opacity, within]);
    const made = { kind, key, within, of: { ...of, transform: move, opacity } };
    all.push(made);
    pieces.set(this.canvas, all);
    return [made, all];
  }
  fill(path = this.path) { this.put("path", { d: path.d, fill: this.fillStyle }); }
  stroke(path = this.path) { this.put("path", { d: path.d, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, "stroke-dasharray": this.dash.join(" ") }); }
  /* Small boxes of one colour that follow each other, with none but boxes between them, are one path:
     those of a map do not overlap. */
  fillRect(x, y, w, h) {
    const path = new Path();
    path.rect(x, y, w, h);
    const [made, all] = this.put("path", { d: path.d, fill: this.fillStyle });
    made.corner = [n(x), n(y)];
    const start = all.findLastIndex((piece) => !piece.corner) + 1;
    const before = all.slice(start, -1).find((piece) => piece.key === made.key);
    if (!before) return;
    all.pop();
    const [lastX, lastY] = before.corner;
    before.of.d += path.d.replace(/^M\S+ [^h]+/, "m" + n(n(x) - lastX) + " " + n(n(y) - lastY));
    before.corner = made.corner;
  }
  /* What keeps the lines behind a word away from it. */
  strokeText() {}
  fillText(text, x, y) {
    const size = parseFloat(this.font.match(/[\d.]+(?=px)/)), shift = { top: .8, middle: .35, bottom: -.2, alphabetic: 0 }[this.textBaseline] || 0;
    const anchor = { left: "start", right: "end", center: "middle" }[this.textAlign] || this.textAlign;
    this.put("text", { x: n(x), y: n(y + shift * size), "font-size": size, fill: this.fillStyle, "text-anchor": anchor === "start" ? null : anchor, text });
  }
}
for (const name of ["moveTo", "lineTo", "rect", "arc", "closePath", "bezierCurveTo"]) Pen.prototype[name] = function (...at) { this.path[name](...at); };
const context = HTMLCanvasElement.prototype.getContext;
const pens = new WeakMap();
HTMLCanvasElement.prototype.getContext = function (...kind) {
  if (!pens.has(this)) pens.set(this, new Pen(this, context.apply(this, kind)));
  return pens.get(this);
};

/* ---- the page ---- */
const clips = new Map();
const clip = (d) => d && "url(#c" + (clips.get(d) ?? (clips.set(d, clips.size), clips.size - 1)) + ")";
const isSeen = (colour) => colour !== "transparent" && !/^rgba.*, 0\)$/.test(colour);
const ruler = context.call(document.createElement("canvas"), "2d");
const words = (node, style, most, out) => {
  const range = document.createRange();
  let line = null;
  const put = () => {
    if (!line) return;
    ruler.font = style.font;
    const { fontBoundingBoxAscent: up, fontBoundingBoxDescent: down } = ruler.measureText("x");
    const y = line.top + (line.height - up - down) / 2 + up;
    out.push(element("text", {
      x: n(line.left), y: n(y), "font-size": parseFloat(style.fontSize), fill: style.color, textLength: n(line.right - line.left),
      "font-weight": style.fontWeight === "400" ? null : style.fontWeight, class: style.fontFamily.includes("mono") ? "m" : null,
    }, escaped(node.data.slice(line.from, line.to).replace(/\s+/g, " "))));
    line = null;
  };
  for (const word of node.data.matchAll(/\S+/g)) {
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    const at = range.getClientRects()[0];
    if (!at || !at.width || at.right > most + 1) continue;
    if (line && Math.abs(at.top - line.top) > 2) put();
    line ??= { from: word.index, left: at.left, top: at.top, height: at.height };
    line.right = at.right;
    line.to = word.index + word[0].length;
  }
  put();
};
const box = (x, y, w, h, fill, rx) => element("rect", { x: n(x), y: n(y), width: n(w), height: n(h), fill, rx });
const walk = (node, end, most, out) => {
  const style = getComputedStyle(node), at = node.getBoundingClientRect();
  if (style.display === "none" || style.visibility === "hidden" || at.top >= end || style.position === "absolute" && !at.width) return;
  if (isSeen(style.backgroundColor) && at.width) out.push(box(at.left, at.top, at.width, at.height, style.backgroundColor, parseFloat(style.borderRadius) || null));
  for (const [side, x, y, w, h] of [["Top", at.left, at.top, at.width, 0], ["Bottom", at.left, at.bottom, at.width, 0], ["Left", at.left, at.top, 0, at.height], ["Right", at.right, at.top, 0, at.height]]) {
    const width = style["border" + side + "Style"] === "none" ? 0 : parseFloat(style["border" + side + "Width"]), colour = style["border" + side + "Color"];
    if (!width || !isSeen(colour)) continue;
    out.push(box(side === "Right" ? x - width : x, side === "Bottom" ? y - width : y, w || width, h || width, colour));
  }
  if (node.tagName === "CANVAS") {
    const inner = (pieces.get(node) || []).map(({ kind, within, of: { text, ...of } }) => element(kind, { ...of, "clip-path": clip(within) }, kind === "text" ? escaped(text) : null));
    out.push(element("g", { transform: "translate(" + n(at.left) + " " + n(at.top) + ")" }, inner.join("\n")));
    return;
  }
  if (node.tagName === "svg") {
    const shapes = [...node.children].map((shape) => {
      const of = getComputedStyle(shape), points = shape.getAttribute("points");
      return element(shape.tagName, { d: shape.getAttribute("d"), points, fill: "none", stroke: of.stroke, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" });
    });
    out.push(element("svg", { x: n(at.left), y: n(at.top), width: n(at.width), height: n(at.height), viewBox: node.getAttribute("viewBox"), preserveAspectRatio: "none" }, shapes.join("")));
    return;
  }
  if (node.tagName === "SELECT") {
    const size = parseFloat(style.fontSize);
    out.push(element("text", { x: n(at.left + 8), y: n(at.top + at.height / 2 + size * .35), "font-size": size, "font-weight": style.fontWeight === "400" ? null : style.fontWeight, fill: style.color }, escaped(node.selectedOptions[0].text)));
    return;
  }
  /* What is closed has its places all the same. */
  if (node.tagName === "DETAILS" && !node.open) {
    walk(node.firstElementChild, end, most, out);
    return;
  }
  const within = style.overflowX === "hidden" ? Math.min(most, at.right) : most;
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) words(child, style, within, out);
    else if (child.nodeType === Node.ELEMENT_NODE) walk(child, end, within, out);
  }
};
const picture = () => {
  const end = Math.ceil(document.querySelector(END).getBoundingClientRect().bottom) + 4, width = innerWidth, out = [];
  const ground = getComputedStyle(document.body).backgroundColor;
  walk(document.body, end, width, out);
  const defs = [...clips].map(([d, number]) => element("clipPath", { id: "c" + number }, element("path", { d })));
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + width + " " + end + "\" role=\"img\" aria-label=\"The report of an invented host\">\n" +
    "<style>text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}.m{font-family:ui-monospace,Menlo,Consolas,monospace}</style>\n" +
    "<defs>" + defs.join("") + "</defs>\n" + box(0, 0, width, end, ground) + "\n" + out.join("\n") + "\n</svg>\n";
};
const wait = setInterval(() => {
  if (document.documentElement.dataset.ready !== "1") return;
  clearInterval(wait);
  const made = picture(), pre = document.createElement("pre");
  pre.id = "picture";
  pre.textContent = made;
  document.body.replaceChildren(pre);
}, 50);
})();
