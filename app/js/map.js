// A scatter of points on a canvas: colours by name, a click or the arrow keys choose a point.
const COLOURS = [
  "#3f8f7d", "#c8703a", "#5b7fc0", "#b0577f", "#8a8f2f", "#7d62b5",
  "#3c9bb5", "#c79a2a", "#8c5a3c", "#5f9c4b", "#c2514a", "#6f7b84", "#a9aaa3",
];
const box = element.querySelector(".map") || element;
let xy = null, colours = null, chosen = -1, drawn = [];

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function lay() {
  const value = props.value;
  box.textContent = "";
  chosen = -1;
  if (!value || !value.count) { xy = null; return; }
  xy = new Int16Array(bytes(value.xy).buffer);
  colours = bytes(value.colours);
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `Map of ${value.count} pictures; arrow keys go to the next point, Enter shows it`);
  const legend = document.createElement("ul");
  legend.className = "legend";
  value.legend.forEach(([name, count], row) => {
    const item = document.createElement("li"), dot = document.createElement("i");
    dot.style.background = COLOURS[row === value.more ? COLOURS.length - 1 : row];
    item.append(dot, `${name} `, Object.assign(document.createElement("span"), { textContent: count }));
    legend.append(item);
  });
  box.append(canvas, legend);
  canvas.addEventListener("click", (event) => {
    const area = canvas.getBoundingClientRect();
    choose(nearest(event.clientX - area.left, event.clientY - area.top));
  });
  canvas.addEventListener("keydown", walk);
  draw();
}

function draw() {
  const canvas = box.querySelector("canvas");
  if (!canvas || !xy) return;
  const width = box.clientWidth, height = Math.max(280, Math.min(width * 0.68, 620));
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const count = xy.length / 2, radius = count > 5000 ? 1.8 : count > 800 ? 3 : 5, edge = 14;
  drawn = new Float32Array(xy.length);
  pen.globalAlpha = count > 5000 ? 0.6 : 0.85;
  for (let row = 0; row < count; row++) {
    const x = edge + ((xy[2 * row] / 32767 + 1) / 2) * (width - 2 * edge);
    const y = edge + ((1 - xy[2 * row + 1] / 32767) / 2) * (height - 2 * edge);
    drawn[2 * row] = x;
    drawn[2 * row + 1] = y;
    pen.fillStyle = COLOURS[colours[row]];
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fill();
  }
  if (chosen >= 0) {
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(box).color;
    pen.lineWidth = 2.5;
    pen.beginPath();
    pen.arc(drawn[2 * chosen], drawn[2 * chosen + 1], radius + 5, 0, 7);
    pen.stroke();
  }
}

function nearest(x, y) {
  let best = -1, least = 26 * 26;
  for (let row = 0; row < drawn.length / 2; row++) {
    const far = (drawn[2 * row] - x) ** 2 + (drawn[2 * row + 1] - y) ** 2;
    if (far < least) { least = far; best = row; }
  }
  return best;
}

function walk(event) {
  if (event.key === "Enter") { choose(Math.max(chosen, 0)); return; }
  const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!way) return;
  event.preventDefault();
  if (chosen < 0) { choose(0); return; }
  const x = drawn[2 * chosen], y = drawn[2 * chosen + 1];
  let best = -1, least = Infinity;
  for (let row = 0; row < drawn.length / 2; row++) {
    const dx = drawn[2 * row] - x, dy = drawn[2 * row + 1] - y;
    const along = dx * way[0] + dy * way[1], across = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
    if (row !== chosen && along > 0 && across <= along && along + 2 * across < least) {
      least = along + 2 * across;
      best = row;
    }
  }
  if (best >= 0) choose(best);
}

function choose(row) {
  if (row < 0) return;
  chosen = row;
  draw();
  if (!timer) tell();
}

// While an answer is on its way Gradio drops further events: the last point chosen is told after it.
let told = -1, timer = 0;
function tell() {
  timer = 0;
  const asked = document.querySelector("#point .html-container");
  if (asked && asked.classList.contains("pending")) { timer = setTimeout(tell, 40); return; }
  told = chosen;
  trigger("select", { action: "point", id: String(told) });
  timer = setTimeout(() => { timer = 0; if (told !== chosen && chosen >= 0) tell(); }, 40);
}

watch("value", lay);
new ResizeObserver(draw).observe(box);
lay();
